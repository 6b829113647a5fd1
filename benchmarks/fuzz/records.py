"""Records and words: recipes, boards, the gate's files, reports, TensorRT's exports, a board's answers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from support.boards import BOARDS, CARDS, unpack
from support.measurements import timed

from benchmarks.fuzz.kind import Files, Kind, files_in

ROOT = Path(__file__).resolve().parents[2]
EXPORTS = ROOT / "tests" / "targets" / "engines" / "exports"
FAKE_SSH = """#!/bin/sh
case "$*" in *deadweight_agent*) cat "$0.hello" ;; *) cat "$0.answer" ;; esac
"""
HELLO = (
    b"Welcome\ndeadweight_python=/usr/bin/python3\ndeadweight_found=Python 3.10\ndeadweight_home=/home/u\n"
)
LOG = b"""&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=a.onnx
[11/22/2026-10:00:00] [W] [TRT] Layer 'a': Unsupported on DLA. Switching this layer's device type to GPU.
[11/22/2026-10:00:00] [I] [TRT] [DlaLayer] {ForeignNode[conv1...relu2]}
[11/22/2026-10:00:00] [V] [TRT] Adding reformat layer: Reformatted Input Tensor 0 to conv1
[11/22/2026-10:00:00] [V] [TRT] Skipping tactic 0x01 due to insufficient memory on requested size of 1
[11/22/2026-10:00:00] [I] [TRT] (Sparsity) Layers eligible for sparse math: conv1, conv2
[11/22/2026-10:00:00] [I] [TRT] Total Weights Memory: 4096 bytes
[11/22/2026-10:00:00] [E] Error[4]: [graphShapeAnalyzer.cpp::analyzeShapes::2084] Error Code 4: a shape
&&&& PASSED TensorRT.trtexec [TensorRT v100300]
"""
RECIPE = b"""workload = "workload.py:Mlp"
target = "orin-nano-8gb"
jetpack = "6.2"
seed = 1
[budgets]
score_drop = 0.01
speedup = 1.2
[sweep]
seeds = [0, 1]
processes = 1
[sweep.over]
"prune.mean" = [0.02, 0.1]
[[stages]]
stage = "train"
epochs = 2
[[stages]]
stage = "statistics"
[[stages]]
stage = "prune"
ratio = 0.5
criterion = "weight_l1"
[[stages]]
stage = "finetune"
epochs = 1
[[stages]]
stage = "export"
[[stages]]
stage = "quantize"
method = "best"
[[stages]]
stage = "profile"
"""


def _recipes(place: Path) -> list[Files]:
    found = [{"recipe.toml": path.read_bytes()} for path in sorted((ROOT / "examples").rglob("*.toml"))]
    return [*found, {"recipe.toml": RECIPE}]


def _recipe(folder: Path, random: Random) -> None:
    from deadweight.pipeline.recipe import check_order, read_recipe

    check_order(read_recipe(folder / "recipe.toml", random.choice(((), ("seed=3",), ("prune.ratio=x",)))))


def _boards(place: Path) -> list[Files]:
    return [{"board.toml": path.read_bytes()} for path in sorted((ROOT / "targets/boards").glob("*.toml"))]


def _board(folder: Path, random: Random) -> None:
    from deadweight.commands.boards import targets

    targets(str(folder / "board.toml"))


def _settings(folder: Path, random: Random) -> None:
    from deadweight.targets.gate.settings import gate_files, read_settings

    read_settings(folder / "deadweight.toml")
    gate_files(folder / "deadweight.toml")


def _gate(place: Path) -> list[Files]:
    from deadweight.targets.gate import history
    from deadweight.targets.gate.baseline import Baseline
    from deadweight.targets.timing.measurement import save

    one = timed(np.random.default_rng(0).uniform(1e-3, 2e-3, (12, 20)))
    machine, software = one.conditions["machine"], one.conditions["software"]
    accepted = Baseline("model.onnx", "0" * 64, 10, one.protocol, machine, software, 0.9, "abc", "2026-01-01")
    verdict = {"outcome": "equal", "ratio": 1.0, "low": 0.99, "high": 1.01}
    line = json.dumps(history.entry(one, commit="abc", verdict=verdict))
    save({"model": one}, place / "times.json")
    found = {"baseline.json": json.dumps(accepted.to_json()).encode()}
    settings = (ROOT / "examples/ci/deadweight.toml").read_bytes()
    return [
        found,
        {"history.jsonl": f"{line}\n{line}\n".encode()},
        files_in(place),
        {"deadweight.toml": settings},
    ]


def _gate_file(folder: Path, random: Random) -> None:
    from deadweight.pipeline.report.history import write_measurements
    from deadweight.targets.gate.baseline import old_model, read_baseline
    from deadweight.targets.timing.measurement import load, timed_by

    path = next(folder.iterdir())
    if path.name == "deadweight.toml":
        _settings(folder, random)
    elif path.name == "history.jsonl":
        write_measurements(path)
    elif path.name == "times.json":
        measured = load(path)
        timed_by(measured)
        [one.latency_s(50) for one in measured.values()]
    else:
        old_model(read_baseline(path), path)


def _reports(place: Path) -> list[Files]:
    tests = ROOT / "tests" / "pipeline"
    paths = (tests / "report/report_example.json", tests / "runs/run_0_1_0/report.json")
    return [{"report.json": path.read_bytes()} for path in paths]


def _report(folder: Path, random: Random) -> None:
    from deadweight.pipeline.report.page import write_report
    from deadweight.pipeline.report.schema import read_report
    from deadweight.pipeline.report.terminal import summary_table, verdict_line
    from deadweight.terminal.printer import out

    write_report(folder)
    report = read_report(folder)
    out.print(verdict_line(report))
    out.print(summary_table(report))


def _engines(place: Path) -> list[Files]:
    found = []
    for name in ("fp16", "qat"):
        kinds = (("layers", "graph"), ("profile", "profile"), ("times", "timing"))
        found.append({f"{to}.json": (EXPORTS / f"{name}.{kind}.json").read_bytes() for to, kind in kinds})
    return found


def _engine(folder: Path, random: Random) -> None:
    from deadweight.commands.engines import engine

    layers, profile, times = (folder / f"{name}.json" for name in ("layers", "profile", "times"))
    engine(layers, EXPORTS / "fp16.graph.json", profile=profile, times=times, to=folder / "page.html")
    engine(layers, profile=profile, times=times, as_json=True)


def _logs(place: Path) -> list[Files]:
    cache = b"TRT-8502-EntropyCalibration2\nx: 3c010a14\ny: 3caa1f2b\n"
    return [{"log.txt": LOG}, {"cache.txt": cache}]


def _log(folder: Path, random: Random) -> None:
    from deadweight.targets.engines.dla import read_ranges
    from deadweight.targets.engines.log import cause, read_log, reason
    from deadweight.targets.engines.trtexec import lines_of, version_in

    path = next(folder.iterdir())
    if path.name == "cache.txt":
        read_ranges(path)
        return
    text = path.read_text("utf-8", "replace")
    lines = lines_of(text)
    for each in (read_log, reason, cause):
        each(lines)
    version_in(text)


def _outputs(place: Path) -> list[Files]:
    entries = [{"name": "y", "dimensions": "1x4", "values": [1, 2.5, float("nan"), 3]}]
    return [{"outputs.json": json.dumps(entries).encode(), "plan.json": _engine_record()}]


def _engine_record() -> bytes:
    from deadweight.targets.engines.build_settings import BuildSettings
    from deadweight.targets.plain import plain

    record = {
        "schema": 1,
        "kind": "engine",
        "evidence": "measured",
        "rebuild": "deadweight build a.onnx",
        "plan": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        "model": {"file": "a.onnx", "sha256": "0" * 64},
        "settings": plain(BuildSettings()),
        "tensorrt": {"flavour": "tensorrt", "version": "10.3.0", "build": 1},
        "platform": {"machine": "x86_64"},
        "device": {"compute_capability": "8.7"},
        "inputs": [["x", "float32", [1, 4]]],
        "outputs": [["y", "float32", [1, 4]]],
        "log": {"warnings": [], "errors": []},
        "target": None,
    }
    return json.dumps(record).encode()


def _output(folder: Path, random: Random) -> None:
    from deadweight.targets.engines.record import check_record, engine_facts, read_record
    from deadweight.targets.runtimes.trtexec_session import TrtexecSession, _ends

    plan = folder / "plan"
    plan.write_bytes(b"abc")
    program = folder / "trtexec"
    program.write_text("#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v100300]'\n")
    program.chmod(0o755)
    session = TrtexecSession(plan, program=program, record=None, ends=None)
    session._outputs((folder / "outputs.json").read_text("utf-8", "replace"))
    record = read_record(plan)
    if record is not None:
        engine_facts(record)
        _ends(record)
        check_record(record, plan, flavour="tensorrt", version="10.3.0", compute_capability="8.7")


def _tools(place: Path) -> list[Files]:
    """What the tools and files of real boards say."""
    return [{"said.txt": path.read_bytes()} for path in sorted(CARDS.glob("*.txt"))]


def _tool(folder: Path, random: Random) -> None:
    from deadweight.targets.machine import nvidia_tools

    text = (folder / "said.txt").read_text("utf-8", "replace")
    named = ("power_mode", "stored_mode", "mode_names", "shown_clocks", "l4t_release", "l4t_package")
    for name in named:
        getattr(nvidia_tools, name)(text)


def _roots(place: Path) -> list[Files]:
    found = []
    for name in BOARDS:
        unpack(name, place / name)
        found.append(files_in(place / name))
    return found


def _root(folder: Path, random: Random) -> None:
    """A whole board, with its tools, as the agent reads it."""
    from deadweight.targets.board_file import board_file, described
    from deadweight.targets.machine.board_facts import board_facts
    from deadweight.targets.machine.probe import changes, conditions, snapshot

    for path in folder.rglob("bin/*"):
        path.chmod(0o755)
    before = snapshot(folder)
    conditions(folder)
    changes(before, snapshot(folder), runs=1)
    board_file(described(board_facts(folder), "board"))


def _answers(place: Path) -> list[Files]:
    """What an agent answers to the workstation's commands, behind its greeting."""
    from deadweight.targets import __version__
    from deadweight.targets.timing.judge import judge

    unpack("orin_nx_jp6", place / "board")
    memory = place / "board" / "proc" / "meminfo"
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n")
    hello = HELLO + b"deadweight_agent=here\n"
    found = []
    for command in ("facts", "doctor"):
        out = _agent(["--root", str(place / "board"), "--cache", str(place / "cache"), command])
        found.append({"hello.txt": hello, f"{command}.json": out})
    times = timed(np.random.default_rng(0).uniform(1e-3, 2e-3, (12, 20)))
    result: Any = {"void": [], "judgement": judge(times, times).to_json()}
    result["measurements"] = {"baseline": times.to_json(), "candidate": times.to_json()}
    result |= {"bytes": {}, "paths": {}, "free_bytes": 10**9, "runtimes": [{"name": "onnxruntime"}]}
    message = {"agent": {"version": __version__, "protocol": 1}, "exit_code": 0, "result": result}
    found.append({"hello.txt": hello, "compare.json": json.dumps(message).encode()})
    return found


def _agent(arguments: list[str], stdin: bytes = b"") -> bytes:
    """What the agent prints when it is run in this process."""
    from deadweight.targets import agent

    read, write = os.pipe()
    kept, given = os.dup(1), sys.stdin
    os.dup2(write, 1)
    os.close(write)
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), "utf-8", "surrogateescape")
    try:
        agent.main(arguments)
    finally:
        sys.stdin = given
        os.dup2(kept, 1)
        os.close(kept)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


def _answer(folder: Path, random: Random) -> None:
    """A board's answer, as the commands with --on read it, by a stand-in for ssh."""
    from deadweight.commands.boards import doctor, targets

    answer = next(path for path in folder.iterdir() if path.suffix == ".json")
    (folder / "ssh").write_text(FAKE_SSH)
    (folder / "ssh").chmod(0o755)
    (folder / "ssh.hello").write_bytes((folder / "hello.txt").read_bytes())
    (folder / "ssh.answer").write_bytes(answer.read_bytes() + b"\n")
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{path}"
    try:
        if answer.stem == "doctor":
            doctor(["user@board"])
        elif answer.stem == "facts":
            targets(None, source="user@board", to=folder / "board.toml")
            targets(str(folder / "board.toml"))
        else:
            _compared()
    finally:
        os.environ["PATH"] = path


def _compared() -> None:
    from deadweight.targets.remote.board import compare_on
    from deadweight.targets.remote.on_board import Ready
    from deadweight.targets.remote.ssh import connected
    from deadweight.targets.runtimes.runtime import runtime_named
    from deadweight.targets.timing.measurement import Protocol, timed_by
    from deadweight.terminal.printer import out

    ready = Ready({"baseline": "a", "candidate": "b"}, runtime_named("onnxruntime"))
    with connected("user@board") as board:
        found, judgement = compare_on(board, ready, protocol=Protocol(), margin=0.02)
    out.say(f"{judgement.sentence()}; {timed_by(found.measurements)}")


def _asked(place: Path) -> list[Files]:
    sizes = {"a" * 64: 3}
    wanted = [["a" * 64, "model.onnx", 3], ["b" * 64, "x/w.bin", 5, "c" * 64]]
    settings = {"precision": "fp16", "batch": [1, 2, 4]}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("a" * 64 + "@0")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return [
        {"held.json": json.dumps(wanted).encode()},
        {"receive.json": json.dumps(sizes).encode(), "stream.tar": tar.getvalue()},
        {"build.json": json.dumps(settings).encode(), "need.json": b"{}"},
        {"profile.json": json.dumps({"events": 2, "event_s": 0.001}).encode()},
    ]


def _ask(folder: Path, random: Random) -> None:
    """What a workstation sends to an agent: an answer with an error is right, a failure is not."""
    text = {path.stem: path.read_bytes() for path in folder.iterdir()}
    shown = {name: data.decode("utf-8", "replace").replace("\0", "") for name, data in text.items()}
    base = ["--root", str(folder), "--cache", str(folder / "cache")]
    if "held" in text:
        out = _agent([*base, "held"], text["held"])
    elif "receive" in text:
        out = _agent([*base, "receive", "--sizes", shown["receive"]], text["stream"])
    elif "build" in text:
        out = _agent([*base, "build", "none.onnx", "--settings", shown["build"], "--need", shown["need"]])
    else:
        out = _agent([*base, "profile", "none.onnx", "--protocol", shown["profile"]])
    with contextlib.suppress(ValueError):
        failed = re.search(r"The agent failed: .*", str(json.loads(out).get("error", {})))
        assert failed is None, failed and failed.group()


KINDS = {
    "recipe": Kind(40, _recipes, _recipe),
    "board file": Kind(30, _boards, _board),
    "gate files and times": Kind(25, _gate, _gate_file),
    "report": Kind(4, _reports, _report),
    "engine exports": Kind(5, _engines, _engine),
    "logs and caches": Kind(20, _logs, _log),
    "trtexec outputs, records": Kind(20, _outputs, _output),
    "nvpmodel, jetson_clocks": Kind(20, _tools, _tool),
    "board tree": Kind(5, _roots, _root),
    "a board's answers": Kind(10, _answers, _answer),
    "questions to an agent": Kind(15, _asked, _ask),
}
