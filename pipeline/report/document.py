"""A self-contained HTML page from plain values: the parts of a page, and their rendering.

The layout, CSS and JavaScript are in templates/; jinja2 escapes every value. The page opens without a
network. It has plotly.js once, compressed: 2 MB instead of 4.8; the text does not wait for it.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .units import MISSING
from .words import OUTCOMES

if TYPE_CHECKING:
    import jinja2

SIGNS = {"faster": "\N{CHECK MARK}", "slower": "\N{MULTIPLICATION X}", "equal": "=", "cannot_tell": "?"}


@dataclass(frozen=True)
class Figure:
    """A plot: `traces` and `layout` as plotly's JSON, `height` in CSS pixels, `alt` for screen readers.

    Colours are names of CSS variables, as in `var(--kept)`: the page replaces them when it draws.
    """

    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    alt: str
    caption: str = ""

    def json(self) -> dict[str, Any]:
        return {"data": self.traces, "layout": {**self.layout, "height": self.height}}


@dataclass(frozen=True)
class Head:
    """The title, with its run or date above it; with `outcome` the title is a verdict and `sure` follows."""

    title: str
    run: str
    outcome: str = ""
    sure: str = ""
    parts: Sequence[Part | None] = ()


@dataclass(frozen=True)
class Budgets:
    """The budgets: (outcome, sentence) each, and the worst `outcome` as the colour of all."""

    title: str
    outcome: str
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """Parts under a heading; left out if all parts are None."""

    heading: str
    parts: Sequence[Part | None]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Parts under a smaller heading; `pair` sets them side by side on a wide screen."""

    heading: str
    parts: Sequence[Part | None]
    note: str = ""
    pair: bool = False


@dataclass(frozen=True)
class More:
    """Parts that open on a click."""

    summary: str
    parts: Sequence[Part | None]
    open: bool = False


@dataclass(frozen=True)
class Words:
    """Sentences, as a list or as paragraphs; left out if there are none."""

    sentences: Sequence[str]
    bullets: bool = True


@dataclass(frozen=True)
class Legend:
    """Colours, as `var(--name)`, and their meaning."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """A figure as written, its exact value, smaller lines below it, and an outcome in its colour.

    `brief`: the outcome is a sign before the figure instead of a line of its own; `more`: smaller lines for
    which a terminal has no room.
    """

    text: str
    value: float | None = None
    small: Sequence[str] = ()
    outcome: str = ""
    brief: bool = False
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Tiles:
    """Key figures; `about` is their label for screen readers."""

    about: str
    figures: Sequence[tuple[str, Cell | str]]


Rows = Sequence[Sequence[Cell | str]]


@dataclass(frozen=True)
class Table:
    """Groups of rows by title. An empty text is a dash; a long table scrolls in its own box.

    Attributes:
        left: number of first columns that are aligned to the left.
        wrap: the column whose text may wrap.
        chosen: number of first rows that are marked.
        cards: on a phone each row is a card.
        more: the heads of columns for which a terminal has no room.
    """

    name: str
    head: Sequence[str]
    groups: Mapping[str, Rows]
    left: int = 1
    wrap: int | None = None
    chosen: int = 0
    cards: bool = False
    more: Sequence[str] = ()

    @property
    def tall(self) -> bool:
        return not self.cards and sum(map(len, self.groups.values())) > 12


Part = Head | Budgets | Section | Group | More | Words | Legend | Facts | Tiles | Table | Figure


def figure(value: float | None, write: Callable[[float], str], *small: str) -> Cell | str:
    """A figure for a table, or a dash if there is none."""
    return "" if value is None else Cell(write(value), value, small)


def document(title: str, parts: Sequence[Part | None]) -> str:
    """The page as text; it has plotly.js only if there is a figure."""
    return _templates().get_template("page.html").render(title=title, body=_show(parts)) + "\n"


def _show(parts: Sequence[Part | None]) -> str:
    """The markup of parts, each by the macro of its class."""
    from markupsafe import Markup

    macros = _templates().get_template("parts.html").module
    return Markup("\n").join(getattr(macros, type(part).__name__.lower())(part) for part in parts if part)


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    found = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found.globals |= {"show": _show, "plotly": _plotly, "signs": SIGNS, "words_of": OUTCOMES}
    found.globals["missing"] = MISSING
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return found


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # takes a second to import; a page without plots does not need it

    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), 9, mtime=0)).decode("ascii")
