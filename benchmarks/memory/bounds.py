"""Is the band of memory right? Random graphs against what ONNX Runtime's arena holds.

    python benchmarks/memory/bounds.py [--graphs 1000] [--from 1000] [--jobs 2] [--record runs/memory.jsonl]
    python benchmarks/memory/bounds.py --table          the table of what was measured so far, in Markdown;
                                                       the band is worked out anew

An arena of its own is told to allocate what is requested and to split what it has. Between two runs a tiny
model runs and makes the arena give back all that is free, so that the second run allocates anew, by the plan
that the runtime made of the first: what the arena holds then is *planned*, what it held in the first run is
*first*. Weights that the runtime packs for itself are counted apart by its log and left out here.

Optimization levels: *extended* fuses operators; *all*, the default, also lays tensors out in blocks of 16
channels on this processor, with copies into and out of the blocks. The band must hold for *extended*; for
*all*, and for encoders and quantized graphs it is told how often it does. Only
graphs of 4 MB and more count.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import Row, append, recorded
from benchmarks.memory.random_graphs import BESIDE, FLOAT, make
from deadweight.export.memory.footprint import footprint

LEAST = 4_000_000
LEVELS = ("EXTENDED", "ALL")
MARK = "---- run ----"
WAVE = 10  # graphs in one process

_CHILD = """
import json, os, sys
import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import OrtArenaCfg
level, tiny_path, jobs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ort.set_default_logger_severity(1)
asked = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": 1, "max_dead_bytes_per_chunk": 1}
arena = OrtArenaCfg(asked)
place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(place, arena)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.use_env_allocators", "1")
options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_ENABLE_" + level)
tiny = ort.InferenceSession(tiny_path, options, providers=["CPUExecutionProvider"])
give_back = ort.RunOptions()
give_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
ends = np.zeros((2, 1), np.float32)  # nothing of the tiny model lies in the arena while it gives back
binding = tiny.io_binding()
binding.bind_cpu_input("x", ends[0])
binding.bind_output("y", "cpu", 0, np.float32, [1], ends[1].ctypes.data)
for path, batch in jobs:
    os.write(2, b"%s\\n")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {i.name: [batch if isinstance(n, str) else n for n in i.shape] for i in session.get_inputs()}
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for _ in range(2):
        os.write(2, b"%s\\n")
        session.run(None, feeds)
        tiny.run_with_iobinding(binding, give_back)
    del session
    tiny.run_with_iobinding(binding, give_back)
""".replace("%s", MARK)


def arenas(models: Sequence[tuple[Path, int]], *, level: str) -> list[dict[str, int]]:
    """Bytes of the arena in each model's first run, and in a run by its plan; packed weights left out."""
    tiny = models[0][0].with_name("tiny.onnx")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(tiny))
    jobs = json.dumps([(str(path), batch) for path, batch in models])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, level, str(tiny), jobs], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    parts = done.stderr.split(MARK)[1:]
    found = []
    for at in range(0, len(parts), 3):
        packed = sum(map(int, re.findall(r"Reserving memory in BFCArena for \S+ size: (\d+)", parts[at])))
        first, planned = (_total(part) - packed for part in parts[at + 1 : at + 3])
        found.append({"first": first, "planned": planned})
    return found


def _total(part: str) -> int:
    return int(re.findall(r"Total allocated bytes: (\d+)", part)[-1])


def banded(row: Row) -> Row:
    """The row with its graph's band as it is worked out now."""
    made = make(row["seed"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(made.model, str(path))
        band = footprint(path, batch=made.batch, runtime="onnxruntime")
    return {**row, "low": band.activations_low_bytes, "high": band.activations_high_bytes}


def rows_of(seeds: Sequence[int]) -> list[Row]:
    """Graphs' bands, and what was measured, in one process a level."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for seed in seeds:
            made = make(seed)
            models.append((Path(folder) / f"{seed}.onnx", made.batch))
            onnx.save(made.model, str(models[-1][0]))
            nodes = len(made.model.graph.node)
            rows.append({"seed": seed, "kind": made.kind, "batch": made.batch, "nodes": nodes})
        for level in LEVELS:
            for row, arena in zip(rows, arenas(models, level=level), strict=True):
                row[level] = arena
    return [banded(row) for row in rows]


def counted(rows: Sequence[Row], level: str = "EXTENDED") -> list[Row]:
    """The rows of 4 MB and more."""
    return [row for row in rows if level in row and row[level]["planned"] >= LEAST]


def line(name: str, rows: Sequence[Row], level: str, arena: str) -> str:
    """A line of the table: how often each end of the band holds, and how wide the band is."""
    pairs = [(row["low"], row[level][arena], row["high"]) for row in rows]
    n = len(pairs)
    above = sum(low > got for low, got, _ in pairs)
    covered = sum(high >= got for _, got, high in pairs)
    tight = statistics.median(low / got for low, got, _ in pairs)
    slack = statistics.median(high / got for _, got, high in pairs)
    width = statistics.median(high / low for low, _, high in pairs)
    share = f"{covered} ({100 * covered / n:.1f} %)"
    return f"| {name} | {n} | {above} | {share} | {tight:.2f} | {slack:.2f} | {width:.2f} |"


def table(rows: Sequence[Row]) -> str:
    """All lines, in Markdown."""
    head = "| graphs | n | lower above arena | upper covers | lower / arena | upper / arena | upper / lower |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    floats = [row for row in rows if row["kind"] in FLOAT]
    if counted(floats):
        lines.append(line("**float, extended, planned**", counted(floats), "EXTENDED", "planned"))
        for kind in sorted({row["kind"] for row in counted(floats)}):
            same = [row for row in counted(floats) if row["kind"] == kind]
            lines.append(line(f"- {kind}", same, "EXTENDED", "planned"))
        lines.append(line("float, extended, first run", counted(floats), "EXTENDED", "first"))
        lines.append(line("float, all, planned", counted(floats, "ALL"), "ALL", "planned"))
        lines.append(line("float, all, first run", counted(floats, "ALL"), "ALL", "first"))
    for kind in BESIDE:
        same = [row for row in counted(rows) if row["kind"] == kind]
        if same:
            lines.append(line(f"{kind}, extended, planned", same, "EXTENDED", "planned"))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--graphs", type=int, default=1000, help="float graphs of 4 MB and more to measure")
    parser.add_argument("--from", dest="start", type=int, default=1000, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--record", type=Path, default=Path("runs/memory.jsonl"))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    rows = recorded(asked.record)
    if asked.table:
        rows = [banded(row) for row in rows]
    else:
        known, seed = {row["seed"] for row in rows}, asked.start
        with ThreadPoolExecutor(asked.jobs) as pool:
            while sum(row["kind"] in FLOAT for row in counted(rows)) < asked.graphs:
                waves = [range(at, at + WAVE) for at in range(seed, seed + asked.jobs * WAVE, WAVE)]
                missing = [[at for at in wave if at not in known] for wave in waves]
                for made in pool.map(rows_of, [wave for wave in missing if wave]):
                    rows += made
                    append(asked.record, *made)
                seed += asked.jobs * WAVE
                print(f"{len(rows)} graphs, {len(counted(rows))} of 4 MB and more", file=sys.stderr)
    floats = [row for row in counted(rows) if row["kind"] in FLOAT]
    if not floats:
        print(
            f"{asked.record} holds no float graph of 4 MB and more: measure some, without --table.",
            file=sys.stderr,
        )
        return 2
    print(table(rows))
    every = [
        row[level][arena] - row["low"] for row in rows for level in LEVELS for arena in ("first", "planned")
    ]
    covered = sum(row["high"] >= row["EXTENDED"]["planned"] for row in floats)
    width = statistics.median(row["high"] / row["low"] for row in floats)
    passed = min(every) >= 0 and covered >= 0.95 * len(floats) and width <= 1.5
    print(f"\n{len(rows)} graphs in all; the goals are {'met' if passed else 'missed'}.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
