"""What quantization-aware training recovers: float, post-training quantization at its best, QAT; five seeds.

    python benchmarks/int8/qat.py [--networks Depthwise Vit] [--seeds 0 1 2 3 4]
    python benchmarks/int8/qat.py --table

The depthwise network of examples/signs at its committed setting, and a small vision transformer on 6,000
images of Fashion-MNIST; at 8 bits, and with weights of 4 (simulated: stored and run as INT8). "PTQ" is the
best of the four range methods; QAT has three epochs at a tenth of the rate, from the same ranges. The control
is the float network after the same three epochs, and its PTQ: what training alone gains is no merit of QAT.
All choices are made on the validation split; the test split is looked at once, when a row is written.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "fashion_mnist"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "signs"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import signs
import workload as example

from benchmarks.common.grid import Cell, found, in_turn, markdown, missing_words
from benchmarks.common.record import Row, recorded
from deadweight.pipeline.quantization.candidates import Candidate, Trials, first
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.qat import Qat
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, session_predict
from deadweight.pipeline.work import Variant, Work
from deadweight.targets.artifact import Artifact
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

FOLDER = Path("runs/int8_qat")
RECORD = FOLDER.with_suffix(".jsonl")
NNCF = Path("runs/int8_nncf_qat.jsonl")
"""Rows of nncf_qat.py."""
SIZES = {"train": 6_000, "validation": 4_000, "calibration": 1_024}  # images; the test split is whole
EPOCHS = {"Depthwise": 6, "Vit": 8, "Cnn": 6}
TUNING = 3
SCORES = ("float", "ptq", "qat", "tuned", "tuned_ptq")


class Layer(nn.Module):
    """A transformer layer with the norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, w))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """A small ViT (Dosovitskiy et al. 2021): patches of 4 x 4, width 48, three layers, the mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, 48, 4, 4), nn.Parameter(0.02 * torch.randn(1, 49, 48))
        self.layers = nn.Sequential(*(Layer(48, 3) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image.reshape(-1, 1, 28, 28)).flatten(2).transpose(1, 2) + self.position
        scores: Tensor = self.head(self.norm(self.layers(x)).mean(1))
        return scores


class Few(example.FashionMnist):
    """Fewer images of Fashion-MNIST."""

    def batches(self, split: str, *, seed: int = 0) -> example.Batches:
        made = super().batches(split, seed=seed)
        if split in SIZES:
            made.order = made.order[made.order < SIZES[split]]
        return made


class Vit(Few):
    """The transformer on them."""

    def build_model(self) -> nn.Module:
        return VisionTransformer()


class Cnn(Few, example.Cnn):
    """The residual network on them, for by_time.py."""


TRAINED = ("Depthwise", "Vit")
NETWORKS: dict[str, Callable[[], Any]] = {"Depthwise": signs.DepthwiseSigns, "Vit": Vit, "Cnn": Cnn}
RATES = {"Depthwise": 2e-3, "Vit": 1e-3, "Cnn": 1e-3}  # of the workloads' optimizers


def works(network: str, seed: int) -> tuple[Work, Work]:
    """The float network and the same after the epochs that QAT has, exported; trained or read."""
    made = []
    for name, before in (("original", None), ("tuned", "original")):
        place = FOLDER / f"{network}-{seed}" / name
        work = Work(NETWORKS[network](), load_target("x86-cpu"), place, seed, networks=NetworkFiles())
        weights = place / name / "model.safetensors"
        if before:
            start = FOLDER / f"{network}-{seed}" / before / before / "model.safetensors"
            work = work.with_variant(Variant(before, {"weights": Artifact.of(start)}))
        if not (place / "done").exists():
            tuning = Finetune(epochs=TUNING, learning_rate=0.1 * RATES[network])
            (tuning if before else Train(epochs=EPOCHS[network]))(work)
            (place / "done").touch()
        work = replace(work, variants=(Variant(name, {"weights": Artifact.of(weights)}),))
        made.append(Export()(work))
    return made[0], made[1]


def quantized(work: Work, bits: int) -> Candidate:
    """The best range method on the validation split."""
    shutil.rmtree(work.directory / "trials", ignore_errors=True)
    return first(Trials.of(work, weight_bits=bits), "best")


def test_score(work: Work, path: Path) -> float:
    session = open_session(path)
    score = score_of(work.workload, session_predict(session), "test")
    session.close()
    return round(100 * score, 4)


def measure(cell: Cell) -> Row:
    """The test scores of one network, seed and number of bits, in per cent."""
    started = time.monotonic()
    work, tuned = works(cell["network"], cell["seed"])
    files = {"float": work.latest("onnx").path("onnx"), "tuned": tuned.latest("onnx").path("onnx")}
    files["ptq"] = quantized(work, cell["bits"]).path
    files["tuned_ptq"] = quantized(tuned, cell["bits"]).path
    place = FOLDER / f"{cell['network']}-{cell['seed']}" / f"qat{cell['bits']}"
    before = time.monotonic()
    done = Qat(epochs=TUNING, weight_bits=cell["bits"], method="best")(replace(work, directory=place))
    files["qat"] = done.variant("qat").path("onnx")
    row: Row = {"qat_s": round(time.monotonic() - before), "words": list(done.log[-1].words[:3])}
    row |= {name: test_score(work, path) for name, path in files.items()}
    if cell["seed"] == 0:
        measured = time_together({name: files[name] for name in ("float", "ptq", "qat")}, protocol=Protocol())
        for one, other in (("float", "ptq"), ("float", "qat"), ("ptq", "qat")):
            judged = judge(measured[one], measured[other])
            row[f"speed {one}/{other}"] = [
                judged.outcome,
                *(round(x, 3) for x in (judged.ratio, judged.low, judged.high)),
            ]
    print(f"{cell}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return row


def paired(rows: list[Row], one: str, other: str) -> str:
    """The mean of the differences by seed, with its 95 % interval (Student's t)."""
    found = [row[one] - row[other] for row in rows]
    mean = statistics.fmean(found)
    if len(found) < 2:
        return f"{mean:+.2f}"
    half = float(stats.t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / len(found) ** 0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def table(rows: list[Row], beside: list[Row]) -> str:
    """Means over the seeds, and paired differences in points; `beside` are NNCF's rows."""
    head = ["network", "weights", "seeds", "float", "PTQ", "QAT", "QAT - PTQ", "float - QAT", "recovered"]
    head += ["tuned float", "its PTQ", "QAT - that", "NNCF: PTQ", "QAT", "ours - its QAT"]
    theirs = {tuple(row["cell"].values()): row for row in beside}
    lines = []
    for network in TRAINED:
        for bits in (8, 4):
            here = found(rows, {"network": network, "bits": bits})
            if not here:
                continue
            mean = {name: statistics.fmean(row[name] for row in here) for name in SCORES}
            lost = mean["float"] - mean["ptq"]
            recovered = f"{100 * (mean['qat'] - mean['ptq']) / lost:.0f} %" if lost > 0.1 else "nothing lost"
            figures = [f"{mean[name]:.2f}" for name in ("float", "ptq", "qat")]
            both = [row | theirs[key] for row in here if (key := tuple(row["cell"].values())) in theirs]
            other = ["-", "-", "-"]
            if both:
                other = [
                    *(
                        f"{statistics.fmean(row[name] for row in both):.2f}"
                        for name in ("nncf_ptq", "nncf_qat")
                    ),
                    f"{paired(both, 'qat', 'nncf_qat')}, {len(both)} seeds",
                ]
            lines.append(
                [
                    *(network, f"{bits} bits", str(len(here)), *figures),
                    *(paired(here, "qat", "ptq"), paired(here, "float", "qat"), recovered),
                    *(f"{mean['tuned']:.2f}", f"{mean['tuned_ptq']:.2f}", paired(here, "qat", "tuned_ptq")),
                    *other,
                ]
            )
    return markdown(head, lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What quantization-aware training recovers.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(TRAINED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    cells = [
        {"network": network, "seed": seed, "bits": bits}
        for seed in given.seeds
        for network in given.networks
        for bits in (8, 4)
    ]
    if not given.table:
        in_turn(cells, measure, RECORD)
    rows = recorded(RECORD)
    print(f"{table(rows, recorded(NNCF))}\n\n{missing_words(rows, cells)}")


if __name__ == "__main__":
    main()
