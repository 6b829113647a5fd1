"""The stage "qat": quantization-aware training of the newest network, for INT8 that loses less score.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference". The exported float graph is trained with the roundings of its INT8 file (`fake.py`), from the
calibrated ranges, by the loop of the stage finetune. Batch norms are folded as in the file from the first
step on, since the weights that are rounded are the folded ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ...export.int8 import check_cache, write_cache
from ...export.parity.compare import compare_module
from ...export.quantization.calibrate import Watched, calibrate_by
from ...export.quantization.histogram import Method
from ...targets.errors import ModelError, RecipeError, WorkloadError, users_code
from ...targets.target import Target
from ..quantization.candidates import Candidate, Trials, first
from ..quantization.fake import FakeQuantized, Source
from ..training import checkpoint as on_disk
from ..training.loop import DivergedError, Fitted, Schedule, TrainingJob, fit, training_sentence
from ..training.teachers import Teaching
from ..work import Work
from ..workload import Batch, Workload, example_batch, inputs_of, split_batches
from .export import COMPARED, hop_sentence
from .quantize import check_half, delivered

RATE = 0.1  # of the workload's learning rate: the network is trained already


@dataclass(frozen=True)
class Qat(Schedule):
    """Adds the network "qat".

    Attributes:
        epochs, decay, keep, patience, precision: see `training.Schedule`.
        learning_rate: None is a tenth of the workload's.
        method: the calibration of the ranges to start from, see `Quantize`.
        scales: "learnt" trains the scales too; "fixed" keeps the calibrated ones.
        weight_bits: fewer than 8 are simulated: no runtime here has kernels for them, so they gain no time.
        share: of distillation from the float network in the loss, 0 to 1; `temperature` as in `Teaching`.
        data: the split to train on; "calibration" may have no labels, so it needs share = 1.
        half: as in `Quantize`.
        cache_batch: the batch of a float file and its calibration cache for TensorRT before 11, which are
            written too; None without.
    """

    epochs: Annotated[int, Field(ge=1)] = 3
    patience: Annotated[int, Field(ge=1)] | None = 2
    method: Method | Literal["best"] = "minmax"
    scales: Literal["learnt", "fixed"] = "learnt"
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 8
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    data: Literal["train", "calibration"] = "train"
    half: bool = False
    cache_batch: Annotated[int, Field(ge=1)] | None = None
    reads_onnx: ClassVar[bool] = True
    writes_onnx: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.processes > 1:
            raise RecipeError(
                f"The stage qat trains in one process, not {self.processes}.", "Set processes = 1."
            )
        if self.data == "calibration" and self.share < 1:
            raise RecipeError(
                f'data = "calibration" has no labels for the rest of the loss: share is {self.share:g}.',
                "Set share = 1: all of the loss is then distillation from the float network.",
            )

    def check_target(self, target: Target) -> None:
        """The target's runtime takes FP16 in the file and a calibration cache, if they are asked for."""
        check_half("qat", target, half=self.half)
        if self.cache_batch is not None:
            check_cache(target)

    def __call__(self, work: Work) -> Work:
        check_data(work.workload, self.data)
        trials = Trials.of(work, weight_bits=self.weight_bits)
        work.progress(0, 1, "qat: calibrate")
        start = first(trials, self.method)
        source = Source.of(
            start.source, start.ranges, dialect=trials.dialect, skip=start.skip, bits=self.weight_bits
        )
        few = list(itertools.islice(inputs_of(work.workload, "calibration"), COMPARED))
        net = self._net(work, source, few)
        data = _Data(work.workload, self.data, RATE if self.learning_rate is None else 1.0)
        own = dataclasses.replace(work, workload=cast(Workload, data))
        job = TrainingJob.of(own, self, "qat")
        if self.share:
            teaching = Teaching((work.latest().path("weights").parent,), self.temperature, self.share)
            job = dataclasses.replace(job, teaching=teaching)
        fitted, said = _fitted(net, job, data)
        trained = cast(FakeQuantized, fitted.model)
        model, ranges, quantized = source.written(trained)
        made = trials.judged("qat", quantized, model, ranges, start.skip)
        hop = compare_module(trained, quantized.model, few, name="trained graph -> INT8", kind="lossy")
        result, halved, words = delivered(work, trials, made, name="qat", half=self.half, score_drop=None)
        said += (
            [f"{name} stays in float: {why}" for name, why in quantized.left_float.items()] + halved + words
        )
        if self.weight_bits < 8:
            said.append(f"weights of {self.weight_bits} bits are simulated: they are stored and run as INT8")
        if self.cache_batch is not None:
            result = _with_cache(result, made, self.cache_batch)
        shutil.rmtree(trials.folder)
        scores = (
            f"validation {work.workload.score_name}: {trials.float_score:.4f} in float, {start.score:.4f} in "
            f"INT8 before training, {fitted.score:.4f} in the trained graph, {made.score:.4f} in its file"
        )
        how = training_sentence(fitted, self.epochs, work.workload)
        return result.with_json("qat", {"words": [f"qat: {scores}", *halved]}).logged(
            "qat", self, how, scores, hop_sentence("qat", hop), *said
        )

    def _net(self, work: Work, source: Source, few: Sequence[Mapping[str, Tensor]]) -> FakeQuantized:
        """The graph to train, which computes without roundings what ONNX Runtime does."""
        network = work.model()
        with torch.no_grad(), users_code("the network ran on example_inputs()"):
            like = network(*example_batch(work.workload).values())
        parameters = [name for name, _ in network.named_parameters()]
        net = FakeQuantized(source, like, parameters, learnt=self.scales == "learnt")
        net.active = False
        compare_module(net, source.model, few, name="ONNX -> graph to train")
        net.active = True
        return net


@dataclass
class _Data:
    """The workload with another split to train on, and a share of its learning rate.

    Attributes:
        model: the copy that is trained.
    """

    inner: Workload
    split: str
    rate: float
    model: FakeQuantized | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batches(self, split: str, *, seed: int = 0) -> Iterable[Batch]:
        return self.inner.batches(self.split if split == "train" else split, seed=seed)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        made = self.inner.optimizer(model)
        for group in made.param_groups:
            group["lr"] *= self.rate
        self.model = cast(FakeQuantized, model)
        return made


def check_data(workload: Workload, split: str) -> None:
    """Reads a batch to train on; a WorkloadError with another way if there is none."""
    try:
        next(split_batches(workload, split))
    except WorkloadError as error:
        raise WorkloadError(
            f"The stage qat trains, and there is nothing to train on. {error.what}",
            'Set data = "calibration" and share = 1: it then trains on the calibration samples, without '
            "labels, by distillation from the float network.",
        ) from error


def _fitted(net: FakeQuantized, job: TrainingJob, data: _Data) -> tuple[Fitted, list[str]]:
    """The trained network; where the loss became NaN, the best epoch before, and a sentence on it."""
    try:
        return fit(net, job), []
    except DivergedError as error:
        suspect = data.model.suspect() if data.model is not None else ""
        epochs = len(on_disk.reached(job.checkpoint).scores)
        if not epochs:
            raise ModelError(
                f"{error.what} {suspect[:1].upper()}{suspect[1:]}.",
                'Lower learning_rate, or keep the calibrated scales (scales = "fixed").',
            ) from error
        job = dataclasses.replace(job, schedule=dataclasses.replace(job.schedule, epochs=epochs))
        return fit(net, job), [f"{error.what} {suspect}; the best of the {epochs} epochs before it is kept"]


def _with_cache(work: Work, made: Candidate, batch: int) -> Work:
    """The work with the float file of the network "qat" and its calibration cache."""
    watched = Watched.of(made.source, every=True)
    ranges = calibrate_by(("minmax",), watched, inputs_of(work.workload, "calibration"))["minmax"]
    folder = work.variant("qat").path("onnx").parent
    cache = write_cache(folder, made.source, made.quantized, ranges, batch, work.target)
    return work.with_file("qat", "cache", cache.path).with_file("qat", "float", cache.model)
