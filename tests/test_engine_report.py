"""The commands `engine` and `memory`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from deadweight.__main__ import main
from deadweight.cli import app

EXPORTS = Path(__file__).parent / "targets" / "engines" / "exports"
LAYERS, OTHER = str(EXPORTS / "fp16.graph.json"), str(EXPORTS / "qat.graph.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "stem.conv.weight")
    node = helper.make_node("Conv", ["x", "stem.conv.weight"], ["y"], name="Conv_0", pads=[1] * 4)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 16, 16]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(path))
    return path


def test_an_engine_is_shown_and_its_page_written(tmp_path: Path) -> None:
    page = tmp_path / "engine.html"
    profile = str(EXPORTS / "fp16.profile.json")
    done = CliRunner().invoke(app, ["engine", LAYERS, "--profile", profile, "--out", str(page)])
    assert done.exit_code == 0
    assert "36 layers, 1.02 ms in all; 2 conversion, 0 reorder" in done.stdout
    assert "<h1" in page.read_text(encoding="utf-8")


def test_two_engines_are_compared_and_nothing_is_judged() -> None:
    told = ["engine", LAYERS, OTHER, "--profile", str(EXPORTS / "fp16.profile.json")]
    done = CliRunner().invoke(app, [*told, "--against-profile", str(EXPORTS / "qat.profile.json")])
    assert done.exit_code == 0
    assert "not a verdict" in done.stdout
    assert "1.62" in done.stdout


def test_all_that_was_read_is_printed_as_json(model: Path) -> None:
    done = CliRunner().invoke(app, ["engine", LAYERS, "--onnx", str(model), "--json"])
    (told,) = json.loads(done.stdout)
    assert len(told["layers"]) == 36
    assert "stem.conv" in [module for layer in told["layers"] for module in layer["modules"]]


def test_a_file_that_is_no_export_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.txt"
    path.write_text("[I] === Profile ===")
    monkeypatch.setattr("sys.argv", ["deadweight", "engine", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "not readable as JSON" in capsys.readouterr().err


def test_memory_is_told_before_anything_is_built(model: Path) -> None:
    done = CliRunner().invoke(app, ["memory", str(model), "--batch", "2", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["footprint"]["batch"] == 2
    assert told["footprint"]["activations_low_bytes"] == 2 * 8 * 16 * 16 * 4
    assert told["fit"] is None


def test_a_board_gives_the_answer_and_its_exit_code(model: Path) -> None:
    runner = CliRunner()
    small = runner.invoke(app, ["memory", str(model), "--target", "orin-nano-8gb", "--free-bytes", "1000"])
    assert (small.exit_code, "does not fit" in small.stdout) == (1, True)
    usual = runner.invoke(app, ["memory", str(model), "--target", "orin-nano-8gb"])
    assert (usual.exit_code, "fits" in usual.stdout) == (0, True)
