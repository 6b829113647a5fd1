"""Small ONNX graphs written by hand, with and without a fault, for the tests of the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deadweight.export.lint.check import RULES
from deadweight.export.lint.network import Finding, network_of
from deadweight.export.lint.platform import Platform
from deadweight.targets.target import load_target

IMAGE = (2, 16, 8, 8)


class Graph:
    """A graph that grows by one operator a call; each call gives the name of what it computes.

    The node is named as its output: "conv" makes "conv", then "conv_1".
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, int] = {}

    def input(self, shape: Sequence[int | str | None] = IMAGE, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(self._fresh("x"), kind, shape))
        return self.inputs[-1].name

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        name = self._fresh(kind.lower())
        made = [name, *(f"{name}:{place}" for place in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, made, name=name, domain=domain, **attributes))
        return name

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        name = self._fresh("constant")
        self.constants[name] = numpy_helper.from_array(np.asarray(value, kind), name)
        return name

    def pair(self, x: str, scale: Any = 0.05, zero: Any = 0, kind: Any = np.int8, **attributes: Any) -> str:
        parameters = [self.constant(scale), self.constant(np.full(np.shape(scale), zero), kind)]
        rounded = self.op("QuantizeLinear", x, *parameters, **attributes)
        return self.op("DequantizeLinear", rounded, *parameters, **attributes)

    def weight(self, *shape: int, axis: int | None = 0, scale: Any = None, fill: int = 1) -> str:
        """An int8 weight with one scale an index of `axis`, dequantized."""
        axes: dict[str, Any] = {} if axis is None else {"axis": axis}
        sizes = () if axis is None else (shape[axis],)
        scales = np.full(sizes, 0.01) if scale is None else np.asarray(scale)
        parameters = [self.constant(scales), self.constant(np.zeros(scales.shape), np.int8)]
        stored = self.constant(np.full(shape, fill), np.int8)
        return self.op("DequantizeLinear", stored, *parameters, **axes)

    def conv(self, x: str, outputs: int = 16, inputs: int = 16, size: int = 1, **attributes: Any) -> str:
        """An int8 convolution: a pair on its input, a weight by channel, a float bias."""
        weight = self.weight(outputs, inputs, size, size)
        bias = self.constant(np.zeros(outputs))
        return self.op("Conv", self.pair(x), weight, bias, **attributes)

    def float_conv(
        self, x: str, outputs: int = 16, inputs: int = 16, size: int = 1, **attributes: Any
    ) -> str:
        return self.op("Conv", x, self.constant(np.ones((outputs, inputs, size, size))), **attributes)

    def model(
        self, *outputs: str, opset: int = 17, ir_version: int = 8, kind: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        """The model whose outputs these are; of the last node, where none is named."""
        named = outputs or (self.nodes[-1].output[0],)
        made = [helper.make_tensor_value_info(name, kind, None) for name in named]
        graph = helper.make_graph(self.nodes, "planted", self.inputs, made, list(self.constants.values()))
        domains = sorted({node.domain for node in self.nodes if node.domain})
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)

    def _fresh(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{name}_{count}" if count else name


@dataclass(frozen=True)
class Case:
    """A fault and its clean twin: `build` plants the fault, or leaves it out.

    Attributes:
        nodes: where the fault is found.
        on, clean_on: versions of TensorRT, or boards; `clean_on` where the twin is the same file elsewhere.
        also: rules that cannot but find the same fault as well.
        anyway: rules that have a note on the graph with the fault and without.
    """

    rule: int
    words: str
    build: Callable[[bool], onnx.ModelProto]
    nodes: tuple[str, ...]
    on: str = "10.1"
    clean_on: str = ""
    severity: str = "error"
    also: tuple[int, ...] = ()
    anyway: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}-{self.words.replace(' ', '-')}"


def platform(named: str) -> Platform:
    """The platform of a version ("8.5"), a board, or a board with another version ("agx-orin-64gb 8.5")."""
    board, _, version = named.rpartition(" ") if named[0].isalpha() and " " in named else ("", "", named)
    if version[0].isdigit():
        return Platform.of(load_target(board) if board else None, version)
    return Platform.of(load_target(version))


def found(model: onnx.ModelProto, on: str = "10.1") -> list[Finding]:
    """All findings of all rules."""
    network = network_of(model)
    return [finding for rule in RULES.values() for finding in rule(network, platform(on))]


def fault_tests(cases: Sequence[Case]) -> tuple[Callable[[Case], None], Callable[[Case], None]]:
    """The two tests of these cases: that each fault is found, and that its clean twin is clean."""
    by_case = pytest.mark.parametrize("case", cases, ids=str)

    @by_case
    def is_found(case: Case) -> None:
        """The planted fault is found by its rule, at its nodes, and by no other rule."""
        findings = found(case.build(True), case.on)
        hit = [finding for finding in findings if finding.rule == case.rule]
        assert sorted(finding.node for finding in hit) == sorted(case.nodes), findings
        assert {finding.severity for finding in hit} == {case.severity}
        assert {finding.rule for finding in findings} <= {case.rule, *case.also, *case.anyway}, findings

    @by_case
    def is_clean(case: Case) -> None:
        """The clean twin gives no finding at all."""
        findings = found(case.build(False), case.clean_on or case.on)
        assert {finding.rule for finding in findings} <= set(case.anyway), findings

    return is_found, is_clean
