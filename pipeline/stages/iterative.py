"""The stage "iterative": iterative pruning and fine-tuning, until a goal is met or a score floor is broken.

The remaining units adapt step by step (Han et al. 2015, "Learning both Weights"). The steps follow a schedule
of the share that is removed after each; a step that breaks the floor on the validation split is undone. Every
finished step is kept in the stage's folder: a killed run resumes at its current step and last epoch.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ...export.to_onnx import to_onnx
from ...targets.artifact import read_json, write_json
from ...targets.errors import ModelError, RecipeError
from ...targets.target import Target
from ...targets.timing.measurement import Protocol
from ..budget.timer import check_clock, timer
from ..importance.allocation import TooFewUnitsError
from ..pruning.narrow import elements_of
from ..training.predict import validation_score
from ..work import Work
from ..workload import example_batch, lost
from .finetune import Finetune
from .profile import how_on
from .prune import Cutting, Prune, Share
from .statistics import Statistics

Shape = Literal["linear", "cubic", "geometric"]


@dataclass(frozen=True)
class Iterative(Cutting):
    """Alternates pruning and fine-tuning; the results are the networks "pruned" (the last cut) and "tuned".

    Attributes:
        parameters: the share of the original's parameters that is removed after the last step.
        steps: number of cuts.
        schedule: the share removed after each step, see `shares`.
        score_drop: how much worse than the original the validation score may get, in its own unit; the step
            that breaks this is undone and ends the stage. None for no floor.
        score_floor: the same as an absolute score.
        latency_s: ends the stage as soon as a network takes at most this long (median, batch 1); None does
            not measure.
        on: the board on which that is timed; without one, the target's runtime on this machine.
        criterion ... norms: see `prune.Cutting`.
        epochs, learning_rate: of the fine-tuning after each cut, see `training.Schedule`.
    """

    parameters: Share
    steps: Annotated[int, Field(ge=1)] = 5
    schedule: Shape = "cubic"
    score_drop: Annotated[float, Field(ge=0)] | None = None
    score_floor: float | None = None
    latency_s: Annotated[float, Field(gt=0)] | None = None
    on: str = ""
    epochs: Annotated[int, Field(ge=0)] = 2
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    long: ClassVar[bool] = True
    shrinks: ClassVar[bool] = True  # controls repeat the stages that it runs inside, which are in the log

    def __post_init__(self) -> None:
        if self.score_drop is not None and self.score_floor is not None:
            raise RecipeError(
                f"The stage iterative has a score_drop of {self.score_drop} and a score_floor of "
                f"{self.score_floor}.",
                "Give one of them.",
            )

    def check_target(self, target: Target) -> None:
        """The latency that is asked for can be measured."""
        if self.latency_s is not None:
            check_clock(self.on, target, f"latency_s = {self.latency_s}")

    def __call__(self, work: Work) -> Work:
        whole = validation_score(work.workload, work.model())
        floor = self._floor(work, whole)
        if floor is not None and lost(work.workload, floor, whole) > 0:
            raise RecipeError(
                f"The unpruned network has a validation {work.workload.score_name} of {whole:.4f}, which is "
                f"already beyond the floor of {floor:.4f}.",
                "Give a floor that the unpruned network meets, or train it longer.",
            )
        size = elements_of(work.model())
        words, last = [], work
        for step, share in enumerate(shares(self.parameters, self.steps, self.schedule), start=1):
            work.progress(step - 1, self.steps, f"iterative: step {step} of {self.steps}")
            step_share = 1 - size * (1 - share) / elements_of(last.model())
            if (tried := self._step(last, work.directory / f"step-{step}", step_share)) is None:
                words.append(f"step {step}: no unit is left that could be removed")
                break
            score, left = validation_score(work.workload, tried.model()), elements_of(tried.model())
            sentence = f"step {step}: {1 - left / size:.1%} fewer parameters, {score:.4f}"
            if floor is not None and lost(work.workload, floor, score) > 0:
                words.append(f"{sentence}, under the floor of {floor:.4f}: undone")
                break
            last = tried
            if self.latency_s is not None:
                latency_s = self._latency_s(tried)
                sentence += f", {latency_s * 1e6:.1f} µs"
                if latency_s <= self.latency_s:
                    words.append(f"{sentence}: fast enough")
                    break
            words.append(sentence)
        work.progress(self.steps, self.steps, "iterative")
        if last is work:
            raise ModelError(
                f"The first step already breaks the floor: {words[-1]}.",
                "Use more steps, fine-tune for longer, or lower the floor.",
            )
        last = dataclasses.replace(last, directory=work.directory, progress=work.progress)
        return last.logged("iterative", self, *words)

    def _floor(self, work: Work, whole: float) -> float | None:
        if self.score_drop is None:
            return self.score_floor
        return whole - self.score_drop if work.workload.higher_is_better else whole + self.score_drop

    def _step(self, work: Work, place: Path, share: float) -> Work | None:
        """The work after one cut and its fine-tuning, from disk if finished; None: nothing can be removed."""
        if (place / "done.json").exists():
            return work.restored(read_json(place / "done.json"), place)
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(Cutting)}
        cut = Prune(parameters=min(max(share, 1e-9), 1 - 1e-9), **settings)
        tune = Finetune(epochs=self.epochs, learning_rate=self.learning_rate)
        result = work
        for stage, name in ((Statistics(), "statistics"), (cut, "pruned"), (tune, "tuned")):
            try:
                result = stage(result.quiet(place / name))
            except TooFewUnitsError:
                return None
        write_json(place / "done.json", result.record(place))
        return result

    def _latency_s(self, work: Work) -> float:
        how = how_on(work, runtime="", precision="fp16")
        with tempfile.TemporaryDirectory() as folder, timer(self.on, how, work.target) as clock:
            path = Path(folder) / "model.onnx"
            to_onnx(work.model(), example_batch(work.workload), path)
            protocol = Protocol(events=6, runtime=work.target.here.name)
            return clock.together({"tried": path}, protocol)["tried"].latency_s(50).value


def shares(goal: float, steps: int, schedule: Shape) -> list[float]:
    """The share of the parameters that is removed after each step.

    "linear" removes the same number in each step; "geometric" the same share of the rest; "cubic" much at
    first and little at the end, when every unit counts (Zhu and Gupta 2017, "To prune, or not to prune").
    """
    done = [step / steps for step in range(1, steps + 1)]
    if schedule == "linear":
        return [goal * part for part in done]
    if schedule == "geometric":
        return [1 - (1 - goal) ** part for part in done]
    return [goal * (1 - (1 - part) ** 3) for part in done]
