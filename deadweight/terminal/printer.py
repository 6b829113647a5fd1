"""The one way out to a terminal or a log: text from files and boards is shown, never obeyed."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ..targets.visible import visible


class Printer(Console):
    """A console without markup: a style is given beside its text, `("refused", "red")`."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Prints text, or pairs of text and style, without wrapping."""
        self.print(Text.assemble(*parts), soft_wrap=True)

    def command(self, line: str) -> None:
        """Writes a line of ours that a CI is to obey; its text from outside is escaped already."""
        self.file.write(f"{line}\n")

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """The reader (`head`, `grep -q`) has gone: the rest is dropped, the exit code stays."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())


out = Printer()
err = Printer(stderr=True)
