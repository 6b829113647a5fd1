"""Accuracy against the bytes of a file that decodes: techniques and their composition, on Fashion-MNIST.

    python benchmarks/compression/compression.py [--networks mlp lenet lenet5] [--techniques "INT8" ...]
    python benchmarks/compression/compression.py --table     the tables of what was measured, in Markdown
    python benchmarks/compression/compression.py --plot DIR  accuracy against bytes, an SVG a network

Networks are made by the stages of a recipe, once, and stay in runs/compression. Each is exported (and, where
a row says INT8, quantized), packed, unpacked, and the accuracy is that of the *unpacked* file on ONNX
Runtime. Bytes are those of the file: graph, tables, code books, checksum and padding. "Deep Compression" is
Han et al. 2016: single weights pruned in rounds, layer by layer to their shares, 6 bits of clusters (LeNet-5:
5, and 8 for convolutions), trained code books; Han's Huffman codes are not built. What was measured stands
in runs/compression.jsonl and is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import lzma
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import SEEDS, Cell, found, in_turn, markdown, missing_words, spread
from benchmarks.common.plot import write_svg
from benchmarks.common.record import Row, recorded
from benchmarks.compression.techniques import made
from deadweight.export.coding.container import pack
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.predict import score_of, session_predict
from deadweight.pipeline.work import Work
from deadweight.targets.coded.container import unpack
from deadweight.targets.runtimes.open import open_session

RECORD = Path("runs") / "compression.jsonl"
NETWORKS = {
    "mlp": "the over-parameterised MLP, 784-1024-512-10",
    "lenet": "LeNet-300-100",
    "lenet5": "LeNet-5-like, two convolutions (20 and 50 of 5 x 5) and 800-500-10",
}


TECHNIQUES = {
    "float": ("original", "float"),
    "INT8": ("original", "int8"),
    "clusters": ("clustered", "float"),
    "pruned weights": ("sparse", "float"),
    "pruned weights, INT8": ("sparse", "int8"),
    "pruned weights, clusters": ("sparse clustered", "float"),
    "more pruned weights, INT8": ("sparser", "int8"),
    "more pruned weights, clusters": ("sparser clustered", "float"),
    "pruned neurons": ("neurons", "float"),
    "pruned neurons, INT8": ("neurons", "int8"),
    "pruned neurons, clusters": ("neurons clustered", "float"),
    "low rank, INT8": ("thin", "int8"),
    "Deep Compression": ("deep clustered", "float"),
}
"""The network behind each technique, and what its file becomes before it is packed."""
CODERS = {
    "gzip": "gzip -9",
    "xz": "xz -9e",
    "zstd": "zstd -22",
    "dwz": "ours",
}


LINES = {
    "original": "all weights",
    "clustered": "all weights",
    "sparse": "pruned weights",
    "sparser": "more pruned weights",
    "neurons": "pruned neurons",
    "thin": "low rank",
    "deep": "Deep Compression",
}
"""The line of the plot that a network stands in, however it is coded."""


KEY = ("float", "pruned weights, clusters", "more pruned weights, clusters", "Deep Compression", "INT8")
"""What is measured first."""


def cells(network: str) -> list[Cell]:
    """Every technique on every seed."""
    order = sorted(TECHNIQUES, key=lambda name: name not in KEY)
    return [{"network": network, "technique": name, "seed": seed} for name in order for seed in SEEDS]


def measure(cell: Cell) -> Row:
    """The accuracy of the unpacked file, and the bytes of the packed one by every coder."""
    network, seed = cell["network"], cell["seed"]
    name, form = TECHNIQUES[cell["technique"]]
    work = made(network, name, seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        path = file_of(work, form, place)
        data = path.read_bytes()
        ours = pack(data, path)
        (place / "back.onnx").write_bytes(unpack(ours))
        sizes = {
            "onnx": len(data),
            "gzip": len(gzip.compress(data, 9)),
            "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
            "zstd": zstd_bytes(path),
            "dwz": len(ours),
        }
        session = open_session(place / "back.onnx")
        try:
            predict = session_predict(session)
            scores = {
                split: round(100 * score_of(work.workload, predict, split), 4)
                for split in ("validation", "test")
            }
        finally:
            session.close()
    return {"bytes": sizes, **scores}


def file_of(work: Work, form: str, place: Path) -> Path:
    """The ONNX file of the newest network."""
    newest = work.latest()
    alone = dataclasses.replace(work, variants=(newest,), directory=place)
    exported = Export()(alone)
    return (Quantize()(exported) if form == "int8" else exported).latest("onnx").path("onnx")


def zstd_bytes(path: Path) -> int | None:
    """What zstd's command line makes of a file, where it is installed."""
    if shutil.which("zstd") is None:
        return None
    done = subprocess.run(["zstd", "--ultra", "-22", "-c", str(path)], capture_output=True, check=True)
    return len(done.stdout)


def whole_bytes(rows: Sequence[Row], cell: Cell) -> float:
    """The float ONNX file that a row is compared with."""
    named = {"network": cell["network"], "technique": "float", "seed": cell["seed"]}
    return float(found(rows, named)[0]["bytes"]["onnx"])


def table(rows: Sequence[Row], network: str) -> str:
    """A row a technique: accuracy, its change, bytes, and how many times smaller than the float ONNX file."""
    lines = []
    starts = {row["cell"]["seed"]: row for row in found(rows, {"network": network, "technique": "float"})}
    for technique in TECHNIQUES:
        here = [
            row
            for row in found(rows, {"network": network, "technique": technique})
            if row["cell"]["seed"] in starts
        ]
        before = [starts[row["cell"]["seed"]] for row in here]
        change = [row["test"] - start["test"] for row, start in zip(here, before, strict=True)]
        line = [technique, spread([row["test"] for row in here]), spread(change, sign=True)]
        for coder in CODERS:
            times = [
                start["bytes"]["onnx"] / row["bytes"][coder]
                for row, start in zip(here, before, strict=True)
                if row["bytes"][coder]
            ]
            line.append(f"{sum(times) / len(times):.1f}" if times else "missing")
        held = [row["bytes"]["dwz"] for row in here]
        lines.append([*line, f"{round(sum(held) / len(held)):,}" if held else "missing"])
    head = [
        "technique",
        "test accuracy",
        "change",
        *(f"times smaller: {name}" for name in CODERS.values()),
        "bytes",
    ]
    whole = [row["bytes"]["onnx"] for row in starts.values()]
    about = (
        f"{NETWORKS[network]}: the float ONNX file has {whole[0]:,} bytes." if whole else NETWORKS[network]
    )
    return "\n\n".join([about, markdown(head, lines), missing_words(rows, cells(network))])


def plot(rows: Sequence[Row], network: str, path: Path) -> None:
    """The change of accuracy against how many times smaller: a point a file, a line a network that is coded
    in several ways."""
    points: dict[str, list[tuple[float, float]]] = {}
    for technique, (name, _) in TECHNIQUES.items():
        here = found(rows, {"network": network, "technique": technique})
        starts = [found(rows, {**row["cell"], "technique": "float"})[0] for row in here]
        if here:
            whole = sum(start["bytes"]["onnx"] for start in starts) / sum(row["bytes"]["dwz"] for row in here)
            change = sum(row["test"] - start["test"] for row, start in zip(here, starts, strict=True))
            points.setdefault(LINES[name.removesuffix(" clustered")], []).append((whole, change / len(here)))
    write_svg(
        path,
        points,
        x=f"times smaller than the float ONNX file ({NETWORKS[network].split(',')[0]})",
        y="change of test accuracy, points",
        x_range=(1.0, 200.0),
        y_range=(-2.0, 0.5),
        log=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=list(TECHNIQUES))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if not given.table and not given.plot:
        wanted = [
            cell
            for network in given.networks
            for cell in cells(network)
            if cell["technique"] in given.techniques
        ]
        in_turn(sorted(wanted, key=lambda cell: cell["technique"] not in KEY), measure, RECORD)
    rows = recorded(RECORD)
    if given.plot:
        for network in given.networks:
            plot(rows, network, given.plot / f"compression_{network}.svg")
    print("\n\n".join(table(rows, network) for network in given.networks))


if __name__ == "__main__":
    main()
