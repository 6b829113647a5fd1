"""What was removed from a network: the record by which a pruned network is rebuilt, checked and explained."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...targets.errors import ArtifactError

Cut = Mapping[str, Mapping[int, tuple[int, ...]]]
"""By parameter and axis, the indices that are removed."""

Attributes = Mapping[str, Mapping[str, Any]]
"""By module, attributes and their values: int, or a list of int."""


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
class Plan:
    """What to remove from one network.

    Attributes:
        original: the fingerprint of the network it was made for.
        removed: by group, the units that go, ascending.
        cut: the same, as indices of the network's own parameters and buffers.
        shapes: of all that is cut.
        widths: of every group, also of those that keep their width.
        form: "module" (the user's class, narrowed in place) or "graph" (the exported graph, resized); set by
            surgery, "" before it.
        reason: why it has this form.
        attributes: in the module form, attributes of modules that no shape tells, such as `groups`.
        earlier: the plans that the network had been through before, oldest first.
    """

    original: str
    removed: Mapping[str, tuple[int, ...]]
    cut: Cut
    shapes: Mapping[str, Shapes]
    widths: Mapping[str, Width]
    form: str = ""
    reason: str = ""
    attributes: Attributes = field(default_factory=dict)
    earlier: tuple[Plan, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        return {
            "schema": 1,
            "original": self.original,
            "removed": {name: list(units) for name, units in self.removed.items()},
            "cut": {
                name: {str(axis): list(at) for axis, at in axes.items()} for name, axes in self.cut.items()
            },
            "shapes": {
                name: {"before": list(shapes.before), "after": list(shapes.after)}
                for name, shapes in self.shapes.items()
            },
            "widths": {name: dataclasses.asdict(width) for name, width in self.widths.items()},
            "form": self.form,
            "reason": self.reason,
            "attributes": {path: dict(values) for path, values in self.attributes.items()},
            "earlier": [plan.to_json() for plan in self.earlier],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`; keys it does not know are left to others.

        Raises:
            ArtifactError: it is not a plan.
        """
        try:
            if value["schema"] != 1:
                raise ValueError(f"schema {value['schema']} is not known here")
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"This is not a plan of this version: {error!r}.", "Run the stage that prunes again."
            ) from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and types of all parameters and buffers; the values do not matter."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    lines = sorted(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def plan_of(model: nn.Module) -> Plan | None:
    """The plan by which a network was pruned last, with the earlier ones in it; None if it never was."""
    plan = vars(model).get(_PLAN)
    return plan if isinstance(plan, Plan) else None


def record(model: nn.Module, plan: Plan) -> nn.Module:
    """The same network, which from now on knows the plan it was pruned by."""
    vars(model)[_PLAN] = plan
    return model


_PLAN = "deadweight_plan"
