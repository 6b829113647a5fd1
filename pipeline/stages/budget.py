"""The stage "budget": the most accurate network that runs in a given time, found by measuring.

A table of segment times and some whole networks, all measured, predict the time of any widths (the folder
`budget`). The damage of each group is measured on validation data, and an integer program chooses the widths.
Its best plans are cut and timed together with the whole network, the prediction is fitted again, and of the
networks proven to keep the budget the one with the best validation score stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx
from pydantic import Field
from torch import Tensor, nn

from ...export.onnx_graph.graph import save
from ...export.onnx_graph.resize import Widths
from ...export.to_onnx import to_onnx
from ...targets.artifact import read_json, write_json
from ...targets.budgets import Budgets
from ...targets.errors import MeasurementError, ModelError, RecipeError, users_code
from ...targets.timing.judge import judge, unproven
from ...targets.timing.measurement import Measurement, Protocol
from ..budget.damage import damage_of
from ..budget.droppable import dropped_in, with_blocks, without_blocks
from ..budget.grids import Network
from ..budget.latency import Latency, of_table
from ..budget.measured import table_of
from ..budget.plans import Finalist, best_plans, record_of
from ..budget.precision import bits_of, int8_damage, mixed, ranges_of, split, with_precision
from ..budget.resized import of_module
from ..budget.resolutions import RESOLUTION, at_resolution, with_resolutions
from ..budget.solve import Levels, OutOfReachError, Sum
from ..budget.table import SegmentTable, levels_of
from ..budget.timer import Timer, seconds_of, timer
from ..importance.criteria import Context
from ..importance.gradients import Gradients
from ..pruning.bypass import shallower
from ..pruning.groups import BLOCKS, Groups, choose
from ..pruning.plan import Bypass, plan_of
from ..pruning.surgery import apply
from ..quantization.candidates import validated
from ..stage import NamedStage, beside
from ..training.batch_norm import reestimated
from ..training.predict import validation_score
from ..work import Work
from ..workload import example_batch
from .profile import how_on
from .prune import Cutting, find_criterion

_ROUNDS = 4
_FULL = 0.95
"""The share of the budget that a network should use; below it another round is tried."""
_SURE = 0.98
"""Two-sided, so that a budget is kept with 99 %."""
_PROOF = 3
"""Times as many events: a wide interval leaves the budget unused."""


@dataclass(frozen=True, kw_only=True)
class Budget(Cutting):
    """Prunes the newest network to a budget; the result is the network "pruned".

    It writes "table", the table of segment times with the damage of each width, for `deadweight advise`.

    Attributes:
        latency_s: the median latency that must not be exceeded, in seconds.
        speedup: instead of it, how many times as fast as the newest network.
        memory_bytes: besides, the resident memory that must not be exceeded.
        file_bytes: besides, how large the constants of the ONNX file may be.
        choose: what a plan chooses: "widths" of groups, "blocks" to drop, as the stage "depth" does, the
            "resolution" of the images among those that the workload declares, to which the network then
            resizes them, and the "precision" of each layer, FP32 or INT8; the stage "quantize" then leaves
            in float what the plan does.
        finalists: how many plans of a round are cut and measured.
        networks: how many random networks are measured to fit the prediction.
        events: of each timing of the finalists, see `profile`.
        on: the board on which everything is timed; without one, on this machine.
        table: a table that was measured before, by `deadweight table` with this workload; relative to the
            recipe.
        solver_s: how long the solver may take for one plan.
        criterion ... norms: see `prune.Cutting`; alignment is in the table.

    What is left out of the first four is taken from the recipe's [budgets].
    """

    latency_s: Annotated[float, Field(gt=0)] | None = None
    speedup: Annotated[float, Field(gt=1)] | None = None
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    file_bytes: Annotated[int, Field(gt=0)] | None = None
    choose: tuple[Literal["widths", "blocks", "resolution", "precision"], ...] = ("widths",)
    finalists: Annotated[int, Field(ge=1)] = 6
    networks: Annotated[int, Field(ge=16)] = 60
    events: Annotated[int, Field(ge=12)] = 24
    on: str = ""
    table: str = ""
    solver_s: Annotated[float, Field(gt=0)] = 60.0
    long: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.latency_s is not None and self.speedup is not None:
            raise RecipeError(
                f"The stage budget has latency_s {self.latency_s} and speedup {self.speedup}.",
                "Give one of them: it is what the network must keep.",
            )
        if "widths" not in self.choose:
            raise RecipeError(
                f"The stage budget chooses {' and '.join(self.choose) or 'nothing'}, without widths.",
                'Give choose = ["widths"], with "blocks", "resolution" or "precision" too; alone there '
                "are the stages depth and quantize.",
            )

    def within(self, budgets: Budgets) -> Budget:
        """This stage with what the recipe's budgets ask for and its own settings leave out."""
        own = {
            name: getattr(budgets, name) for name in ("latency_s", "speedup", "memory_bytes", "file_bytes")
        }
        if self.latency_s is not None or self.speedup is not None or own["latency_s"] is not None:
            own["speedup"] = None
        if self.speedup is not None:
            own["latency_s"] = None
        if (own["speedup"] or 2.0) <= 1.0:  # no slower than before: any network is
            own["speedup"] = None
        return replace(self, **{k: value for k, value in own.items() if value and getattr(self, k) is None})

    def reads(self) -> list[Path]:
        """The table, whose content enters the cache key."""
        return [Path(self.table)] if self.table else []

    def check(self, earlier: Sequence[NamedStage]) -> None:
        """There is a time to keep."""
        if self.latency_s is None and self.speedup is None:
            raise RecipeError(
                "The stage budget has no time to keep: neither it nor [budgets] has latency_s or speedup.",
                "Give latency_s, in seconds, or a speedup above 1, in the stage or in [budgets].",
            )

    def __call__(self, work: Work) -> Work:
        self.check(())
        model = work.model()
        groups = work.networks.groups(model, work.workload)
        chosen = [one for one in groups if self.heads or one.kind not in BLOCKS]
        criterion = find_criterion(self.criterion)
        context = Context(model, None, work.seed, Gradients(model, groups, work.workload))
        with users_code(f'the criterion "{self.criterion}" was called'):
            scores = {one.name: criterion(one, context) for one in chosen}
        how = how_on(work, runtime="", precision="fp16")
        with timer(self.on, how, work.target) as clock:
            return _Search(self, work, model, groups, scores, clock).result()


@dataclass(eq=False)
class _Search:
    """The search for one budget; what was measured is kept on disk, where a killed run goes on."""

    asked: Budget
    work: Work
    model: nn.Module
    groups: Groups
    scores: Mapping[str, Tensor]
    clock: Timer
    layers: tuple[str, ...] = ()
    blocks: Mapping[str, Bypass] = field(default_factory=dict)
    fixed: Sequence[str] = ()
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def dialect(self) -> str:
        """Of the Q/DQ pairs, as the target's runtime needs them."""
        return self.work.target.runtime.dialect

    def result(self) -> Work:
        """The work with the network that was found.

        Raises:
            OutOfReachError: no widths keep the budget; it says what the least possible is.
        """
        whole_path = self._file(self.model, "whole")
        whole = self._timed({"whole": whole_path})["whole"]
        whole_s = whole.latency_s(50).value
        limit_s = self.asked.latency_s or whole_s / (self.asked.speedup or 1.0)
        why = unproven(whole)
        if limit_s >= whole_s and not why:
            raise RecipeError(
                f"The network takes {whole_s * 1e3:.3f} ms, within its budget of {limit_s * 1e3:.3f} ms.",
                "Ask for less, or leave the stage budget out.",
            )
        table = self._table()
        if why:
            raise MeasurementError(
                f"No budget can be proven: {why}.",
                "Measure on the board itself. The table is kept, for `deadweight advise`.",
            )
        dense_s = table.networks[table.network_key(table.dense)]
        limit, aim = limit_s / whole_s * dense_s, 0.99
        limits = self._bytes(table, whole_path, whole.file_bytes)
        latency = of_table(table)
        tried: list[Finalist] = []
        best = None
        for turn in range(_ROUNDS):
            plans = best_plans(
                latency,
                limit * aim,
                limits,
                earlier=[one.widths for one in tried],
                count=self.asked.finalists,
                solver_s=self.asked.solver_s,
            )
            found = self._measured(plans, whole_path, turn, latency, dense_s)
            tried += found
            latency = of_table(table, {table.network_key(one.widths): one.seconds for one in tried})
            best = self._best(tried, whole_path)
            if not found or (best and best.used >= _FULL):
                break
            aim = 0.98 / float(np.median([one.used * limit / one.predicted_s for one in found]))
        if best is None:
            closest = min(tried, key=lambda one: one.bound)
            raise OutOfReachError(
                f"None of {len(tried)} networks is proven to keep the budget of {limit_s * 1e3:.3f} ms; the "
                f"closest uses {closest.used:.1%} of it, at most {closest.bound:.1%}.",
                "Allow a little more time, or measure more events on a quieter machine.",
            )
        return self._logged(best, tried, latency, whole_s / dense_s, limit_s)

    def _logged(
        self, best: Finalist, tried: Sequence[Finalist], latency: Latency, scale: float, limit_s: float
    ) -> Work:
        errors = np.abs(latency.errors)
        words = [
            f"predicted to {np.median(errors):.1%} in the median, {np.quantile(errors, 0.9):.1%} in 90 % and "
            f"{errors.max():.1%} at most, over {len(errors)} networks that were left out of the fit in turn",
            f"{len(tried)} plans were cut and timed, {sum(one.kept for one in tried)} keep the budget of "
            f"{limit_s * 1e3:.4g} ms; the best uses {best.used:.1%} of it, at most {best.bound:.1%}",
        ]
        if self.sizes:
            heights = " and ".join(map(str, self.sizes))
            words.append(f"of {heights} pixels it takes {best.widths[RESOLUTION]}")
        self.work.progress(3, 4, "budget: advice")
        search = record_of(best, tried, latency, scale=scale, limit_s=limit_s)
        made = self.work.with_model("pruned", best.model, plan=plan_of(best.model))
        if in_int8 := split(latency.table.telling(best.widths))[1]:
            made = made.with_json("precision", {"float": sorted(set(self.layers) - in_int8)})
            words.append(
                f"{len(in_int8)} of {len(self.layers)} layers are to be in INT8, by the stage quantize"
            )
        elif self.layers:
            words.append("no layer is to be in INT8: leave the stage quantize out")
        if self.blocks:
            gone = ", ".join(dropped_in(best.widths)) or "none"
            words.append(f"of {len(self.blocks)} blocks these are dropped: {gone}")
            words += [f"cannot be dropped: {'; '.join(self.fixed)}"] if self.fixed else []
        made = made.with_json("search", search).with_artifact("table", self.work.directory / "table.json")
        return made.logged("budget", self.asked, *words)

    def _table(self) -> SegmentTable:
        """The table of the network, with the damage of every width; both are kept on disk."""
        work, path = self.work, self.work.directory / "table.json"
        if self.asked.table and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(beside(Path(self.asked.table), work.folder), path)
        work.progress(0, 4, "budget: exports")
        chosen = [self.groups[name] for name in self.scores]
        levels = {one.name: levels_of(one.size, one.kinds, work.target) for one in chosen}
        example = example_batch(work.workload)
        network = self._network(levels, example)
        if "blocks" in self.asked.choose:
            self._check_form({name: own[0] for name, own in levels.items()})
            network, self.blocks, self.fixed = with_blocks(network, self.model, example)
        if "precision" in self.asked.choose:
            network, self.layers = with_precision(network, work.workload, self.dialect)
        table = table_of(
            network,
            self.clock.together,
            path,
            runtime=work.target.here.name,
            networks=self.asked.networks,
            seed=work.seed,
            begun=lambda plan: work.progress(0, 1, f"budget: {plan}"),
            progress=work.progress,
        )
        found = damage_of(
            self.model,
            self._smaller,
            {name: own for name, own in table.levels.items() if name not in map(bits_of, self.layers)},
            work.workload,
            norms=self.asked.norms,
            known=self._known("damage"),
            kept=self._keeper("damage"),
            progress=work.progress,
        )
        if self.layers:
            found |= int8_damage(
                onnx.load(self._file(self.model, "float")),
                self.layers,
                work.workload,
                self.dialect,
                known=self._known("int8"),
                kept=self._keeper("int8"),
                progress=work.progress,
            )
        damage = {name: {str(width): rise for width, rise in own.items()} for name, own in found.items()}
        table = replace(table, damage=damage)
        table.save(path)
        return table

    def _check_form(self, narrow: Widths) -> None:
        """Blocks can be dropped from a cut network, before anything is timed."""
        plan = plan_of(apply(self.model, choose(self.groups, self.scores, keep=narrow), self.groups))
        if plan and plan.form == "graph":
            raise ModelError(
                f"The cut network has the graph form, in which no block can be dropped: {plan.reason}.",
                'Leave "blocks" out of choose, or drop blocks by the stage depth before.',
            )

    def _network(self, levels: Levels, example: Mapping[str, Tensor]) -> Network:
        work = self.work
        of = partial(of_module, self.model, self.groups, levels, example, seed=work.seed, target=work.target)
        if "resolution" not in self.asked.choose:
            return of()
        network, self.sizes = with_resolutions(lambda after: of(after=after), self.model, work.workload)
        return network

    def _bytes(self, table: SegmentTable, whole: Path, file_bytes: int) -> list[tuple[Sum, float]]:
        """The limits of bytes: of the file, and of memory, which shrinks at least as the constants do."""
        most = [float(self.asked.file_bytes)] if self.asked.file_bytes else []
        if self.asked.memory_bytes is not None:
            if (memory := self.clock.memory_bytes(whole)) is None:
                raise RecipeError(
                    "The memory of engines is not measured, so that no budget of memory can be kept.",
                    "Give file_bytes instead, and leave memory_bytes out of the stage and of [budgets].",
                )
            most.append(float(self.asked.memory_bytes - max(0, memory - file_bytes)))
        return [(table.file_bytes(), one) for one in most]

    def _measured(
        self, plans: Sequence[Widths], whole: Path, turn: int, latency: Latency, dense_s: float
    ) -> list[Finalist]:
        """Cuts plans, and times them together with the whole network."""
        if not plans:
            return []
        models, files = list[nn.Module](), {"whole": whole}
        for at, widths in enumerate(plans):
            self.work.progress(at, len(plans), f"budget: finalists, round {turn + 1}")
            own, in_int8 = split(widths)
            models.append(self._cut(own))
            files[str(at)] = self._file(models[-1], f"{turn}-{at}")
            if in_int8:
                file = onnx.load(files[str(at)])
                ranges = ranges_of(file, self.work.workload)
                save(mixed(file, in_int8, self.layers, ranges, self.dialect), files[str(at)])
        self.work.progress(1, 2, f"budget: times of finalists, round {turn + 1}")
        measured = self._timed(files)
        before, found = measured["whole"], []
        for at, (widths, model) in enumerate(zip(plans, models, strict=True)):
            one = measured[str(at)]
            used, bound, sound = self._used(before, one)
            sound = sound and self._fits(one, files[str(at)])
            found.append(
                Finalist(
                    widths,
                    model,
                    files[str(at)],
                    seconds_of(one) / seconds_of(before) * dense_s,
                    float(latency.predicted([widths])[0]),
                    used,
                    bound,
                    sound and bound <= 1,
                    sound and used < 1,
                    validated(self.work, files[str(at)])
                    if split(widths)[1]
                    else validation_score(self.work.workload, model),
                )
            )
        return found

    def _used(self, whole: Measurement, one: Measurement) -> tuple[float, float, bool]:
        """The share of the time that a network uses, and at most, with 99 %; whether the timing is sound."""
        if self.asked.latency_s is None:
            judged, speedup = judge(whole, one, confidence=_SURE), self.asked.speedup or 1.0
            used, bound = speedup / judged.ratio, speedup / judged.low
        else:
            time = one.latency_s(50, confidence=_SURE)
            used, bound = time.value / self.asked.latency_s, time.high / self.asked.latency_s
        return used, bound, not one.void and not unproven(one)

    def _best(self, tried: list[Finalist], whole: Path) -> Finalist | None:
        """The one of the best score that a longer timing proves, beside the whole network alone."""
        sign = 1 if self.work.workload.higher_is_better else -1
        for at in sorted(range(len(tried)), key=lambda at: sign * tried[at].score, reverse=True):
            one = tried[at]
            if one.near and not one.again:
                self.work.progress(2, 4, "budget: proof of the best")
                measured = self._timed({"whole": whole, "best": one.file}, _PROOF * self.asked.events)
                used, bound, sound = self._used(measured["whole"], measured["best"])
                tried[at] = one = replace(one, used=used, bound=bound, kept=sound and bound <= 1, again=True)
            if one.again and one.kept:
                return one
        return None

    def _cut(self, widths: Widths) -> nn.Module:
        """The network at these widths, proven, without the blocks that are dropped there."""
        plan = choose(self.groups, self.scores, keep={name: widths[name] for name in self.scores})
        small = self.asked.cut(self.model, plan, self.groups, self.work)[0]
        if dropped := {path: self.blocks[path] for path in dropped_in(widths)}:
            small = without_blocks(small, dropped, example_batch(self.work.workload))
        if resized := widths.get(RESOLUTION, 0) < max(self.sizes, default=0):
            small = at_resolution(small, self.sizes[widths[RESOLUTION]])
        if dropped or resized:
            small = reestimated(small, self.work.workload, batches=self.asked.norms, seed=self.work.seed)
        return small

    def _smaller(self, name: str, width: int) -> nn.Module:
        """The network with one group narrower, without one block, or at another resolution."""
        if name == RESOLUTION:
            return at_resolution(self.model, self.sizes[width])
        if dropped := dropped_in({name: width}):
            return shallower(self.model, {path: self.blocks[path] for path in dropped})
        plan = choose(self.groups, {name: self.scores[name]}, keep={name: width})
        return apply(self.model, plan, self.groups)

    def _fits(self, one: Measurement, path: Path) -> bool:
        """Whether a file is within the budgets of bytes."""
        asked = self.asked
        if asked.memory_bytes is not None and (self.clock.memory_bytes(path) or 0) > asked.memory_bytes:
            return False
        return asked.file_bytes is None or one.file_bytes <= asked.file_bytes

    def _file(self, model: nn.Module, name: str) -> Path:
        path = self.work.directory / "files" / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_onnx(model, example_batch(self.work.workload), path)
        return path

    def _timed(self, files: Mapping[str, Path], events: int = 0) -> Mapping[str, Measurement]:
        protocol = Protocol(events=events or self.asked.events, runtime=self.work.target.here.name)
        return self.clock.together(files, protocol)

    def _known(self, name: str) -> Mapping[str, float]:
        path = self.work.directory / f"{name}.json"
        return read_json(path) if path.exists() else {}

    def _keeper(self, name: str) -> Callable[[Mapping[str, float]], None]:
        return lambda found: write_json(self.work.directory / f"{name}.json", found)
