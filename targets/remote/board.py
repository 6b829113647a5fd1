"""The board's commands as functions on the workstation: they send the files and read the answer.

Two profiles over two connections are not a comparison: `compare_on` makes the board time both models
interleaved in one process, and gets the raw samples.
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
    """Measurements by name, memory by name, and why they are void (empty if valid)."""

    measurements: Mapping[str, Measurement]
    memory: Mapping[str, Mapping[str, Any]]
    void: Tuple[str, ...]


def doctor_on(board: Transport) -> Tuple[Tuple[Check, ...], str]:
    """The board's checks, and the next step as a sentence."""
    _, answer = board.run(["doctor"])
    return tuple(Check(**check) for check in answer["checks"]), str(answer["next"])


def time_on(
    board: Transport,
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Path] = None,
    memory: bool = False,
    progress: Optional[Progress] = None,
) -> Timed:
    """Times models interleaved in one process on the board, with the inputs of an NPZ file or random ones.

    Raises:
        DeadweightError: as the board's `time_together`, or the connection broke.
    """
    there, options = _put(board, list(models.values()), inputs, progress)
    options += ["--memory"] if memory else []
    return _profile(board, dict(zip(models, there)), protocol, options, progress=progress)


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
    """Makes the board build an engine of each ONNX file and time the engines interleaved in one process.

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
    return _profile(board, engines, protocol, ["--memory"] if memory else [], progress=progress)


def _profile(
    board: Transport,
    there: Mapping[str, str],
    protocol: Protocol,
    options: Sequence[str],
    *,
    progress: Optional[Progress],
) -> Timed:
    named = [f"{name}={path}" for name, path in there.items()]
    _, answer = board.run(["profile", *named, *_protocol_options(protocol), *options], progress=progress)
    return _timed(answer)


def _timed(answer: Mapping[str, Any]) -> Timed:
    from ..timing.measurement import Measurement

    measured = {name: Measurement.from_json(value) for name, value in answer["measurements"].items()}
    return Timed(measured, answer.get("memory", {}), tuple(answer["void"]))


def layers_on(
    board: Transport,
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Path] = None,
    progress: Optional[Progress] = None,
) -> Tuple[Layers, Tuple[str, ...]]:
    """Times the layers of ONNX files interleaved in one process on the board; and why the times are void.

    Raises:
        DeadweightError: as the board's `time_layers`, or the connection broke.
    """
    from ..timing.layer_profile import read_layers

    there, options = _put(board, list(models.values()), inputs, progress)
    named = [f"{name}={path}" for name, path in zip(models, there)]
    arguments = ["layers", *named, *options, *_protocol_options(protocol)]
    return read_layers(board.run(arguments, progress=progress)[1])


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
    """Times two models interleaved in one process on the board; the times and the board's judgement.

    Raises:
        DeadweightError: as `time_on`.
    """
    from ..timing.judge import Judgement

    there, options = _put(board, [baseline, candidate], inputs, progress)
    options += [*_protocol_options(protocol), "--margin", str(margin)]
    options += ["--until-decided"] if until_decided else []
    _, answer = board.run(["compare", *there, *options], progress=progress)
    value = {key: answer["judgement"][key] for key in (field.name for field in fields(Judgement))}
    value.update({key: math.inf for key, figure in value.items() if figure is None})  # JSON has no infinity
    return _timed(answer), Judgement(**{**value, "remarks": tuple(value["remarks"])})


def infer_on(
    board: Transport,
    model: Path,
    inputs: Path,
    outputs: Path,
    *,
    batch: int = 64,
    progress: Optional[Progress] = None,
) -> List[Path]:
    """Runs a model on a folder of NPZ files on the board and returns the files of its outputs.

    Raises:
        ArtifactError: there are no inputs.
    """
    files = sorted(Path(inputs).glob("*.npz"))
    if not files:
        raise ArtifactError(f"{inputs} has no NPZ files.", "Save named arrays there: numpy.savez.")
    place, *there = board.put([*_checked([model]), *files], progress=progress)
    for path, source in zip(files, there):
        # Each input is alone in a folder named by its hash; its outputs are in a subfolder of it.
        answers = f"{Path(source).parent}/{Path(place).parent.name[:16]}"
        alone = str(Path(source).parent)
        board.run(["infer", place, alone, answers, "--batch", str(batch)], progress=progress)
        board.get(f"{answers}/{path.name}", Path(outputs) / path.name)
    return [Path(outputs) / path.name for path in files]


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
    """Builds an engine on the board, fetches plan, record and log, and returns the record.

    `need`: the model's memory as `Footprint.to_json`, which is computed where onnx is installed.
    """
    there = Path(board.put([model], progress=progress)[0])
    engine = there.parent / "engines" / plan.name
    options = ["--settings", json.dumps(settings), *(["--target", json.dumps(target)] if target else [])]
    options += ["--need", json.dumps(need)] if need else []
    _, answer = board.run(["build", str(there), str(engine), *options], progress=progress)
    for ending in ("", ".json", ".log"):
        board.get(f"{engine}{ending}", Path(f"{plan}{ending}"))
    return dict(answer["record"])


def install_on(
    board: Transport,
    bundle: Path,
    *,
    place: Optional[str] = None,
    root: Optional[Path] = None,
    tried: bool = True,
    progress: Optional[Progress] = None,
) -> Dict[str, Any]:
    """Sends a bundle's directory or an update file, which the board verifies, tests and installs.

    Raises:
        RefusedError: the board refused it, with the reason; nothing is installed.
        ArtifactError: there is no bundle, or the board has no space.
    """
    before = ["--root", str(root)] if root else []
    after = [*(["--place", place] if place else []), *([] if tried else ["--untried"])]
    if Path(bundle).is_file():
        return board.run([*before, "install", *board.put([bundle], progress=progress), *after])[1]
    files = sorted(path for path in Path(bundle).rglob("*") if path.is_symlink() or not path.is_dir())
    if not files:
        raise ArtifactError(f"{bundle} is not a bundle: it has no files.", "Make one: deadweight bundle RUN.")
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise RefusedError(f"{path} is not a regular file.", "Do not use this bundle.")
    names = [path.relative_to(bundle).as_posix() for path in files]
    there = dict(zip(names, board.put(files, progress=progress)))
    return board.run([*before, "install", "--files", json.dumps(there), *after])[1]


def rollback_on(
    board: Transport, name: str, *, place: Optional[str] = None, only_if_wrong: bool = False
) -> Dict[str, Any]:
    """Makes the board go back to the previous release; see `install.rollback`."""
    options = [*(["--place", place] if place else []), *(["--if-wrong"] if only_if_wrong else [])]
    return board.run(["rollback", name, *options])[1]


def _put(
    board: Transport, models: Sequence[Path], inputs: Optional[Path], progress: Optional[Progress]
) -> Tuple[List[str], List[str]]:
    """Sends models and inputs; returns the models' paths on the board, and the options for the inputs."""
    there = board.put([*_checked(models), *([] if inputs is None else [Path(inputs)])], progress=progress)
    return there[: len(models)], [] if inputs is None else ["--inputs", there[-1]]


def _protocol_options(protocol: Protocol) -> List[str]:
    """The options for a protocol; a board has only the built-in runtimes."""
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
                f"{model.name} is an engine: a board runs only engines that it built or that are signed.",
                "Send the ONNX file to build it there (deadweight build --on), or install a signed bundle.",
            )
    return models
