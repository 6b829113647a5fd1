"""The stage "profile": interleaved timing of all networks of the chain in one process, and their memory.

They are timed together because figures from two separate timings cannot be compared: the machine drifts
between them by more than most pruning gains.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ...export.quantization.fp16 import write_half
from ...targets.engines.build_settings import BuildSettings
from ...targets.errors import MeasurementError
from ...targets.machine.probe import conditions
from ...targets.paths import CACHE, stored
from ...targets.plain import plain
from ...targets.remote.board import soak_on, time_on
from ...targets.remote.on_board import HowThere, ready_on
from ...targets.remote.ssh import connected
from ...targets.runtimes.runtime import runtime_named
from ...targets.timing import measurement
from ...targets.timing.clock import time_together
from ...targets.timing.layer_reasons import explained
from ...targets.timing.layers import judge_layers
from ...targets.timing.loads import Load
from ...targets.timing.measurement import CALM, Measurement, Protocol
from ...targets.timing.memory import measure_memory
from ...targets.timing.ort_layers import LAYER_PROTOCOL
from ...targets.timing.soak import soak
from ...targets.timing.soak_record import Soak, SoakPlan
from ...targets.timing.soak_summary import energies
from ..compression.masks import load_masks
from ..work import Work


@dataclass(frozen=True)
class Profile:
    """Writes "measurements", "memory" and "layers" of every network with an ONNX file; "void" where a board's
    times are invalid, and then it runs again next time.

    Attributes:
        events: fresh loads of all networks; 24 give a 97.7 % interval.
        event_s: approximate time that each network runs in one event.
        threads: of the runtime. With one, CPU time is the clock, which other processes hardly disturb.
        memory: whether memory is measured too, in a new process per network.
        on: the board, by its ssh name, on which they are timed; layers are not judged there. Where it has
            TensorRT, all are built there with the same settings, and the engines are timed. On a node of a
            cluster that stands beside a board: the one in the environment variable DEADWEIGHT_BOARD.
        runtime: another runtime of that board than its best, e.g. "onnxruntime".
        precision: of the engines' float parts, of the original too: fp32, fp16 or best (docs/engines.md).
        layers: whether every layer is timed and judged too, with the runtime's profiler.
        energy_minutes: how long all run in turn for the energy of an inference (docs/soak.md); 0: not at all.
    """

    events: Annotated[int, Field(ge=1)] = 24
    event_s: Annotated[float, Field(gt=0, le=60)] = 0.05
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    memory: bool = True
    layers: bool = True
    energy_minutes: Annotated[float, Field(ge=0, le=600)] = 0.0
    on: str = ""
    runtime: str = ""
    precision: Literal["fp32", "fp16", "best"] = "fp16"
    reads_onnx: ClassVar[bool] = True
    long: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.runtime:
            runtime_named(self.runtime)

    def __call__(self, work: Work) -> Work:
        # Controls have the widths of the pruned network: timing them adds nothing.
        paths = {v.name: v.path("onnx") for v in work.variants if v.role == "chain" and "onnx" in v.files}
        work.latest("onnx")  # raises if there is none
        here = work.target.here
        protocol = Protocol(
            events=self.events, event_s=self.event_s, threads=self.threads, seed=work.seed, runtime=here.name
        )
        if on := self.on or os.environ.get("DEADWEIGHT_BOARD", ""):
            how = how_on(work, runtime=self.runtime, precision=self.precision)
            minutes = self.energy_minutes
            result, said = profile_on(
                on, work, paths, protocol, how=how, memory=self.memory, energy_minutes=minutes
            )
            return result.logged("profile", self, *said)
        if work.target.runtime.builds:
            board = f"{work.target.title} is a board, and this machine is not"
            remark = f"Nothing was measured: {board}. Name one with --on USER@HOST."
            return work.logged("profile", self, remark)
        measured = time_together(
            paths, protocol=protocol, progress=lambda done, total: work.progress(done, total, "profile")
        )
        result, words = _saved(work, measured)
        if self.memory:
            result = result.with_json("memory", _memory(paths, work))
        if self.energy_minutes:
            plan = _energy_plan(paths, protocol, self.energy_minutes)
            timed = soak(
                plan,
                folder=stored(CACHE, "soaks"),
                progress=lambda done, total: work.progress(done, total, "energy"),
            )
            result = result.with_json("energy", _spent(timed))
        if self.layers and len(paths) > 1 and here.time_layers is not None:
            try:
                result = result.with_json("layers", self._layers(paths, work))
            except MeasurementError as error:
                words.append(f"Layers were not judged. {error.what}")
        return result.logged("profile", self, *words)

    def _layers(self, paths: Mapping[str, Path], work: Work) -> dict[str, object]:
        runtime = work.target.here
        assert runtime.time_layers is not None  # asked before
        protocol = dataclasses.replace(
            LAYER_PROTOCOL, events=self.events, threads=self.threads, seed=work.seed, runtime=runtime.name
        )
        timed = runtime.time_layers(
            paths, protocol=protocol, progress=lambda done, total: work.progress(done, total, "layers")
        )
        first, *others = timed
        base = timed[first]
        judged = {
            name: explained(judge_layers(base, timed[name]), base, timed[name], target=work.target)
            for name in others
        }
        return {
            "first": first,
            "protocol": dataclasses.asdict(protocol),
            "networks": {name: plain(each) for name, each in judged.items()},
        }


def _saved(work: Work, measured: Mapping[str, Measurement]) -> tuple[Work, list[str]]:
    """Writes the measurements, and why they are invalid; and the sentence that says so."""
    measurement.save(measured, work.directory / "measurements.json")
    result = work.with_artifact("measurements", work.directory / "measurements.json")
    void = next(iter(measured.values())).void
    if not void:
        return result, []
    words = f"The times are invalid: {'; '.join(void)}; {CALM}."
    return result.with_json("void", list(void)), [words]


def _memory(paths: Mapping[str, Path], work: Work) -> dict[str, object]:
    result: dict[str, object] = {"conditions": conditions()}
    for index, (name, path) in enumerate(paths.items()):
        work.progress(index, len(paths), f"memory of {name}")
        result[name] = dataclasses.asdict(measure_memory(path, runtime=work.target.here))
    work.progress(len(paths), len(paths), "profile")
    return result


def _energy_plan(paths: Mapping[str, Path], protocol: Protocol, minutes: float) -> SoakPlan:
    """A soak of all networks, in periods short enough for some rounds."""
    loads = {
        name: Load(str(path), protocol.runtime, threads=protocol.threads, batch=protocol.batch)
        for name, path in paths.items()
    }
    return SoakPlan(loads, minutes=minutes, period_s=2.0, energy_only=True)


def _spent(soaked: Soak) -> dict[str, object]:
    """Each network's energy in a sentence, and the upper end of its interval in joules."""
    return {
        name: {"sentence": one.sentence(), "high_j": None if one.j is None else one.j.high}
        for name, one in energies(soaked).items()
    }


def how_on(work: Work, *, runtime: str, precision: str) -> HowThere:
    """What runs this work's networks on a board: engines for the target, or the runtime that was chosen."""
    target = work.target
    chosen = runtime_named(runtime) if runtime else None if target.runtime.builds else target.runtime
    settings = BuildSettings(precision=precision, sparse=knows_sparse(work))
    needed = target if target.runtime.builds and (chosen is None or chosen.builds) else None
    return HowThere(chosen, settings, needed, write_half)


def profile_on(
    on: str,
    work: Work,
    paths: Mapping[str, Path],
    protocol: Protocol,
    *,
    how: HowThere,
    memory: bool,
    energy_minutes: float = 0.0,
) -> tuple[Work, list[str]]:
    """Writes "measurements", "memory", "energy" and "engines" as the board made them; returns the sentences.


    Raises:
        TargetError: the board cannot be reached, or the connection broke; copied files stay there.
        DeadweightError: the board reported an error.
    """
    with connected(on, work.progress) as board:
        ready = ready_on(board, paths, how)
        memory = memory and not ready.runtime.builds
        timed = time_on(board, ready, protocol=protocol, memory=memory)
        there = {name: Path(path) for name, path in ready.there.items()}
        plan = _energy_plan(there, ready.protocol(protocol), energy_minutes) if energy_minutes else None
        spent = None if plan is None else _spent(soak_on(board, plan))
    result, invalid = _saved(work, timed.measurements)
    first = next(iter(timed.measurements.values()))
    if timed.memory:
        result = result.with_json("memory", {"conditions": first.conditions, **plain(timed.memory)})
    if spent is not None:
        result = result.with_json("energy", spent)
    if ready.engines:
        made = {"on": on, "runtime": ready.runtime.name, "precision": ready.precision}
        result = result.with_json("engines", {**made, "engines": dict(ready.engines)})
    words = [f"On {on}: {measurement.timed_by(timed.measurements)}.", *(f"{one}." for one in ready.remarks)]
    return result, words + invalid


def knows_sparse(work: Work) -> bool:
    """Whether a network has 2:4 sparsity: then the builder may use sparse kernels in all networks."""
    return any("masks" in v.files and load_masks(v.path("masks"))[1] == "2:4" for v in work.variants)
