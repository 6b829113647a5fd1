"""The agent: what a board is asked to do, one command a process. JSON on stdout, progress on stderr.

    python3 -m deadweight.targets.agent COMMAND ...    the commands: remote/agent_options.py

argparse and the standard library; numpy and a runtime are imported by the commands that need them. The
answer is one line: {"agent", "exit_code", "result"} or {"agent", "exit_code", "error": {kind, what, cure}}.
Progress lines begin with "deadweight-progress". When nobody listens any more, writing one fails and ends the
agent: a broken connection leaves no measurement running. `held`, `receive` and `send` serve `remote/ssh.py`.
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
from .errors import DeadweightError, ModelError, RefusedError, TargetError
from .remote.agent_options import PROGRESS, PROTOCOL, parser

if TYPE_CHECKING:
    from .timing.measurement import Measurement, Protocol


_Answer = Tuple[int, Dict[str, Any]]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command and prints its answer. Exit codes are those of the command line; 2 for bad input."""
    given = parser().parse_args(arguments)
    told: Dict[str, Any] = {"agent": {"version": __version__, "protocol": PROTOCOL}}
    # What libraries print to stdout goes to stderr, also from C: stdout is for the answer alone.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    rest: List[Any] = []
    try:
        code, told["result"], *rest = _COMMANDS[given.command](given)
    except DeadweightError as error:
        code, told["error"] = 1 if isinstance(error, RefusedError) else 2, _error(error)
    except ModuleNotFoundError as error:
        cure = f"sudo apt install python3-{error.name}" if error.name == "numpy" else "Install it."
        code, told["error"] = 2, _error(TargetError(f"This command needs {error.name}.", cure))
    except BrokenPipeError:
        return 141  # nobody listens
    except Exception as error:
        import traceback

        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = (
            f"The agent failed: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})."
        )
        code, told["error"] = 2, _error(DeadweightError(what, "This is a fault of deadweight: report it."))
    told["exit_code"] = code
    try:
        with os.fdopen(answer_to, "wb") as answer:
            answer.write(json.dumps(told).encode() + b"\n")
            for block in rest[0] if rest else ():
                answer.write(block)
    except BrokenPipeError:
        return 141
    return int(code)


def _doctor(given: argparse.Namespace) -> _Answer:
    from dataclasses import asdict

    from .doctor import doctor, next_step
    from .machine.probe import conditions

    checks = doctor(given.root)
    told = {"checks": [asdict(check) for check in checks], "next": next_step(checks)}
    return int(not all(check.works for check in checks)), {**told, "conditions": conditions(given.root)}


def _verify(given: argparse.Namespace) -> _Answer:
    from .remote.agent_releases import verify

    return verify(given)


def _install(given: argparse.Namespace) -> _Answer:
    from .remote.agent_releases import install

    return install(given)


def _rollback(given: argparse.Namespace) -> _Answer:
    from .remote.agent_releases import rollback

    return rollback(given)


def _profile(given: argparse.Namespace) -> _Answer:
    told: Dict[str, Any] = {}
    with _opened(given, given.models) as (paths, protocol):
        measured = _timed(given, paths, protocol)
        if given.memory:
            from .timing.memory import measure_memory

            told["memory"] = {}
            for index, (name, path) in enumerate(paths.items()):
                _progress(index, len(paths), "memory")
                memory = measure_memory(
                    path,
                    runtime=protocol.runtime,
                    threads=protocol.threads,
                    batch=protocol.batch,
                    inputs=given.inputs,
                )
                told["memory"][name] = memory.to_json()
    told["void"] = list(_void(measured))
    told["measurements"] = {name: item.to_json() for name, item in measured.items()}
    return (3 if told["void"] else 0), told


def _layers(given: argparse.Namespace) -> _Answer:
    from .timing.inputs import given_inputs
    from .timing.layer_profile import profile_layers

    with _opened(given, given.models) as (paths, protocol):
        told = profile_layers(paths, protocol=protocol, inputs=given_inputs(given.inputs), progress=_timing)
    return (3 if told["void"] else 0), told


def _compare(given: argparse.Namespace) -> _Answer:
    from .timing.inputs import given_inputs
    from .timing.judge import exit_code, judge
    from .timing.sequential import compare_until_decided

    with _opened(given, [("baseline", given.baseline), ("candidate", given.candidate)]) as (paths, protocol):
        if given.until_decided:
            compared = compare_until_decided(
                paths["baseline"],
                paths["candidate"],
                protocol=protocol,
                margin=given.margin,
                inputs=given_inputs(given.inputs),
                progress=_timing,
            )
            measured, judged = compared.measured, compared.judgement
        else:
            measured = _timed(given, paths, protocol)
            judged = judge(measured["baseline"], measured["candidate"], margin=given.margin)
    void = _void(measured)
    told: Dict[str, Any] = {"void": list(void), "judgement": judged.to_json()}
    told["measurements"] = {name: item.to_json() for name, item in measured.items()}
    return (3 if void else exit_code(judged.outcome)), told


@contextlib.contextmanager
def _opened(
    given: argparse.Namespace, models: Sequence[Tuple[str, str]]
) -> Iterator[Tuple[Dict[str, Path], Protocol]]:
    """Paths that may be opened, and the protocol for their runtime, while the board is held for them."""
    from .remote.received_files import measuring
    from .timing.measurement import Protocol

    with measuring(given.cache), contextlib.ExitStack() as held:
        opened = {name: held.enter_context(_trusted(path, given.root, given.cache)) for name, path in models}
        runtimes = {runtime for _, runtime in opened.values()}
        if len(runtimes) > 1:
            raise ModelError(
                "An engine and an ONNX file run on two runtimes and cannot be timed by turns.",
                "Compare two engines, or two ONNX files.",
            )
        protocol = Protocol.from_json({**json.loads(given.protocol), "runtime": runtimes.pop()})
        yield {name: path for name, (path, _) in opened.items()}, protocol


def _timed(
    given: argparse.Namespace, paths: Mapping[str, Path], protocol: Protocol
) -> Mapping[str, Measurement]:
    from .timing.clock import time_together
    from .timing.inputs import given_inputs

    return time_together(paths, protocol=protocol, inputs=given_inputs(given.inputs), progress=_timing)


def _void(measured: Mapping[str, Measurement]) -> Tuple[str, ...]:
    """Why times are void, if they are; all were taken together."""
    from .machine.probe import voided

    one = next(iter(measured.values()))
    return voided(one.conditions, [mark.what for mark in one.marks])


def _timing(done: int, total: int) -> None:
    _progress(done, total, "timing")


def _infer(given: argparse.Namespace) -> _Answer:
    from .runtimes.infer import infer_folder
    from .runtimes.open import open_session

    with _trusted(given.model, given.root, given.cache) as (path, runtime):
        session = open_session(path, runtime=runtime, threads=given.threads)
        try:
            names = infer_folder(
                session,
                given.inputs,
                given.outputs,
                batch=given.batch,
                progress=lambda done, total: _progress(done, total, "infer"),
            )
        finally:
            session.close()
    return 0, {"files": names, "outputs": str(given.outputs), "runtime": session.runtime}


def _unpack(given: argparse.Namespace) -> _Answer:
    from .coded.container import unpack_file

    made = unpack_file(given.packed, given.model)
    return 0, {"model": str(made), "bytes": made.stat().st_size}


def _build(given: argparse.Namespace) -> _Answer:
    from .engines.build import build_engine
    from .engines.build_settings import BuildSettings
    from .engines.own import remember_built
    from .memory_fit import Footprint
    from .target import Target

    settings = BuildSettings(**_tuples(json.loads(given.settings)))
    need = Footprint.from_json(json.loads(given.need)) if given.need else None
    target = Target.from_json(json.loads(given.target)) if given.target else None
    built = build_engine(given.model, given.plan, settings=settings, target=target, need=need)
    remember_built(built.plan, given.cache)
    return 0, {"plan": str(built.plan), "record": dict(built.record)}


def _held(given: argparse.Namespace) -> _Answer:
    from .remote.received_files import held

    return 0, held(json.load(sys.stdin), given.cache)


def _receive(given: argparse.Namespace) -> _Answer:
    from .remote.received_files import receive

    return 0, {"whole": receive(sys.stdin.buffer, json.loads(given.sizes), given.cache)}


def _send(given: argparse.Namespace) -> Tuple[int, Dict[str, Any], Iterator[bytes]]:
    """The file's hash and size, and after the answer's line its bytes."""
    from .remote.received_files import hashed, pieces

    path = given.path.expanduser()
    told = {"sha256": hashed(path), "bytes": path.stat().st_size}
    return 0, told, pieces(path, given.offset)


@contextlib.contextmanager
def _trusted(path: str, root: Path, folder: Path) -> Iterator[Tuple[Path, str]]:
    """A path that a runtime may open, and the runtime: an ONNX file, an own engine, or a bundle's model."""
    from .engines.own import own_engine
    from .release.manifest import MANIFEST
    from .release.trust import open_bundle
    from .runtimes.runtime import by_suffix

    place = Path(path)
    if (place / MANIFEST).exists():
        bundle = open_bundle(place, root=root)
        name = str(bundle.manifest["model"])
        with bundle.sealed(name) as sealed:
            yield sealed, by_suffix(name).name
    elif by_suffix(place).builds:
        with own_engine(place, folder) as sealed:
            yield sealed, by_suffix(place).name
    else:
        yield place, by_suffix(place).name


def _progress(done: int, total: int, what: str) -> None:
    # Unbuffered, and its failure is wanted: see above.
    os.write(2, f"{PROGRESS} {done} {total} {what}\n".encode())


def _tuples(value: Any) -> Any:
    """JSON has no tuples, and settings have no lists."""
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _error(error: DeadweightError) -> Dict[str, str]:
    return {"kind": type(error).__name__, "what": error.what, "cure": error.cure}


_COMMANDS: Dict[str, Callable[[argparse.Namespace], Any]] = {
    "doctor": _doctor,
    "verify": _verify,
    "install": _install,
    "rollback": _rollback,
    "profile": _profile,
    "layers": _layers,
    "compare": _compare,
    "infer": _infer,
    "unpack": _unpack,
    "build": _build,
    "held": _held,
    "receive": _receive,
    "send": _send,
}


if __name__ == "__main__":
    sys.exit(main())
