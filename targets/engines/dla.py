"""Engines for DLA: the core, and a budget for fallback layers, checked before and after the build.

Layers that DLA refuses run on the GPU, and each change between the two costs a copy into another format: a
network with a few such layers is slower than on the GPU alone, and only the log shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Sequence

from ..errors import ModelError, TargetError
from .build_settings import BuildSettings
from .log import Findings


class FallbackError(ModelError):
    """More layers than the budget fall back to the GPU: a broken budget, not bad input."""


def put_on_dla(
    trt: Any, builder: Any, network: Any, config: Any, settings: BuildSettings, model: Path
) -> List[str]:
    """Requests DLA with the GPU as fallback; returns the layers that DLA cannot run.

    Raises:
        TargetError: there is no such core.
        FallbackError: DLA refuses more layers than the budget.
    """
    if settings.dla_core is None or settings.dla_core >= builder.num_DLA_cores:
        raise TargetError(
            f"DLA core {settings.dla_core} was requested, but TensorRT {trt.__version__} finds "
            f"{builder.num_DLA_cores} here.",
            "Omit --dla-core. Orin Nano and Thor have no DLA; TensorRT 10.8 to 11.3 cannot use Orin's.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = settings.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    refused = [str(layer.name) for layer in layers if not config.can_run_on_DLA(layer)]
    if settings.max_gpu_fallbacks is not None and len(refused) > settings.max_gpu_fallbacks:
        raise _too_many(refused, settings.max_gpu_fallbacks, model, "cannot run on DLA")
    return refused


def check_fallbacks(findings: Findings, settings: BuildSettings, model: Path) -> None:
    """Checks the budget after the build: fusion and formats move more layers than DLA refuses.

    Raises:
        FallbackError: more layers than the budget were built for the GPU.
    """
    if settings.max_gpu_fallbacks is None:
        return
    ran = findings.gpu_layers or findings.fallbacks
    if len(ran) > settings.max_gpu_fallbacks:
        raise _too_many(ran, settings.max_gpu_fallbacks, model, "were built for the GPU")


def _too_many(layers: Sequence[str], limit: int, model: Path, what: str) -> FallbackError:
    more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
    return FallbackError(
        f"{len(layers)} layers of {model.name} {what}, {limit} are allowed: {', '.join(layers[:5])}{more}.",
        "Every change between DLA and GPU costs a copy. Replace these layers (deadweight lint names the "
        "rules), raise --max-gpu-fallbacks, or build for the GPU.",
    )
