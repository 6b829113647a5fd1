"""A plot of points and lines as an SVG file, for a page of docs; needs matplotlib, which nothing else does.

plotly, which the reports use, writes SVG only through a browser. The bytes depend on the figures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]


def write_svg(
    path: Path,
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    lines: bool = True,
    log: bool = False,
) -> None:
    """Writes the series by name; points below the range are drawn at its lower edge.

    Args:
        log: whether the x axis is logarithmic.
    """
    from matplotlib import colormaps, rc_context, ticker  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "deadweight", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes, colours = figure.subplots(), colormaps["tab20"](range(20))
        axes.set_prop_cycle(color=(*colours[::2], *colours[1::2]))
        for name, points in series.items():
            across, up = zip(*sorted((a, max(b, y_range[0])) for a, b in points), strict=True)
            axes.plot(across, up, "o-" if lines else "o", label=name, clip_on=False, linewidth=1.2)
        axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear", xlim=x_range, ylim=y_range)
        if log:
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.grid(axis="y", color="#e3e2e0")
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
