"""The stage "quantize": post-training INT8 quantization of the newest network, within a score budget.

Ranges are calibrated after pruning and fine-tuning, on the file that is shipped. The Q/DQ graph is in the
dialect of the target's runtime: TensorRT's symmetric one, or the one in which ONNX Runtime on x86 leaves no
convolution in float.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ...export.lint.check import lint_sentences
from ...export.lint.platform import Platform
from ...export.lint.widths import off_step
from ...export.onnx_graph.graph import OnnxModel, save
from ...export.onnx_graph.run import Opened
from ...export.parity.compare import LIMITS, compare, noise_between
from ...export.quantization import adequacy
from ...export.quantization.fp16 import to_half
from ...export.quantization.histogram import Method
from ...export.quantization.to_qdq import saturation
from ...targets.artifact import Artifact
from ...targets.errors import ModelError, NoiseError, RecipeError
from ...targets.plain import plain
from ...targets.target import Target
from ..quantization.candidates import Candidate, Trials, first, timed, validated
from ..quantization.sensitivity import (
    Layer,
    offer_sentence,
    return_sentence,
    returned,
    sensitivity,
    sensitivity_sentence,
)
from ..work import Variant, Work
from ..workload import inputs_of
from .export import COMPARED, hop_sentence

GONE = (
    "steps has no effect any more and ends with 0.3: equalize, adaround and bias_correction are gone, use qat"
)


@dataclass(frozen=True)
class Quantize:
    """Adds the network "int8".

    Attributes:
        method: the calibration of ranges: "minmax", "percentile", "entropy", "mse", or "best", which tries
            all four from one pass over the data.
        steps: has no effect any more, see docs/int8.md.
        score_drop: how much worse than the float network's the validation score may be, in its own unit.
            While it is worse, the most sensitive layer returns to float. Without it no layer does.
        sensitivity: whether the sensitivity of every layer is measured even if the budget does not need it.
        only_if_faster: whether the network stays in float if INT8 is measured to be slower here.
        weight_bits: 2 to 8. 7 are for x86 processors without VNNI, where sums of 8-bit weights saturate in
            ONNX Runtime; fewer than 8 gain no time.
        half: whether operators in float become FP16 in the file. TensorRT 10 and later need it: they build
            strongly typed networks. Earlier ones refuse it. If FP16 breaks the score budget, they stay FP32.
    """

    method: Method | Literal["best"] = "minmax"
    steps: tuple[str, ...] = ()
    score_drop: Annotated[float, Field(ge=0)] | None = None
    sensitivity: bool = False
    only_if_faster: bool = False
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 8
    half: bool = False
    reads_onnx: ClassVar[bool] = True
    writes_onnx: ClassVar[bool] = True

    def check_target(self, target: Target) -> None:
        """The target's runtime takes FP16 in the file, if it is asked for."""
        check_half("quantize", target, half=self.half)

    def __call__(self, work: Work) -> Work:
        work.progress(0, 3, "quantize: calibrate")
        trials = Trials.of(work, weight_bits=self.weight_bits)
        candidate = first(trials, self.method)
        said = [GONE] if self.steps else []
        layers, kept, returns = self._within_budget(trials, candidate)
        said += returns
        if kept is not None and self.only_if_faster and not work.target.runtime.builds:
            judged = timed(trials, trials.original, kept.path)
            said.append(f"INT8 against FP32 on this machine: {judged.sentence()}")
            kept = None if judged.outcome == "slower" else kept
        work.progress(2, 3, "quantize: compare")
        result = work if kept is None else self._kept(work, trials, kept, said)
        if kept is None:
            said.append("the network stays in float")
            result = work.logged("quantize", self, *said)
        if said:
            content = {"words": said, "layers": plain(layers)}
            result = result.with_json("int8", content)
        shutil.rmtree(trials.folder)
        return result

    def _within_budget(
        self, trials: Trials, candidate: Candidate
    ) -> tuple[tuple[Layer, ...], Candidate | None, list[str]]:
        """The sensitivity of layers, if measured; the candidate within the budget; sentences on both."""
        allowed = self.score_drop
        if allowed is None and not self.sensitivity:
            return (), candidate, []
        drop = trials.drop(trials.float_score, candidate.score)
        said = [] if allowed is None else [f"lost on validation: {drop:+.4f} of {allowed:g} allowed"]
        broken = allowed is not None and drop > allowed
        if not broken and not self.sensitivity:
            return (), candidate, said
        layers = sensitivity(trials, candidate)
        said.append(sensitivity_sentence(layers))
        if not broken or allowed is None:
            return layers, candidate, said
        kept, returns = returned(trials, candidate, layers, score_drop=allowed)
        score = candidate.score
        for found in returns:
            said.append(return_sentence(found, score))
            score = found.score
        said.append(offer_sentence(returns))
        if kept is None:
            said.append(f"with one layer in INT8 the score is still worse by more than {allowed:g}")
        return layers, kept, said

    def _kept(self, work: Work, trials: Trials, kept: Candidate, said: list[str]) -> Work:
        batches = itertools.islice(inputs_of(work.workload, "calibration"), COMPARED)
        int8 = Opened.of(kept.quantized.model)
        try:
            hop = compare(trials.network, int8, batches, kind="lossy", name="ONNX -> INT8")
        except NoiseError as broken:  # the run goes on without INT8
            said.append(f"{broken.what} {broken.cure} The network stays in float")
            return work.logged("quantize", self, *said)
        result, halved, words = delivered(
            work, trials, kept, name="int8", half=self.half, score_drop=self.score_drop
        )
        said += halved
        return result.logged(
            "quantize",
            self,
            f"{kept.ranges.method} ranges, {trials.dialect} dialect, validation "
            f"{work.workload.score_name} {kept.score:.4f} ({trials.float_score:.4f} in float)",
            hop_sentence("int8", hop),
            *words,
            *said,
        )


def check_half(stage: str, target: Target, *, half: bool) -> None:
    """Refuses FP16 in the file, if it is asked for, where the target's runtime does not take it."""
    if half and "file" not in target.runtime.fp16:
        raise RecipeError(
            f"The stage {stage} has half = true, but {target.name} runs {target.runtime}.",
            "FP16 in the file is for TensorRT 10 and later: leave half out.",
        )


def delivered(
    work: Work, trials: Trials, kept: Candidate, *, name: str, half: bool, score_drop: float | None
) -> tuple[Work, list[str], list[str]]:
    """The work with a candidate as the network `name`, and its ranges; sentences on FP16, and on the file.

    Args:
        half, score_drop: see `Quantize`.
    """
    path = work.directory / name / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    shipped, halved = kept.quantized.model, list[str]()
    if half:
        shipped, sentence = _halved(trials, Opened.of(shipped), score_drop)
        halved.append(sentence)
    save(shipped.proto, path)
    result = work.with_variant(Variant(name, {"onnx": Artifact.of(path)}))
    rounded = {one: kept.ranges.adequacy[one] for one in kept.quantized.tensors}
    words = [
        *adequacy.words(rounded, samples=kept.ranges.samples, method=kept.ranges.method),
        *off_step(kept.source, kept.quantized.in_int8, work.target),
        *saturation(work.target, trials.weight_bits, "weight_bits = 7"),
        *lint_sentences(path, work.target, name=name),
    ]
    return result.with_json("ranges", kept.ranges.to_json()), halved, words


def _halved(trials: Trials, int8: Opened, score_drop: float | None) -> tuple[OnnxModel, str]:
    """The model to ship, with FP16 if that is within the budget; and a sentence on what it changed."""
    work = trials.work
    halved = to_half(int8.model, tensorrt=Platform.of(work.target).version)
    path = trials.folder / "half.onnx"
    save(halved.model.proto, path)
    near = itertools.islice(inputs_of(work.workload, "calibration"), COMPARED)
    noise = noise_between(int8, Opened.of(halved.model), near)
    if not noise < LIMITS["lossy"]:
        raise ModelError(
            f"FP16 changes the outputs by {noise:.3g} of their values: inner values exceed its range.",
            "Leave half out.",
        )
    score = validated(work, path)
    said = f"FP16 for operators in float: noise {noise:.2%}, validation {score:.4f}"
    drop = trials.drop(trials.float_score, score)
    # In this form NaN is over every budget.
    if score_drop is not None and not drop <= score_drop:
        kept = f"{drop:+.4f} of {score_drop:g} allowed: NOT kept, they stay FP32"
        return int8.model, f"{said}, {kept}"
    return halved.model, said + halved.words()
