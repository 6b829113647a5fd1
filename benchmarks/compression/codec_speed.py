"""How fast coded weights are read: our decoder against zlib and a plain copy of the same bytes, side by side.

    python benchmarks/compression/codec_speed.py [--events 12]
    python benchmarks/compression/codec_speed.py --table

Each case is made from a seed: INT8 weights drawn from a Laplace distribution with a scale of its own for each
row, and whole ONNX files of float32 weights of which 5 % are kept, with 32 different values. By turns, in
random order, on one thread: a numpy copy of the decoded bytes, zlib, our Huffman codes, our rANS. The clock
is the project's own; a ratio is the time over zlib's, or the copy's.
"""

from __future__ import annotations

import contextlib
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
from benchmarks.compression.huffman import in_place_of_rans
from deadweight.export.coding.container import pack
from deadweight.export.coding.entropy import encode_symbols
from deadweight.targets.coded import decode_symbols
from deadweight.targets.coded.container import unpack
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Measurement, Protocol

RECORD = Path("runs") / "codec_speed.jsonl"
CASES = {
    "INT8 weights, 0.3 MB": ("symbols", 300, 1000),
    "INT8 weights, 1 MB": ("symbols", 1000, 1000),
    "INT8 weights, 8 MB": ("symbols", 2000, 4000),
    "file of pruned, clustered float weights, 1 MB": ("file", 300, 880),
    "file of pruned, clustered float weights, 8 MB": ("file", 1000, 2000),
}
WAYS = ("copy", "zlib", "huffman", "rans")
WORDS = {"huffman": "Huffman", "rans": "rANS"}


def decoded(case: str) -> bytes:
    """The bytes of a case."""
    kind, rows, columns = CASES[case]
    generator = np.random.default_rng(0)
    if kind == "symbols":
        drawn = generator.laplace(0, generator.uniform(6, 20, (rows, 1)), (rows, columns))
        return bytes(np.clip(np.rint(drawn), -127, 127).astype(np.int8).tobytes())
    values = np.sort(generator.normal(0, 0.1, 32)).astype(np.float32)
    chosen = values[np.clip(np.rint(generator.normal(15.5, 6, (rows, columns))), 0, 31).astype(int)]
    weight = np.where(generator.random((rows, columns)) < 0.05, chosen, np.float32(0))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "graph", [given], [out], [numpy_helper.from_array(weight, "w")])
    return bytes(helper.make_model(graph).SerializeToString())


def coded(case: str, way: str, data: bytes) -> bytes:
    """The same in few bytes."""
    if way in ("copy", "zlib"):
        return data if way == "copy" else zlib.compress(data, 9)
    with in_place_of_rans() if way == "huffman" else contextlib.nullcontext():
        if CASES[case][0] == "file":
            return pack(data, Path(case)).data
        return encode_symbols(np.frombuffer(data, np.uint8))


def opened(path: Path, *, runtime: str, threads: int) -> TimedCall:
    """The way that a file is named after, for what the file holds."""
    held = path.read_bytes()
    kind, way = path.stem.split("-")
    if way == "copy":
        return TimedCall(partial(np.copy, np.frombuffer(held, np.uint8)), "numpy")
    if way == "zlib":
        return TimedCall(partial(zlib.decompress, held), "numpy")
    decoder: Callable[[bytes], object] = unpack if kind == "file" else decode_symbols
    return TimedCall(partial(by_huffman if way == "huffman" else _called, decoder, held), "numpy")


def by_huffman(decoder: Callable[[bytes], object], held: bytes) -> object:
    """What a decoder makes of bytes that Huffman codes are in."""
    with in_place_of_rans():
        return decoder(held)


def _called(decoder: Callable[[bytes], object], held: bytes) -> object:
    return decoder(held)


def measure(case: str, events: int) -> list[Row]:
    """All ways by turns; a row for each of ours."""
    data = decoded(case)
    with tempfile.TemporaryDirectory() as folder:
        paths = {way: Path(folder) / f"{CASES[case][0]}-{way}.bin" for way in WAYS}
        for way, path in paths.items():
            path.write_bytes(coded(case, way, data))
            assert np.asarray(opened(path, runtime="numpy", threads=1).run()).tobytes() == data
        sizes = {way: path.stat().st_size for way, path in paths.items()}
        timed = time_together(
            paths,
            protocol=Protocol(events=events, event_s=0.1, runtime="numpy"),
            opened=opened,
            progress=lambda done, total: print(f"{case}: {done} of {total}", file=sys.stderr),
        )
    rows = []
    for way in ("huffman", "rans"):
        # The other as the candidate: as many times as it is as fast, ours takes as long.
        ratios = {other: judge(timed[way], timed[other]) for other in ("copy", "zlib")}
        rows.append(
            {
                "case": case,
                "way": way,
                "bytes": len(data),
                "coded": {name: sizes[name] for name in ("zlib", way)},
                "ratios": {name: [found.ratio, found.low, found.high] for name, found in ratios.items()},
                "clock": {name: found.clock for name, found in ratios.items()},
                "seconds": {name: timed[name].latency_s(50).value for name in ("copy", "zlib", way)},
                "cpu_seconds": {name: _cpu_s(timed[name]) for name in ("copy", "zlib", way)},
                "events": events,
                "load": os.getloadavg()[0],
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": f"Python {platform.python_version()}, numpy {np.__version__}",
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """A row a case and coder."""
    lines = []
    for row in rows:
        ours, megabytes = row["way"], row["bytes"] / 1e6
        speeds = [megabytes / row["cpu_seconds"][name] for name in ("copy", "zlib", ours)]
        lines.append(
            [
                row["case"],
                WORDS[ours],
                f"{row['coded']['zlib']:,}",
                f"{row['coded'][ours]:,}",
                *(f"{speed:,.0f}" for speed in speeds),
                *("{:.1f} ({:.1f} to {:.1f})".format(*row["ratios"][name]) for name in ("zlib", "copy")),
            ]
        )
    head = ["what", "coder", "bytes: zlib", "bytes: ours", "MB/s: copy", "MB/s: zlib", "MB/s: ours"]
    return markdown([*head, "times zlib's time (95 %)", "times the copy's time (95 %)"], lines)


def _cpu_s(measured: Measurement) -> float:
    """The thread's CPU time of one run; what the machine's other work does not show in."""
    assert measured.cpu_s is not None
    return float(np.median(measured.cpu_s))


if __name__ == "__main__":
    measure_missing(__doc__, RECORD, CASES, "case", measure, table)
