"""The stage "budget": the most accurate network that runs in a given time, found by measuring.

A table of segment times and some whole networks, all measured, predict the time of any widths (the folder
`budget`). The damage of each group is measured on validation data, and an integer program chooses the widths.
Its best plans are cut and timed together with the whole network, the prediction is fitted again, and of the
networks proven to keep the budget the one with the best validation score stays.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
from pydantic import Field
from torch import Tensor, nn

from ...export.onnx_graph.resize import Resizable, Widths
from ...export.to_onnx import to_onnx
from ...targets.artifact import read_json, write_json
from ...targets.errors import ModelError, RecipeError, users_code
from ...targets.remote.board import time_on
from ...targets.remote.on_board import ready_on
from ...targets.remote.ssh import connected
from ...targets.timing.clock import time_together
from ...targets.timing.judge import judge, unproven
from ...targets.timing.measurement import Measurement, Protocol
from ..budget.damage import damage_of
from ..budget.latency import Latency, fitted
from ..budget.solve import OutOfReachError, Sum, Term, solve
from ..budget.table import FileAt, SegmentTable, levels_of, table_of, timed_in_chunks
from ..importance.criteria import Context
from ..importance.gradients import Gradients
from ..pruning.groups import BLOCKS, Groups, choose
from ..pruning.plan import plan_of
from ..pruning.surgery import apply
from ..training.predict import validation_score
from ..work import Work
from ..workload import example_batch
from .profile import how_on
from .prune import Cutting, find_criterion

Together = Callable[[Mapping[str, Path], Protocol], Mapping[str, Measurement]]
QUICK = Protocol(events=3, event_s=0.01, block_s=0.001, settle_s=0.001)
_ROUNDS = 4
_FULL = 0.95
"""The share of the budget that a network should use; below it another round is tried."""
_SURE = 0.98
"""Two-sided, so that a budget is kept with 99 %."""


@dataclass(frozen=True, kw_only=True)
class Budget(Cutting):
    """Prunes the newest network to a budget; the result is the network "pruned".

    Attributes:
        latency_s: the median latency that must not be exceeded, in seconds.
        speedup: instead of it, how many times as fast as the newest network.
        file_bytes: how large the constants of the ONNX file may be besides.
        finalists: how many plans of a round are cut and measured.
        networks: how many random networks are measured to fit the prediction.
        events: of each timing of the finalists, see `profile`.
        on: the board on which everything is timed; without one, on this machine.
        criterion ... norms: see `prune.Cutting`; alignment is in the table.
    """

    latency_s: Annotated[float, Field(gt=0)] | None = None
    speedup: Annotated[float, Field(gt=1)] | None = None
    file_bytes: Annotated[int, Field(gt=0)] | None = None
    finalists: Annotated[int, Field(ge=1)] = 6
    networks: Annotated[int, Field(ge=16)] = 60
    events: Annotated[int, Field(ge=12)] = 24
    on: str = ""

    def __post_init__(self) -> None:
        if (self.latency_s is None) == (self.speedup is None):
            raise RecipeError(
                f"The stage budget has latency_s {self.latency_s} and speedup {self.speedup}.",
                "Give one of them: it is what the network must keep.",
            )

    def __call__(self, work: Work) -> Work:
        model = work.model()
        groups = work.networks.groups(model, work.workload)
        chosen = [one for one in groups if self.heads or one.kind not in BLOCKS]
        criterion = find_criterion(self.criterion)
        context = Context(model, None, work.seed, Gradients(model, groups, work.workload))
        with users_code(f'the criterion "{self.criterion}" was called'):
            scores = {one.name: criterion(one, context) for one in chosen}
        levels = {one.name: levels_of(one, work.target) for one in chosen}
        with self._timer(work) as together:
            return _Search(self, work, model, groups, scores, levels, together).result()

    @contextlib.contextmanager
    def _timer(self, work: Work) -> Iterator[Together]:
        """What times files together: the board, or the target's runtime here."""
        if self.on:
            how = how_on(work, runtime="", precision="fp16")
            with connected(self.on) as board:
                yield (
                    lambda files, protocol: (
                        time_on(board, ready_on(board, files, how), protocol=protocol).measurements
                    )
                )
        elif work.target.runtime.builds:
            raise RecipeError(
                f"The stage budget times on the {work.target.title}, and this machine is not one.",
                'Name the board: on = "USER@HOST".',
            )
        else:
            yield lambda files, protocol: time_together(files, protocol=protocol)


@dataclass(frozen=True, eq=False)
class _Finalist:
    """A cut network that was measured.

    Attributes:
        seconds: by the table's clock.
        predicted, used: of the time budget, as shares; `bound` is what it uses at most, with 99 %.
        kept: whether it is proven to keep the budget.
        score: on the validation split, not tuned.
    """

    widths: Mapping[str, int]
    model: nn.Module
    seconds: float
    predicted: float
    used: float
    bound: float
    kept: bool
    score: float


@dataclass(eq=False)
class _Search:
    """The search for one budget; what was measured is kept on disk, where a killed run goes on."""

    asked: Budget
    work: Work
    model: nn.Module
    groups: Groups
    scores: Mapping[str, Tensor]
    levels: Mapping[str, tuple[int, ...]]
    together: Together

    def result(self) -> Work:
        """The work with the network that was found.

        Raises:
            OutOfReachError: no widths keep the budget; it says what the least possible is.
        """
        dense = {name: own[-1] for name, own in self.levels.items()}
        self.work.progress(0, 4, "budget: exports")
        narrow = {name: own[0] for name, own in self.levels.items()}
        file_at = resizable(self._exported, dense, narrow, self._drawn(2))
        table = self._table(file_at)
        networks = [dense, *self._drawn(self.asked.networks)]
        seconds = self._network_seconds(file_at, networks)
        damage = self._damage()
        whole_path = self._file(self.model, "whole")
        whole = self._timed({"whole": whole_path})["whole"]
        whole_s = whole.latency_s(50).value
        limit_s = self.asked.latency_s or whole_s / (self.asked.speedup or 1.0)
        if limit_s >= whole_s:
            raise RecipeError(
                f"The network takes {whole_s * 1e3:.3f} ms, within its budget of {limit_s * 1e3:.3f} ms.",
                "Ask for less, or leave the stage budget out.",
            )
        limit, aim = limit_s / whole_s * seconds[0], 0.99
        latency = fitted(table, networks, seconds)
        tried: list[_Finalist] = []
        kept: list[_Finalist] = []
        for turn in range(_ROUNDS):
            plans = self._plans(latency, damage, limit * aim, [one.widths for one in tried])
            found = self._measured(plans, whole_path, turn, latency, limit, seconds[0])
            tried += found
            networks += [dict(one.widths) for one in found]
            seconds += [one.seconds for one in found]
            latency = fitted(table, networks, seconds)
            kept = [one for one in tried if one.kept]
            if not found or max((one.used for one in kept), default=0.0) >= _FULL:
                break
            aim = 0.995 / float(np.median([one.bound / one.predicted for one in found]))
        if not kept:
            closest = min(tried, key=lambda one: one.bound)
            raise OutOfReachError(
                f"None of {len(tried)} networks is proven to keep the budget of {limit_s * 1e3:.3f} ms; the "
                f"closest uses {closest.used:.1%} of it, at most {closest.bound:.1%}.",
                "Allow a little more time, or measure more events on a quieter machine.",
            )
        sign = 1 if self.work.workload.higher_is_better else -1
        return self._logged(max(kept, key=lambda one: sign * one.score), tried, latency, limit_s)

    def _logged(self, best: _Finalist, tried: Sequence[_Finalist], latency: Latency, limit_s: float) -> Work:
        errors = np.abs(latency.errors)
        words = [
            f"predicted to {np.median(errors):.1%} in the median, {np.quantile(errors, 0.9):.1%} in 90 % and "
            f"{errors.max():.1%} at most, over {len(errors)} networks that were left out of the fit in turn",
            f"{len(tried)} plans were cut and timed, {sum(one.kept for one in tried)} keep the budget of "
            f"{limit_s * 1e3:.4g} ms; the best uses {best.used:.1%} of it, at most {best.bound:.1%}",
        ]
        rows = [
            {each.name: getattr(one, each.name) for each in fields(_Finalist) if each.name != "model"}
            for one in tried
        ]
        made = self.work.with_model("pruned", best.model, plan=plan_of(best.model))
        made = made.with_json(
            "budget", {"limit_s": limit_s, "errors": latency.errors.tolist(), "tried": rows}
        )
        return made.logged("budget", self.asked, *words)

    def _table(self, file_at: FileAt) -> SegmentTable:
        known, kept, progress = self._known("segments"), self._keeper("segments"), self.work.progress
        return table_of(file_at, self.levels, self._quick, known=known, kept=kept, progress=progress)

    def _drawn(self, count: int) -> list[dict[str, int]]:
        rng = random.Random(self.work.seed)
        return [{name: rng.choice(own) for name, own in self.levels.items()} for _ in range(count)]

    def _network_seconds(self, file_at: FileAt, networks: Sequence[Widths]) -> list[float]:
        keys = ["/".join(map(str, widths.values())) for widths in networks]
        known, keep = dict(self._known("networks")), self._keeper("networks")
        missing = {key: widths for key, widths in zip(keys, networks, strict=True) if key not in known}
        for found in timed_in_chunks(missing, file_at, file_at(networks[0]), self._quick, known):
            keep(known := known | found)
            self.work.progress(len(known), len(networks), "budget: whole networks")
        return [known[key] for key in keys]

    def _damage(self) -> Sum:
        found = damage_of(
            self.model,
            self.groups,
            self.scores,
            self.levels,
            self.work.workload,
            norms=self.asked.norms,
            known=self._known("damage"),
            kept=self._keeper("damage"),
            progress=self.work.progress,
        )
        return Sum("damage", [Term((g,), {(w,): v for w, v in own.items()}) for g, own in found.items()])

    def _plans(
        self, latency: Latency, damage: Sum, limit: float, earlier: Sequence[Widths]
    ) -> list[dict[str, int]]:
        """The plans of least damage that are predicted to take `limit` at most, each unlike the others."""
        table, found = latency.table, list[dict[str, int]]()
        seconds = Sum("seconds", latency.terms(), latency.call_s)
        more = []
        if self.asked.file_bytes is not None:
            more.append((Sum("file_bytes", table.byte_terms()), float(self.asked.file_bytes)))
        while len(found) < self.asked.finalists:
            try:
                plan = solve(self.levels, damage, [(seconds, limit), *more], unlike=[*earlier, *found])
                scale = 1.0
                for _ in range(3):  # the program is linear: the rest of the prediction enters by the limit
                    ratio = float(latency.predicted([plan.widths])[0]) / limit
                    if 0.98 <= ratio <= 1.0:
                        break
                    scale *= min(0.999 / ratio, 1.1)
                    limits = [(seconds, limit * scale), *more]
                    plan = solve(self.levels, damage, limits, unlike=[*earlier, *found])
            except OutOfReachError as error:
                if found or earlier:
                    return found
                least = solve(self.levels, seconds, more)
                raise OutOfReachError(
                    f"The budget cannot be met: {limit / latency.dense_s:.1%} of the network's time is asked "
                    f"for, and the least is {least.value / latency.dense_s:.1%}, at widths of "
                    f"{', '.join(f'{name} {width}' for name, width in least.widths.items())}.",
                    "Allow more time, or let heads and blocks be pruned too (heads = true).",
                ) from error
            found.append(dict(plan.widths))
        return found

    def _measured(
        self,
        plans: Sequence[Widths],
        whole: Path,
        turn: int,
        latency: Latency,
        limit: float,
        dense_s: float,
    ) -> list[_Finalist]:
        """Cuts plans, and times them together with the whole network."""
        if not plans:
            return []
        models, files = list[nn.Module](), {"whole": whole}
        for at, widths in enumerate(plans):
            self.work.progress(at, len(plans), f"budget: finalists, round {turn + 1}")
            plan = choose(self.groups, self.scores, keep=widths)
            models.append(self.asked.cut(self.model, plan, self.groups, self.work)[0])
            files[str(at)] = self._file(models[-1], f"{turn}-{at}")
        measured = self._timed(files)
        before, found = measured["whole"], []
        for at, (widths, model) in enumerate(zip(plans, models, strict=True)):
            one = measured[str(at)]
            if self.asked.latency_s is None:
                judged, speedup = judge(before, one, confidence=_SURE), self.asked.speedup or 1.0
                used, bound = speedup / judged.ratio, speedup / judged.low
            else:
                time = one.latency_s(50, confidence=_SURE)
                used, bound = time.value / self.asked.latency_s, time.high / self.asked.latency_s
            fits = self.asked.file_bytes is None or one.file_bytes <= self.asked.file_bytes
            found.append(
                _Finalist(
                    widths,
                    model,
                    seconds_of(one) / seconds_of(before) * dense_s,
                    float(latency.predicted([widths])[0]) / limit,
                    used,
                    bound,
                    bound <= 1 and fits and not one.void and not unproven(one),
                    validation_score(self.work.workload, model),
                )
            )
        return found

    def _exported(self, widths: Widths, form: str = "") -> onnx.ModelProto:
        plan = choose(self.groups, self.scores, keep=widths)
        return onnx.load(self._file(apply(self.model, plan, self.groups, form=form), "trial"))

    def _file(self, model: nn.Module, name: str) -> Path:
        path = self.work.directory / "files" / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_onnx(model, example_batch(self.work.workload), path)
        return path

    def _timed(self, files: Mapping[str, Path]) -> Mapping[str, Measurement]:
        return self.together(files, Protocol(events=self.asked.events, runtime=self.work.target.here.name))

    def _quick(self, files: Mapping[str, Path]) -> Mapping[str, float]:
        protocol = replace(QUICK, runtime=self.work.target.here.name)
        return {name: seconds_of(one) for name, one in self.together(files, protocol).items()}

    def _known(self, name: str) -> Mapping[str, float]:
        path = self.work.directory / f"{name}.json"
        return read_json(path) if path.exists() else {}

    def _keeper(self, name: str) -> Callable[[Mapping[str, float]], None]:
        return lambda found: write_json(self.work.directory / f"{name}.json", found)


def resizable(
    exported: Callable[..., onnx.ModelProto], dense: Widths, least: Widths, checks: Sequence[Widths]
) -> FileAt:
    """Makes the file of any widths, from a few exports: of the user's class, or else of the graph form.

    Where neither can be resized, each file is an export, which takes longer.
    """
    for form in ("", "graph"):
        with contextlib.suppress(ModelError):
            return Resizable.learnt(partial(exported, form=form), dense, least=least, checks=checks).at
    return exported


def seconds_of(one: Measurement) -> float:
    """Seconds of one run by the clock that other processes disturb least: the fastest block of each event."""
    return float(np.median(one.block_s("wall" if one.cpu_ns is None else "cpu").min(axis=1)))
