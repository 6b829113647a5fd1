"""DLA: what it cannot take, its INT8 ranges, and a budget for the layers that fall back to the GPU.

Layers that DLA refuses run on the GPU, and each change between the two costs a copy into another format: a
network with a few such layers is slower than on the GPU alone, and only the log shows it. DLA has no dynamic
dimensions, and runs explicit Q/DQ only from TensorRT 11.4.1 on. Before, it takes ranges from a calibration
cache. That is text: `TRT-<version>-EntropyCalibration2`, then a line `name: hex` for each tensor, the bits of
its float32 scale (its range by 127), big-endian. DeepStream and trtexec (--calib) read the same file.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from ..errors import ModelError, TargetError, reported
from ..onnx_file import Nodes
from .build_settings import BuildSettings
from .log import Findings

_EXPLICIT = (11, 4, 1)


class FallbackError(ModelError):
    """More layers than the budget fall back to the GPU: a broken budget, not bad input."""


def check_dla(file: Nodes, settings: BuildSettings, *, version: str, model: Path) -> None:
    """Refuses what no build for DLA can give, before it starts."""
    if settings.dla_core is None:
        return
    low, usual, high = settings.batch
    varying = [name for name, sizes in settings.shapes.items() if len(set(sizes)) > 1]
    if low != high or varying:
        what = f"the batch {low}, {usual}, {high}" if low != high else f"'{varying[0]}'"
        raise TargetError(
            f"DLA has no dynamic dimensions, but {what} of {model.name} varies.",
            f"Give one size three times, such as --batch {usual},{usual},{usual}.",
        )
    explicit = tuple(int(part) for part in version.split(".")[:3]) >= _EXPLICIT
    if settings.calibration_cache and explicit:
        raise ModelError(
            f"TensorRT {version} has no calibration caches.", "Build the Q/DQ file: omit --calibration-cache."
        )
    if file.quantized and not explicit:
        raise ModelError(
            f"{model.name} has Q/DQ pairs, which DLA cannot run before TensorRT 11.4.1 (here: {version}).",
            "Give the float file and its ranges: deadweight quantize FLOAT.onnx --data SAMPLES "
            "--calibration-cache writes them, and deadweight build FLOAT.onnx --dla-core "
            f"{settings.dla_core} --calibration-cache FILE takes them.",
        )
    if settings.precision == "fp32" and not explicit:
        raise TargetError("DLA runs FP16 and INT8 only.", "Give --precision fp16.")


def check_core(trt: Any, builder: Any, core: int) -> None:
    """Checks that this TensorRT finds the core."""
    if core >= builder.num_DLA_cores:
        raise TargetError(
            f"DLA core {core} was requested, but TensorRT {trt.__version__} finds {builder.num_DLA_cores} "
            "here.",
            "Omit --dla-core. Orin Nano and Thor have no DLA; TensorRT 10.8 to 11.3 cannot use Orin's.",
        )


def put_on_dla(
    trt: Any, network: Any, config: Any, settings: BuildSettings, model: Path
) -> Tuple[List[str], List[str]]:
    """Requests DLA, with the GPU as fallback for an engine; the layers that DLA cannot run, and the flags.

    Raises:
        FallbackError: DLA refuses more layers than the budget.
        ModelError: DLA refuses a layer of a loadable, which has no GPU.
    """
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = settings.dla_core
    if settings.standalone:
        config.engine_capability = trt.EngineCapability.DLA_STANDALONE
        config.set_flag(trt.BuilderFlag.DIRECT_IO)  # a reformat of inputs and outputs would need the GPU
    else:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    refused = [str(layer.name) for layer in layers if not config.can_run_on_DLA(layer)]
    if refused and settings.standalone:
        raise ModelError(
            f"DLA cannot run {_listed(refused)} of {model.name}, and a loadable has no GPU.",
            "Replace these layers (deadweight lint names the rules), or omit --standalone.",
        )
    if settings.max_gpu_fallbacks is not None and len(refused) > settings.max_gpu_fallbacks:
        raise _too_many(refused, settings.max_gpu_fallbacks, model, "cannot run on DLA")
    return refused, ["DIRECT_IO" if settings.standalone else "GPU_FALLBACK"]


def set_formats(trt: Any, network: Any, *, strong: bool) -> Dict[str, str]:
    """Gives inputs and outputs of a loadable DLA's own formats; returns type and format by name.

    In a strongly typed network the file determines the types; otherwise they become FP16.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    formats: Dict[str, str] = {}
    for tensor in tensors:
        if not strong and hasattr(tensor, "dtype"):
            tensor.dtype = trt.DataType.HALF
        int8 = tensor.dtype == trt.DataType.INT8
        layout = trt.TensorFormat.CHW32 if int8 else trt.TensorFormat.CHW16
        tensor.allowed_formats = 1 << int(layout)
        formats[str(tensor.name)] = "int8:chw32" if int8 else "fp16:chw16"
    return formats


def check_fallbacks(findings: Findings, settings: BuildSettings, model: Path) -> None:
    """Checks the budget after the build: fusion and formats move more layers than DLA refuses."""
    if settings.max_gpu_fallbacks is None:
        return
    ran = findings.gpu_layers or findings.fallbacks
    if len(ran) > settings.max_gpu_fallbacks:
        raise _too_many(ran, settings.max_gpu_fallbacks, model, "were built for the GPU")


def _listed(layers: Sequence[str]) -> str:
    return ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")


def _too_many(layers: Sequence[str], limit: int, model: Path, what: str) -> FallbackError:
    return FallbackError(
        f"{len(layers)} layers of {model.name} {what}, {limit} are allowed: {_listed(layers)}.",
        "Every change between DLA and GPU costs a copy. Replace these layers (deadweight lint names the "
        "rules), raise --max-gpu-fallbacks, or build for the GPU.",
    )


_CURE = "Make it again: deadweight quantize MODEL.onnx --data SAMPLES --calibration-cache."


def read_ranges(path: Path) -> Dict[str, float]:
    """The scales by tensor."""
    unreadable = f"{path} cannot be read as a calibration cache"
    with reported(ModelError, unreadable, "Check it.", OSError, UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not re.fullmatch(r"TRT-\d+-EntropyCalibration2", lines[0].strip()):
        first = repr(lines[0][:60] if lines else "")
        raise ModelError(
            f"{path} is not a calibration cache of IInt8EntropyCalibrator2: line 1 is {first}.", _CURE
        )
    scales: Dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, _, bits = line.rpartition(":")
        try:
            scale = struct.unpack(">f", bytes.fromhex(bits.strip().zfill(8)))[0]
        except (ValueError, struct.error):
            scale = math.nan
        if not name or not 0 <= scale < math.inf:
            raise ModelError(f"{path} has no name and scale on line {number}: {line[:60]!r}.", _CURE)
        scales[name] = scale
    if not scales:
        raise ModelError(f"{path} has no ranges.", _CURE)
    return scales


def calibrator(trt: Any, data: bytes) -> Any:
    """A calibrator that gives TensorRT this cache, and no samples."""
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise TargetError(
            f"TensorRT {trt.__version__} has no calibration caches.", "Build the Q/DQ file, without a cache."
        )
    base = trt.IInt8EntropyCalibrator2

    class FromCache(base):  # type: ignore[misc, valid-type, unused-ignore]
        """Only reads; TensorRT asks for a batch only where a range is missing."""

        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return data

        def write_calibration_cache(self, cache: Any) -> None:
            return None

    return FromCache()
