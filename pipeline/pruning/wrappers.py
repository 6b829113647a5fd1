"""The network itself, within what wraps it for several devices, a compiler or an average of weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ...targets.errors import ModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within DataParallel, DistributedDataParallel, AveragedModel or `torch.compile`.

    Raises:
        ModelError: it is TorchScript, or its parameters are spread over processes.
    """
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        cure = "Give the Python module that it was made from."
        raise ModelError("The network is a TorchScript module, which torch.export does not take.", cure)
    spread = [name for name, one in model.named_parameters() if hasattr(one, "full_tensor")]
    if spread:
        raise ModelError(
            f'"{spread[0]}" is spread over several processes (FSDP, tensor parallelism).',
            "Load the full state dict in a network that is on one device, prune it, and spread the result.",
        )
    return model
