"""NNCF's quantization-aware training of the networks that qat.py trained, beside ours in its table.

    NNCF_PYTHON benchmarks/int8/nncf_qat.py [--networks Depthwise Vit] [--seeds 0 1 2 3 4]

Needs nncf in an environment that also imports deadweight. Same float network, data, loss, optimizer, rate and
number of epochs, by the same loop: only what is rounded, and how it is trained, is NNCF's. The validation
split chooses the epoch. The scores are those of NNCF's graph in torch. NNCF 3.4 refuses
weights of 4 bits beside activations of 8, so it is in the lines of 8 bits alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nncf  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
import torch
from nncf.quantization.advanced_parameters import (  # type: ignore[import-not-found]  # pyright: ignore
    AdvancedQuantizationParameters,
)

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import Cell, in_turn
from benchmarks.common.record import Row
from benchmarks.int8.qat import FOLDER, NNCF, RATES, TRAINED, TUNING, works
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.training.loop import TrainingJob, fit
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.workload import inputs_of


def measure(cell: Cell) -> Row:
    """The test scores in per cent after NNCF's post-training quantization, and after training."""
    work, _ = works(cell["network"], cell["seed"])
    samples = [inputs["image"] for inputs in inputs_of(work.workload, "calibration")]
    quantized = nncf.quantize(
        work.model().eval(),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if cell["network"] == "Vit" else None,
        subset_size=len(samples),
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE),
    )
    inputs = work.workload.example_inputs()
    before = score_of(work.workload, torch_predict(quantized, inputs), "test")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        own = replace(work, directory=Path(folder))
        schedule = Finetune(epochs=TUNING, learning_rate=0.1 * RATES[cell["network"]], patience=2)
        fitted = fit(quantized, TrainingJob.of(own, schedule, "nncf"))
    after = score_of(work.workload, torch_predict(fitted.model, inputs), "test")
    return {
        "nncf_ptq": round(100 * before, 4),
        "nncf_qat": round(100 * after, 4),
        "qat_s": round(time.monotonic() - started),
        "nncf": nncf.__version__,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="NNCF's quantization-aware training.")
    parser.add_argument("--networks", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    cells = [
        {"network": network, "seed": seed, "bits": 8}
        for seed in given.seeds
        for network in given.networks
        if (FOLDER / f"{network}-{seed}" / "tuned" / "done").exists()
    ]
    torch.manual_seed(0)
    in_turn(cells, measure, NNCF)


if __name__ == "__main__":
    main()
