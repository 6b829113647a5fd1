"""Batch norms after a cut: their running means and variances are of a network that is gone.

A batch norm in use subtracts what its input was on average in training. Take channels out before it and that
average is another, and the error adds up layer by layer: a good part of what one-shot pruning seems to cost
is this. A few forward passes without gradients put it right (Li et al. 2020, "EagleEye").
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ..pruning.graphnet import GraphNet
from ..pruning.narrow import copied_module
from ..workload import Workload, example_batch, split_batches, users_code


def reestimated(model: nn.Module, workload: Workload, *, batches: int = 64, seed: int = 0) -> nn.Module:
    """A copy whose running statistics are those of so many batches of the training split; in eval mode.

    The user's own class gets the plain average over these batches, with all else as in use. The graph form
    has one graph for training and runs it whole: its statistics are the moving average that training keeps.
    A network without running statistics is returned as it is.
    """
    if not batches or not any(name.endswith("running_var") for name, _ in model.named_buffers()):
        return model
    copy = copied_module(model, {}).eval()
    norms = [one for one in copy.modules() if isinstance(one, nn.modules.batchnorm._NormBase)]
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
