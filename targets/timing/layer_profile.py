"""The times of layers, taken on a board and judged on a workstation: what travels in between.

All samples travel, not figures made of them, so that a board's layers are judged, and their reasons looked
for, exactly as those of this machine. What was disturbed is void here too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

import numpy as np

from ..errors import MeasurementError
from ..machine.probe import conditions, voided
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
    """The layers of ONNX files, timed by turns here, as plain values for JSON; and why they are void.

    Raises:
        MeasurementError: the models are engines; else as `time_layers`.
    """
    time_layers = runtime_named(protocol.runtime).time_layers
    if time_layers is None:
        raise MeasurementError(
            "Layers are timed here through ONNX Runtime's profile, and these models are engines.",
            "Run deadweight profile --layers on the board itself.",
        )
    told = conditions()
    timed = time_layers(models, protocol=protocol, inputs=inputs, progress=progress)
    told["state_after"] = conditions()["state"]
    return {
        "void": list(voided(told)),
        "layers": {name: [_plain(layer) for layer in layers.values()] for name, layers in timed.items()},
    }


def read_layers(told: Mapping[str, Any]) -> Tuple[Layers, Tuple[str, ...]]:
    """What `profile_layers` told, as the layers themselves; and why their times are void.

    Raises:
        MeasurementError: it is something else.
    """
    try:
        layers = {name: {one["name"]: _layer(one) for one in told["layers"][name]} for name in told["layers"]}
        return layers, tuple(map(str, told["void"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MeasurementError(
            f"The board's answer holds no layers: {error!r}.", "Use the same version on both sides."
        ) from error


def _plain(layer: Layer) -> Dict[str, Any]:
    return {**asdict(layer), "times_s": layer.times_s.tolist()}


def _layer(told: Mapping[str, Any]) -> Layer:
    given = dict(told)
    times, weight, kernels = given.pop("times_s"), given.pop("weight"), given.pop("kernels")
    return Layer(times_s=np.array(times, np.float64), weight=tuple(weight), kernels=tuple(kernels), **given)
