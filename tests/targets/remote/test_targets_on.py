"""What a board reports of itself: its target, its free memory, and the memory of its TensorRT.

By NVIDIA's own bindings over the fake, whose memory is no TensorRT's: nothing here is a figure of a board.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ssh_board

from deadweight.__main__ import main
from deadweight.targets.target import load_target

pytestmark = pytest.mark.skipif(
    ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"
)


@pytest.fixture(autouse=True)
def found(board: ssh_board.Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((printed.out + printed.err).split())


def test_a_board_writes_the_target_that_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = called(monkeypatch, capsys, "targets", "--from", "board", "--out", "mine.toml")
    assert code == 0, said
    assert "The target: mine.toml" in said
    target = load_target("mine.toml")
    assert target.certain("tensorrt") == "10.3.0"
    assert target.certain("compute_capability") == "8.7"
    assert target.runtime.builds
    assert "mine" in said


def test_a_build_is_for_the_board_s_own_jetpack_unless_another_one_was_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    line = ["build", models / "mlp.onnx", "--on", "board", "--out", "mlp.plan", "--batch", "1,4,8"]
    code, said = called(monkeypatch, capsys, *line, "--target", "orin-nano-8gb")
    assert code == 0, said
    code, said = called(monkeypatch, capsys, *line, "--target", "orin-nano-8gb", "--jetpack", "5.1.3")
    assert code == 2
    assert "JetPack 5.1.3 means TensorRT 8.5.2 (JetPack 5.1.3), but" in said
    assert "has 10.3.0" in said
    assert "deadweight targets --from BOARD" in said
    code, said = called(monkeypatch, capsys, *line, "--target", "thor-t5000")
    assert code == 2
    assert "has compute capability 11.0, but" in said
    assert "--target agx-orin-32gb or agx-orin-64gb or drive-agx-orin" in said


def test_the_first_build_measures_tensorrt_s_own_memory_and_memory_uses_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: Path, board: ssh_board.Board
) -> None:
    line = ["build", models / "mlp.onnx", "--on", "board", "--out", "mlp.plan", "--batch", "1,4,8"]
    assert called(monkeypatch, capsys, *line)[0] == 0
    kept = json.loads((board.home / ".cache/deadweight/base_memory.json").read_text())
    assert kept["tensorrt"] == "10.3.0"
    assert kept["simulated"]
    code, said = called(monkeypatch, capsys, "memory", models / "mlp.onnx", "--on", "board", "--json")
    fit = json.loads(said)["fit"]
    assert fit["free_bytes"] > 0
    assert "(simulated)" in " ".join(fit["words"])
    assert code in (0, 3)
    code, said = called(
        monkeypatch, capsys, "memory", models / "mlp.onnx", "--on", "board", "--base-bytes", 400_000_000
    )
    assert (code, "fits" in said) == (0, True)
    assert "400 MB to 400 MB (as given)" in said


def test_a_recipe_s_target_has_the_board_s_own_software(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from deadweight.api.recipes import _for_its_board
    from deadweight.targets.errors import TargetError

    recipe = tmp_path / "recipe.toml"
    stages = '[[stages]]\nstage = "export"\n[[stages]]\nstage = "profile"\non = "board"\n'
    recipe.write_text(f'workload = "deadweight.testing:TinyWorkload"\ntarget = "orin-nano-8gb"\n{stages}')
    fact = _for_its_board(recipe, []).target.facts["tensorrt"]
    assert (fact.value, fact.source[:10]) == ("10.3.0", "read from ")
    with pytest.raises(TargetError, match=r"means TensorRT 8\.5\.2"):
        _for_its_board(recipe, ['jetpack="5.1.3"'])
