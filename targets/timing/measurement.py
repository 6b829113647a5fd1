"""The measurement: raw time samples of one model with protocol and conditions, never a bare number.

    event    all models are loaded again and then timed, with a new memory layout
    round    within an event each model runs one block, in random order
    sample   one reading of the clock around `runs` runs (more than one only where a run is so short
             that the cost of reading the clock matters)

Samples within an event are correlated (lag-1 correlations of 0.4 to 0.8 are common), events are not:
therefore an interval comes from resampling events, never single samples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from ..artifact import read_json, write_json
from ..errors import MISFITS, MeasurementError, reported
from ..machine.probe import voided
from ..plain import from_plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1
CALM = "let the board cool down, lock its clocks (deadweight doctor) and measure again"
EVIDENCE = ("measured", "emulated", "simulated", "estimated")
_RESAMPLES = 1000


@dataclass(frozen=True)
class Protocol:
    """How to time. Stored with every measurement; two are comparable only under equal protocols."""

    events: int = 24
    """Loads of every model. 24 give a 97.7 % interval by order statistics; 95 % needs 6."""
    event_s: float = 0.05
    """Approximate run time of a model in one event: as many rounds as fit, at least `min_rounds`."""
    block_s: float = 0.005
    """Timed part of a model's block in one round, at least one run."""
    settle_s: float = 0.005
    """Untimed part before it, at least one run, which brings the model's data into the caches."""
    threads: int = 1
    batch: int = 1
    runtime: str = "onnxruntime"
    min_rounds: int = 3
    clock_share: float = 0.001
    """Share of a sample that reading the clock may take."""
    seed: int = 0
    inputs: str = "random"
    """`random` by `seed`, or `given:` and the start of their hash."""
    precision: str = ""
    """With which engines were built, as in `fp16`; empty where there are none, or it is not known."""
    cap_s: float = 0.0
    """Time limit in seconds: no event starts after it; 0: no limit."""

    def __post_init__(self) -> None:
        for name, least in (("events", 1), ("threads", 1), ("batch", 1), ("min_rounds", 1)):
            if getattr(self, name) < least:
                raise MeasurementError(
                    f"The protocol's {name} is {getattr(self, name)}.", f"Give {least} or more."
                )
        times = (self.event_s, self.block_s, self.settle_s, self.cap_s)
        if not all(0 <= time < 1e6 for time in times) or not 0 < self.clock_share < 1:
            raise MeasurementError(
                f"The protocol is invalid: event_s, block_s, settle_s, cap_s = {times}, "
                f"clock_share = {self.clock_share}.",
                "Times are seconds, 0 or more; clock_share must be between 0 and 1.",
            )

    @classmethod
    def from_json(cls, value: Any) -> Protocol:
        """The inverse of `dataclasses.asdict`; a MeasurementError if a key is unknown, or its value wrong."""
        return from_plain(cls, value, "A protocol", error=MeasurementError)


@dataclass(frozen=True)
class Interval:
    """A value with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mark:
    """A change of the machine during an event. Marked samples are labelled, not removed."""

    event: int
    what: str


@dataclass(frozen=True, eq=False)
class Measurement:
    """The raw times of one model.

    `wall_ns` is int64[events, rounds, samples], nanoseconds of one sample. `cpu_ns` is int64[events, rounds],
    the timing thread's CPU time for a whole block; None where it is meaningless (more threads, a GPU).
    """

    name: str
    model_sha256: str
    file_bytes: int
    run_id: str
    """One call of `time_together`. Only measurements of the same call are paired."""
    wall_ns: NDArray[np.int64]
    cpu_ns: Optional[NDArray[np.int64]]
    runs: int
    """Runs of the model in one sample."""
    protocol: Protocol
    conditions: Mapping[str, Any]
    evidence: str = "measured"
    marks: Tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        if self.evidence not in EVIDENCE:
            raise MeasurementError(
                f"There is no evidence '{self.evidence}'.", f"Known: {', '.join(EVIDENCE)}."
            )
        if self.wall_ns.ndim != 3 or self.wall_ns.size == 0 or self.runs < 1:
            raise MeasurementError(
                f"{self.name} has no usable samples: their shape is {list(self.wall_ns.shape)}.",
                "Measure again.",
            )
        if self.cpu_ns is not None and self.cpu_ns.shape != self.wall_ns.shape[:2]:
            raise MeasurementError(
                f"{self.name} has CPU times of shape {list(self.cpu_ns.shape)} for wall times of shape "
                f"{list(self.wall_ns.shape)}.",
                "The file was edited or truncated: measure again.",
            )
        for clock, times in (("wall", self.wall_ns), ("CPU", self.cpu_ns)):
            if times is not None and (times.dtype.kind != "i" or bool((times <= 0).any())):
                raise MeasurementError(
                    f"{self.name} has {clock} times that are not positive (smallest: {times.min()} ns).",
                    "The clock is too coarse or stepped backwards: measure again, or on another machine.",
                )

    @property
    def void(self) -> Tuple[str, ...]:
        """Why the times are invalid: how the board changed meanwhile; empty if they are valid."""
        return voided(self.conditions, [mark.what for mark in self.marks])

    @property
    def events(self) -> int:
        """Number of events."""
        return int(self.wall_ns.shape[0])

    @property
    def wall_s(self) -> NDArray[np.float64]:
        """Wall time of one run, float64[events, rounds, samples], in seconds."""
        return np.asarray(self.wall_ns / (1e9 * self.runs), dtype=np.float64)

    @property
    def cpu_s(self) -> Optional[NDArray[np.float64]]:
        """CPU time of one run, mean over a block, float64[events, rounds], in seconds."""
        if self.cpu_ns is None:
            return None
        return np.asarray(self.cpu_ns / (1e9 * self.runs * self.wall_ns.shape[2]), dtype=np.float64)

    def block_s(self, clock: str) -> NDArray[np.float64]:
        """Time of one run in each block, float64[events, rounds], in seconds.

        By the `wall` clock it is the median of the block's samples, which is robust to an interruption; by
        the `cpu` clock it is the mean, because that clock is read once per block.
        """
        if clock == "wall":
            return np.asarray(np.median(self.wall_s, axis=2), dtype=np.float64)
        times = self.cpu_s if clock == "cpu" else None
        if times is None:
            raise MeasurementError(f"{self.name} has no times by the clock '{clock}'.", "Use the wall clock.")
        return times

    def latency_s(self, percent: float, *, confidence: float = 0.95) -> Interval:
        """A percentile of the wall time of one run, in seconds, with its interval.

        The interval is the percentile bootstrap over events (Efron and Tibshirani 1993, chapter 13), each
        event kept whole. It assumes independent, identically distributed events, is approximate with some
        twenty of them, and is meaningless for a percentile beyond the samples. Where `runs` is above 1, a
        sample is a mean of that many runs, and its tail is shorter than that of single runs.
        """
        samples = self.wall_s.ravel()
        order = np.argsort(samples, kind="stable")
        event_of = order // (samples.size // self.events)
        rank = min(int(percent / 100 * samples.size), samples.size - 1)

        def percentile(weights: NDArray[np.int64]) -> float:
            """The sample at the rank when each event counts as often as it was drawn."""
            at = int(np.searchsorted(np.cumsum(weights[event_of]), rank, side="right"))
            return float(samples[order[at]])

        generator = np.random.default_rng(0)
        drawn = generator.integers(0, self.events, size=(_RESAMPLES, self.events))
        resampled = [percentile(np.bincount(events, minlength=self.events)) for events in drawn]
        tail = 50 * (1 - confidence)
        return Interval(
            percentile(np.ones(self.events, np.int64)),
            float(np.percentile(resampled, tail)),
            float(np.percentile(resampled, 100 - tail)),
        )

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON. An event's samples are one string of whole nanoseconds, for size."""
        return {
            **vars(self),
            "schema": SCHEMA,
            "shape": list(self.wall_ns.shape),
            "wall_ns": _to_text(self.wall_ns),
            "cpu_ns": None if self.cpu_ns is None else _to_text(self.cpu_ns),
            "protocol": asdict(self.protocol),
            "conditions": dict(self.conditions),
            "marks": [[mark.event, mark.what] for mark in self.marks],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`.

        Raises:
            MeasurementError: another schema, or a value is missing or of the wrong type.
        """
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise MeasurementError(
                f"The measurement has the schema {schema!r}; this version reads {SCHEMA}.",
                "Measure again with this version of deadweight.",
            )
        with reported(MeasurementError, "The measurement is incomplete", "Measure again.", *MISFITS):
            events, rounds, samples = shape = tuple(int(size) for size in value["shape"])
            if min(*shape, value["runs"]) < 1:
                raise ValueError(f"{events} events, {rounds} rounds and {samples} samples")
            cpu, conditions = value["cpu_ns"], dict(value["conditions"])
            conditions.update(
                {part: dict(conditions[part]) for part in ("machine", "software") if part in conditions}
            )
            return cls(
                name=str(value["name"]),
                model_sha256=str(value["model_sha256"]),
                file_bytes=int(value["file_bytes"]),
                run_id=str(value["run_id"]),
                wall_ns=_from_text(value["wall_ns"], shape),
                cpu_ns=None if cpu is None else _from_text(cpu, shape[:2]),
                runs=int(value["runs"]),
                protocol=Protocol.from_json(value["protocol"]),
                conditions=conditions,
                evidence=str(value["evidence"]),
                marks=tuple(Mark(int(event), str(what)) for event, what in value["marks"]),
            )


def timed_by(measured: Mapping[str, Measurement]) -> str:
    """By what models were timed together: evidence, processor, runtime and precision, threads and batch."""
    from ..errors import TargetError
    from ..runtimes.runtime import runtime_named

    one = next(iter(measured.values()))
    protocol, machine = one.protocol, one.conditions.get("machine", {})
    name, _, choices = protocol.runtime.partition("+")
    try:
        runs = runtime_named(name)
        title, library, gpu = runs.title, runs.library, runs.processor == "gpu"
    except TargetError:  # a user's own, of another process
        title, library, gpu = name, name, False
    software = one.conditions.get("software", {})
    version = one.conditions.get("engine", {}).get("version") or software.get(library)
    chip = machine.get("board", {}).get("model") if gpu else machine.get("cpu")
    where = f" ({chip})" if chip else ""
    words = [f"{one.evidence} on the {'GPU' if gpu else 'CPU'}{where} by {title} {version or ''}".rstrip()]
    words += [choices.replace("+", ", ")] if choices else []
    types = {name: precision_words(each) for name, each in measured.items()}
    same = len(set(types.values())) == 1
    words += list(types.values())[:1] if same else [f"{key} {text}" for key, text in types.items()]
    words.append("" if gpu else f"{protocol.threads} thread(s)")
    words.append(f"batch {protocol.batch}")
    return ", ".join(filter(None, words))


def precision_words(one: Measurement) -> str:
    """The precisions of what was timed, as in `INT8 and FP16`: INT8 is compared with FP16, not with FP32."""
    engine = one.conditions.get("engine", {})
    if "int8" not in engine:
        return one.protocol.precision.upper() or "in the file's precision"
    rest = "FP16" if engine["half"] else "FP32"
    rest = f"{rest} or BF16" if any("BF16" in flag.upper() for flag in engine["flags"]) else rest
    return f"INT8 and {rest}" if engine["int8"] else rest


def marked_words(*measured: Measurement) -> str:
    """How many events of measurements timed together are marked, and one of the marks; "" if none."""
    marks = [mark for one in measured for mark in one.marks]
    if not marks:
        return ""
    count = len({mark.event for mark in marks})
    return f"{count} of {measured[0].events} events are marked, as in: {marks[0].what}"


def save(measurements: Mapping[str, Measurement], path: Path) -> None:
    """Writes the measurements of one run into one JSON file, whole or not at all."""
    write_json(path, {"schema": SCHEMA, "measurements": [item.to_json() for item in measurements.values()]})


def load(path: Path) -> Dict[str, Measurement]:
    """Reads what `save` wrote, by name and in order.

    Raises:
        ArtifactError: the file is missing or not JSON.
        MeasurementError: it is JSON, but has no measurements of this schema.
    """
    values = read_json(path).get("measurements")
    if not isinstance(values, list) or not values:
        raise MeasurementError(
            f"{path} contains no measurements.", "Give the file that `deadweight profile --out` wrote."
        )
    return {item.name: item for item in (Measurement.from_json(value) for value in values)}


def _to_text(times: NDArray[np.int64]) -> List[str]:
    return [" ".join(map(str, event.ravel().tolist())) for event in times]


def _from_text(events: List[str], shape: Tuple[int, ...]) -> NDArray[np.int64]:
    return np.array([[int(time) for time in event.split()] for event in events], dtype=np.int64).reshape(
        shape
    )
