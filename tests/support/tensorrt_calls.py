"""Holds our calls of TensorRT against the names and arities that its real bindings have, version by version.

The bindings have no source to check types with. So that a name tells what a variable is, ours are called
after what they hold (`engine`, `context`, ...): an attribute of such a variable must exist in the version,
unless a `hasattr` asked for it first; a call must fit one of the overloads; what is only readable must not be
set.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

HOLDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "objection": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "layer": "ILayer",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "open": "ICudaEngine",  # self._open() gives the engine
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "creation": "NetworkDefinitionCreationFlag",
}
OUR_OWN = {"__name__", "__version__"}
"""What every module has."""

Surface = dict[str, Any]


def lint(source: str, surface: Surface) -> list[str]:
    """What of `source` this version's bindings do not have."""
    found: list[str] = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            _visit(function, frozenset(), surface, found)
    return sorted(set(found))


def _visit(node: ast.AST, asked: frozenset[str], surface: Surface, found: list[str]) -> None:
    """Goes through a tree with the names that a hasattr around or before it has asked for."""
    if isinstance(node, (ast.If, ast.IfExp)):
        _visit(node.test, asked | _asked(node.test), surface, found)
        inside = asked | _asked(node.test)
        _visit_all(node.body if isinstance(node, ast.If) else [node.body], inside, surface, found)
        _visit_all(node.orelse if isinstance(node, ast.If) else [node.orelse], asked, surface, found)
        return
    if isinstance(node, ast.Attribute):
        _check_attribute(node, asked, surface, found)
    if isinstance(node, ast.Call):
        _check_call(node, surface, found)
    _visit_all(list(ast.iter_child_nodes(node)), asked, surface, found)


def _visit_all(nodes: Sequence[ast.AST], asked: frozenset[str], surface: Surface, found: list[str]) -> None:
    for child in nodes:
        _visit(child, asked, surface, found)
        if isinstance(child, ast.If) and isinstance(child.body[-1], (ast.Raise, ast.Return)):
            asked |= _refused(child.test)  # whatever comes after was asked for


def _asked(test: ast.AST) -> frozenset[str]:
    return _names(test, negated=False)


def _refused(test: ast.AST) -> frozenset[str]:
    return _names(test, negated=True)


def _names(test: ast.AST, *, negated: bool) -> frozenset[str]:
    """Names of the hasattr calls in a test, those under a `not` or the others."""
    under = {
        id(call)
        for node in ast.walk(test)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        for call in ast.walk(node.operand)
    }
    return frozenset(
        call.args[1].value
        for call in ast.walk(test)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "hasattr"
        and isinstance(call.args[1], ast.Constant)
        and isinstance(call.args[1].value, str)
        and (id(call) in under) is negated
    )


def _kind(node: ast.AST, surface: Surface) -> str | None:
    """The class or enum that an expression is, `trt` for the module, None for what is none of TensorRT's."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute) and _kind(node.value, surface) == "trt":
        return node.attr if node.attr in surface else None
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    name = name.lstrip("_")
    return "trt" if name == "trt" else HOLDS.get(name)


def _check_attribute(node: ast.Attribute, asked: frozenset[str], surface: Surface, found: list[str]) -> None:
    kind = _kind(node.value, surface)
    if kind is None or node.attr in asked or node.attr in OUR_OWN:
        return
    if kind == "trt":
        if node.attr not in surface:
            found.append(f"line {node.lineno}: tensorrt.{node.attr} does not exist")
        return
    held = surface[kind]
    members = held.get("members", held.get("enum", {}))
    if node.attr not in members:
        found.append(f"line {node.lineno}: {kind}.{node.attr} does not exist")
    elif isinstance(node.ctx, ast.Store) and members[node.attr].get("p") != "rw":
        found.append(f"line {node.lineno}: {kind}.{node.attr} cannot be set")


def _check_call(node: ast.Call, surface: Surface, found: list[str]) -> None:
    if not isinstance(node.func, ast.Attribute):
        return
    kind = _kind(node.func.value, surface)
    if kind is None:
        return
    if kind == "trt":
        told = surface.get(node.func.attr, {}).get("members", {}).get("__init__", {})
    else:
        told = surface[kind].get("members", {}).get(node.func.attr, {})
    overloads = [overload if node.func.attr == "__init__" else overload[1:] for overload in told.get("m", [])]
    if overloads and not any(_fits(node, overload) for overload in overloads):
        wanted = " or ".join("(" + ", ".join(name for name, _ in overload) + ")" for overload in overloads)
        found.append(f"line {node.lineno}: {kind}.{node.func.attr} takes {wanted}")


def _fits(node: ast.Call, parameters: list[tuple[str, bool]]) -> bool:
    given = {keyword.arg for keyword in node.keywords} | {name for name, _ in parameters[: len(node.args)]}
    known = {name for name, _ in parameters}
    needed = {name for name, has_default in parameters if not has_default}
    return len(node.args) <= len(parameters) and given <= known and needed <= given
