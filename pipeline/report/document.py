"""A self-contained HTML page: the only place with CSS, colours and JavaScript.

The page opens from a disk without a network, and its security policy forbids every request, so that it
cannot make one by mistake. plotly.js is carried once, compressed: 2 MB instead of 4.8. The text does not
wait for it. Plots name colours by CSS variables; the script looks the variables up when it draws, and draws
again when the scheme turns from light to dark or the page goes to a printer.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence

from .plots import Figure


def escape(value: object) -> str:
    """Any value as text of a page, safe in attributes too."""
    return html.escape(str(value), quote=True)


def plot(figure: Figure, caption: str = "") -> str:
    """A figure's place in a page, with its data beside it; `caption` is text, not markup."""
    data = json.dumps(figure.json(), separators=(",", ":"), allow_nan=False)
    # Inside a script element only `<` could end it early.
    data = data.replace("<", "\\u003c")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="plot" role="img" aria-label="{escape(figure.alt)}" '
        f'style="height:{figure.height}px"></div>'
        f'<script type="application/json">{data}</script>{below}</figure>'
    )


def document(title: str, sections: Sequence[str]) -> str:
    """The whole page. `sections` are markup; plotly.js comes along only if one of them has a plot."""
    body = "\n".join(section for section in sections if section)
    has_plots = 'class="plot"' in body
    return _PAGE.format(
        title=escape(title),
        css=_CSS,
        body=body,
        library=_library() if has_plots else "",
        script=f"<script>{_SCRIPT}</script>" if has_plots else "",
    )


def section(heading: str, *parts: str, note: str = "") -> str:
    """A part of the page under its heading; empty when it has no parts. `note` is text, parts are markup."""
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{below}\n{content}</section>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Colours, as `var(--name)`, and what they stand for."""
    items = "".join(
        f'<li><span class="swatch" style="background:{colour}"></span>{escape(text)}</li>'
        for colour, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _library() -> str:
    from plotly.offline import get_plotlyjs  # takes a second to import; a page without plots does without

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), 9, mtime=0)).decode("ascii")
    return f'<script type="application/gzip" id="plotly">{packed}</script>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
{library}
{script}
</body>
</html>
"""

_CSS = """
:root {
  --paper: #fcfcfb; --raised: #ffffff; --ink: #1b1f24; --muted: #57606b; --line: #e3e5e8; --dim: #a3abb5;
  --track: #d3d9e0; --kept: #2b6ca3; --removed: #c8631b; --series-2: #7aa7cc; --series-5: #7a5aa6;
  --faster: #1c7a43; --slower: #b3261e; --equal: #3d5a8a; --cannot-tell: #8a5a00;
  --faster-tint: #eaf5ee; --slower-tint: #fbeceb; --equal-tint: #edf1f8; --cannot-tell-tint: #faf2e2;
  --clear: rgba(0,0,0,0);
}
@media screen and (prefers-color-scheme: dark) {
  :root:not(.printing) {
    --paper: #15181c; --raised: #1b1f24; --ink: #e7e9ec; --muted: #a2abb6; --line: #2b3138; --dim: #66707c;
    --track: #3c4652; --kept: #67a9dc; --removed: #ea9550; --series-2: #3f78a8; --series-5: #b59add;
    --faster: #62cb8f; --slower: #ff8f85; --equal: #9dbbed; --cannot-tell: #e6b85c;
    --faster-tint: #16271d; --slower-tint: #2d1a19; --equal-tint: #1a2230; --cannot-tell-tint: #2a2314;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 0; }
p { margin: .25rem 0; max-width: 46rem; }
section { margin-top: 3rem; }
.note, figcaption, .run { color: var(--muted); font-size: .9rem; max-width: 46rem; }
.run { margin-bottom: 1rem; overflow-wrap: anywhere; }
a { color: inherit; }
code { font: .85em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }

.verdict { border-left: 4px solid var(--tone); background: var(--tint); padding: 1.25rem 1.5rem;
  border-radius: 0 6px 6px 0; }
.verdict h1 { font-size: 1.75rem; display: flex; gap: .75rem; align-items: flex-start; text-wrap: balance; }
.verdict svg { flex: none; width: 1.75rem; height: 1.75rem; margin-top: .15rem; color: var(--tone); }
.verdict p { margin: .5rem 0 0 2.5rem; }
.verdict.second { margin-top: .75rem; padding-block: .75rem; font-size: .95rem; }
.verdict.second p { margin-top: 0; }
.budgets li { padding-left: 1.3em; text-indent: -1.3em; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.budgets { list-style: none; margin: .25rem 0 0 2.5rem; padding: 0;
  display: flex; flex-wrap: wrap; gap: .1rem 2rem; }
.faster { --tone: var(--faster); --tint: var(--faster-tint); }
.slower { --tone: var(--slower); --tint: var(--slower-tint); }
.equal { --tone: var(--equal); --tint: var(--equal-tint); }
.cannot_tell { --tone: var(--cannot-tell); --tint: var(--cannot-tell-tint); }
.tone { color: var(--tone); font-weight: 600; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1.5rem;
  margin: 2rem 0 0; }
.figures div { border-top: 1px solid var(--line); padding-top: .6rem; display: flex; flex-direction: column; }
.figures dt { color: var(--muted); font-size: .9rem; }
.figures dd { margin: auto 0 0; }
.figures .big { font-size: 1.6rem; font-weight: 600; line-height: 1.3; white-space: nowrap; }
.small { display: block; color: var(--muted); font-size: .8rem; font-weight: 400; line-height: 1.35; }

/* Positioned, so that text hidden in a wide table does not widen the page. */
.scroll { position: relative; overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--kept); outline-offset: 2px; }
.tall { max-height: 30rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin-top: .75rem; }
th, td { text-align: right; vertical-align: top;
  padding: .5rem .75rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--muted); font-weight: 500; font-size: .8rem; vertical-align: bottom;
  line-height: 1.3; }
.tall thead th { position: sticky; top: 0; z-index: 2; background: var(--paper); }
th:first-child, td:first-child, .left { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td { white-space: nowrap; }
td.wrap { min-width: 11rem; white-space: normal; text-align: left; overflow-wrap: anywhere; }
tr.group th { color: var(--muted); font-weight: 500; font-size: .8rem; padding-top: 1.25rem; }
tr.chosen { background: var(--equal-tint); }
tr.chosen th:first-child { box-shadow: inset 3px 0 var(--removed); padding-left: .6rem; }

ul.words { padding-left: 1.1rem; margin: .75rem 0 0; max-width: 46rem; }
ul.words li { margin: .35rem 0; }
figure { margin: .75rem 0 0; min-width: 0; }
.plot { width: 100%; overflow: hidden; }
.plot.failed { height: auto !important; color: var(--muted); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2rem; }
.legend { list-style: none; padding: 0; margin: .75rem 0 0; display: flex; flex-wrap: wrap;
  gap: .25rem 1.25rem; font-size: .85rem; color: var(--muted); }
.swatch { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px;
  margin-right: .45rem; vertical-align: -.05rem; }
summary { cursor: pointer; color: var(--muted); font-size: .9rem; margin-top: 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 0 2rem; margin: .75rem 0 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); font-size: .9rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }

@media screen and (max-width: 46rem) {
  main { padding: 1.25rem 1rem 3rem; }
  section { margin-top: 2.25rem; }
  .verdict { padding: 1rem; }
  .verdict h1 { font-size: 1.35rem; gap: .6rem; }
  .verdict svg { width: 1.4rem; height: 1.4rem; }
  .verdict p, .budgets { margin-left: 0; }
  th, td { padding-inline: .5rem; }
  td.wrap { min-width: 8rem; }
  .scroll table:not(.cards) th:first-child {
    position: sticky; left: 0; z-index: 1; background: var(--paper);
  }
  .scroll table:not(.cards) tr.chosen th:first-child { background: var(--equal-tint); }
  .figures { grid-template-columns: 1fr 1fr; gap: 1.25rem 1rem; }
  .figures .big { font-size: 1.3rem; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards, .cards tbody { display: block; }
  .cards tr { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem .75rem;
    padding: .9rem 0; border-bottom: 1px solid var(--line); }
  .cards th, .cards td { display: block; border: 0; padding: 0; text-align: left; white-space: normal; }
  .cards th { grid-column: 1 / -1; font-size: 1rem; }
  .cards tr.group { padding: 1.5rem 0 0; border: 0; }
  .cards tr.group th { padding: 0; font-size: .9rem; }
  .cards td::before { content: attr(data-label); display: block; color: var(--muted); font-size: .75rem; }
}
@media print {
  @page { margin: 14mm; }
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; background: none; }
  section { margin-top: 1.5rem; }
  table { font-size: 7.5pt; }
  th, td { padding: .25rem .35rem; }
  .small { font-size: 6.5pt; }
  .tall { max-height: none; }
  .scroll { overflow: visible; }
  .pair { grid-template-columns: 1fr 1fr; gap: 0 1rem; }
  .verdict, figure, tr, .figures div { break-inside: avoid; }
  h2, h3, .note, .legend, summary { break-after: avoid; }
  p { orphans: 3; widows: 3; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_SCRIPT = r"""
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
"""
