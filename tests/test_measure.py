"""What a person sees of the commands that time, and what is kept where something goes wrong."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import ssh_board

from deadweight.__main__ import main
from deadweight.targets.timing.inputs import given_inputs, inputs_mark
from deadweight.targets.timing.measurement import Protocol

Called = Callable[..., tuple[int, str]]
SHORT = ("--events", "2", "--event-s", "0.01")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Called:
    """Runs a command in the test's own folder; its exit code, and what it printed, without a traceback."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return int(caught.value.code or 0), printed.out + printed.err

    return call


def saved(path: Path, *widths: int, layer: str = "fc") -> Path:
    """Linear layers with ReLU between them, named like `fc0/MatMul`; input `x` [batch, features]."""
    nodes, weights, value = [], [], "x"
    for at, (ins, outs) in enumerate(pairwise(widths)):
        last = at == len(widths) - 2
        weights.append(numpy_helper.from_array(np.full((ins, outs), 0.01, np.float32), f"w{at}"))
        name = f"{layer}{at}"
        nodes.append(
            helper.make_node("MatMul", [value, f"w{at}"], ["y" if last else f"m{at}"], f"{name}/MatMul")
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{at}"], [f"r{at}"], f"{name}.relu/Relu"))
            value = f"r{at}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", widths[0]), ("y", widths[-1]))
    ]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, str(path))
    return path


def test_an_unknown_target_is_told_before_anything_is_timed(called: Called, tmp_path: Path) -> None:
    models = saved(tmp_path / "a.onnx", 8, 4), saved(tmp_path / "b.onnx", 8, 4)
    code, printed = called("compare", *models, "--events", 10**6, "--layers", "--target", "orin-nan")
    assert code == 2
    assert "There is no target named 'orin-nan'" in printed
    assert "speed" not in printed


def test_a_comparison_is_kept_where_its_layers_cannot_be_told_apart(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Protocol(events=2, event_s=0.005, block_s=0.001)
    monkeypatch.setattr("deadweight.targets.timing.ort_layers.LAYER_PROTOCOL", quick)
    models = saved(tmp_path / "a.onnx", 8, 16, 4), saved(tmp_path / "b.onnx", 8, 4, layer="other")
    code, printed = called("compare", *models, *SHORT, "--layers", "--out", "told.json")
    assert code == 2
    assert "cannot be matched" in printed
    assert "The comparison: told.json" in printed
    told = json.loads((tmp_path / "told.json").read_text())
    assert {"baseline", "candidate", "judgement"} == set(told)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three samples for a network of eight inputs."""
    np.savez(tmp_path / "given.npz", x=np.ones((3, 8), np.float32))
    return tmp_path / "given.npz"


def test_models_are_measured_and_compared_on_the_inputs_of_a_file(
    called: Called, tmp_path: Path, inputs: Path
) -> None:
    models = saved(tmp_path / "a.onnx", 8, 4), saved(tmp_path / "b.onnx", 8, 4)
    code, printed = called("profile", models[0], *SHORT, "--inputs", inputs, "--out", "one.json")
    assert code == 0
    assert "1 thread(s), batch 3, inputs of given.npz" in printed
    assert called("compare", *models, *SHORT, "--inputs", inputs, "--out", "two.json")[0] == 3
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    protocols = [
        one["measurements"][0]["protocol"],
        two["baseline"]["protocol"],
        two["candidate"]["protocol"],
    ]
    assert {protocol["inputs"] for protocol in protocols} == {inputs_mark(given_inputs(inputs))}


@pytest.mark.parametrize("command", ["profile", "compare"])
def test_inputs_of_wrong_names_are_told_with_the_right_ones(
    called: Called, tmp_path: Path, command: str
) -> None:
    models = [saved(tmp_path / f"{name}.onnx", 8, 4) for name in ("a", "b")]
    np.savez(tmp_path / "wrong.npz", pixels=np.ones((3, 8), np.float32))
    code, printed = called(
        command, *(models if command == "compare" else models[:1]), "--inputs", "wrong.npz"
    )
    assert code == 2
    assert "'x' is missing; 'pixels' is not an input" in printed
    assert "It needs x: float32[batch, 8]" in printed


def test_a_gate_feeds_a_candidate_what_the_accepted_model_was_fed(
    called: Called, tmp_path: Path, inputs: Path
) -> None:
    model = saved(tmp_path / "a.onnx", 8, 4)
    (tmp_path / "deadweight.toml").write_text('[gate]\nmodel = "a.onnx"\nbaseline = "baseline.json"\n')
    assert called("gate", "--record", "--inputs", inputs)[0] == 0
    code, printed = called("gate", "--cap-s", "0.1")
    assert code == 2
    assert re.search(r"recorded with the inputs given:\w{12}, but now they are random", printed)
    assert "--inputs FILE.npz" in printed
    (tmp_path / "deadweight.toml").write_text(
        '[gate]\nmodel = "a.onnx"\nbaseline = "baseline.json"\ninputs = "given.npz"\n'
        "[budgets]\nmemory_bytes = 1e9\n"
    )
    assert model.exists()
    other = saved(tmp_path / "b.onnx", 8, 4, layer="other")
    assert called("gate", "--model", other, "--cap-s", "0.1")[0] == 3


def test_inputs_go_to_a_board_with_the_model(
    called: Called, tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ssh_board.SSHD is None:
        pytest.skip("there is no sshd here: apt install openssh-server")
    board = ssh_board.make_board(tmp_path / "board", python=str(Path(sys.executable).parent))
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(board.config))
    models = saved(tmp_path / "a.onnx", 8, 4), saved(tmp_path / "b.onnx", 8, 4)
    code, printed = called("profile", models[0], *SHORT, "--inputs", inputs, "--on", "board")
    assert code == 0
    assert "batch 3, inputs of given.npz" in printed
    code, _ = called("compare", *models, *SHORT, "--inputs", inputs, "--on", "board", "--out", "told.json")
    assert code == 3
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["candidate"]["protocol"]["inputs"] == inputs_mark(given_inputs(inputs))
    assert len(list(board.home.rglob("files/*/given.npz"))) == 1


def test_a_free_length_is_told_with_the_option_that_gives_it_a_size(called: Called, tmp_path: Path) -> None:
    model = onnx.load(str(saved(tmp_path / "a.onnx", 8, 4)))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims.insert(1, dims[0])
    dims[1].dim_param = "length"
    onnx.save(model, str(tmp_path / "a.onnx"))
    code, printed = called("profile", "a.onnx")
    assert code == 2
    assert "--inputs FILE.npz" in printed
    np.savez(tmp_path / "given.npz", x=np.ones((3, 5, 8), np.float32))
    assert called("profile", "a.onnx", *SHORT, "--inputs", "given.npz")[0] == 0
