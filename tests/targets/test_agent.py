"""The agent as a board runs it: one file, an old Python, answers in JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.boards import BOARDS, unpack
from support.releases import FILES, make_bundle, make_key, make_release, release_in_use, trust

from deadweight.export.release.delta import delta
from deadweight.targets.remote.exchange import agent_bytes

MakeMlp = Callable[..., Path]
QUICK = json.dumps({"events": 6, "event_s": 0.01})


def pythons() -> list[str]:
    """The Pythons of JetPack 5, 6 and 7, by name or where pyenv keeps them."""
    found = []
    for version in ("3.8", "3.10", "3.12"):
        kept = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
        for python in [*map(str, kept), shutil.which(f"python{version}")]:
            works = (
                python and subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0
            )
            if python and works:
                found.append(python)
                break
    return found


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    path.write_bytes(agent_bytes())
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


def asked(
    agent: Path, *arguments: object, python: str = sys.executable, home: Path | None = None
) -> tuple[int, dict[str, Any], str]:
    """Exit code, answer and progress of one call."""
    environment = {**os.environ, "HOME": str(home or agent.parent)}
    command = [python, "-W", "error", str(agent), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.count("\n") == 1, done.stderr
    reply = json.loads(done.stdout)
    assert reply["exit_code"] == done.returncode
    return done.returncode, reply, done.stderr


def test_the_agent_is_small_and_the_same_bytes_each_time(agent: Path) -> None:
    assert len(agent.read_bytes()) <= 270_000
    agent_bytes.cache_clear()
    assert agent_bytes() == agent.read_bytes()
    assert "deadweight/targets/agent.py" in zipfile.ZipFile(agent).namelist()


def test_all_that_its_commands_import_is_in_it(agent: Path) -> None:
    files = [name for name in zipfile.ZipFile(agent).namelist() if "/targets/" in name]
    names = [name[:-3].replace("/", ".") for name in files if name.endswith(".py")]
    program = "import importlib, sys\nfor name in sys.argv[2:]: importlib.import_module(name)\n"
    begin = "import sys; sys.path.insert(0, sys.argv[1])\n"
    command = [sys.executable, "-c", begin + program, str(agent), *names]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=agent.parent
    )
    assert done.returncode == 0, done.stderr
    assert not [name for name in names if name.endswith((".gate", ".remote"))]


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("board", [None, "orin_nano_super_jp72"])
def test_doctor_answers_on_the_pythons_of_all_jetpacks_without_numpy(
    agent: Path, tmp_path: Path, python: str, board: str | None
) -> None:
    root = Path("/") if board is None else unpack(board, tmp_path)
    code, answer, _ = asked(agent, "--root", root, "doctor", python=python)
    assert code in (0, 1)
    names = {check["name"] for check in answer["result"]["checks"]}
    assert ("board" in names) == (board is not None)
    assert answer["result"]["next"]


@pytest.mark.parametrize("python", pythons())
def test_verify_answers_on_the_pythons_of_all_jetpacks_without_numpy(
    agent: Path, tmp_path: Path, key: Path, python: str
) -> None:
    trust(key, tmp_path / "root")
    bundle = make_bundle(tmp_path / "bundle", key)
    code, answer, _ = asked(agent, "--root", tmp_path / "root", "verify", bundle, python=python)
    assert (code, answer["result"]["signer"]) == (0, "release")
    (bundle / "model.onnx").write_bytes(b"changed")
    code, answer, _ = asked(agent, "--root", tmp_path / "root", "verify", bundle, python=python)
    assert code == 1
    assert answer["error"]["kind"] == "RefusedError"
    assert "was changed after it was signed" in answer["error"]["what"]


def test_install_and_rollback_answer_too(agent: Path, tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "root")
    options = ("--root", tmp_path / "root")
    place = tmp_path / "place"
    for number in (1, 2):
        bundle = make_release(tmp_path / str(number), key, number)
        code, answer, _ = asked(agent, *options, "install", bundle, "--place", place)
        assert (code, answer["result"]["golden"]["holds"]) == (0, True)
    code, answer, _ = asked(agent, *options, "rollback", "small", "--if-wrong", "--place", place)
    assert (code, answer["result"]["kept"]) == (0, True)
    code, _, _ = asked(agent, *options, "rollback", "small", "--place", place)
    assert code == 0
    assert release_in_use(place, tmp_path / "root") == 1


def test_the_agent_verifies_and_installs_an_update_file(agent: Path, tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "root")
    options, place = ("--root", tmp_path / "root"), ("--place", tmp_path / "place")
    for number in (1, 2):
        make_release(tmp_path / str(number), key, number)
    patch = delta(tmp_path / "1", tmp_path / "2", tmp_path / "1to2").path
    code, answer, _ = asked(agent, *options, "verify", patch)
    assert (code, answer["result"]["release"], len(answer["result"]["base"])) == (0, 2, 64)
    code, answer, _ = asked(agent, *options, "install", patch, *place)
    assert code == 1
    assert "which is not installed here" in answer["error"]["what"]
    for source in (tmp_path / "1", patch):
        code, answer, _ = asked(agent, *options, "install", source, *place)
        assert code == 0, answer
    assert release_in_use(tmp_path / "place", tmp_path / "root") == 2


def test_an_expired_bundle_is_not_verified(agent: Path, tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "root")
    bundle = make_bundle(tmp_path / "late", key, expires="2026-01-02T23:59:59+00:00")
    code, answer, _ = asked(agent, "--root", tmp_path / "root", "verify", bundle)
    assert code == 1
    assert "expired at 2026-01-02" in answer["error"]["what"]


def test_a_python_too_old_for_the_agent_is_reported_which_to_install(agent: Path) -> None:
    kept = sorted((Path.home() / ".pyenv/versions").glob("3.6.*/bin/python"))
    if not kept:
        pytest.skip("there is no Python 3.6 here")
    done = subprocess.run([str(kept[0]), str(agent), "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs Python 3.8, but this one is 3.6" in json.loads(done.stdout)["error"]["what"]


def test_two_models_are_timed_by_turns_and_judged(agent: Path, mlp: MakeMlp) -> None:
    wide, narrow = mlp(256, 1024, 10, name="wide.onnx"), mlp(256, 64, 10, name="narrow.onnx")
    code, answer, progress = asked(agent, "compare", wide, narrow, "--protocol", QUICK)
    assert code == 0
    assert answer["result"]["judgement"]["outcome"] == "faster"
    assert set(answer["result"]["measurements"]) == {"baseline", "candidate"}
    assert "deadweight-progress 6 6 timing" in progress
    assert asked(agent, "compare", narrow, wide, "--protocol", QUICK)[0] == 1


def test_a_profile_takes_any_number_of_models_by_name(agent: Path, mlp: MakeMlp) -> None:
    model = mlp(8, 8)
    code, answer, _ = asked(agent, "profile", f"a={model}", model, "--protocol", QUICK, "--memory")
    assert code == 0
    assert set(answer["result"]["measurements"]) == {"a", "model.onnx"}
    assert answer["result"]["memory"]["a"]["file_bytes"] == model.stat().st_size
    assert answer["result"]["void"] == []


def files_of(place: Path, index: int) -> tuple[Path, Path]:
    """A file of inputs, and where its outputs go."""
    return place / f"in/{index}.npz", place / f"out/{index}.npz"


def test_inputs_become_outputs_file_by_file_and_what_is_done_is_kept(
    agent: Path, mlp: MakeMlp, tmp_path: Path
) -> None:
    model, generator = mlp(5, 3, batch=4), np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index, count in enumerate((4, 7, 1)):
        np.savez(tmp_path / "in" / f"{index}.npz", x=generator.normal(size=(count, 5)).astype(np.float32))
    for index in range(3):
        assert asked(agent, "infer", model, *files_of(tmp_path, index))[0] == 0
    counts = [np.load(tmp_path / "out" / f"{index}.npz")["y"].shape for index in range(3)]
    assert counts == [(4, 3), (7, 3), (1, 3)]
    (tmp_path / "out/1.npz").unlink()
    before = (tmp_path / "out/0.npz").stat().st_mtime_ns
    for index in range(2):
        asked(agent, "infer", model, *files_of(tmp_path, index))
    assert (tmp_path / "out/0.npz").stat().st_mtime_ns == before
    assert (tmp_path / "out/1.npz").exists()


def test_arrays_that_would_run_code_are_refused(agent: Path, mlp: MakeMlp, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/0.npz", x=np.array([{"a": 1}], dtype=object))
    code, answer, _ = asked(agent, "infer", mlp(5, 3), *files_of(tmp_path, 0))
    assert code == 2
    assert "0.npz is not a file of named arrays" in answer["error"]["what"]
    assert not list((tmp_path / "out").glob("*"))


def test_an_engine_from_elsewhere_is_refused_without_a_signature(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"ftrt")
    code, answer, _ = asked(agent, "profile", tmp_path / "a.engine", "--protocol", QUICK)
    assert code == 1
    assert "was not built on this board" in answer["error"]["what"]


def test_a_signed_model_is_timed_from_the_bytes_that_were_checked(
    agent: Path, mlp: MakeMlp, tmp_path: Path, key: Path
) -> None:
    trust(key, tmp_path / "root")
    bundle = make_bundle(tmp_path / "bundle", key, {**FILES, "model.onnx": mlp(8, 8).read_bytes()})
    options = ("--root", tmp_path / "root", "profile", bundle, "--protocol", QUICK)
    assert asked(agent, *options)[0] == 0
    (bundle / "model.onnx").write_bytes(mlp(8, 4).read_bytes())
    code, answer, _ = asked(agent, *options)
    assert code == 1
    assert answer["error"]["kind"] == "RefusedError"


def test_golden_outputs_are_held_against_what_the_board_computes(
    agent: Path, mlp: MakeMlp, tmp_path: Path, key: Path
) -> None:
    trust(key, tmp_path / "root")
    from deadweight.targets.runtimes.open import open_session

    model, arrays = mlp(8, 8), {"x": np.ones((3, 8), np.float32)}
    outputs = open_session(model).run(arrays)
    for name, share, expected in (("right", 1.0, 0), ("wrong", 1.1, 1)):
        np.savez(tmp_path / "in.npz", x=arrays["x"])
        np.savez(tmp_path / "out.npz", y=share * outputs["y"])
        held = {
            "model.onnx": model.read_bytes(),
            "golden/inputs.npz": (tmp_path / "in.npz").read_bytes(),
            "golden/outputs.npz": (tmp_path / "out.npz").read_bytes(),
        }
        bundle = make_bundle(tmp_path / name, key, held)
        code, answer, _ = asked(agent, "--root", tmp_path / "root", "verify", bundle, "--golden")
        assert code == expected
        assert answer["result"]["golden"]["holds"] == (expected == 0)


def test_a_missing_model_is_an_answer_and_not_a_traceback(agent: Path, tmp_path: Path) -> None:
    code, answer, heard = asked(agent, "profile", tmp_path / "none.onnx")
    assert code == 2
    assert answer["error"]["kind"] == "ModelError"
    assert "Traceback" not in heard


@pytest.mark.parametrize(
    "question",
    [
        *[("profile", "a.onnx", "--protocol", wrong) for wrong in ("{", "[1]", "[" * 9999)],
        *[("build", "a.onnx", *wrong) for wrong in (("--settings", '{"batch": "x"}'), ("--target", "7"))],
        ("receive", "--sizes", '{"a": "x"}'),
        ("build", "none.onnx"),
    ],
)
def test_a_question_of_another_form_is_answered_with_what_is_wrong(
    agent: Path, question: tuple[str, ...]
) -> None:
    code, answer, heard = asked(agent, *question)
    assert code == 2
    assert answer["error"]["kind"] in ("TargetError", "ArtifactError")
    assert "Traceback" not in heard


def test_a_board_without_numpy_is_reported_the_line(agent: Path, mlp: MakeMlp) -> None:
    bare = next((python for python in pythons() if "3.8" in python), None)
    if bare is None:
        pytest.skip("there is no Python 3.8 here")
    probe = subprocess.run([bare, "-c", "import numpy"], capture_output=True, check=False)
    if probe.returncode == 0:
        pytest.skip("this Python has numpy")
    code, answer, _ = asked(agent, "profile", mlp(4, 4), python=bare)
    assert code == 2
    assert answer["error"]["cure"] == "sudo apt install python3-numpy"


@pytest.mark.slow
@pytest.mark.parametrize("python", pythons())
def test_profile_works_on_the_pythons_of_all_jetpacks(
    agent: Path, mlp: MakeMlp, tmp_path: Path, python: str
) -> None:
    """With a numpy and an ONNX Runtime of that Python's time, since a board's are old."""
    subprocess.run([python, "-m", "venv", str(tmp_path / "env")], check=True, capture_output=True)
    inside = tmp_path / "env/bin/python"
    old = {"3.8": ("numpy==1.17.5", "onnxruntime==1.10.0"), "3.10": ("numpy==1.21.6", "onnxruntime==1.14.1")}
    wanted = next((given for version, given in old.items() if version in python), ("numpy", "onnxruntime"))
    install = [str(inside), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, answer, heard = asked(agent, "profile", mlp(8, 8), "--protocol", QUICK, python=str(inside))
    assert code == 0, (answer, heard)
    assert answer["result"]["measurements"]["model.onnx"]["evidence"] == "measured"


@pytest.mark.parametrize("board", BOARDS)
def test_doctor_tells_a_new_user_of_every_board_what_to_do_next(
    agent: Path, tmp_path: Path, board: str
) -> None:
    _, answer, _ = asked(agent, "--root", unpack(board, tmp_path), "doctor")
    missing = [check for check in answer["result"]["checks"] if not check["works"]]
    assert all(check["cure"] for check in missing)
    assert (missing[0]["cure"] if missing else "This board is ready") in answer["result"]["next"]


def test_an_agent_that_nobody_listens_to_ends(agent: Path, mlp: MakeMlp) -> None:
    protocol = json.dumps({"events": 100_000, "event_s": 0.01})
    environment = {**os.environ, "HOME": str(agent.parent)}
    with subprocess.Popen(
        [sys.executable, str(agent), "profile", str(mlp(8, 8)), "--protocol", protocol],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=60) == 141


def test_only_one_measurement_runs_on_a_board(tmp_path: Path) -> None:
    from deadweight.targets.errors import TargetError
    from deadweight.targets.remote.received_files import measuring

    with (
        measuring(tmp_path),
        pytest.raises(TargetError, match="Another measurement is running"),
        measuring(tmp_path, wait_s=0.1),
    ):
        pass
