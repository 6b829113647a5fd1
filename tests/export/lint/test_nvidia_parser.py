"""NVIDIA's own parser beside the rules: TensorRT-RTX, which needs no GPU, where its packages can be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.lint_cases import Graph
from support.tensorrt_versions import RTX, installed

from deadweight.export.lint import nvidia_parser
from deadweight.export.lint.check import lint
from deadweight.targets.errors import TargetError


def written(graph: Graph, path: Path, *, opset: int = 17, kind: int = TensorProto.FLOAT) -> Path:
    onnx.save(graph.model(opset=opset, kind=kind), path)
    return path


def network(path: Path, operator: str = "Relu", *, domain: str = "") -> Path:
    graph = Graph()
    graph.op(operator, graph.input([1, 4, 8, 8]), domain=domain)
    return written(graph, path)


def test_without_tensorrt_the_cure_names_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ModuleNotFoundError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TargetError, match="tensorrt: none here; tensorrt_rtx: none here") as caught:
        lint(network(tmp_path / "m.onnx"), ask_parser=True)
    assert "pip install tensorrt-rtx-cu13-libs" in caught.value.cure


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX for child processes: 200 MB, for the slow suite."""
    monkeypatch.setenv("PYTHONPATH", str(installed(*RTX)))


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_what_the_real_parser_takes_and_builds_is_said(tmp_path: Path) -> None:
    report = lint(network(tmp_path / "m.onnx"), ask_parser=True)
    assert report.findings == ()
    assert report.words[0].startswith("The parser of TensorRT-RTX 1.7.1")
    assert report.words[0].endswith("takes this file, and its builder builds it for SM86.")
    asked = report.to_json()["asked"]
    assert (asked["version"][:5], asked["rtx"], asked["built"]) == ("1.7.1", True, True)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_refusal_is_a_finding_with_the_parsers_own_words(tmp_path: Path) -> None:
    graph = Graph()
    graph.op("Unique", graph.input([8]))  # no table has it, and this version may not be known
    report = lint(written(graph, tmp_path / "m.onnx"), tensorrt="12.0", ask_parser=True)
    assert {(f.rule, f.severity) for f in report.findings if f.rule != 403} == {
        (103, "warning"),
        (601, "warning"),
    }
    assert "TensorRT-RTX 1.7.1" in next(f.what for f in report.findings if f.rule == 601)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_crash_of_the_parser_is_a_finding_too(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input()
    scale = graph.op("Sqrt", graph.input([]))
    parameters = [scale, graph.constant(0, np.int8)]
    rounded = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *parameters), *parameters)
    graph.op("Conv", rounded, graph.weight(16, 16, 1, 1))
    report = lint(written(graph, tmp_path / "m.onnx"), ask_parser=True)
    (crash,) = [finding for finding in report.findings if finding.rule == 601]
    assert crash.severity == "warning"
    assert "it ended with signal 11" in crash.what
    assert 204 in {finding.rule for finding in report.findings}


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_the_parser_has_a_time_limit(tmp_path: Path) -> None:
    opinion = nvidia_parser.ask(network(tmp_path / "m.onnx"), limit_s=0.05)
    assert opinion.ended == "no answer in 0.05 s"
    assert not opinion.taken


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_what_it_takes_although_a_rule_calls_it_an_error_is_a_disagreement(tmp_path: Path) -> None:
    graph = Graph()
    graph.op("TopK", graph.input([2, 500]), graph.constant([5], np.int64), outputs=2, sorted=0)
    report = lint(written(graph, tmp_path / "m.onnx"), tensorrt="10.3", ask_parser=True)
    assert {(f.rule, f.severity) for f in report.findings} == {(105, "error"), (601, "note")}
    assert "for TensorRT 10.3 there are errors of [105]" in report.findings[-1].what


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_file_with_a_plugin_is_not_held_to_what_tensorrt_rtx_says(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", "EfficientNMS_TRT", domain="TRT")
    report = lint(path, tensorrt="10.3", ask_parser=True)
    assert {(finding.rule, finding.severity) for finding in report.findings} == {(109, "note"), (601, "note")}
    assert report.passed
