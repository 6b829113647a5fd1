"""Masks of unstructured and 2:4 sparsity over a network's weights: how they are chosen, applied and stored.

A mask is a boolean tensor of a weight's shape; False is a weight that is zero. Biases, norms and embeddings
are never masked. The network keeps its shapes, so a dense kernel does as much work as before: only a file
without zeros (`deadweight pack`), or a kernel made for the pattern, gains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError, RecipeError
from ..pruning.narrow import copied_module
from ..training.checkpoint import opened, write_tensors
from ..training.loop import Masks as Masks
from ..training.loop import hold, holding

if TYPE_CHECKING:
    from ..importance.allocation import Scope

KEPT, OF = 2, 4  # the pattern of sparse tensor cores: two of four neighbours along a layer's inputs


def weights_of(model: nn.Module, dense: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """The weights that may be masked, by name: parameters of two or more axes, except embeddings.

    Args:
        dense: layers (or parameters) that are left out, by their names in the network.

    Raises:
        RecipeError: there is no layer of that name.
        ModelError: nothing is left that could be masked.
    """
    tables = {id(one.weight) for one in model.modules() if isinstance(one, (nn.Embedding, nn.EmbeddingBag))}
    named_weights = model.named_parameters()
    found = {name: one for name, one in named_weights if one.dim() > 1 and id(one) not in tables}
    for wanted in dense:
        for name in named(found, wanted):
            del found[name]
    if not found:
        cure = "Leave fewer layers dense."
        raise ModelError("This network has no weights that could be masked.", cure)
    return found


def named(weights: Iterable[str], layer: str) -> list[str]:
    """The names in `weights` of a layer, or the weight of that name; a RecipeError if there is none."""
    known = list(weights)
    found = [name for name in known if name == layer or name.startswith(f"{layer}.")]
    if not found:
        cure = f"It has {', '.join(name.removesuffix('.weight') for name in known) or 'none'}."
        raise RecipeError(f'The network has no weights called "{layer}".', cure)
    return found


def magnitude_masks(
    weights: Mapping[str, Tensor],
    share: float,
    *,
    scope: Scope = "local",
    shares: Mapping[str, float] | None = None,
    before: Masks | None = None,
) -> dict[str, Tensor]:
    """Magnitude pruning: drops the smallest weights (Han et al. 2015, "Learning both Weights").

    Args:
        share: of the weights that are left, how many to drop.
        scope: "local" drops this share of each layer, "global" the smallest of all layers; the largest
            weight of a layer always stays, so that no layer is emptied.
        shares: another share for single layers by name; only with "local".
        before: earlier masks; what they dropped stays dropped and is not counted.
    """
    shares, before = shares or {}, before or all_kept(weights)
    masks: dict[str, Tensor] = {}
    for names in [list(weights)] if scope == "global" else [[name] for name in weights]:
        ranked = torch.cat([_ranked(weights[name], before[name]) for name in names])
        own = shares.get(names[0], shares.get(names[0].removesuffix(".weight"), share))
        left = sum(int(before[name].sum()) for name in names)
        kept = torch.ones(len(ranked), dtype=torch.bool)
        # Weights that were dropped before rank lowest, so they are dropped again.
        kept[torch.argsort(ranked, stable=True)[: len(ranked) - left + _count(own, left)]] = False
        parts = torch.split(kept, [weights[name].numel() for name in names])
        masks |= {name: part.reshape(weights[name].shape) for name, part in zip(names, parts, strict=True)}
    for name, weight in weights.items():
        masks[name].view(-1)[int(weight.detach().abs().argmax())] = True
    return masks


def threshold_masks(weights: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Drops all weights whose magnitude is under a threshold.

    Raises:
        RecipeError: the threshold is not a positive number.
        ModelError: a layer would keep no weight.
    """
    if not threshold > 0:
        raise RecipeError(f"The threshold is {threshold}.", "Give a number above 0, in the weights' units.")
    masks = {name: weight.detach().abs() >= threshold for name, weight in weights.items()}
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    if empty:
        largest = min(float(weights[name].detach().abs().max()) for name in empty)
        raise ModelError(
            f"The threshold {threshold:g} keeps no weight of {', '.join(empty)}: the largest there is "
            f"{largest:.3g}.",
            f"Give a threshold well below {largest:.3g}, or a share of the weights instead.",
        )
    return masks


def structured_masks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """2:4 sparsity: keeps the two largest of every four neighbours along the inputs (Mishra et al. 2021).

    Inputs are the second axis, as in Linear and convolutions; each position of a kernel has its own groups.

    Raises:
        ModelError: the number of a layer's inputs is not a multiple of four.
    """
    odd = {name: weight.shape[1] for name, weight in weights.items() if weight.shape[1] % OF}
    if odd:
        widths = {name.removesuffix(".weight"): width for name, width in odd.items()}
        listed = ", ".join(f"{name} ({width} inputs)" for name, width in widths.items())
        names = ", ".join(f'"{name}"' for name in widths)
        raise ModelError(
            f"2:4 drops two of every four inputs, but these layers have no multiple of 4: {listed}.",
            f"Leave them as they are (dense = [{names}]), or give them widths that are multiples of 4.",
        )
    masks = {}
    for name, weight in weights.items():
        fours = weight.detach().abs().movedim(1, -1)
        ranks = fours.reshape(-1, OF).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        masks[name] = (ranks < KEPT).reshape(fours.shape).movedim(-1, 1).contiguous()
    return masks


def is_structured(mask: Tensor) -> bool:
    """Whether at most two of every four neighbours along the inputs stay."""
    return mask.shape[1] % OF == 0 and bool((mask.movedim(1, -1).reshape(-1, OF).sum(1) <= KEPT).all())


def random_masks(masks: Masks, *, seed: int) -> dict[str, Tensor]:
    """Random masks that keep as many weights of each layer as the given ones."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.reshape(-1)[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in masks.items()
    }


def all_kept(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of a network whose dropped weights are zero."""
    copy = copied_module(model, {})
    hold(holding(copy, masks))
    return copy


def kept_share(masks: Masks) -> float:
    """The share of the maskable weights that stays, 0 to 1."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def save_masks(path: Path, masks: Masks, pattern: str) -> None:
    write_tensors(path, masks, {"masks": json.dumps({"pattern": pattern})})


def load_masks(path: Path) -> tuple[dict[str, Tensor], str]:
    """Masks, and the name of their pattern; an ArtifactError if the file is damaged."""
    with opened(path, "the same recipe makes it again", "masks") as (masks, about):
        return masks, str(about["pattern"])


def _ranked(weight: Tensor, mask: Tensor) -> Tensor:
    """Magnitudes in one row; weights that were dropped before are -1, below all others."""
    return torch.where(mask, weight.detach().abs().double(), -1.0).reshape(-1).cpu()


def _count(share: float, of: int) -> int:
    return int(round(share * of, 9))
