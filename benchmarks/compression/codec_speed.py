"""How fast a packed model is read: `unpack` against zlib and a plain copy of the same bytes, side by side.

    python benchmarks/compression/codec_speed.py [--events 12]
    python benchmarks/compression/codec_speed.py --table

Each case is an ONNX file made from a seed: INT8 weights drawn from a Laplace distribution with a scale of its
own for each row, or float32 weights of which 5 % are kept, with 32 different values. Interleaved, in random
order, on one thread: a numpy copy of the file's bytes, zlib, unpack. The clock is the project's own; a ratio
is the time over zlib's, or the copy's.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import markdown
from benchmarks.common.record import Row, measure_missing
from benchmarks.common.timed_call import TimedCall
from deadweight.export.coding.container import pack
from deadweight.targets.coded.container import unpack
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Measurement, Protocol

RECORD = Path("runs") / "codec_speed.jsonl"
CASES = {
    "INT8 weights, 1 MB": (True, 1000, 1000),
    "INT8 weights, 8 MB": (True, 2000, 4000),
    "pruned, clustered float weights, 1 MB": (False, 300, 880),
    "pruned, clustered float weights, 8 MB": (False, 1000, 2000),
}
WAYS = ("copy", "zlib", "dwz")


def file_of(case: str) -> bytes:
    """The file of a case."""
    int8, rows, columns = CASES[case]
    generator = np.random.default_rng(0)
    if int8:
        drawn = generator.laplace(0, generator.uniform(6, 20, (rows, 1)), (rows, columns))
        weight = np.clip(np.rint(drawn), -127, 127).astype(np.int8)
    else:
        values = np.sort(generator.normal(0, 0.1, 32)).astype(np.float32)
        chosen = values[np.clip(np.rint(generator.normal(15.5, 6, (rows, columns))), 0, 31).astype(int)]
        weight = np.where(generator.random((rows, columns)) < 0.05, chosen, np.float32(0))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "graph", [given], [out], [numpy_helper.from_array(weight, "w")])
    return bytes(helper.make_model(graph).SerializeToString())


def opened(path: Path, *, runtime: str, threads: int) -> TimedCall:
    """The way that a file is named after, for what the file holds."""
    held = path.read_bytes()
    read: dict[str, Callable[[bytes], object]] = {
        "copy": lambda data: np.copy(np.frombuffer(data, np.uint8)),
        "zlib": zlib.decompress,
        "dwz": unpack,
    }
    return TimedCall(partial(read[path.stem], held), "numpy")


def measure(case: str, events: int) -> list[Row]:
    """All ways interleaved, in a row."""
    data = file_of(case)
    with tempfile.TemporaryDirectory() as folder:
        paths = {way: Path(folder) / f"{way}.bin" for way in WAYS}
        for way, coded in zip(WAYS, (data, zlib.compress(data, 9), pack(data, Path(case))), strict=True):
            paths[way].write_bytes(coded)
            assert np.asarray(opened(paths[way], runtime="numpy", threads=1).run()).tobytes() == data
        sizes = {way: path.stat().st_size for way, path in paths.items()}
        timed = time_together(
            paths,
            protocol=Protocol(events=events, event_s=0.1, runtime="numpy"),
            opened=opened,
            progress=lambda done, total: print(f"{case}: {done} of {total}", file=sys.stderr),
        )
    # The other as the candidate: as many times as it is as fast, ours takes as long.
    ratios = {other: judge(timed["dwz"], timed[other]) for other in ("copy", "zlib")}
    return [
        {
            "case": case,
            "bytes": len(data),
            "coded": sizes,
            "ratios": {name: [found.ratio, found.low, found.high] for name, found in ratios.items()},
            "clock": {name: found.clock for name, found in ratios.items()},
            "cpu_seconds": {name: _cpu_s(timed[name]) for name in WAYS},
            "events": events,
            "load": os.getloadavg()[0],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": f"Python {platform.python_version()}, numpy {np.__version__}",
        }
    ]


def table(rows: Sequence[Row]) -> str:
    """A row a case."""
    lines = []
    for row in rows:
        speeds = [row["bytes"] / 1e6 / row["cpu_seconds"][name] for name in WAYS]
        lines.append(
            [
                row["case"],
                f"{row['coded']['zlib']:,}",
                f"{row['coded']['dwz']:,}",
                *(f"{speed:,.0f}" for speed in speeds),
                *("{:.1f} ({:.1f} to {:.1f})".format(*row["ratios"][name]) for name in ("zlib", "copy")),
            ]
        )
    head = ["what", "bytes: zlib", "bytes: ours", "MB/s: copy", "MB/s: zlib", "MB/s: ours"]
    return markdown([*head, "times zlib's time (95 %)", "times the copy's time (95 %)"], lines)


def _cpu_s(measured: Measurement) -> float:
    """The thread's CPU time of one run; what the machine's other work does not show in."""
    assert measured.cpu_s is not None
    return float(np.median(measured.cpu_s))


if __name__ == "__main__":
    measure_missing(__doc__, RECORD, CASES, "case", measure, table)
