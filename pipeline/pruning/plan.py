"""The plan: the record of a pruning, from which a pruned network is rebuilt, checked and explained."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import Node

from ...targets.errors import MISFITS, ArtifactError

Cut = Mapping[str, Mapping[int, tuple[int, ...]]]
"""By parameter and axis, the indices that are removed."""

Attributes = Mapping[str, Mapping[str, Any]]
"""By module, attributes and their values, int or a list of int; also literals of its code, see `literals`."""


def both(one: Attributes, other: Attributes) -> dict[str, dict[str, Any]]:
    """Both; where they set the same, the other."""
    return {path: {**one.get(path, {}), **other.get(path, {})} for path in {*one, *other}}


@dataclass(frozen=True)
class Width:
    """The number of units of a group, before and after."""

    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Shapes:
    """The shape of a parameter or buffer, before and after."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """The factorization of one layer, see `factors`: the method, and the ranks in order."""

    method: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Bypass:
    """The replacement of a dropped block or layer: its input, or its shortcut branch.

    Attributes:
        outputs: 0 if it returns a tensor; else the length of the tuple it returns, whose first item is the
            tensor and whose others are None.
        shortcut: the child that is the shortcut; "" if it is the input itself.
        branch: with a shortcut, the last child of the dropped branch.
        activation: with a shortcut, the block's activation after the sum, see `bypass.ACTIVATIONS`.
    """

    outputs: int = 0
    shortcut: str = ""
    branch: str = ""
    activation: str = ""


@dataclass(frozen=True)
class Plan:
    """The units, or whole blocks, to remove from one network.

    Attributes:
        original: the fingerprint of the network it was made for.
        removed: by group, the removed units, ascending.
        cut: the same, as indices of the network's own parameters and buffers.
        shapes: of all tensors that are cut.
        widths: of every group, also of those that keep their width.
        form: "module" (the user's class, narrowed in place) or "graph" (the exported graph, resized); set by
            surgery, "" before it. "layers" is a step that removes no unit, see `factors`, `ties` and
            `resized`.
        reason: why it has this form.
        attributes: in the module form, attributes of modules that no shape determines, such as `groups`.
        earlier: the plans applied to the network before, oldest first.
        factors: by layer, the low-rank layers that replace it.
        ties: names of parameters that are one; the first of each list is the owner.
        dropped: by module, the dropped blocks and layers; such a plan cuts nothing.
        resized: height and width to which the network resizes its images first; () if it does not.
    """

    original: str
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    cut: Cut = field(default_factory=dict)
    shapes: Mapping[str, Shapes] = field(default_factory=dict)
    widths: Mapping[str, Width] = field(default_factory=dict)
    form: str = ""
    reason: str = ""
    attributes: Attributes = field(default_factory=dict)
    earlier: tuple[Plan, ...] = field(default=(), repr=False)
    factors: Mapping[str, Factors] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    dropped: Mapping[str, Bypass] = field(default_factory=dict)
    resized: tuple[int, ...] = ()

    def __str__(self) -> str:
        """A summary: the form and its reason, and the widths that change, from the first cut to this one."""
        form = f"{self.form} form" if self.form else "not applied yet"
        head = f"Plan, {form}{': ' if self.reason else ''}{self.reason}"
        steps, sizes = (*self.earlier, self), dict[str, list[int]]()
        kinds = {name: one.kind for step in steps for name, one in step.widths.items()}
        for step in steps:
            for name, one in step.widths.items():
                known = sizes.setdefault(name, [one.before])
                known += [one.after] if one.after != known[-1] else []
        widths = [
            f"  {name} ({kinds[name]}): {' -> '.join(map(str, known))}"
            for name, known in sizes.items()
            if len(known) > 1
        ]
        return "\n".join([head, *widths, *(f"  {name}: dropped" for step in steps for name in step.dropped)])

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`; empty fields for layers and blocks are left out."""
        value = {"schema": 1, **_plain(vars(self)), "earlier": [plan.to_json() for plan in self.earlier]}
        return {name: one for name, one in value.items() if one or name not in _MAY_LACK}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`; unknown keys are ignored.

        Raises:
            ArtifactError: it is not a plan.
        """
        try:
            if value["schema"] != 1:
                raise ValueError(f"schema {value['schema']} is not known to this version")
            return cls(
                original=str(value["original"]),
                removed={name: tuple(map(int, units)) for name, units in value["removed"].items()},
                cut={
                    name: {int(axis): tuple(map(int, at)) for axis, at in axes.items()}
                    for name, axes in value["cut"].items()
                },
                shapes={
                    name: Shapes(tuple(map(int, shapes["before"])), tuple(map(int, shapes["after"])))
                    for name, shapes in value["shapes"].items()
                },
                widths={name: Width(**width) for name, width in value["widths"].items()},
                form=str(value["form"]),
                reason=str(value["reason"]),
                attributes={path: dict(values) for path, values in value["attributes"].items()},
                earlier=tuple(cls.from_json(plan) for plan in value["earlier"]),
                dropped={path: Bypass(**bypass) for path, bypass in value.get("dropped", {}).items()},
                factors={
                    name: Factors(str(one["method"]), tuple(map(int, one["ranks"])))
                    for name, one in value.get("factors", {}).items()
                },
                ties=tuple(tuple(map(str, names)) for names in value.get("ties", ())),
                resized=tuple(map(int, value.get("resized", ()))),
            )
        except MISFITS as error:
            cure = "Run the stage that prunes again."
            raise ArtifactError(f"This is not a plan of this version: {error!r}.", cure) from error


def _plain(value: Any) -> Any:
    """Its fields by name, also those within; `dataclasses.asdict` copies every index."""
    fields = vars(value) if dataclasses.is_dataclass(value) else value
    return {key: _plain(one) for key, one in fields.items()} if isinstance(fields, Mapping) else value


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and types of all parameters and buffers; the values do not matter."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    lines = sorted(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parameters_left(model: nn.Module, plan: Plan) -> int:
    """How many parameters a network has after a plan; one that has several names counts once."""
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    left = (plan.shapes[name].after if name in plan.shapes else shape for name, shape in shapes.items())
    return sum(map(math.prod, left))


def plan_of(model: nn.Module) -> Plan | None:
    """The last plan applied to a network, with the earlier ones in it; None if it was never pruned."""
    plan = vars(model).get(_PLAN)
    return plan if isinstance(plan, Plan) else None


def record(small: nn.Module, plan: Plan, *, of: nn.Module | None = None) -> nn.Module:
    """The same network, with the plan recorded in it; and before it the plans of the network that was cut."""
    vars(small)[_PLAN] = dataclasses.replace(plan, earlier=earlier_plans(of)) if of is not None else plan
    return small


def earlier_plans(model: nn.Module) -> tuple[Plan, ...]:
    """The plans applied to a network, oldest first."""
    before = plan_of(model)
    return (*before.earlier, dataclasses.replace(before, earlier=())) if before else ()


_PLAN = "deadweight_plan"
_MAY_LACK = ("factors", "ties", "dropped", "resized")


def together(names: Iterable[str]) -> str:
    """Names in a sentence; those that differ only in numbers as one: 'fc and proj of 12 blocks.*'."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"\d+(?=\.)", "*", name), []).append(name)
    places: dict[str, list[str]] = {}
    for like, some in alike.items():
        place, _, leaf = like.rpartition("*.")
        many = len(some) > 1
        places.setdefault(f" of {len(some)} {place}*" if many else "", []).append(leaf if many else some[0])
    return " and ".join(f"{', '.join(leaves)}{place}" for place, leaves in places.items())


def owner_of(node: Node) -> str:
    """The module whose forward made a node of a graph; "" for the network's own."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""
