"""What a workstation asks of a board, one function a command: files go there, the answer comes back.

Two profiles, each over its own connection, would be no comparison: `compare_on` has the board time both
models by turns in one process, and gets the raw samples.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..doctor import Check
from ..errors import ArtifactError, RefusedError, TargetError
from ..progress import Progress
from ..runtimes.runtime import is_engine, runtime_named
from .ssh import Transport

if TYPE_CHECKING:
    from ..timing.judge import Judgement
    from ..timing.layer_profile import Layers
    from ..timing.measurement import Measurement, Protocol


@dataclass(frozen=True)
class Timed:
    """Measurements by name, memory by name, and why they are void: empty if they are not."""

    measurements: Mapping[str, Measurement]
    memory: Mapping[str, Mapping[str, Any]]
    void: Tuple[str, ...]


def doctor_on(board: Transport) -> Tuple[Tuple[Check, ...], str]:
    """The board's checks, and the sentence that says what to do next."""
    _, told = board.run(["doctor"])
    return tuple(Check(**check) for check in told["checks"]), str(told["next"])


def time_on(
    board: Transport,
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Path] = None,
    memory: bool = False,
    progress: Optional[Progress] = None,
) -> Timed:
    """Times models by turns in one process on the board, on the inputs of an NPZ file or on random ones.

    Raises:
        DeadweightError: as the board's `time_together`, or the connection broke.
    """
    there, options = _put(board, list(models.values()), inputs, progress)
    options += ["--memory"] if memory else []
    return _timed(board, dict(zip(models, there)), protocol, options, progress=progress)


def time_engines_on(
    board: Transport,
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    settings: Mapping[str, Any],
    target: Optional[Mapping[str, Any]] = None,
    memory: bool = False,
    progress: Optional[Progress] = None,
) -> Timed:
    """Has the board build an engine of each ONNX file and time the engines by turns in one process.

    Raises:
        DeadweightError: as the board's `build_engine` and `time_together`, or the connection broke.
    """
    options = ["--settings", json.dumps(settings), *(["--target", json.dumps(target)] if target else [])]
    engines = {}
    there = board.put(_checked(list(models.values())), progress=progress)
    for index, (name, path) in enumerate(zip(models, there)):
        if progress is not None:
            progress(index, len(models), f"build {name}")
        engines[name] = f"{Path(path).parent}/engines/{Path(path).stem}.plan"
        board.run(["build", path, engines[name], *options])
    return _timed(board, engines, protocol, ["--memory"] if memory else [], progress=progress)


def _timed(
    board: Transport,
    there: Mapping[str, str],
    protocol: Protocol,
    options: Sequence[str],
    *,
    progress: Optional[Progress],
) -> Timed:
    from ..timing.measurement import Measurement

    named = [f"{name}={path}" for name, path in there.items()]
    asked = ["profile", *named, *_followed(protocol), *options]
    _, told = board.run(asked, progress=progress)
    return Timed(
        {name: Measurement.from_json(value) for name, value in told["measurements"].items()},
        told.get("memory", {}),
        tuple(told["void"]),
    )


def layers_on(
    board: Transport,
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Path] = None,
    progress: Optional[Progress] = None,
) -> Tuple[Layers, Tuple[str, ...]]:
    """Times the layers of ONNX files by turns in one process on the board; and why the times are void.

    Raises:
        DeadweightError: as the board's `time_layers`, or the connection broke.
    """
    from ..timing.layer_profile import read_layers

    there, options = _put(board, list(models.values()), inputs, progress)
    named = [f"{name}={path}" for name, path in zip(models, there)]
    options += _followed(protocol)
    _, told = board.run(["layers", *named, *options], progress=progress)
    return read_layers(told)


def compare_on(
    board: Transport,
    baseline: Path,
    candidate: Path,
    *,
    protocol: Protocol,
    margin: float,
    until_decided: bool = False,
    inputs: Optional[Path] = None,
    progress: Optional[Progress] = None,
) -> Tuple[Timed, Judgement]:
    """Times two models by turns in one process on the board, and its judgement of them.

    Raises:
        DeadweightError: as `time_on`.
    """
    from ..timing.judge import Judgement
    from ..timing.measurement import Measurement

    there, options = _put(board, [baseline, candidate], inputs, progress)
    options += [*_followed(protocol), "--margin", str(margin)]
    options += ["--until-decided"] if until_decided else []
    _, told = board.run(["compare", *there, *options], progress=progress)
    measured = {name: Measurement.from_json(value) for name, value in told["measurements"].items()}
    value = {key: told["judgement"][key] for key in (field.name for field in fields(Judgement))}
    value.update({key: math.inf for key, figure in value.items() if figure is None})  # JSON has no infinity
    judged = Judgement(**{**value, "remarks": tuple(value["remarks"])})
    return Timed(measured, {}, tuple(told["void"])), judged


def infer_on(
    board: Transport,
    model: Path,
    inputs: Path,
    outputs: Path,
    *,
    batch: int = 64,
    progress: Optional[Progress] = None,
) -> List[Path]:
    """Runs a folder of NPZ files through a model on the board and returns the files of its answers.

    Raises:
        ArtifactError: there are no inputs.
    """
    files = sorted(Path(inputs).glob("*.npz"))
    if not files:
        raise ArtifactError(f"{inputs} holds no inputs.", "Save named arrays there: numpy.savez.")
    place, *there = board.put([*_checked([model]), *files], progress=progress)
    fetched = []
    for path, source in zip(files, there):
        # Each input lies alone in a folder of its hash; so do its answers, by the model's hash too.
        answers = f"{Path(source).parent}/{Path(place).parent.name[:16]}"
        alone = str(Path(source).parent)
        board.run(["infer", place, alone, answers, "--batch", str(batch)], progress=progress)
        board.get(f"{answers}/{path.name}", Path(outputs) / path.name)
        fetched.append(Path(outputs) / path.name)
    return fetched


def build_on(
    board: Transport,
    model: Path,
    plan: Path,
    *,
    settings: Mapping[str, Any],
    target: Optional[Mapping[str, Any]] = None,
    need: Optional[Mapping[str, Any]] = None,
    progress: Optional[Progress] = None,
) -> Dict[str, Any]:
    """Builds an engine on the board, brings plan and record here, and returns the record.

    `need`: the model's memory as `Footprint.to_json`, which is worked out where onnx is.
    """
    there = Path(board.put([model], progress=progress)[0])
    made = there.parent / "engines" / plan.name
    options = ["--settings", json.dumps(settings), *(["--target", json.dumps(target)] if target else [])]
    options += ["--need", json.dumps(need)] if need else []
    _, told = board.run(["build", str(there), str(made), *options], progress=progress)
    for ending in ("", ".json", ".log"):
        board.get(f"{made}{ending}", Path(f"{plan}{ending}"))
    return dict(told["record"])


def install_on(
    board: Transport,
    bundle: Path,
    *,
    place: Optional[str] = None,
    root: Optional[Path] = None,
    tried: bool = True,
    progress: Optional[Progress] = None,
) -> Dict[str, Any]:
    """Sends a bundle's directory or an update file and has the board verify, try and install it.

    What the board refuses is not put in place.

    Raises:
        RefusedError: with the board's reason.
        ArtifactError: there is no bundle, or the board has no space.
    """
    before = ["--root", str(root)] if root else []
    after = [*(["--place", place] if place else []), *([] if tried else ["--untried"])]
    if Path(bundle).is_file():
        there_is = board.put([bundle], progress=progress)
        return board.run([*before, "install", *there_is, *after])[1]
    files = sorted(path for path in Path(bundle).rglob("*") if path.is_symlink() or not path.is_dir())
    if not files:
        raise ArtifactError(f"{bundle} is no bundle: nothing is there.", "Make one: deadweight bundle RUN.")
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise RefusedError(f"{path} is no plain file.", "Do not use this bundle.")
    names = [path.relative_to(bundle).as_posix() for path in files]
    there = dict(zip(names, board.put(files, progress=progress)))
    return board.run([*before, "install", "--files", json.dumps(there), *after])[1]


def rollback_on(
    board: Transport, name: str, *, place: Optional[str] = None, only_if_wrong: bool = False
) -> Dict[str, Any]:
    """Has the board go back to the release before; see `install.rollback`."""
    options = [*(["--place", place] if place else []), *(["--if-wrong"] if only_if_wrong else [])]
    return board.run(["rollback", name, *options])[1]


def _put(
    board: Transport, models: Sequence[Path], inputs: Optional[Path], progress: Optional[Progress]
) -> Tuple[List[str], List[str]]:
    """Models and what they are to be fed: the models' paths there, and the options that name the rest."""
    files = [*_checked(models), *([] if inputs is None else [Path(inputs)])]
    there = board.put(files, progress=progress)
    return there[: len(models)], [] if inputs is None else ["--inputs", there[-1]]


def _followed(protocol: Protocol) -> List[str]:
    """The options that hand a protocol over; a board has the built-in runtimes alone."""
    runtime = runtime_named(protocol.runtime)
    if runtime.source:
        raise TargetError(
            f"{runtime.title} is a runtime of your own ({runtime.source}), which no board has.",
            "Measure on this machine, or leave your own runtime out: ONNX Runtime is used on the board.",
        )
    return ["--protocol", json.dumps(asdict(protocol))]


def _checked(models: Sequence[Path]) -> Sequence[Path]:
    for model in models:
        if is_engine(model):
            raise RefusedError(
                f"{model.name} is an engine: a board runs only what it built itself, or what is signed.",
                "Send the ONNX file and build it there (deadweight build --on), or install a signed bundle.",
            )
    return models
