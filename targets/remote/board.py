"""The board's commands as functions on the workstation: they run it there and read the answer.

What runs a file there is decided in `on_board`. Two profiles over two connections are not a comparison:
`compare_on` makes the board time both models interleaved in one process, and gets the raw samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

from ..artifact import write_json
from ..doctor import Check
from ..engines.record import command_for, record_path
from ..memory_fit import Footprint
from ..plain import plain
from .exchange import reading, typed
from .on_board import Ready
from .ssh import Transport

if TYPE_CHECKING:
    from ..runtimes.session import Arrays
    from ..timing.judge import Judgement
    from ..timing.layers import Layers
    from ..timing.measurement import Measurement, Protocol
    from ..timing.memory import Memory
    from ..timing.soak_record import Soak, SoakPlan


@dataclass(frozen=True)
class Timed:
    """Measurements by name, and memory by name."""

    measurements: Mapping[str, Measurement]
    memory: Mapping[str, Memory]
    engine_memory: Mapping[str, Tuple[Tuple[str, Optional[int], str], ...]] = field(default_factory=dict)
    """By name, in parts: name, bytes (None: not known) and source."""


def doctor_on(board: Transport) -> Tuple[Tuple[Check, ...], str]:
    """The board's checks, and the next step as a sentence."""
    _, answer = board.run(["doctor"])
    return typed(Tuple[Check, ...], answer.get("checks"), board.name), str(answer.get("next"))


def time_on(
    board: Transport,
    ready: Ready,
    *,
    protocol: Protocol,
    inputs: Optional[Path] = None,
    memory: bool = False,
) -> Timed:
    """Times models interleaved in one process on the board, with the inputs of an NPZ file or random ones."""
    named = [f"{name}={path}" for name, path in ready.there.items()]
    options = [*_options(board, ready, protocol, inputs), *(["--memory"] if memory else [])]
    return _timed(board, board.run(["profile", *named, *options])[1], ready)


def _timed(board: Transport, answer: Mapping[str, Any], ready: Ready) -> Timed:
    from ..timing.measurement import Measurement
    from ..timing.memory import Memory

    with reading(board.name):
        measured = {name: Measurement.from_json(answer["measurements"][name]) for name in ready.there}
    for name, engine in ready.engines.items():
        conditions = {**measured[name].conditions, "engine": dict(engine)}
        measured[name] = replace(measured[name], conditions=conditions)
    memory = typed(Mapping[str, Memory], answer.get("memory", {}), board.name)
    parts = Mapping[str, Tuple[Tuple[str, Optional[int], str], ...]]
    return Timed(measured, memory, typed(parts, answer.get("engine_memory", {}), board.name))


def layers_on(
    board: Transport,
    ready: Ready,
    *,
    protocol: Protocol,
    inputs: Optional[Path] = None,
) -> Tuple[Layers, Tuple[str, ...]]:
    """Times the layers of ONNX files interleaved in one process on the board; and why the times are void."""
    from ..timing.layers import read_layers

    named = [f"{name}={path}" for name, path in ready.there.items()]
    arguments = ["layers", *named, *_options(board, ready, protocol, inputs)]
    answer = board.run(arguments)[1]
    with reading(board.name):
        return read_layers(answer)


def compare_on(
    board: Transport,
    ready: Ready,
    *,
    protocol: Protocol,
    margin: float,
    until_decided: bool = False,
    inputs: Optional[Path] = None,
) -> Tuple[Timed, Judgement]:
    """Times "baseline" and "candidate" interleaved in one process there; times and the board's judgement."""
    from ..timing.judge import Judgement

    there = [ready.there[name] for name in ("baseline", "candidate")]
    options = [*_options(board, ready, protocol, inputs), "--margin", str(margin)]
    options += ["--until-decided"] if until_decided else []
    _, answer = board.run(["compare", *there, *options])
    with reading(board.name):
        value = {one.name: answer["judgement"][one.name] for one in fields(Judgement)}
    value.update({key: math.inf for key, figure in value.items() if figure is None})  # JSON has no infinity
    return _timed(board, answer, ready), typed(Judgement, value, board.name)


def soak_on(board: Transport, plan: SoakPlan) -> Soak:
    """Runs a plan whose paths are those of the board."""
    from ..timing.soak_record import Soak

    return typed(Soak, board.run(["soak", "--plan", json.dumps(plain(plan))])[1], board.name)  # type: ignore[no-any-return]


def infer_on(
    board: Transport, ready: Ready, name: str, inputs: Path, outputs: Path, *, batch: int = 64
) -> Path:
    """Runs a model on an NPZ file on the board and fetches the file of its outputs."""
    place, [source] = ready.there[name], board.put([inputs])
    # Beside the inputs, whose folder is named by their hash: what was run before is not run again.
    answer = f"{source}.{hashlib.sha256(place.encode()).hexdigest()[:16]}.npz"
    size = min(batch, ready.batch) if ready.batch else batch
    options = ["--batch", str(size), "--runtime", ready.runtime.name]
    board.run(["infer", place, source, answer, *options])
    board.get(answer, outputs)
    return outputs


def predict_on(board: Transport, ready: Ready, name: str) -> Callable[[Arrays], Arrays]:
    """A function that runs a model there: named arrays in, named arrays out. Each call sends a file."""
    import numpy as np

    from ..runtimes.infer import load_arrays

    def predict(arrays: Arrays) -> Arrays:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "inputs.npz"
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names of inputs
            return load_arrays(infer_on(board, ready, name, file, Path(folder) / "outputs.npz"))

    return predict


def build_on(
    board: Transport,
    model: Path,
    plan: Path,
    *,
    settings: Mapping[str, Any],
    target: Optional[Mapping[str, Any]] = None,
    need: Optional[Footprint] = None,
) -> Dict[str, Any]:
    """Builds an engine on the board, fetches plan, record and log, and returns the record.

    `need`: the model's memory, which is computed where onnx is installed.
    """
    ranges = settings.get("calibration_cache")
    place, *sent = board.put([model, *([Path(ranges)] if ranges else [])])
    settings = {**settings, "calibration_cache": sent[0]} if sent else settings
    there = Path(place)
    engine = there.parent / "engines" / plan.name
    options = ["--settings", json.dumps(settings), *(["--target", json.dumps(target)] if target else [])]
    options += ["--need", json.dumps(plain(need))] if need else []
    _, answer = board.run(["build", str(there), str(engine), *options])
    for ending in (".json", ".log", ""):  # no plan without its record
        board.get(f"{engine}{ending}", Path(f"{plan}{ending}"))
    with reading(board.name):
        record = dict(answer["record"])
        # Here the files have other paths than there.
        asked = {**record["settings"], "calibration_cache": ranges or ""}
        rebuild = command_for(model, plan, asked, record["target"])
        record["model"] = {**record["model"], "file": str(model)}
        record["rebuild"] = f"{rebuild} --on {board.name}"
    write_json(record_path(plan), record)
    return record


def install_on(
    board: Transport,
    bundle: Path,
    *,
    place: Optional[str] = None,
    root: Optional[Path] = None,
    tried: bool = True,
) -> Dict[str, Any]:
    """Sends a bundle's directory or an update file, which the board verifies, tests and installs.

    Raises:
        RefusedError: the board refused it, with the reason; nothing is installed.
        ArtifactError: there is no bundle, or the board has no space.
    """
    before = ["--root", str(root)] if root else []
    after = [*(["--place", place] if place else []), *([] if tried else ["--untried"])]
    return board.run([*before, "install", *board.put([Path(bundle)]), *after])[1]


def rollback_on(
    board: Transport, name: str, *, place: Optional[str] = None, only_if_wrong: bool = False
) -> Dict[str, Any]:
    """Makes the board go back to the previous release; see `install.rollback`."""
    options = [*(["--place", place] if place else []), *(["--if-wrong"] if only_if_wrong else [])]
    return board.run(["rollback", name, *options])[1]


def _options(board: Transport, ready: Ready, protocol: Protocol, inputs: Optional[Path]) -> List[str]:
    """The options for a protocol with what was made ready, and for the inputs, which are sent."""
    there = [] if inputs is None else ["--inputs", *board.put([Path(inputs)])]
    return ["--protocol", json.dumps(asdict(ready.protocol(protocol))), *there]
