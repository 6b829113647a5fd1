"""A function as the clock wants it: something that is opened, run by turns with others, and closed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from deadweight.targets.runtimes.session import TensorSpec


@dataclasses.dataclass
class TimedCall:
    """A run is a whole call; `runtime` is "numpy" where it is this thread's work, else "process"."""

    run: Callable[..., Any]
    runtime: str
    evidence: str = "measured"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def prepare(self, inputs: Mapping[str, Any]) -> Callable[[], object]:
        """The call itself."""
        return self.run

    def close(self) -> None:
        """Nothing is held."""
