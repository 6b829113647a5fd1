"""What a person sees of the commands that run one stage alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import digits

from deadweight.__main__ import main

PRUNE = ("prune", "small.py:Digits", "--out", "out")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workload in it, from which commands are called."""
    shutil.copy(digits.__file__, tmp_path / "small.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def network(place: Path) -> Path:
    """A small float network with samples beside it, in two files."""
    generator = np.random.default_rng(0)
    weight = numpy_helper.from_array(generator.standard_normal((64, 10)).astype(np.float32), "w")
    sizes = {"pixels": 64, "scores": 10}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in sizes.items()
    ]
    node = helper.make_node("MatMul", ["pixels", "w"], ["scores"], name="fc/MatMul")
    graph = helper.make_graph([node], "fc", ends[:1], ends[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(place / "fc.onnx"))
    (place / "samples").mkdir()
    for part in range(2):
        np.savez(place / "samples" / f"{part}.npz", pixels=digits.X[100 * part :][:100].numpy())
    return place / "fc.onnx"


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["deadweight", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    try:
        main()
        code = 0
    except SystemExit as caught:
        code = int(caught.code or 0)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize("target", ["x86-cpu", "orin-nano-8gb"])
def test_quantize_says_what_it_did_and_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: Path, target: str
) -> None:
    arguments = ("quantize", "fc.onnx", "--data", "samples", "--target", target, "--method", "best")
    code, printed = called(monkeypatch, capsys, *arguments)
    assert code == 0
    for words in (
        "200 samples of 2 files",
        "the least noise in the outputs: ",
        "200 calibration samples are enough",
        "the position of the largest value of scores changes for ",
        "1 of 1 weighted layers",
        "The network: fc.int8/int8.onnx",
        "No score was measured",
        "Whether it is faster was not measured: deadweight compare fc.onnx fc.int8/int8.onnx",
    ):
        assert words in " ".join(printed.split())  # wherever the terminal breaks its lines
    assert ("should accept this file" in printed) is (target != "x86-cpu")
    assert ("--on USER@HOST" in printed) is (target != "x86-cpu")
    assert sorted(path.name for path in Path("fc.int8").iterdir()) == [
        "int8.onnx",
        "quantize.json",
        "ranges.json",
    ]


def test_quantize_never_makes_up_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: Path
) -> None:
    code, printed = called(monkeypatch, capsys, "quantize", "fc.onnx")
    assert code == 2
    assert "INT8 needs calibration samples" in printed
    assert "Give --data" in printed
    assert not Path("fc.int8").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fc.onnx", "--data", "nowhere"), "nowhere does not exist"),
        (("fc.onnx", "--data", "samples", "--method", "kl"), "no calibration method 'kl'"),
        (("fc.onnx", "--data", "samples", "--target", "nano"), "nano"),
        (("fc.onnx", "--data", "samples", "--half"), "x86-cpu runs onnxruntime"),
        (("fc.onnx", "--data", "samples", "--skip", "fc/Matmul"), "Did you mean 'fc/MatMul'"),
        (("small.py", "--data", "samples"), "is text, not an ONNX file"),
        (("gone.onnx", "--data", "samples"), "gone.onnx cannot be read"),
    ],
)
def test_bad_input_to_quantize_is_one_message_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    network: Path,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    code, printed = called(monkeypatch, capsys, "quantize", *arguments)
    assert code == 2
    assert told in printed
    assert "What to do: " in printed
    assert not Path("fc.int8").exists()


def test_quantize_lists_the_samples_that_flip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: Path
) -> None:
    model = onnx.load(str(network))
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[:, 1] = weight[:, 0] + np.float32(1e-4) * (-1) ** np.arange(64)  # two classes that are nearly one
    weight[:, 2:] -= 100
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, str(network))
    code, printed = called(monkeypatch, capsys, "quantize", "fc.onnx", "--data", "samples")
    assert code == 0
    assert "the first 5 are below" in printed
    assert "the float network's lead" in printed
    assert printed.count(".npz, sample ") == 6  # five that flip, and the worst


def test_quantize_writes_nothing_that_tensorrt_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: Path
) -> None:
    model = onnx.load(str(network))
    model.graph.node.append(helper.make_node("Compress", ["scores", "which"], ["few"], axis=1, name="few"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([True, False, True]), "which"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("few", TensorProto.FLOAT, ["n", None]))
    onnx.save(model, str(network))
    arguments = ("quantize", "fc.onnx", "--data", "samples", "--target", "orin-nano-8gb")
    code, printed = called(monkeypatch, capsys, *arguments)
    assert code == 1
    assert "refuses this file" in printed
    assert "Nothing was written." in printed
    assert not Path("fc.int8").exists()


def test_prune_says_what_the_cut_costs_and_how_the_network_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    code, printed = called(monkeypatch, capsys, *PRUNE, "--ratio", "0.5")
    assert code == 0
    for words in (
        "before",
        "after the cut, on the validation split",
        "Not tuned",
        "give --weights",
        "multiply-adds",
        "out/original.onnx, out/pruned.onnx",
        "was not measured: deadweight compare out/original.onnx out/pruned.onnx",
    ):
        assert words in printed
    (start,) = [place for place, line in enumerate(printed.splitlines()) if line.startswith("In Python")]
    lines = [line.strip() for line in printed.splitlines()[start + 1 : start + 3]]
    given: dict[str, Any] = {}
    exec("\n".join(lines), given)  # as a user would type them
    count = sum(parameter.numel() for parameter in given["model"].parameters())
    assert count == 64 * 48 + 48 + 48 * 24 + 24 + 24 * 10 + 10


def test_prune_that_removes_nothing_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = called(monkeypatch, capsys, *PRUNE, "--ratio", "0.001")
    assert code == 1
    assert "Nothing was removed by these settings" in printed
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "No option says how much to remove"),
        (("--ratio", "0.5", "--criterion", "magic"), 'There is no criterion "magic"'),
        (("--mean", "0.1"), "both thresholds"),
        (("--ratio", "0.5", "--weights", "gone.pt"), "gone.pt does not exist"),
        (("--ratio", "1.5"), "'--ratio'"),
        (("--ratio", "0.5", "--set", "prune.scop=global"), "scop"),
    ],
)
def test_bad_input_to_prune_is_one_message_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    code, printed = called(monkeypatch, capsys, *PRUNE, *arguments)
    assert code == 2
    assert told in printed
    assert not Path("out").exists()
