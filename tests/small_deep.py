"""A network of residual blocks on scikit-learn's digits, trained in a second; importable by a new process."""

from __future__ import annotations

import deep_nets
import torch
from small_cnn import Images
from torch import nn


class Deep(Images):
    """Four blocks, of which the second adds nothing: its last scale is zero."""

    def build_model(self) -> nn.Module:
        model = deep_nets.Stages()
        idle = model.layer1[1]
        assert isinstance(idle, deep_nets.Basic)
        with torch.no_grad():
            for parameter in (idle.bn2.weight, idle.bn2.bias):
                parameter.zero_()
        return model
