"""What runs a file on a board: the one place that decides it, for every command that measures there.

Where the board has TensorRT, ONNX files are built there and the engines run: all of one call with the same
precision, limits and kernel timings, so that their times can be compared. What was built before under the
same conditions is used again. ONNX Runtime runs them only where it was requested, or where there is no
TensorRT.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from ..engines.build_settings import BuildSettings, needs_half
from ..engines.record import check_comparable, engine_facts, read_record
from ..errors import TargetError
from ..memory_fit import Base
from ..onnx_file import model_sha256, read_nodes
from ..runtimes.open import same_runtime
from ..runtimes.runtime import Runtime, by_suffix, known_runtimes, runtime_named, with_choices
from ..target import Target, load_target, target_on
from .exchange import typed
from .ssh import Transport

if TYPE_CHECKING:
    from ..timing.measurement import Protocol

Cast = Callable[[Path, Path], Mapping[str, str]]
"""Writes the first file in FP16 as the second; returns the operators that stay in FP32, with the reason."""
_WORKSPACE_SHARE = 4


@dataclass(frozen=True)
class HowThere:
    """The user's choices of what runs on a board; by default its best runtime, and FP16."""

    runtime: Optional[Runtime] = None
    settings: BuildSettings = field(default_factory=BuildSettings)
    target: Union[Target, str, None] = None
    """A name gets the software that the board really has."""
    cast: Optional[Cast] = None
    """From the floor above, which has the package onnx; None where that is not installed."""
    choices: str = ""
    """How the runtime runs engines, as in `+graph`."""


@dataclass(frozen=True)
class Ready:
    """Files that can run on a board: their paths there by name, and by what they run."""

    there: Mapping[str, str]
    runtime: Runtime
    precision: str = ""
    """As in `Protocol.precision`."""
    batch: int = 0
    """The largest batch of the engines; 0: any."""
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name: what an engine is made of, see `engine_facts`."""
    remarks: Tuple[str, ...] = ()

    def protocol(self, given: Protocol) -> Protocol:
        """A protocol with this runtime and precision."""
        return replace(given, runtime=self.runtime.name, precision=self.precision)


_DEFAULT = HowThere()


@dataclass(frozen=True)
class _Board:
    model: str
    soc: Optional[str]
    jetpack: Optional[str]
    l4t: Optional[str]
    tensorrt: Optional[str]
    cuda: Optional[str]
    compute_capability: Optional[str]


@dataclass(frozen=True)
class _Works:
    name: str
    version: Optional[str]


@dataclass(frozen=True)
class _Facts:
    """The form of `machine/board_facts.py`, with what the agent adds."""

    board: _Board
    runtimes: Tuple[_Works, ...]
    sms: Optional[int]
    memory_bytes: Optional[int]
    dla_cores: Optional[int]
    power_mode: Optional[Mapping[str, Any]]
    clocks: Mapping[str, Mapping[str, int]]
    free_bytes: int
    base: Optional[Base]


def facts_of(board: Transport) -> Dict[str, Any]:
    """A board's facts; a TargetError if they have another form."""
    facts = board.run(["facts"])[1]
    typed(_Facts, facts, board.name)
    return facts


def runtime_there(board: Transport, how: HowThere = _DEFAULT) -> Tuple[Runtime, Mapping[str, Any]]:
    """The runtime for ONNX files on a board, and the board's facts (`targets/machine/board_facts.py`)."""
    if how.runtime is not None and how.runtime.source:
        raise TargetError(
            f"{how.runtime.title} is a runtime of your own ({how.runtime.source}), which no board has.",
            "Measure on this machine, or leave your own runtime out: the board's own is used there.",
        )
    facts = facts_of(board)
    if how.runtime is not None:
        return with_choices(how.runtime, how.choices), facts
    known = {one.name for one in known_runtimes()}
    usable = [runtime_named(one["name"]) for one in facts["runtimes"] if one["name"] in known]
    best = sorted(usable, key=lambda one: not one.builds)
    if not best:
        raise TargetError(
            f"{board.name} has no runtime that works: neither TensorRT nor ONNX Runtime.",
            f"Run `deadweight doctor --on {board.name}`, which has the command for each.",
        )
    wanted = load_target(how.target) if isinstance(how.target, str) else how.target
    if wanted is not None and wanted.runtime.builds and not best[0].builds:
        raise TargetError(
            f"{wanted.title} runs engines, but no TensorRT works on {board.name}.",
            f"Run `deadweight doctor --on {board.name}`, or omit the target to time {best[0].title}.",
        )
    return with_choices(best[0], how.choices), facts


def ready_on(
    board: Transport,
    models: Mapping[str, Path],
    how: HowThere = _DEFAULT,
    *,
    batch: int = 1,
    inputs: Optional[Path] = None,
    scores: bool = False,
) -> Ready:
    """Sends models, ONNX files or engines that the board built, and builds the ONNX files where engines run.

    `inputs`, an NPZ file, gives the shapes of the engines' inputs; else they have batches from 1 to `batch`.
    `scores`: for any number of samples, where the files allow it, and for 64 where each run is a process.
    """
    paths = {name: Path(path) for name, path in models.items()}
    if same_runtime({path: by_suffix(path) for path in paths.values()}).builds:
        return _engines(board, paths, how)
    runtime, facts = runtime_there(board, how)
    if not runtime.builds:
        there = board.put(list(paths.values()))
        return Ready(dict(zip(paths, there)), runtime)
    version = _version(facts, runtime)
    target = target_on(how.target, facts) if isinstance(how.target, str) else how.target
    dynamic = all(end.shape[:1] == (-1,) for path in paths.values() for end in read_nodes(path).inputs)
    most = 0 if not (scores and dynamic) else 64 if runtime.time_process else 1
    settings = replace(
        how.settings,
        **_sizes(how.settings, batch, inputs, most),
        workspace_bytes=how.settings.workspace_bytes or _workspace(facts["memory_bytes"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        files, remarks = _cast(board.name, paths, how, settings, version, Path(folder))
        there = board.put(list(files.values()))
        answers = _built(board, dict(zip(files, there)), settings, target)
        engines = {
            name: {
                **engine_facts(answer["record"]),
                "model": paths[name].name,
                "model_sha256": model_sha256(paths[name]),
                "kept": answer["kept"],
            }
            for name, answer in answers.items()
        }
    kept = sorted(name for name, one in engines.items() if one["kept"])
    remarks += [f"built before, and not again: {', '.join(kept)}"] if kept else []
    return Ready(
        {name: answer["plan"] for name, answer in answers.items()},
        runtime,
        settings.precision,
        settings.batch[2],
        engines,
        tuple(remarks),
    )


def version_there(facts: Mapping[str, Any]) -> str:
    """The version of the TensorRT that builds on a board with these facts; empty without one."""
    known = {one.name: one for one in known_runtimes() if one.builds}
    found = [known[one["name"]] for one in facts["runtimes"] if one["name"] in known]
    return _version(facts, found[0]) if found else ""


def _version(facts: Mapping[str, Any], runtime: Runtime) -> str:
    """A runtime's version there; a program's is not known without a board's files."""
    version = {one["name"]: one["version"] for one in facts["runtimes"]}.get(runtime.base)
    return str(version or facts["board"]["tensorrt"] or "10.0")


def _engines(board: Transport, paths: Mapping[str, Path], how: HowThere) -> Ready:
    """Engines as they are: the board's own list says whether it built them. Their records say how."""
    precision = check_comparable(paths.values())
    there = board.put(list(paths.values()))
    runtime, _ = runtime_there(board, how)
    runtime = runtime if runtime.builds else by_suffix(next(iter(paths.values())).name)
    engines = {name: engine_facts(read_record(path)) for name, path in paths.items()}
    known = {name: facts for name, facts in engines.items() if facts}
    return Ready(dict(zip(paths, there)), runtime, precision, engines=known)


def _cast(
    name: str, paths: Mapping[str, Path], how: HowThere, settings: BuildSettings, version: str, folder: Path
) -> Tuple[Dict[str, Path], List[str]]:
    """The files to send: in FP16 where that TensorRT has no flag for it; and the operators left in FP32."""
    files, remarks = dict(paths), []
    for one, path in paths.items():
        if not needs_half(read_nodes(path), settings, version=version):
            continue
        if how.cast is None:
            raise TargetError(
                f"TensorRT {version} on {name} keeps the types of {path.name}, so FP16 must be in the file: "
                "the cast needs the package onnx, which is not installed here.",
                "Install it: pip install onnx. Or measure in FP32: --precision fp32.",
            )
        files[one] = folder / one / path.name
        left = how.cast(path, files[one])
        if left:
            remarks.append(f"{path.name}: {len(left)} operators stay in FP32: {', '.join(sorted(left)[:3])}")
    return files, remarks


def _built(
    board: Transport, there: Mapping[str, str], settings: BuildSettings, target: Optional[Target]
) -> Dict[str, Mapping[str, Any]]:
    """Each model's answer from `build`: plan, record, kept."""
    options = ["--settings", json.dumps(asdict(settings))]
    options += ["--target", json.dumps(target.to_json())] if target else []
    answers: Dict[str, Mapping[str, Any]] = {}
    for index, (name, path) in enumerate(there.items()):
        board.progress(index, len(there), f"build {name}")
        answers[name] = board.run(["build", path, *options])[1]
    return answers


def _sizes(settings: BuildSettings, batch: int, inputs: Optional[Path], most: int) -> Dict[str, Any]:
    """`most`: the least that the largest batch of scores may be; 0 for times, where each shape is exact."""
    if inputs is None:
        return {"batch": (1, max(batch, most), max(batch, most))} if settings.batch == (1, 1, 1) else {}
    from ..timing.inputs import given_inputs

    arrays = given_inputs(inputs) or {}
    largest = max([most or 1, *(len(array) for array in arrays.values() if array.ndim)])
    batches = (1, largest, largest)
    shapes = {k: tuple((n, *a.shape[1:]) if most else a.shape for n in batches) for k, a in arrays.items()}
    return {"shapes": shapes, "batch": batches}


def _workspace(memory_bytes: Optional[int]) -> Optional[int]:
    """A limit that depends on the board alone, not on what is free now: a second look then builds nothing."""
    return 1 << ((memory_bytes // _WORKSPACE_SHARE).bit_length() - 1) if memory_bytes else None
