"""Batch-norm re-estimation: running means and variances computed again for a pruned network.

In eval mode a batch norm subtracts the mean that its input had in training. Pruning the channels before it
changes that mean, and the error accumulates layer by layer: this is a large part of the apparent cost of
one-shot pruning. A few forward passes without gradients correct it (Li et al. 2020, "EagleEye").
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ...targets.errors import users_code
from ..pruning.graphnet import GraphNet
from ..pruning.narrow import copied_module
from ..workload import Workload, example_batch, split_batches


def reestimated(model: nn.Module, workload: Workload, *, batches: int = 64, seed: int = 0) -> nn.Module:
    """A copy, in eval mode, whose running statistics are those of `batches` batches of the training split.

    A module of the user's own class gets the plain average over these batches, with all other layers in eval
    mode. The graph form has a separate graph for training, which runs in full: its statistics are the moving
    average of training. A network without running statistics is returned unchanged.
    """
    if not batches or not any(name.endswith("running_var") for name, _ in model.named_buffers()):
        return model
    copy = copied_module(model, {}).eval()
    own = [] if isinstance(copy, GraphNet) else copy.modules()
    norms = [one for one in own if isinstance(one, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    if isinstance(copy, GraphNet):
        copy.train()
    names = list(example_batch(workload))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in itertools.islice(split_batches(workload, "train", seed=seed), batches):
            with users_code("the network ran on a training batch"):
                copy(*(batch[name] for name in names))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return copy.eval()
