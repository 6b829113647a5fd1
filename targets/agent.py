"""The agent: the board's command line, one process per command. JSON on stdout, progress on stderr.

    python3 -m deadweight.targets.agent COMMAND ...    the commands: remote/agent_options.py

Standard library; numpy and a runtime are imported by the commands that need them. The answer is one line:
{"agent", "exit_code", "result"} or {"agent", "exit_code", "error": {kind, what, cure}}. Progress lines begin
with "deadweight-progress". When the connection breaks, writing one fails and ends the agent, so that no
measurement goes on. `held`, `receive` and `send` serve `remote/ssh.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from . import __version__
from .artifact import json_of
from .errors import ArtifactError, DeadweightError, RefusedError, TargetError, reported
from .plain import from_plain, plain
from .remote.agent_options import PROGRESS, PROTOCOL, SAME, parser

if TYPE_CHECKING:
    from .runtimes.session import Arrays
    from .timing.measurement import Measurement, Protocol


_Answer = Tuple[int, Dict[str, Any]]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command and prints its answer. Exit codes are those of the command line; 2 for bad input."""
    options = parser().parse_args(arguments)
    if options.plugin:
        from .engines.plugins import give_plugins

        give_plugins(options.plugin)
    message: Dict[str, Any] = {"agent": {"version": __version__, "protocol": PROTOCOL}}
    # Libraries' output to stdout goes to stderr, from C too: stdout has only the answer.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    file_blocks: List[Any] = []
    try:
        code, message["result"], *file_blocks = _COMMANDS[options.command](options)
    except DeadweightError as error:
        code, message["error"] = 1 if isinstance(error, RefusedError) else 2, _error(error)
    except ModuleNotFoundError as error:
        cure = f"sudo apt install python3-{error.name}" if error.name == "numpy" else "Install it."
        code, message["error"] = 2, _error(TargetError(f"This command needs {error.name}.", cure))
    except BrokenPipeError:
        return 141  # the reader is gone
    except OSError as error:
        what = f"{error.filename or 'A file'} cannot be used: {error.strerror or error}."
        code, message["error"] = 2, _error(ArtifactError(what, "Check the path and its permissions."))
    except Exception as error:
        import traceback

        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        name = Path(place.filename).name
        what = f"The agent failed: {type(error).__name__}: {error} ({name}:{place.lineno})."
        code, message["error"] = 2, _error(DeadweightError(what, "This is a bug in deadweight: report it."))
    message["exit_code"] = code
    try:
        with os.fdopen(answer_to, "wb") as stdout:
            stdout.write(json.dumps(message).encode() + b"\n")
            for block in file_blocks[0] if file_blocks else ():
                stdout.write(block)
    except BrokenPipeError:
        return 141
    return int(code)


def _doctor(options: argparse.Namespace) -> _Answer:
    from .doctor import doctor, next_step
    from .machine.probe import conditions

    checks = doctor(options.root, options.cache)
    facts = {"checks": plain(checks), "next": next_step(checks)}
    return int(not all(check.works for check in checks)), {**facts, "conditions": conditions(options.root)}


def _facts(options: argparse.Namespace) -> _Answer:
    """The board's facts, its free memory, and TensorRT's own memory as `Base`, where it was measured."""
    from .engines.machine import base_here, kept_base
    from .machine.board_facts import board_facts
    from .memory_fit import free_memory
    from .runtimes.runtime import runtime_named

    facts = board_facts(options.root)
    for one in facts["runtimes"]:
        one["version"] = one["version"] or runtime_named(one["name"]).version or None
    version = kept_base(options.cache).get("tensorrt")
    base = plain(base_here(version, building=False, folder=options.cache)) if version else None
    return 0, {**facts, "free_bytes": free_memory(options.root), "base": base}


def _verify(options: argparse.Namespace) -> _Answer:
    """Whether a bundle or an update file may be installed here; exit code 1 where its golden test fails."""
    from .release.patch import Patch, open_release
    from .release.versions import check_expiry

    release = open_release(options.bundle, root=options.root)
    signed = release.signed
    facts: Dict[str, Any] = {
        "base": release.base if isinstance(release, Patch) else None,
        **{key: getattr(signed.manifest, key) for key in ("name", "target", "release", "expires")},
        "version": signed.version,
        "signer": signed.signer,
        "files": len(signed.files),
        "bytes": sum(entry.bytes for entry in signed.files.values()),
        "clock": check_expiry(signed.manifest),
    }
    if not options.golden or isinstance(release, Patch):
        return 0, facts
    from .release.self_test import rehearse

    result = rehearse(release, threads=options.threads)
    facts["golden"] = result.to_json()
    return int(not result.holds), facts


def _install(options: argparse.Namespace) -> _Answer:
    from .release.install import install

    return 0, install(options.bundle, options.place, root=options.root, tried=not options.untried)


def _rollback(options: argparse.Namespace) -> _Answer:
    from .release.install import rollback

    return 0, rollback(options.name, options.place, root=options.root, only_if_wrong=options.if_wrong)


def _profile(options: argparse.Namespace) -> _Answer:
    from .timing.clock import time_together

    result: Dict[str, Any] = {}
    with _open_models(options, options.models) as (paths, protocol, inputs):
        measured = time_together(paths, protocol=protocol, inputs=inputs, progress=_timing)
        if options.memory:
            result.update(_memory(paths, protocol, options.inputs, inputs))
    result.update(_timed(measured))
    return (3 if result["void"] else 0), result


def _memory(
    paths: Mapping[str, Path], protocol: Protocol, file: Optional[Path], inputs: Optional[Arrays]
) -> Dict[str, Any]:
    """Each model's memory: of its process on a CPU, in parts where a GPU runs it."""
    from .runtimes.runtime import runtime_named
    from .timing.memory import engine_memory, measure_memory

    found: Dict[str, Dict[str, Any]] = {"memory": {}, "engine_memory": {}}
    for index, (name, path) in enumerate(paths.items()):
        _progress(index, len(paths), "memory")
        if runtime_named(protocol.runtime).builds:
            found["engine_memory"][name] = engine_memory(path, protocol, inputs)
        else:
            memory = measure_memory(
                path, runtime=protocol.runtime, threads=protocol.threads, batch=protocol.batch, inputs=file
            )
            found["memory"][name] = plain(memory)
    return found


def _layers(options: argparse.Namespace) -> _Answer:
    from .timing.layers import profile_layers

    with _open_models(options, options.models) as (paths, protocol, inputs):
        result = profile_layers(paths, protocol=protocol, inputs=inputs, progress=_timing)
    return (3 if result["void"] else 0), result


def _compare(options: argparse.Namespace) -> _Answer:
    from .timing.clock import time_together
    from .timing.judge import exit_code, judge
    from .timing.sequential import compare_until_decided

    models = [("baseline", options.baseline), ("candidate", options.candidate)]
    with _open_models(options, models) as (paths, protocol, inputs):
        if options.until_decided:
            compared = compare_until_decided(
                paths["baseline"],
                paths["candidate"],
                protocol=protocol,
                margin=options.margin,
                inputs=inputs,
                progress=_timing,
            )
            measured, judgement = compared.measured, compared.judgement
        else:
            measured = time_together(paths, protocol=protocol, inputs=inputs, progress=_timing)
            judgement = judge(measured["baseline"], measured["candidate"], margin=options.margin)
    result = {**_timed(measured), "judgement": judgement.to_json()}
    return (3 if result["void"] else exit_code(judgement.outcome)), result


def _soak(options: argparse.Namespace) -> _Answer:
    from dataclasses import replace

    from .paths import stored
    from .remote.received_files import measuring
    from .timing.loads import BUILT_IN
    from .timing.soak import soak
    from .timing.soak_record import SoakPlan

    plan = _read(SoakPlan, options.plan)
    with measuring(options.cache), contextlib.ExitStack() as stack:
        loads = dict(plan.loads)
        for name, load in loads.items():
            if load.model not in BUILT_IN:
                trusted = _trusted(load.model, options.root, options.cache, runtime=load.runtime)
                path, runtime = stack.enter_context(trusted)
                loads[name] = replace(load, model=str(path), runtime=runtime)
        done = soak(
            replace(plan, loads=loads),
            folder=stored(options.cache, "soaks"),
            root=options.root,
            progress=lambda done, total: _progress(done, total, "soak"),
        )
    # The names are those that were asked for: a sealed path is not one.
    return 0, plain(replace(done, plan=plan))


@contextlib.contextmanager
def _open_models(
    options: argparse.Namespace, models: Sequence[Tuple[str, str]]
) -> Iterator[Tuple[Dict[str, Path], Protocol, Optional[Arrays]]]:
    """Trusted paths, the protocol for their runtime and the inputs, while the board is locked to measure."""
    from .remote.received_files import measuring
    from .runtimes.open import same_runtime
    from .timing.inputs import given_inputs
    from .timing.measurement import Protocol

    with measuring(options.cache), contextlib.ExitStack() as stack:
        asked = _read(Mapping[str, Any], options.protocol)
        opened = {
            name: stack.enter_context(
                _trusted(path, options.root, options.cache, runtime=str(asked.get("runtime", "")))
            )
            for name, path in models
        }
        runtime = same_runtime(dict(opened.values()))
        protocol = Protocol.from_json({**asked, "runtime": runtime})
        yield {name: path for name, (path, _) in opened.items()}, protocol, given_inputs(options.inputs)


def _timed(measured: Mapping[str, Measurement]) -> Dict[str, Any]:
    """The times, measured together, and why they are void; empty if valid."""
    void = list(next(iter(measured.values())).void)
    return {"void": void, "measurements": {name: item.to_json() for name, item in measured.items()}}


def _timing(done: int, total: int) -> None:
    _progress(done, total, "timing")


def _infer(options: argparse.Namespace) -> _Answer:
    from .runtimes.infer import infer_file
    from .runtimes.open import open_session

    with _trusted(options.model, options.root, options.cache, runtime=options.runtime) as (path, runtime):
        session = open_session(path, runtime=runtime, threads=options.threads)
        with contextlib.closing(session):
            infer_file(session, options.inputs, options.outputs, batch=options.batch)
    return 0, {"outputs": str(options.outputs), "runtime": session.runtime}


def _unpack(options: argparse.Namespace) -> _Answer:
    from .coded.container import unpack_file

    model = unpack_file(options.packed, options.model)
    return 0, {"model": str(model), "bytes": model.stat().st_size}


def _build(options: argparse.Namespace) -> _Answer:
    from .engines.build import build_engine
    from .engines.build_settings import BuildSettings
    from .engines.kept import kept_engine, remember_built, space_cure
    from .engines.machine import measure_base
    from .memory_fit import Footprint
    from .target import Target

    settings = _read(BuildSettings, options.settings)
    need = _read(Footprint, options.need) if options.need else None
    target = Target.from_json(_read(Mapping[str, Any], options.target)) if options.target else None
    if need is not None:
        measure_base(options.cache)
    if options.plan is None:
        plan, record, kept = kept_engine(
            options.model,
            settings=settings,
            target=target,
            need=need,
            folder=options.cache,
            root=options.root,
        )
        return 0, {"plan": str(plan), "record": record, "kept": kept}
    try:
        built = build_engine(
            options.model, options.plan, settings=settings, target=target, need=need, root=options.root
        )
    except ArtifactError as error:
        raise ArtifactError(error.what, space_cure(options.cache)) from error
    remember_built(built.plan, options.cache)
    return 0, {"plan": str(built.plan), "record": dict(built.record), "kept": False}


def _held(options: argparse.Namespace) -> _Answer:
    from .remote.received_files import held

    return 0, held(_read(Tuple[Tuple[str, str, int, str], ...], sys.stdin.read()), options.cache)


def _receive(options: argparse.Namespace) -> _Answer:
    from .remote.received_files import receive

    return 0, {"whole": receive(sys.stdin.buffer, _read(Mapping[str, int], options.sizes), options.cache)}


def _send(options: argparse.Namespace) -> Tuple[int, Dict[str, Any], Iterator[bytes]]:
    """The file's hash and size; its bytes follow the answer's line."""
    from .remote.received_files import hashed, pieces

    path = options.path.expanduser()
    return 0, {"sha256": hashed(path), "bytes": path.stat().st_size}, pieces(path, options.offset)


@contextlib.contextmanager
def _trusted(path: str, root: Path, folder: Path, *, runtime: str = "") -> Iterator[Tuple[Path, str]]:
    """A path that may be opened, and its runtime: an ONNX file, an engine built here, or a bundle's model.

    `runtime` is the wanted one, which counts if it opens such files.
    """
    from .engines.kept import own_engine
    from .release.manifest import MANIFEST
    from .release.trust import open_bundle
    from .runtimes.open import runtime_of
    from .runtimes.runtime import by_suffix, runtime_named, usable

    place = Path(path)

    def runs(name: Path) -> str:
        wanted = runtime_named(runtime) if runtime else None
        return usable(wanted if wanted and name.suffix in wanted.suffixes else runtime_of(name)).name

    if (place / MANIFEST).exists():
        bundle = open_bundle(place, root=root)
        name = bundle.manifest.model
        with bundle.sealed(name) as sealed:
            yield sealed, runs(place / name)
    elif by_suffix(place).builds:
        with own_engine(place, folder) as sealed:
            yield sealed, runs(place)
    else:
        yield place, runs(place)


def _progress(done: int, total: int, what: str) -> None:
    # Unbuffered, so that it fails when the connection is broken: see above.
    os.write(2, f"{PROGRESS} {done} {total} {what}\n".encode())


def _read(kind: Any, text: str) -> Any:
    """A value of this type from an option's JSON."""
    with reported(TargetError, "An option is not JSON", SAME, ValueError):
        value = json_of(text)
    return from_plain(kind, value, getattr(kind, "__name__", "An option"), error=TargetError, cure=SAME)


def _error(error: DeadweightError) -> Dict[str, str]:
    return {"kind": type(error).__name__, "what": error.what, "cure": error.cure}


_COMMANDS: Dict[str, Callable[[argparse.Namespace], Any]] = {
    command.__name__[1:]: command
    for command in (
        *(_doctor, _facts, _verify, _install, _rollback, _profile, _layers, _compare, _soak, _infer),
        *(_unpack, _build, _held, _receive, _send),
    )
}


if __name__ == "__main__":
    sys.exit(main())
