"""The settings of an engine build: TensorRT's options, and the sizes that the engine must accept.

A dynamic dimension needs three sizes: the smallest, the one for which kernels are chosen, and the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..errors import ModelError, TargetError
from ..onnx_file import Nodes

Shape = Tuple[int, ...]
Profile = Tuple[Shape, Shape, Shape]
PRECISIONS = ("fp32", "fp16", "best")


@dataclass(frozen=True)
class BuildSettings:
    """The settings of a build. Shapes include the batch: (smallest, usual, largest)."""

    flavour: str = "tensorrt"
    """`tensorrt`, or `tensorrt_rtx`: for RTX and GB10 GPUs, not for a Jetson."""
    batch: Tuple[int, int, int] = (1, 1, 1)
    """For inputs of which only the first dimension is dynamic."""
    shapes: Mapping[str, Profile] = field(default_factory=dict)
    """Whole shapes of inputs with other dynamic dimensions, by name."""
    workspace_bytes: Optional[int] = None
    """Scratch memory of any one layer; None: half of the free memory."""
    optimization_level: Optional[int] = None
    precision: str = "fp16"
    """Of what is not quantized: `fp32` (with TF32, TensorRT's default), `fp16` or `best`; see `typing_of`."""
    sparse: bool = False
    """Allows the kernels for 2:4 sparse weights."""
    dla_core: Optional[int] = None
    max_gpu_fallbacks: Optional[int] = None
    """How many layers DLA may leave to the GPU."""
    calibration_cache: str = ""
    """DLA's INT8 ranges for a float file, before TensorRT 11.4.1; see `dla.py`."""
    standalone: bool = False
    """A loadable for cuDLA, wholly on DLA, in place of an engine."""
    plugins: Tuple[str, ...] = ()
    """The files of plugin libraries, on the machine that builds."""
    hide_layers: bool = False
    """Leaves the names of layers out of the plan."""
    version_compatible: bool = False
    hardware_compatibility: str = ""
    """Name of a level, as in `ampere_plus`; empty: only this GPU."""
    compute_capability: str = ""
    """TensorRT-RTX only: the GPU to build for, as in `8.9`; empty: any that it supports."""

    def __post_init__(self) -> None:
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise TargetError(
                f"The batch sizes {low}, {usual}, {high} are not smallest, usual and largest.",
                "Give three increasing numbers of 1 or more, such as --batch 1,8,16.",
            )
        if self.precision not in PRECISIONS:
            raise TargetError(
                f"There is no precision '{self.precision}' to build for.", f"Give {', '.join(PRECISIONS)}."
            )
        if self.max_gpu_fallbacks is not None and self.dla_core is None:
            raise TargetError(
                "A budget for layers that fall back to the GPU was given, but no DLA core.",
                "Give --dla-core too, or omit --max-gpu-fallbacks.",
            )
        if self.flavour == "tensorrt_rtx" and self.dla_core is not None:
            raise TargetError(
                "TensorRT-RTX has no DLA.", "Omit --dla-core, or build with --flavour tensorrt."
            )
        if (self.calibration_cache or self.standalone) and self.dla_core is None:
            raise TargetError(
                "A calibration cache or a standalone loadable is for DLA, but no DLA core was given.",
                "Give --dla-core too. INT8 on the GPU is in the file: deadweight quantize.",
            )


@dataclass(frozen=True)
class Prepared:
    """What is known before a build, whatever builds: the model, its nodes, TensorRT's version, limits."""

    model: Path
    settings: BuildSettings
    file: Nodes
    version: str
    limits: Mapping[str, int]
    timings: Optional[Path]
    """The file of kernel timings; None where the GPU is unknown."""
    free: Optional[int]
    """Bytes that the build can use, if known."""


@dataclass(frozen=True)
class Made:
    """What a builder says of the plan that it wrote, for the record."""

    strong: bool
    flags: Sequence[str]
    profiles: Mapping[str, Profile]
    timing: Tuple[bool, str]
    """Whether the kernel timings were used, and why not."""
    lines: Sequence[Tuple[str, str]]
    """The log, see `log.Line`."""
    more: Mapping[str, Any]
    """Further keys of the record."""


def typing_of(
    file: Nodes, settings: BuildSettings, *, name: str, strong: bool, weak: bool, bf16: bool
) -> Tuple[bool, List[str]]:
    """Whether the network is strongly typed, and the builder's flags of precision (INT8, FP16, BF16).

    Args:
        name: the file's, for the error.
        strong, weak: whether this TensorRT has strongly typed networks (from 10 on), and the flag FP16 (until
            10); bf16: whether it has that flag (10).
    """
    for_dla = weak and settings.dla_core is not None
    if file.half and not file.quantized and settings.precision == "fp32":
        raise ModelError(
            f"{name} is in FP16: it cannot be built in FP32.",
            "Give --precision fp16, or the file before it was cast.",
        )
    if not weak and not file.half and not file.quantized and settings.precision != "fp32":
        raise ModelError(
            f"{name} is in FP32, and this TensorRT has no flag for FP16: the types in the file apply.",
            "Cast it on the workstation, where onnx is installed: deadweight build MODEL --on USER@HOST does "
            "it. Or build it in FP32: --precision fp32.",
        )
    as_the_file = (
        file.quantized or settings.precision == "fp32" or (file.half and settings.precision == "fp16")
    )
    if strong and not for_dla and (as_the_file or not weak):
        return True, []
    flags = ["INT8"] if weak and (file.quantized or settings.calibration_cache) else []
    flags += ["FP16"] if weak and settings.precision != "fp32" else []
    return False, flags + (["BF16"] if bf16 and settings.precision == "best" else [])


def needs_half(file: Nodes, settings: BuildSettings, *, version: str) -> bool:
    """Whether a file must be cast to FP16 before its build, since no flag of that version does it.

    From 10 on a network with Q/DQ nodes is strongly typed, from 11 on (and in TensorRT-RTX) every network is.
    """
    major = int(version.split(".")[0]) if settings.flavour == "tensorrt" else 11
    return (
        settings.precision != "fp32"
        and not file.half
        and (major >= 11 or (file.quantized and major >= 10 and settings.dla_core is None))
    )


def profiles_for(
    shapes: Mapping[str, Shape], *, batch: Tuple[int, int, int], given: Mapping[str, Profile], model: str
) -> Dict[str, Profile]:
    """A profile for every input that needs one; -1 in `shapes` is a dynamic dimension.

    A dynamic first dimension is the batch. Inputs with other dynamic dimensions must be `given`.
    """
    faults = [f"'{name}' is not an input" for name in given if name not in shapes]
    profiles: Dict[str, Profile] = {}
    for name, shape in shapes.items():
        if name in given:
            profile = given[name]
            if not _fits(shape, profile):
                faults.append(
                    f"'{name}' has the shape {_shape_text(shape)}, which {_profile_text(profile)} do not fit"
                )
        elif -1 not in shape:
            if batch != (1, 1, 1) and shape and batch[1:] != (shape[0],) * 2:
                faults.append(
                    f"'{name}' has the fixed shape {_shape_text(shape)}, so its batch cannot be {batch}"
                )
            continue
        elif -1 in shape[1:]:
            faults.append(f"'{name}' has the shape {_shape_text(shape)}: more than its batch is dynamic")
            continue
        else:
            profile = (batch[0], *shape[1:]), (batch[1], *shape[1:]), (batch[2], *shape[1:])
        profiles[name] = profile
    if faults:
        raise ModelError(
            f"{model} cannot be built for these sizes: {'; '.join(faults)}.",
            "To time it (compare, profile, gate): --inputs FILE.npz, whose arrays have the sizes. To build "
            "it: --shapes NAME=1x3x224x224,8x3x224x224,16x3x224x224, the smallest, usual and largest. Where "
            "only the batch is dynamic: --batch.",
        )
    return profiles


def _fits(shape: Shape, profile: Profile) -> bool:
    rising = all(1 <= low <= usual <= high for low, usual, high in zip(profile[0], profile[1], profile[2]))
    return rising and all(
        len(each) == len(shape) and all(size in (-1, got) for size, got in zip(shape, each))
        for each in profile
    )


def _shape_text(shape: Shape) -> str:
    return "[" + ", ".join("?" if size == -1 else str(size) for size in shape) + "]"


def _profile_text(profile: Profile) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in profile)
