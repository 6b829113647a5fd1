"""The damage of narrower groups: how much the loss on validation data rises with each of them narrowed alone.

Norms are estimated anew before each, as they are before a cut network is tuned: without that, a few per cent
of the channels look like a disaster (Li et al. 2020, "EagleEye").
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from ...targets.errors import ModelError, users_code
from ...targets.progress import Progress
from ..training.batch_norm import reestimated
from ..workload import Workload, example_batch, split_batches
from .grids import FEW, thinned
from .solve import Levels


def validation_loss(model: nn.Module, workload: Workload, *, batches: int | None = None) -> float:
    """The mean loss over batches of the validation split, each weighted by its size.

    Raises:
        ModelError: it is NaN or infinite.
    """
    names, total, count = list(example_batch(workload)), 0.0, 0
    with torch.no_grad():
        for batch in itertools.islice(split_batches(workload, "validation"), batches):
            size = len(batch[names[0]])
            with users_code("loss() was called on a validation batch"):
                total += size * float(workload.loss(model(*(batch[name] for name in names)), batch))
            count += size
    if not count or not abs(total) < float("inf"):
        raise ModelError(
            f"The loss on {count} validation samples is {total / max(count, 1)}.",
            "Look for NaN in the weights and in the validation data.",
        )
    return total / count


def damage_of(
    model: nn.Module,
    smaller: Callable[[str, int], nn.Module],
    levels: Levels,
    workload: Workload,
    *,
    norms: int = 8,
    batches: int | None = None,
    known: Mapping[str, float] = {},
    kept: Callable[[Mapping[str, float]], None] = lambda found: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, dict[int, float]]:
    """By group and width, the rise of the validation loss, at least 0 and never less for a smaller width.

    It is measured at some widths of each group; between them it is interpolated.

    Args:
        smaller: the network with this group alone at this width.
        norms: training batches for the norms of each network.
        batches: of the validation split; None for all.
        known: what an earlier, interrupted call measured, by "group/width"; `kept` gets all so far.
    """
    found = dict(known)
    found.setdefault("whole", validation_loss(model, workload, batches=batches))
    some = {name: thinned(own, FEW, own[-1]) for name, own in levels.items()}
    wanted = [(name, width) for name, own in some.items() for width in own[:-1]]
    for done, (name, width) in enumerate(wanted):
        progress(done, len(wanted), f"budget: damage of {name} at {width}")
        if (key := f"{name}/{width}") not in found:
            small = reestimated(smaller(name, width), workload, batches=norms)
            found[key] = validation_loss(small, workload, batches=batches)
            kept(found)
    damage: dict[str, dict[int, float]] = {}
    for name, own in levels.items():
        rises = [found[f"{name}/{width}"] - found["whole"] for width in some[name][:-1]]
        never_less = np.maximum.accumulate([0.0, *reversed(rises)])[::-1]
        damage[name] = dict(zip(own, np.interp(own, some[name], never_less).tolist(), strict=True))
    return damage
