"""Calibration of the gate: false alarms and detected slow-downs on this runner, counted.

The gate compares the accepted model with itself, where every `fail` is a false alarm, and with copies of it
that do additional work, where every `fail` is a detection. The counts, with exact intervals, are stored in
the baseline with the machine and its load, for which they are valid.

A copy is made without the onnx package: two concatenated protobuf messages are one message with the fields of
both, so a graph gains nodes, weights and an output from bytes appended to its file. These operators read the
first output of the model and cannot be optimized away, since their result is an output too.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from ..artifact import utc_now, writing
from ..budgets import Budgets
from ..errors import ModelError, TargetError
from ..machine.probe import conditions
from ..onnx_file import files_of
from ..progress import Progress
from ..protobuf import to_varint
from ..runtimes.open import open_session
from ..runtimes.runtime import Runtime, is_engine
from ..runtimes.session import TensorSpec
from ..timing.binomial import clopper_pearson
from ..timing.clock import time_together
from ..timing.judge import judge
from ..timing.measurement import Protocol
from ..timing.sequential import slowdown
from .baseline import Baseline
from .check import SLOWDOWN, check

SHARES = (0.05, 0.10)


def calibrate(
    model: Path,
    baseline: Baseline,
    *,
    runs: int,
    budgets: Budgets,
    cap_s: float = 20.0,
    inputs: Optional[Path] = None,
    board: Optional[Runtime] = None,
    progress: Optional[Progress] = None,
) -> Dict[str, Any]:
    """Runs the gate `runs` times on equal models and a third as often on each slowed copy.

    Returns plain values for JSON: "false_alarms" and one entry for each planted slow-down, each with "count",
    "runs", "rate", "low" and "high" (95 %), and the median seconds to a decision.
    """
    if is_engine(model):
        raise TargetError(
            f"{model} runs on {baseline.protocol.runtime}: only an ONNX file can be slowed down for this.",
            "Calibrate on this machine with the ONNX file it was built from.",
        )
    slow, trials = max(1, runs // 3), replace(TRIALS, runtime=baseline.protocol.runtime)
    budgets = Budgets(slowdown=SLOWDOWN if budgets.slowdown is None else budgets.slowdown)
    total = runs + slow * len(SHARES)
    done, loads = 0, []
    cells: List[Tuple[str, float, Path, int]] = [("equal", 0.0, Path(model), runs)]
    result: Dict[str, Any] = {"planted": []}
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            if progress is not None:
                progress(0, total, f"planting {100 * share:g} %")
            place = Path(folder) / f"{share}"
            place.mkdir()
            planted = plant(Path(model), place, share, protocol=trials)
            cells.append((f"{100 * share:g} %", planted.slowdown, planted.path, slow))
        for name, true, path, count in cells:
            outcomes, seconds = [], []
            for _ in range(count):
                loads.append(os.getloadavg()[0])
                started = time.perf_counter()
                gated = check(
                    path,
                    baseline,
                    Path(model),
                    budgets=budgets,
                    cap_s=cap_s,
                    inputs=inputs,
                    board=board,
                    by_bytes=False,
                )
                seconds.append(time.perf_counter() - started)
                outcomes.append(gated.checks[0].outcome)
                done += 1
                if progress is not None:
                    progress(done, total, f"calibrate: {name}")
            fails = outcomes.count("fail")
            low, high = clopper_pearson(fails, len(outcomes))
            row: Dict[str, Any] = {
                "count": fails,
                "runs": len(outcomes),
                "rate": fails / len(outcomes),
                "low": low,
                "high": high,
                "cannot_tell": outcomes.count("cannot_tell"),
                "median_seconds": sorted(seconds)[len(seconds) // 2],
            }
            if name == "equal":
                result["false_alarms"] = row
            else:
                result["planted"].append({"wanted": name, "true_slowdown": true, **row})
    facts = conditions()
    result.update(
        limit=budgets.slowdown,
        cap_s=cap_s,
        machine=facts["machine"],
        software=facts["software"],
        load=[round(min(loads), 2), round(max(loads), 2)],
        at=utc_now(),
        model_sha256=baseline.model_sha256,
    )
    return result


def calibration_sentences(calibration: Dict[str, Any]) -> Tuple[str, ...]:
    """Sentences for people: false alarms, then one for each planted slow-down."""
    counts = calibration["false_alarms"]
    return (
        f"False alarms on this runner: {counts['count']} of {counts['runs']} equal models, {_rate(counts)}; "
        f"{counts['cannot_tell']} undecided; median {counts['median_seconds']:.1f} s.",
        *(
            f"Planted slow-down of {100 * row['true_slowdown']:.1f} %: {row['count']} of {row['runs']} "
            f"detected, {_rate(row)}; median {row['median_seconds']:.1f} s."
            for row in calibration["planted"]
        ),
    )


def _rate(row: Dict[str, Any]) -> str:
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['rate']:.1f} % (95 % interval {low:.1f} to {high:.1f} %)"


_FLOAT, _INT64 = 1, 7
_SIDE = 96
TRIALS = Protocol(events=12, event_s=0.03)


@dataclass(frozen=True)
class Planted:
    """A slower copy: its file, the number of added operators, and the slow-down with its interval."""

    path: Path
    operators: int
    slowdown: float
    low: float
    high: float


def slower(model: Path, path: Path, *, operators: int, heavy: bool) -> Path:
    """Writes a copy of a model with additional operators.

    Light ones multiply the first output by a constant, in sequence; heavy ones multiply its mean by a 96 x 96
    matrix.
    """
    with closing(open_session(model)) as session:
        first = session.outputs[0]
    if first.dtype != "float32":
        raise ModelError(
            f"No operator can be added after {first}.", "Calibrate with a model whose output is float32."
        )
    model, *weights = files_of(model)
    for each in weights:
        place = path.parent / each.relative_to(model.parent)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(each), str(place))
    with writing(path) as beside:
        beside.write_bytes(Path(model).read_bytes() + _field(7, _graph(first, operators, heavy)))
    return path


def plant(model: Path, folder: Path, share: float, *, protocol: Protocol = TRIALS) -> Planted:
    """Searches by trials for a copy that is about `share` slower (0.05 is 5 %)."""
    best: Optional[Planted] = None
    heavy, operators = False, 1
    for attempt in range(5):
        path = slower(model, Path(folder) / f"planted-{attempt}.onnx", operators=operators, heavy=heavy)
        timed = time_together({"baseline": Path(model), "candidate": path}, protocol=protocol)
        planted = Planted(path, operators, *slowdown(judge(timed["baseline"], timed["candidate"])))
        if best is None or abs(planted.slowdown - share) < abs(best.slowdown - share):
            best = planted
        if abs(planted.slowdown - share) < 0.15 * share:
            break
        wanted = max(1, round(share / max(planted.slowdown / operators, 1e-4)))
        if wanted > 20 and not heavy:
            heavy, wanted = True, 2
        elif wanted == operators:
            break
        operators = min(wanted, 400)
    assert best is not None
    if best.slowdown > 2 * share or best.slowdown < share / 2:
        raise ModelError(
            f"A slow-down of {100 * share:g} % cannot be added to {model}: the nearest is "
            f"{100 * best.slowdown:.1f} %.",
            "Calibrate with a model that takes longer.",
        )
    return best


def _graph(output: TensorSpec, operators: int, heavy: bool) -> bytes:
    parts: List[bytes] = []
    last, shape = output.name, output.shape
    if heavy:
        shape = (1, _SIDE)
        matrix = struct.pack(f"<{_SIDE * _SIDE}f", *([1.0 / _SIDE] * (_SIDE * _SIDE)))
        parts.append(_field(5, _tensor("deadweight.matrix", (_SIDE, _SIDE), _FLOAT, matrix)))
        row = struct.pack(f"<{_SIDE}f", *([1.0] * _SIDE))
        parts.append(_field(5, _tensor("deadweight.row", (1, _SIDE), _FLOAT, row)))
        parts.append(_field(5, _tensor("deadweight.shape", (2,), _INT64, struct.pack("<2q", 1, 1))))
        for op, inputs in (
            ("ReduceMean", (last,)),
            ("Reshape", ("", "deadweight.shape")),
            ("MatMul", ("", "deadweight.row")),
        ):
            named = tuple(name or last for name in inputs)
            last = f"deadweight.{op}"
            parts.append(_field(1, _node(op, named, last)))
        op, constant = "MatMul", "deadweight.matrix"
    else:
        parts.append(_field(5, _tensor("deadweight.one", (), _FLOAT, struct.pack("<f", 1.0009765625))))
        op, constant = "Mul", "deadweight.one"
    for at in range(operators):
        result = f"deadweight.{at}"
        parts.append(_field(1, _node(op, (last, constant), result)))
        last = result
    # GraphProto.output is 12: a ValueInfo with a name, an element type and a shape.
    sizes = b"".join(_field(1, _dimension(size)) for size in shape)
    value = _field(1, last.encode()) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, sizes)))
    return b"".join(parts) + _field(12, value)


def _node(op: str, inputs: Tuple[str, ...], output: str) -> bytes:
    named = b"".join(_field(1, name.encode()) for name in inputs)
    return named + _field(2, output.encode()) + _field(3, output.encode()) + _field(4, op.encode())


def _dimension(size: Union[int, str, None]) -> bytes:
    if size is None:
        return b""
    return _number(1, size) if isinstance(size, int) else _field(2, size.encode())


def _tensor(name: str, shape: Tuple[int, ...], kind: int, raw: bytes) -> bytes:
    sizes = b"".join(_number(1, size) for size in shape)
    return sizes + _number(2, kind) + _field(8, name.encode()) + _field(9, raw)


def _field(number: int, content: bytes) -> bytes:
    return to_varint(number << 3 | 2) + to_varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return to_varint(number << 3) + to_varint(value)
