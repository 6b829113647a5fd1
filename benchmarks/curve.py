"""A plot of points and lines as an SVG file: what a benchmark draws, in a form that a page of docs can show.

Written by hand, in forty lines, because it needs no browser and no fonts, and its bytes depend on the figures
alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]
COLOURS = (
    *("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a"),
    *("#787774", "#e03e3e", "#cb912f", "#37352f", "#5fb3ce", "#9b6b43", "#2e8b8b"),
)
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, LEGEND = 760, 420, 60, 50, 20, 210


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
    """Writes the series by name; what lies below the range is drawn at its lower edge.

    Args:
        log: whether equal steps along x are equal factors.
    """
    right = WIDTH - LEGEND
    scaled = math.log if log else float

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = (scaled(point[0]) - scaled(x_range[0])) / (scaled(x_range[1]) - scaled(x_range[0]))
        up = (max(point[1], y_range[0]) - y_range[0]) / (y_range[1] - y_range[0])
        return LEFT + across * (right - LEFT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#37352f">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for value in _steps(y_range):
        _, up = at((x_range[0], value))
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{up:.1f}" y2="{up:.1f}" stroke="#e3e2e0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    below = HEIGHT - BOTTOM + 16
    for value in _factors(x_range) if log else _steps(x_range):
        across, _ = at((value, y_range[0]))
        parts.append(f'<text x="{across:.1f}" y="{below}" text-anchor="middle">{value:.0f}</text>')
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(x)}</text>'
    )
    middle = (HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 16 {middle})" text-anchor="middle"'
    parts.append(f'<text x="16" y="{middle}" {turned}>{html.escape(y)}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour, spots = COLOURS[number % len(COLOURS)], [at(point) for point in sorted(points)]
        if lines and len(spots) > 1:
            way = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
            parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in spots]
        place = TOP + 10 + 20 * number
        parts.append(f'<circle cx="{right + 18}" cy="{place - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{right + 28}" y="{place}">{html.escape(name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", "utf-8")


def _steps(bounds: tuple[float, float]) -> list[float]:
    return [bounds[0] + step / 5 * (bounds[1] - bounds[0]) for step in range(6)]


def _factors(bounds: tuple[float, float]) -> list[float]:
    """1, 2, 5, 10, 20, ... as far as they lie within."""
    values = [digit * 10.0**power for power in range(10) for digit in (1, 2, 5)]
    return [value for value in values if bounds[0] <= value <= bounds[1]]
