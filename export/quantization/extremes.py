"""The largest value of each sample's inputs: a wild sample, and pixels that were not scaled, are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..onnx_graph.graph import Array
from .samples import Samples

WILD = 10.0  # times the median sample's largest value
FEWEST = 8  # samples of which one can be called wild
NAMED = 3  # in a sentence
BYTE = 255.0  # the largest value of a raw pixel


class Extremes:
    """Watches the batches of some samples as they pass."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._largest: dict[str, list[Array]] = {}
        self._raw: dict[str, bool] = {}

    def watching(self, batches: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """The same batches."""
        for batch in batches:
            self._see(batch)
            yield batch

    def _see(self, batch: Mapping[str, Array]) -> None:
        for one in self._samples.inputs:
            value = batch[one.name]
            if value.dtype.kind != "f" or not value.size or one.name in self._samples.whole:
                continue
            rows = len(value) if self._samples.by_row else 1
            self._largest.setdefault(one.name, []).append(np.abs(value).reshape(rows, -1).max(axis=1))
            raw = bool(value.min() >= 0 and value.max() <= BYTE and (value == np.rint(value)).all())
            self._raw[one.name] = self._raw.get(one.name, True) and raw

    def words(self) -> list[str]:
        """Sentences; none if nothing is unusual."""
        said = []
        for name, parts in self._largest.items():
            largest = np.concatenate(parts)
            usual = float(np.median(largest))
            if self._raw[name] and usual > BYTE / 2:
                said.append(
                    f"CHECK THE SAMPLES: {name} has whole numbers up to {largest.max():g}, as raw pixels: "
                    "scale them as for inference, unless the network does that itself"
                )
            wild = np.flatnonzero(largest > WILD * usual)
            if 0 < len(wild) <= len(largest) / FEWEST and usual > 0:
                named = ", ".join(self._samples.place(int(at)) for at in wild[:NAMED])
                more = f" and {len(wild) - NAMED} more" if len(wild) > NAMED else ""
                said.append(
                    f"CHECK {named}{more}: {name} reaches {largest[wild].max():.3g}, in the median sample "
                    f"{usual:.3g}; leave out what is no real sample"
                )
        return said
