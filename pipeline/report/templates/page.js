// Unpacks plotly.js and draws the plots; again when the width, the colour scheme or the medium changes.
"use strict";
(async () => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const packed = document.getElementById("plotly");
  try {
    const bytes = Uint8Array.from(atob(packed.textContent), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  } catch (error) {
    for (const plot of plots) {
      plot.classList.add("failed");
      plot.textContent = "This browser is too old to draw the plot. " + plot.getAttribute("aria-label");
    }
    root.dataset.drawn = "no";
    return;
  }
  const coloured = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map(item => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  };
  const draw = (plot, width) => {
    if (plot.closest("details:not([open])")) return;  // drawn when it opens
    const figure = coloured(JSON.parse(plot.nextElementSibling.textContent), getComputedStyle(root));
    figure.layout.font.family = getComputedStyle(document.body).fontFamily;
    figure.layout.width = width || plot.clientWidth;
    Plotly.react(plot, figure.data, figure.layout, {displayModeBar: false});
  };
  const drawAll = () => plots.forEach(plot => draw(plot));
  drawAll();
  root.dataset.drawn = "yes";
  const seen = new WeakMap();
  const observer = new ResizeObserver(entries => {
    for (const {target} of entries) {
      if (seen.get(target) !== target.clientWidth) { seen.set(target, target.clientWidth); draw(target); }
    }
  });
  plots.forEach(plot => { seen.set(plot, plot.clientWidth); observer.observe(plot); });
  document.querySelectorAll("details").forEach(details => details.addEventListener("toggle", () => {
    if (!root.classList.contains("printing")) details.querySelectorAll(".plot").forEach(plot => draw(plot));
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let closed = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach(details => { details.open = true; });
    plots.forEach(plot => draw(plot, plot.closest(".pair") ? 320 : 660));
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    closed.forEach(details => { details.open = false; });
    drawAll();
  });
})();
