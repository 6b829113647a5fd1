"""Accuracy against the bytes of a file that decodes: techniques and their composition, on Fashion-MNIST.

    python benchmarks/compression.py [--networks mlp lenet lenet5] [--techniques "INT8" ...]
    python benchmarks/compression.py --table      the tables of what was measured so far, in Markdown
    python benchmarks/compression.py --plot FILE  accuracy against bytes, as SVG

Networks are made by the stages of a recipe, once, and stay in runs/compression. Each is exported (and, where
a row says INT8, quantized), packed, unpacked, and the accuracy is that of the *unpacked* file on ONNX
Runtime. Bytes are those of the file: graph, tables, code books, checksum and padding. "Deep Compression" is
Han et al. 2016: single weights pruned in rounds, layer by layer to their shares, 6 bits of clusters (LeNet-5:
5, and 8 for convolutions), trained code books, Huffman codes. What was measured stands in
runs/compression.jsonl and is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gzip
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grid
import torch.nn.functional as F
from curve import write_svg
from grid import SEEDS, Cell, found, in_turn, markdown, missing_words, spread
from record import Row, recorded
from torch import Tensor, nn

from deadweight.export.coding.container import pack
from deadweight.export.coding.dictionary import dictionary_file
from deadweight.pipeline.cluster import Cluster
from deadweight.pipeline.export import Export
from deadweight.pipeline.factorize import Factorize
from deadweight.pipeline.finetune import Finetune
from deadweight.pipeline.masks import magnitude_masks, masked, save_masks, weights_of
from deadweight.pipeline.predict import score_of, session_predict
from deadweight.pipeline.prune import Prune
from deadweight.pipeline.quantize import Quantize
from deadweight.pipeline.sparsify import Sparsify
from deadweight.pipeline.stage import Stage
from deadweight.pipeline.train import Train
from deadweight.pipeline.training import Schedule, fit
from deadweight.pipeline.work import Variant, Work
from deadweight.pipeline.workload import Workload, load_workload
from deadweight.targets.artifact import Artifact
from deadweight.targets.coded.container import unpack
from deadweight.targets.session import open_session
from deadweight.targets.target import load_target

RECORD, RUNS = Path("runs") / "compression.jsonl", Path("runs") / "compression"
NETWORKS = {
    "mlp": "the over-parameterised MLP, 784-1024-512-10",
    "lenet": "LeNet-300-100",
    "lenet5": "LeNet-5-like, two convolutions (20 and 50 of 5 x 5) and 800-500-10",
}
EPOCHS = {"lenet5": 4}  # of an original that the other benchmarks do not have


class LeNet5(nn.Module):
    """Two convolutions with pooling and two linear layers, in the widths of Caffe's example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.head = nn.Linear(500, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        scores: Tensor = self.head(F.relu(self.fc1(x.flatten(1))))
        return scores


@dataclass(frozen=True)
class DeepCompression:
    """Rounds of magnitude pruning with shares of their own for each layer, then one code book a layer.

    Attributes:
        kept: the share of each layer's weights that is left in the end.
    """

    kept: tuple[tuple[str, float], ...]
    epochs: tuple[int, ...] = (1, 1, 2)

    def __call__(self, work: Work) -> Work:
        model, masks = work.model(), None
        for number, epochs in enumerate(self.epochs, start=1):
            weights = weights_of(model)
            # The same factor in every round takes each layer to its share.
            gone = {name: 1 - share ** (1 / len(self.epochs)) for name, share in self.kept}
            masks = magnitude_masks(weights, 0.5, shares=gone, before=masks)
            model = fit(
                masked(model, masks),
                work.workload,
                Schedule(epochs),
                seed=work.seed + number,
                checkpoint=work.directory / f"round-{number}.safetensors",
                progress=work.progress,
                what="deep compression",
                masks=masks,
            ).model
        assert masks is not None
        path = work.directory / "deep" / "masks.safetensors"
        save_masks(path, masks, "free")
        return work.with_model("deep", model, beside={"masks": path})


@dataclass(frozen=True)
class Made:
    """A network by its name: what it starts from, and the stages that make it."""

    start: str
    stages: tuple[Stage, ...]


def networks(network: str) -> dict[str, Made]:
    """The networks of the techniques. Shares, ranks and bits were set beforehand and not searched."""
    keep = {"mlp": (0.8, 0.93, 0.97), "lenet": (0.6, 0.85, 0.94), "lenet5": (0.7, 0.9, 0.96)}[network]
    ranks: dict[str, dict[str, Any]] = {
        "mlp": {"fc1": 40, "fc2": 40},
        "lenet": {"fc1": 24, "fc2": 24},
        "lenet5": {"conv2": 24, "fc1": 24},
    }
    published = {
        "mlp": (("fc1", 0.08), ("fc2", 0.09), ("head", 0.26)),
        "lenet": (("fc1", 0.08), ("fc2", 0.09), ("head", 0.26)),
        "lenet5": (("conv1", 0.66), ("conv2", 0.12), ("fc1", 0.08), ("head", 0.19)),
    }
    wide = {"conv1": 8, "conv2": 8} if network == "lenet5" else {}
    clusters = Cluster(bits=5, price=0.02, epochs=1)
    return {
        "clustered": Made("original", (clusters,)),
        "sparse": Made(
            "original",
            tuple(Sparsify(share=s, scope="global", epochs=e) for s, e in zip(keep[:2], (1, 2), strict=True)),
        ),
        "sparser": Made("sparse", (Sparsify(share=keep[2], scope="global", epochs=2),)),
        "sparse clustered": Made("sparse", (clusters,)),
        "sparser clustered": Made("sparser", (clusters,)),
        "neurons": Made(
            "original", (Prune(parameters=0.75, criterion="taylor", align=False), Finetune(epochs=2))
        ),
        "neurons clustered": Made("neurons", (clusters,)),
        "thin": Made("original", (Factorize(ranks=ranks[network]), Finetune(epochs=2))),
        "deep": Made("original", (DeepCompression(published[network]),)),
        "deep clustered": Made("deep", (Cluster(bits=6 if not wide else 5, bits_of=wide, epochs=1),)),
    }


TECHNIQUES = {
    "float": ("original", "float"),
    "INT8": ("original", "int8"),
    "clusters": ("clustered", "float"),
    "dictionary": ("original", "atoms"),
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
    "huffman": "gaps or masks, Huffman",
    "dwz": "ours",
}


KEY = ("float", "pruned weights, clusters", "more pruned weights, clusters", "Deep Compression", "INT8")
"""What is measured first."""


def cells(network: str) -> list[Cell]:
    """Every technique on every seed."""
    order = sorted(TECHNIQUES, key=lambda name: name not in KEY)
    return [{"network": network, "technique": name, "seed": seed} for name in order for seed in SEEDS]


@functools.cache
def workload_of(network: str) -> Workload:
    """The example's workload with one of the networks."""
    if network != "lenet5":
        return grid.workload_of(network)
    workload = load_workload("workload.py:Mlp", grid.EXAMPLE)
    workload.build_model = LeNet5  # type: ignore[method-assign]
    return workload


def original(network: str, seed: int) -> Work:
    """The trained original of a seed; made once, and shared with the other benchmarks where they have it."""
    if network in grid.EPOCHS:
        return grid.original(network, seed)
    work = Work(workload_of(network), load_target("x86-cpu"), RUNS / f"{network}-{seed}", seed)
    return once(work, "original", Train(epochs=EPOCHS[network]))


def made(network: str, name: str, seed: int) -> Work:
    """The network of that name, the newest of its Work; made once."""
    if name == "original":
        return original(network, seed)
    wanted = networks(network)[name]
    start = made(network, wanted.start, seed)
    return once(dataclasses.replace(start, directory=RUNS / f"{network}-{seed}"), name, *wanted.stages)


def once(work: Work, name: str, *stages: Stage) -> Work:
    """What stages make of the newest network, from the disk where it was made before."""
    place = work.directory / name.replace(" ", "-")
    if not (place / "done").exists():
        latest = work
        for number, stage in enumerate(stages, start=1):
            latest = stage(dataclasses.replace(latest, directory=place / str(number)))
        shutil.copytree(latest.latest().path("weights").parent, place / "kept", dirs_exist_ok=True)
        (place / "done").touch()
    kinds = {"weights": "model.safetensors", "plan": "plan.json", "masks": "masks.safetensors"}
    kept = {kind: place / "kept" / file for kind, file in kinds.items()}
    files = {kind: Artifact.of(path) for kind, path in kept.items() if path.exists()}
    return work.with_variant(Variant(name, files))


def measure(cell: Cell) -> Row:
    """The accuracy of the unpacked file, and the bytes of the packed one by every coder."""
    network, seed = cell["network"], cell["seed"]
    name, form = TECHNIQUES[cell["technique"]]
    work = made(network, name, seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        path, told = file_of(work, form, place)
        data = path.read_bytes()
        ours = pack(data, path, told=told)
        (place / "back.onnx").write_bytes(unpack(ours.data))
        sizes = {
            "onnx": len(data),
            "gzip": len(gzip.compress(data, 9)),
            "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
            "zstd": zstd_bytes(path),
            "huffman": len(pack(data, path, coder="huffman", told=told).data),
            "dwz": len(ours.data),
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
    parts: dict[str, int] = {}
    for _, _, size, way in ours.tensors:
        parts[way] = parts.get(way, 0) + size
    return {"bytes": sizes, **scores, "ways": parts, "graph": ours.skeleton_bytes}


def file_of(work: Work, form: str, place: Path) -> tuple[Path, dict[str, bytes]]:
    """The ONNX file of the newest network, and what is known of its tensors."""
    newest = work.latest()
    alone = dataclasses.replace(work, variants=(newest,), directory=place)
    exported = Export()(alone)
    path = exported.latest("onnx").path("onnx")
    if form == "int8":
        return Quantize()(exported).latest("onnx").path("onnx"), {}
    if form == "atoms":
        told = dictionary_file(path, place / "atoms.onnx", block=4, atoms=128, chosen=1)
        return place / "atoms.onnx", told
    return path, {}


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


def plot(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Accuracy against the packed file's bytes: a point a technique, joined in the order of their bytes."""
    points = {}
    for network in names:
        here = [found(rows, {"network": network, "technique": technique}) for technique in TECHNIQUES]
        means = [[(row["bytes"]["dwz"] / 1000, row["test"]) for row in group] for group in here if group]
        points[network] = sorted(
            (sum(size for size, _ in one) / len(one), sum(test for _, test in one) / len(one))
            for one in means
        )
    largest = 300.0
    shown = {name: [point for point in line if point[0] <= largest] for name, line in points.items()}
    heights = [test for line in shown.values() for _, test in line]
    write_svg(
        path,
        shown,
        x="kilobytes of the file",
        y="test accuracy, %",
        x_range=(0.0, largest),
        y_range=(min(heights) - 0.5, max(heights) + 0.5),
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
        plot(rows, given.networks, given.plot)
    print("\n\n".join(table(rows, network) for network in given.networks))


if __name__ == "__main__":
    main()
