from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import quantization
from support import nets
from support.int8_files import calibrate, to_qdq
from support.lint_cases import Graph, found
from torch import Tensor

from deadweight.__main__ import main
from deadweight.export.lint.check import RULES, lint, reason
from deadweight.export.lint.network import SEVERITIES
from deadweight.export.onnx_graph.graph import Index
from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import ArtifactError, ModelError, TargetError
from deadweight.targets.target import load_target
from deadweight.terminal.printer import out

Nets = Callable[[str], Any]
Command = Callable[..., tuple[int, str]]
TABLES = ("8.4", "8.5", "8.6", "10.0", "10.1")
SMALL = {
    "Mlp": (nets.Mlp(), (1, 4, 4)),
    "ResidualCnn": (nets.ResidualCnn(16), (3, 16, 16)),
    "Flattened": (nets.Flattened(), (1, 8, 8)),
    "Separable": (nets.Separable(), (3, 8, 8)),
    "Concatenated": (nets.Concatenated(), (2, 8, 8)),
    "Shuffled": (nets.Shuffled(), (3, 8, 8)),
    "Grouped": (nets.Grouped(), (3, 8, 8)),
    "Detector": (nets.Detector(), (3, 8, 8)),
    "PixelUNet": (nets.PixelUNet(), (3, 8, 8)),
    "Auxiliary": (nets.Auxiliary(), (3, 8, 8)),
}


def rules(path: Path, tensorrt: str, *severities: str) -> set[int]:
    return {
        finding.rule for finding in lint(path, tensorrt=tensorrt).findings if finding.severity in severities
    }


@pytest.mark.parametrize("name", SMALL)
def test_our_own_int8_networks_are_clean_for_every_table(tmp_path: Path, name: str) -> None:
    module, shape = SMALL[name]
    image = nets.image(8, *shape, seed=3)
    to_onnx(nets.lively(module), {"image": image}, tmp_path / "float.onnx")
    to_qdq(
        tmp_path / "float.onnx",
        calibrate(tmp_path / "float.onnx", [{"image": image}]),
        tmp_path / "int8.onnx",
    )
    for tensorrt in TABLES:
        # Instance norms are plugins in TensorRT 8.
        assert rules(tmp_path / "float.onnx", tensorrt, *SEVERITIES) <= {109}
        assert rules(tmp_path / "int8.onnx", tensorrt, "error", "warning") == set()
        # What is left to note is what was left in float because no int8 kernel takes it.
        assert rules(tmp_path / "int8.onnx", tensorrt, "note") <= {109, 402, 403}


@pytest.mark.parametrize("name", ["mlp", "residual", "depthwise"])
def test_and_nothing_at_all_is_said_of_those_that_run_in_int8_throughout(
    net: Nets, tmp_path: Path, name: str
) -> None:
    to_qdq(net(name).path, net(name).ranges, tmp_path / "int8.onnx")
    for tensorrt in TABLES:
        assert lint(tmp_path / "int8.onnx", tensorrt=tensorrt).findings == ()


def test_layer_norms_are_refused_by_the_tables_without_them(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("attentive").path, net("attentive").ranges, tmp_path / "int8.onnx")
    for tensorrt in TABLES[:2]:
        assert rules(tmp_path / "int8.onnx", tensorrt, "error", "warning") == {103}
    for tensorrt in TABLES[2:]:
        assert rules(tmp_path / "int8.onnx", tensorrt, "error", "warning") == set()


def test_the_x86_dialect_is_refused_by_tensorrt_with_a_word_on_whose_it_is(net: Nets, tmp_path: Path) -> None:
    to_qdq(net("residual").path, net("residual").ranges, tmp_path / "x86.onnx", dialect="x86")
    assert {201, 202, 203} <= rules(tmp_path / "x86.onnx", "10.1", "error")
    said = lint(tmp_path / "x86.onnx", target=load_target("orin-nano-8gb")).words
    assert 'run its recipe with target = "orin-nano-8gb"' in " ".join(said)
    to_qdq(net("residual").path, net("residual").ranges, tmp_path / "its.onnx")
    assert "recipe" not in " ".join(lint(tmp_path / "its.onnx", tensorrt="10.1").words)


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self._batches: Iterator[dict[str, Tensor]] = iter(batches)

    def get_next(self) -> Any:
        batch = next(self._batches, None)
        return None if batch is None else {name: value.numpy() for name, value in batch.items()}


def by_onnxruntime(net: Any, path: Path, **options: Any) -> Path:
    logging.disable(logging.WARNING)  # it recommends its own preprocessing
    quantization.quantize_static(net.path, path, Reader(net.batches), **options)
    logging.disable(logging.NOTSET)
    return path


def test_what_onnxruntime_quantizes_by_default_is_refused_for_the_right_reasons(
    net: Nets, tmp_path: Path
) -> None:
    path = by_onnxruntime(net("residual"), tmp_path / "default.onnx")
    model = onnx.load(path)
    index = Index.of(model.graph)
    off_zero = {
        node.name
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and np.any(index.value(node.input[2]) != 0)
    }
    weighted = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    for tensorrt in TABLES:
        report = lint(path, tensorrt=tensorrt)
        assert not report.passed
        assert {201, 203} <= rules(path, tensorrt, "error") <= {201, 202, 203}
        assert {302, 304} <= rules(path, tensorrt, "warning")
        result = {number: {f.node for f in report.findings if f.rule == number} for number in (201, 203)}
        assert {name for name in result[201] if "Quantize" in name and "Dequantize" not in name} == off_zero
        assert result[203] == weighted


def test_unsigned_activations_are_refused_for_their_type_too(net: Nets, tmp_path: Path) -> None:
    kind = quantization.QuantType.QUInt8
    path = by_onnxruntime(net("residual"), tmp_path / "unsigned.onnx", activation_type=kind)
    for tensorrt in TABLES:
        assert rules(path, tensorrt, "error") == {201, 202, 203}
    wrong = [finding for finding in lint(path).findings if finding.rule == 202]
    assert all("UINT8" in finding.what for finding in wrong)


def test_symmetric_alone_parses_and_is_reported_where_it_is_slow(net: Nets, tmp_path: Path) -> None:
    path = by_onnxruntime(
        net("residual"),
        tmp_path / "symmetric.onnx",
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    report = lint(path)
    assert report.passed
    assert {303, 304} <= rules(path, "10.1", "warning")
    between = [finding for finding in report.findings if finding.rule == 303]
    assert all("Relu" in finding.what for finding in between)


def modelopt_shaped() -> onnx.ModelProto:
    """ResNet's two kinds of block as NVIDIA's Model Optimizer leaves them: float weights have pairs too."""
    graph = Graph()

    def conv(x: str, outputs: int, inputs: int, size: int, stride: int = 1) -> str:
        values = np.random.default_rng(outputs).standard_normal((outputs, inputs, size, size))
        steps = np.abs(values).reshape(outputs, -1).max(axis=1) / 127
        weight = graph.pair(graph.constant(values), steps, axis=0)
        pads = [size // 2] * 4
        return graph.op("Conv", x, weight, graph.constant(np.zeros(outputs)), pads=pads, strides=[stride] * 2)

    x = graph.op("Relu", conv(graph.pair(graph.input(["batch", 3, 32, 32])), 16, 3, 3))
    x = graph.pair(graph.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    for width, inputs, stride in ((16, 16, 1), (32, 16, 2)):
        inner = graph.pair(graph.op("Relu", conv(x, width, inputs, 3, stride)))
        skip = x if stride == 1 else graph.pair(conv(x, width, inputs, 1, stride))
        x = graph.pair(graph.op("Relu", graph.op("Add", conv(inner, width, width, 3), skip)))
    pooled = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    values = np.random.default_rng(0).standard_normal((10, 32))
    weight = graph.pair(graph.constant(values), np.abs(values).max(axis=1) / 127, axis=0)
    graph.op("Gemm", graph.pair(pooled), weight, graph.constant(np.zeros(10)), transB=1)
    return graph.model()


@pytest.mark.parametrize("tensorrt", [*TABLES, "10.3", "11.4"])
def test_what_nvidias_own_quantizer_makes_is_clean(tensorrt: str) -> None:
    assert found(modelopt_shaped(), tensorrt) == []


def test_every_rule_says_what_it_asks_for_and_carries_its_number() -> None:
    for number, rule in RULES.items():
        assert (rule.__doc__ or "").startswith(f"{number}: ")
        assert reason(number).endswith(".")
    assert reason(201) == "Every zero point is the constant 0."


def written(tmp_path: Path, *, faulty: bool) -> Path:
    graph = Graph()
    zero = 7 if faulty else 0
    for part in ("one", "two", "three"):
        x = graph.op("Relu", graph.input())
        graph.op("Conv", graph.pair(x, zero=zero), graph.weight(16, 16, 1, 1))
        graph.nodes[-1].name = part
    model = graph.model(*(node.output[0] for node in graph.nodes if node.op_type == "Conv"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_errors_come_first_and_the_report_counts_them(tmp_path: Path) -> None:
    report = lint(written(tmp_path, faulty=True), target=load_target("agx-orin-64gb"))
    assert not report.passed
    assert report.counts == {"error": 6, "warning": 0, "note": 6}
    assert [finding.severity for finding in report.findings] == ["error"] * 6 + ["note"] * 6


def test_a_budget_for_the_accelerator_is_kept_or_broken(tmp_path: Path) -> None:
    path, orin = written(tmp_path, faulty=False), load_target("agx-orin-64gb")
    broken = lint(path, target=orin, max_gpu_fallbacks=5)
    assert (broken.gpu_fallbacks, broken.passed) == (6, False)
    assert broken.budgets[0].met is False
    assert lint(path, target=orin, max_gpu_fallbacks=6).passed
    assert lint(path, target=orin).passed
    assert lint(path, target=orin, tensorrt="11.4.1", max_gpu_fallbacks=0).passed


@pytest.mark.parametrize("board", [None, "orin-nano-8gb", "thor-t5000"])
def test_a_budget_that_cannot_be_judged_is_refused(tmp_path: Path, board: str | None) -> None:
    target = None if board is None else load_target(board)
    with pytest.raises(TargetError, match="max_gpu_fallbacks = 0 cannot be checked"):
        lint(written(tmp_path, faulty=False), target=target, max_gpu_fallbacks=0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `deadweight lint` and gives exit code and what was printed."""
    monkeypatch.setattr(out, "width", 250)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["deadweight", "lint", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return int(caught.value.code or 0), printed.out + printed.err

    return run


def test_the_command_groups_equal_faults_and_fails(command: Command, tmp_path: Path) -> None:
    code, printed = command(written(tmp_path, faulty=True), "--tensorrt", "10.3")
    assert code == 1
    assert printed.count("201") == 1
    assert "and 5 more" in printed
    assert "its zero point is 7" in re.sub(r"\s+", " ", printed.replace("│", "")).lower()
    assert "judged by the operator table of 10.1" in printed
    assert "TensorRT 10.3 refuses this file: 6 errors." in printed


def test_a_clean_file_passes(command: Command, tmp_path: Path) -> None:
    code, printed = command(written(tmp_path, faulty=False), "--tensorrt", "8.5")
    assert code == 0
    assert "TensorRT 8.5 should accept this file: nothing found." in printed


def test_a_broken_budget_fails(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path, faulty=False)
    assert command(path, "--target", "agx-orin-64gb")[0] == 0
    code, printed = command(path, "--target", "agx-orin-64gb", "--max-gpu-fallbacks", 0)
    assert code == 1
    assert "max_gpu_fallbacks: 6 of at most 0, broken" in printed


def test_json_holds_what_the_table_shows(command: Command, tmp_path: Path) -> None:
    code, printed = command(written(tmp_path, faulty=True), "--target", "agx-orin-64gb", "--json")
    answer = json.loads(printed)
    assert code == 1
    assert answer["schema"] == 1
    assert (answer["tensorrt"], answer["table"], answer["target"]) == ("10.3.0.30", "10.1", "agx-orin-64gb")
    assert answer["passed"] is False
    assert answer["counts"] == {"error": 6, "warning": 0, "note": 6}
    assert answer["gpu_fallbacks"] == 6
    assert answer["rules"]["201"] == "Every zero point is the constant 0."
    assert set(answer["findings"][0]) == {"rule", "severity", "node", "what", "cure"}


def test_bad_input_is_one_message_and_exit_code_2(command: Command, tmp_path: Path) -> None:
    good = written(tmp_path, faulty=False)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(good.read_bytes()[:300])
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none.onnx",), "No such file"),
        ((tmp_path,), "cannot be read"),
        ((cut,), "is a truncated or damaged ONNX file"),
        ((text,), "text.onnx"),
        ((good, "--target", "nano"), "There is no target named 'nano'"),
        ((good, "--target", "x86-cpu"), "x86-cpu runs onnxruntime"),
        ((good, "--tensorrt", "7.2"), "older than the oldest table"),
        ((good, "--tensorrt", "new"), "is not a version"),
        ((good, "--max-gpu-fallbacks", 0), "cannot be checked"),
    ]
    for arguments, said in cases:
        code, printed = command(*arguments)
        assert code == 2, printed
        assert said in printed
        assert "What to do:" in printed


def test_a_file_cut_anywhere_is_refused_or_still_a_whole_graph(tmp_path: Path) -> None:
    whole = written(tmp_path, faulty=False).read_bytes()
    path = tmp_path / "cut.onnx"
    lengths = range(0, len(whole), 7)
    survived = 0
    for length in lengths:
        path.write_bytes(whole[:length])
        with contextlib.suppress(ArtifactError, ModelError):
            lint(path)
            survived += 1
    assert survived < 0.1 * len(lengths)


@pytest.mark.parametrize("damage", ["short constant", "other type", "no letters", "wrong attribute"])
def test_a_damaged_file_is_refused_in_one_message(tmp_path: Path, damage: str) -> None:
    graph = Graph()
    graph.op("MaxPool", graph.conv(graph.input()), kernel_shape=[2, 2])
    model = graph.model()
    if damage == "short constant":
        model.graph.initializer[0].dims[:] = [7]
    if damage == "other type":
        model.graph.initializer[0].data_type = onnx.TensorProto.DOUBLE
    if damage == "wrong attribute":
        model.graph.node[-1].attribute[0].type = onnx.AttributeProto.FLOAT
    data = model.SerializeToString()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data.replace(b"maxpool", b"max\xff\xffol") if damage == "no letters" else data)
    with pytest.raises((ArtifactError, ModelError), match=r"is damaged|or damaged|is not UTF-8 text"):
        lint(path)


def test_every_rule_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "lint.md").read_text("utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d{3}) \|", text, re.MULTILINE)] == list(RULES)
