"""What INT8 costs in accuracy: ours, onnxruntime's quantizer and NNCF's, three networks, three seeds.

    python benchmarks/int8/accuracy.py [--nncf PYTHON] [--seeds 0 1 2] [--only Mlp Cnn Mobile]
    python benchmarks/int8/accuracy.py --table

Fashion-MNIST. Each network is trained once a seed, briefly; weights and files stay in runs/int8_accuracy.
Ours is the stage quantize with every range method. Each rival gets the same calibration
samples (2048) and the same right to choose on the validation split: onnxruntime among its range methods,
NNCF between its two bias corrections. The test split is looked at once, when a row is written. NNCF lives in
an environment of its own.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workload as example
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.record import append, recorded
from benchmarks.int8.ort_reader import optimized, reader
from deadweight.export.onnx_graph.counts import float_kernels
from deadweight.pipeline.quantization.candidates import validated
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, session_predict
from deadweight.pipeline.work import Work
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "fashion_mnist"))
sys.path.insert(0, str(Path(__file__).parents[2]))


Row = dict[str, Any]
FOLDER = Path("runs/int8_accuracy")
EPOCHS = {"Mlp": 6, "Cnn": 5, "Mobile": 1}


class Inverted(nn.Module):
    """The block of Sandler et al. 2018, "MobileNetV2": expand, depthwise, project, with ReLU6."""

    def __init__(self, before: int, after: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = before * expand
        self.expand = nn.Conv2d(before, wide, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.project = nn.Conv2d(wide, after, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(after)
        self.skips = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.expand(x)))
        y = self.norm3(self.project(F.relu6(self.norm2(self.depthwise(y)))))
        total: Tensor = x + y if self.skips else y
        return total


class MobileNet(nn.Module):
    """MobileNetV2 for 28 x 28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        widths = (
            (16, 16, 1, 1),
            (16, 24, 2, 4),
            (24, 24, 1, 4),
            (24, 32, 2, 4),
            (32, 32, 1, 4),
            (32, 48, 1, 4),
        )
        self.blocks = nn.Sequential(*(Inverted(*one) for one in widths))
        self.last = nn.Conv2d(48, 192, 1, bias=False)
        self.norm_last = nn.BatchNorm2d(192)
        self.head = nn.Linear(192, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.norm(self.stem(image.reshape(-1, 1, 28, 28)))))
        x = F.relu6(self.norm_last(self.last(x)))
        scores: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class Mobile(example.FashionMnist):
    """The depthwise network as a workload."""

    learning_rate = 3e-3

    def build_model(self) -> nn.Module:
        return MobileNet()


NETWORKS: dict[str, Callable[[], Any]] = {"Mlp": example.Mlp, "Cnn": example.Cnn, "Mobile": Mobile}


def trained(name: str, seed: int) -> tuple[Any, nn.Module]:
    """The workload and its network, trained or read."""
    workload = NETWORKS[name]()
    torch.manual_seed(seed)
    model = workload.build_model()
    path = FOLDER / f"{name}-{seed}.safetensors"
    if not path.exists():
        model.to(memory_format=torch.channels_last)  # a depthwise convolution trains nearly twice as fast
        optimizer = workload.optimizer(model)
        steps = EPOCHS[name] * len(workload.batches("train"))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, workload.learning_rate * 2, steps)
        for epoch in range(EPOCHS[name]):
            for batch in workload.batches("train", seed=1000 * seed + epoch):
                optimizer.zero_grad()
                workload.loss(model(batch["image"]), batch).backward()
                optimizer.step()
                schedule.step()
            print(f"{name}-{seed}: epoch {epoch + 1}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    model.to(memory_format=torch.contiguous_format).load_state_dict(load_file(path))
    return workload, model.eval()


def by_onnxruntime(source: Path, samples: dict[str, Any], work: Work) -> tuple[Path, str]:
    """quantize_static after its own preprocessing, with the range method that validates best."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    count = len(next(iter(samples.values())))
    batches = [
        {key: value[place : place + 32] for key, value in samples.items()} for place in range(0, count, 32)
    ]
    ready = work.directory / "ort_ready.onnx"
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    found = []
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile):
        out = work.directory / f"ort_{method.name}.onnx"
        quantize_static(
            str(ready),
            str(out),
            reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
        )
        found.append((validated(work, out), method.name, out))
    best = max(found, key=lambda one: one[0])
    return best[2], best[1]


def by_nncf(source: Path, samples: dict[str, Any], work: Work, python: Path) -> tuple[Path, str]:
    """NNCF with fast or exact bias correction, whichever validates better."""
    np.savez(work.directory / "samples.npz", **samples)
    found = []
    for name, settings in (("fast", []), ("accurate", ["--accurate"])):
        out = work.directory / f"nncf_{name}.onnx"
        command = [
            python,
            Path(__file__).with_name("nncf_quantize.py"),
            source,
            work.directory / "samples.npz",
            out,
        ]
        process = subprocess.run([*map(str, command), *settings], capture_output=True, text=True)
        if process.returncode == 0:
            found.append((validated(work, out), name, out))
        else:  # of NNCF 3.4 on an add that joins two of its regions; the fast one is what it does by default
            print(f"NNCF ({name}): {process.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    best = max(found, key=lambda one: one[0])
    return best[2], best[1]


def row(name: str, seed: int, nncf: Path | None) -> Row:
    """The scores of one network on the test split, and how fast each file is beside FP32."""
    workload, model = trained(name, seed)
    folder = FOLDER / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(workload, load_target("x86-cpu"), folder, networks=NetworkFiles())
    work = Export()(work.with_model("float", model))
    source = work.latest("onnx").path("onnx")
    ours = Quantize(method="best")(work)
    samples = {"image": np.concatenate([one["image"].numpy() for one in workload.batches("calibration")])}
    files = {"float": source, "ours": ours.latest("onnx").path("onnx")}
    chosen = {"ours": list(ours.log[-1].words)}
    files["onnxruntime"], method = by_onnxruntime(source, samples, work)
    chosen["onnxruntime"] = [method]
    if nncf is not None:
        files["nncf"], method = by_nncf(source, samples, work, nncf)
        chosen["nncf"] = [method]
    found: Row = {"name": name, "seed": seed, "chosen": chosen, "validation": {}, "test": {}, "speed": {}}
    for key, path in files.items():
        session = open_session(path)
        found["validation"][key] = validated(work, path)
        found["test"][key] = score_of(workload, session_predict(session), "test")
    found["left_in_float"] = {
        key: len(float_kernels(optimized(path))) for key, path in files.items() if key != "float"
    }
    measured = time_together(files, protocol=Protocol())
    for key in files:
        if key != "float":
            told = judge(measured["float"], measured[key])
            found["speed"][key] = [
                told.outcome,
                round(told.ratio, 3),
                round(told.low, 3),
                round(told.high, 3),
            ]
            if key != "ours":
                told = judge(measured[key], measured["ours"])
                found["speed"][f"{key}/ours"] = [
                    told.outcome,
                    round(told.ratio, 3),
                    round(told.low, 3),
                    round(told.high, 3),
                ]
    return found


def table(rows: list[Row]) -> str:
    """Means over the seeds, in points below float; speeds of the first seed."""
    lines = [
        "| network | seeds | float | ours | onnxruntime | NNCF | speed over FP32 | ours beside them |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in NETWORKS:
        here = [one for one in rows if one["name"] == name]
        if not here:
            continue
        base = np.array([one["test"]["float"] for one in here])
        cells = [name, str(len(here)), f"{100 * base.mean():.2f}"]
        for key in ("ours", "onnxruntime", "nncf"):
            if any(key not in one["test"] for one in here):
                cells.append("-")
                continue
            lost = 100 * (base - np.array([one["test"][key] for one in here]))
            cells.append(
                f"-{lost.mean():.3f} ({', '.join(f'{-one:+.2f}' for one in lost)})".replace("--", "+")
            )
        speed = here[0]["speed"]
        cells.append(", ".join(f"{speed[k][1]:.2f}" for k in ("ours", "onnxruntime", "nncf") if k in speed))
        beside = [k for k in ("onnxruntime/ours", "nncf/ours") if k in speed]
        cells.append(", ".join(f"{speed[k][1]:.2f} [{speed[k][2]:.2f}, {speed[k][3]:.2f}]" for k in beside))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What INT8 costs in accuracy.")
    parser.add_argument("--nncf", type=Path, help="the Python of an environment with nncf and onnx")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    record = FOLDER.with_suffix(".jsonl")
    known = {(one["name"], one["seed"]) for one in recorded(record)}
    for name, seed in [(name, seed) for seed in given.seeds for name in given.only]:
        if given.table or (name, seed) in known:
            continue
        made = row(name, seed, given.nncf)
        append(record, made)
        print(f"{name}-{seed}: {made['test']} {made['speed']}", file=sys.stderr)
    print(table(recorded(record)))


if __name__ == "__main__":
    main()
