"""JSON exchange of layer times: measured on a board, judged on a workstation.

All samples are sent, not statistics, so that a board's layers are judged and explained exactly as those of
this machine. Disturbed measurements are void here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

import numpy as np

from ..errors import MeasurementError
from ..machine.probe import conditions, voided
from ..plain import plain
from ..progress import Counted
from ..runtimes.runtime import runtime_named
from .layers import Layer
from .measurement import Protocol

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

Layers = Dict[str, Dict[str, Layer]]
"""By model and layer."""


def profile_layers(
    models: Mapping[str, Path],
    *,
    protocol: Protocol,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Dict[str, Any]:
    """Times the layers of ONNX files interleaved here; plain values for JSON, and why they are void."""
    time_layers = runtime_named(protocol.runtime).time_layers
    if time_layers is None:
        raise MeasurementError(
            "Layers are timed here through ONNX Runtime's profile, and these models are engines.",
            "Run deadweight profile --layers on the board itself.",
        )
    facts = conditions()
    timed = time_layers(models, protocol=protocol, inputs=inputs, progress=progress)
    facts["state_after"] = conditions()["state"]
    values = {
        name: [plain({**vars(layer), "times_s": layer.times_s.tolist()}) for layer in layers.values()]
        for name, layers in timed.items()
    }
    return {"void": list(voided(facts)), "layers": values}


def read_layers(answer: Mapping[str, Any]) -> Tuple[Layers, Tuple[str, ...]]:
    """Reads the answer of `profile_layers`: the layers, and why their times are void."""
    layers = {
        name: {one["name"]: _layer_of(one) for one in several} for name, several in answer["layers"].items()
    }
    return layers, tuple(answer["void"])


def _layer_of(answer: Mapping[str, Any]) -> Layer:
    fields = dict(answer)
    times, weight, kernels = fields.pop("times_s"), fields.pop("weight"), fields.pop("kernels")
    return Layer(times_s=np.array(times, np.float64), weight=tuple(weight), kernels=tuple(kernels), **fields)
