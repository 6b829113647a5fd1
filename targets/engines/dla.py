"""Engines for DLA: the core, and a budget for layers that fall back, held before and after the build.

What DLA refuses runs on the GPU, and each change between the two costs a copy into another format: a network
with a handful of such layers is slower than the same one on the GPU alone, and nothing but the log says so.
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
    """Asks for DLA with the GPU behind it; returns the layers that DLA says it cannot run.

    Raises:
        TargetError: there is no such core.
        FallbackError: more layers than the budget are refused.
    """
    if settings.dla_core is None or settings.dla_core >= builder.num_DLA_cores:
        raise TargetError(
            f"DLA core {settings.dla_core} was asked for; TensorRT {trt.__version__} sees "
            f"{builder.num_DLA_cores} here.",
            "Leave --dla-core away. Orin Nano and Thor have no DLA; TensorRT 10.8 to 11.3 cannot use Orin's.",
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
    """Holds the budget once more: fusion and formats move further layers than DLA refuses by itself.

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
        f"{len(layers)} layers of {model.name} {what}, and {limit} may: {', '.join(layers[:5])}{more}.",
        "Every change between DLA and GPU costs a copy. Replace these layers (deadweight lint names the "
        "rules), raise --max-gpu-fallbacks, or build for the GPU.",
    )
