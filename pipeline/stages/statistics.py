"""The stage "statistics": activation statistics of every unit, over one pass of the calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..importance.activations import collect
from ..pruning import trace
from ..work import Work
from ..workload import inputs_of


@dataclass(frozen=True)
class Statistics:
    """Measures every unit that could be removed; the result is the artifact "statistics".

    Attributes:
        split: the data of the pass.
    """

    split: Literal["calibration", "train", "validation"] = "calibration"

    def code(self) -> list[Path]:
        """The tracer, which finds the units for `work.networks`: an edit of it changes the cache key."""
        return [Path(trace.__file__)]

    def __call__(self, work: Work) -> Work:
        found = collect(
            work.networks.groups(work.model(), work.workload),
            inputs_of(work.workload, self.split),
            progress=lambda batches: work.progress(batches, batches + 1, f"statistics: {batches} batches"),
        )
        path = work.directory / "statistics.safetensors"
        found.save(path)
        work.progress(1, 1, "statistics")
        return work.with_artifact("statistics", path).logged("statistics", self, found.words())
