"""What a CI gate or a board with ONNX Runtime has: the [ci] extra, and nothing that it does not ask for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
WANTED = re.compile(r"^([A-Za-z0-9._-]+)")


def closure(extra: str) -> set[str]:
    """The distributions that installing deadweight with one extra brings."""
    waiting = [text for text in metadata.requires("deadweight") or () if f'extra == "{extra}"' in text]
    waiting += [text for text in metadata.requires("deadweight") or () if "extra ==" not in text]
    found: set[str] = set()
    while waiting:
        name = WANTED.match(waiting.pop())
        assert name is not None
        try:
            distribution = metadata.distribution(name.group(1))
        except metadata.PackageNotFoundError:
            continue  # a marker for another Python or system
        if distribution.name not in found:
            found.add(distribution.name)
            waiting += [text for text in distribution.requires or () if "extra ==" not in text]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds deadweight and the closure of [ci], as links."""
    folder = tmp_path_factory.mktemp("ci_extra")
    for name in closure("ci"):
        distribution = metadata.distribution(name)
        for top in {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            source = Path(str(distribution.locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(source)
    (folder / "deadweight").symlink_to(ROOT / "deadweight")
    return folder


def dense(path: Path, width: int, *, seed: int = 0) -> Path:
    """An ONNX file of two matrix products, `width` wide."""
    rng = np.random.default_rng(seed)
    first = numpy_helper.from_array(rng.normal(size=(256, width)).astype(np.float32), "a")
    second = numpy_helper.from_array(rng.normal(size=(width, 16)).astype(np.float32), "b")
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [first, second],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def deadweight(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S leaves out the site-packages of this interpreter; only what `place` links is there.
    command = [sys.executable, "-S", "-m", "deadweight", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(place), "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=place)


def test_that_place_has_no_torch_onnx_or_scipy(place: Path) -> None:
    for name in ("torch", "onnx", "scipy", "plotly"):
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"import {name}"],
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ModuleNotFoundError" in done.stderr


def test_compare_finds_a_network_of_an_eighth_faster_and_says_how_sure_it_is(
    place: Path, tmp_path: Path
) -> None:
    wide, narrow = dense(tmp_path / "wide.onnx", 2048), dense(tmp_path / "narrow.onnx", 256)
    done = deadweight(place, "compare", str(wide), str(narrow), "--out", str(tmp_path / "judged.json"))
    assert done.returncode == 0, done.stderr
    assert "faster (99 % interval" in done.stdout
    judgement = json.loads((tmp_path / "judged.json").read_text())["judgement"]
    assert judgement["outcome"] == "faster"
    assert judgement["low"] > 1


def test_compare_exits_with_1_when_the_candidate_is_slower(place: Path, tmp_path: Path) -> None:
    wide, narrow = dense(tmp_path / "wide.onnx", 2048), dense(tmp_path / "narrow.onnx", 256)
    done = deadweight(place, "compare", str(narrow), str(wide))
    assert done.returncode == 1, done.stderr
    assert "slower" in done.stdout


def test_compare_judges_layers_there_too(place: Path, tmp_path: Path) -> None:
    wide, narrow = dense(tmp_path / "wide.onnx", 2048), dense(tmp_path / "narrow.onnx", 256)
    out = tmp_path / "judged.json"
    given = ("--events", "6", "--layers", "--out", str(out))
    done = deadweight(place, "compare", str(wide), str(narrow), *given)
    assert done.returncode in (0, 3), done.stderr
    layers = json.loads(out.read_text())["layers"]
    assert [layer["kind"] for layer in layers] == ["MatMul", "MatMul"]
    assert all(layer["pruned"] and layer["ratio"] > 1 for layer in layers)


def test_the_gate_lets_an_equal_model_through_and_refuses_one_of_eight_times_the_work(
    place: Path, tmp_path: Path
) -> None:
    dense(tmp_path / "accepted.onnx", 256)
    dense(tmp_path / "equal.onnx", 256, seed=1)
    dense(tmp_path / "slow.onnx", 2048)
    (tmp_path / "deadweight.toml").write_text(
        '[gate]\nbaseline = "baseline.json"\nhistory = "history.jsonl"\n'
        "[budgets]\nslowdown = 0.5\nfile_bytes = 10_000_000\nmemory_bytes = 100_000_000\n"
    )
    config = ["--config", str(tmp_path / "deadweight.toml")]
    made = deadweight(place, "gate", "--record", "--model", str(tmp_path / "accepted.onnx"), *config)
    assert made.returncode == 0, made.stderr
    before = (tmp_path / "baseline.json").read_bytes()
    told = ["--junit", str(tmp_path / "gate.xml"), "--summary", str(tmp_path / "gate.md"), "--commit", "abc"]
    same = deadweight(place, "gate", "--model", str(tmp_path / "equal.onnx"), *config, *told)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "side by side" in same.stdout
    assert 'failures="0"' in (tmp_path / "gate.xml").read_text()
    slow = deadweight(place, "gate", "--model", str(tmp_path / "slow.onnx"), *config, *told)
    assert slow.returncode == 1, slow.stdout + slow.stderr
    assert 'failures="1"' in (tmp_path / "gate.xml").read_text()
    assert "slow.onnx is refused" in (tmp_path / "gate.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines[1:]] == ["baseline", "equal.onnx", "baseline", "slow.onnx"]
    assert lines[-1]["verdict"]["outcome"] == "slower"
    assert (tmp_path / "baseline.json").read_bytes() == before


def test_what_the_gate_cannot_work_with_is_a_sentence_and_exit_code_2(place: Path, tmp_path: Path) -> None:
    model = dense(tmp_path / "a.onnx", 16)
    (tmp_path / "old.json").write_text('{"schema": 99}')
    (tmp_path / "bad.toml").write_text("[budgets]\nslow = 1")
    (tmp_path / "a.plan").write_bytes(b"an engine")
    calls: dict[str, list[str]] = {
        "There are no settings at": ["--model", str(model), "--config", str(tmp_path / "deadwieght.toml")],
        "The --limit is nan": ["--baseline", "b.json", "--model", str(model), "--limit", "nan"],
        "TensorRT cannot be used": ["--record", "--model", str(tmp_path / "a.plan"), "--baseline", "b.json"],
        "does not exist": ["--model", str(model), "--baseline", str(tmp_path / "none.json")],
        "schema 99": ["--model", str(model), "--baseline", str(tmp_path / "old.json")],
        "has the unknown key slow": ["--model", str(model), "--config", str(tmp_path / "bad.toml")],
        "The gate has no model": ["--baseline", str(tmp_path / "old.json")],
        "There is no model at": ["--record", "--model", "no.onnx", "--baseline", str(tmp_path / "old.json")],
    }
    for reason, arguments in calls.items():
        done = deadweight(place, "gate", *arguments)
        assert done.returncode == 2, reason
        assert reason in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "old.json").read_text() == '{"schema": 99}'


def test_a_place_that_cannot_be_written_to_does_not_swallow_the_gates_answer(
    place: Path, tmp_path: Path
) -> None:
    baseline = ["--baseline", str(tmp_path / "baseline.json")]
    accepted, given = dense(tmp_path / "a.onnx", 16), ["--model", str(dense(tmp_path / "b.onnx", 16, seed=1))]
    assert deadweight(place, "gate", "--record", "--model", str(accepted), *baseline).returncode == 0
    for option, told in (("--history", "The history"), ("--summary", "The summary")):
        (tmp_path / "file").write_text("")
        done = deadweight(
            place, "gate", *given, *baseline, "--cap-s", "0.1", option, str(tmp_path / "file" / "x")
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert told in done.stderr
        assert "slowdown" in done.stdout  # the table


def test_profile_works_there_too(place: Path, tmp_path: Path) -> None:
    done = deadweight(
        place, "profile", str(dense(tmp_path / "a.onnx", 64)), "--events", "6", "--event-s", "0.02"
    )
    assert done.returncode == 0, done.stderr
    assert "resident" in done.stdout


def test_a_missing_model_is_a_sentence_and_exit_code_2(place: Path, tmp_path: Path) -> None:
    done = deadweight(place, "compare", str(tmp_path / "no.onnx"), str(tmp_path / "no.onnx"))
    assert done.returncode == 2
    assert "There is no model at" in done.stderr
    assert "What to do:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_the_system_refuses_is_a_sentence_and_exit_code_2(place: Path, tmp_path: Path) -> None:
    done = deadweight(place, "compare", "x" * 300 + ".onnx", str(tmp_path / "no.onnx"))
    assert done.returncode == 2
    assert "cannot be used: File name too long" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_our_own_is_not_taken_for_a_slower_model(place: Path, tmp_path: Path) -> None:
    baseline = ["--baseline", str(tmp_path / "baseline.json")]
    accepted, given = dense(tmp_path / "a.onnx", 16), ["--model", str(dense(tmp_path / "b.onnx", 16, seed=1))]
    assert deadweight(place, "gate", "--record", "--model", str(accepted), *baseline).returncode == 0
    held = json.loads((tmp_path / "baseline.json").read_text())
    (tmp_path / "baseline.json").write_text(json.dumps({**held, "calibration": {"count": "edited"}}))
    done = deadweight(place, "gate", *given, *baseline, "--cap-s", "0.1")
    assert done.returncode == 2
    assert "KeyError" in done.stderr


def test_a_command_of_the_workstation_says_what_to_install(place: Path, tmp_path: Path) -> None:
    done = deadweight(place, "run", str(tmp_path / "recipe.toml"))
    assert done.returncode == 2
    assert 'pip install ".[workstation]"' in done.stderr
