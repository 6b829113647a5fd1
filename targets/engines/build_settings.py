"""How an engine is built: what to ask of TensorRT, and the sizes that the engine must take.

A free dimension needs three sizes: the smallest, the one the kernels are chosen for, and the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Mapping, Optional, Tuple

from ..errors import ModelError, TargetError

Shape = Tuple[int, ...]
Profile = Tuple[Shape, Shape, Shape]


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built. Shapes hold the batch: (smallest, usual, largest)."""

    flavour: str = "tensorrt"
    """`tensorrt`, or `tensorrt_rtx`: for RTX and GB10 GPUs, not for a Jetson."""
    batch: Tuple[int, int, int] = (1, 1, 1)
    """For inputs whose first dimension alone is free."""
    shapes: Mapping[str, Profile] = field(default_factory=dict)
    """Whole shapes of inputs with other free dimensions, by name."""
    workspace_bytes: Optional[int] = None
    """Scratch memory of any one layer; None: half of what is free."""
    optimization_level: Optional[int] = None
    fp16: bool = True
    """TensorRT 8 and DLA only: what is not quantized may run in FP16. Elsewhere the file says that."""
    sparse: bool = False
    """Lets 2:4 sparse weights use the kernels for them."""
    dla_core: Optional[int] = None
    max_gpu_fallbacks: Optional[int] = None
    """How many layers DLA may hand back to the GPU."""
    version_compatible: bool = False
    hardware_compatibility: str = ""
    """Name of a level, as in `ampere_plus`; empty: this GPU alone."""
    compute_capability: str = ""
    """TensorRT-RTX only: the GPU to build for, as in `8.9`; empty: any that it knows."""

    def __post_init__(self) -> None:
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise TargetError(
                f"The batch sizes {low}, {usual}, {high} are not smallest, usual and largest.",
                "Give three rising numbers of 1 or more, such as --batch 1,8,16.",
            )
        if self.max_gpu_fallbacks is not None and self.dla_core is None:
            raise TargetError(
                "A budget for layers that fall back to the GPU was given, but no DLA core.",
                "Give --dla-core as well, or leave --max-gpu-fallbacks away.",
            )


def profiles_for(
    shapes: Mapping[str, Shape],
    *,
    batch: Tuple[int, int, int],
    given: Mapping[str, Profile],
    model: str,
) -> Dict[str, Profile]:
    """A profile for every input that has one; -1 in `shapes` is a free dimension.

    A free first dimension is the batch. Whatever else is free must be `given`.

    Raises:
        ModelError: a size is missing, does not fit the input, or was given for an input that is not there.
    """
    wrong = [f"'{name}' is not an input" for name in given if name not in shapes]
    made: Dict[str, Profile] = {}
    for name, shape in shapes.items():
        if name in given:
            profile = given[name]
            if not _fits(shape, profile):
                wrong.append(f"'{name}' has the shape {_words(shape)}, which {_told(profile)} do not fit")
        elif -1 not in shape:
            if batch != (1, 1, 1) and shape and batch != (shape[0],) * 3:
                wrong.append(f"'{name}' has the fixed shape {_words(shape)}, so its batch cannot be {batch}")
            continue
        elif -1 in shape[1:]:
            wrong.append(f"'{name}' has the shape {_words(shape)}: more than its batch is free")
            continue
        else:
            low, usual, high = ((size, *shape[1:]) for size in batch)
            profile = (low, usual, high)
        made[name] = profile
    if wrong:
        raise ModelError(
            f"{model} cannot be built for these sizes: {'; '.join(wrong)}.",
            "Give smallest, usual and largest shape: --shapes NAME=1x3x224x224,8x3x224x224,16x3x224x224; "
            "--batch alone serves inputs whose batch is all that is free.",
        )
    return made


def _fits(shape: Shape, profile: Profile) -> bool:
    rising = all(1 <= low <= usual <= high for low, usual, high in zip(profile[0], profile[1], profile[2]))
    return rising and all(
        len(each) == len(shape) and all(size in (-1, got) for size, got in zip(shape, each))
        for each in profile
    )


def _words(shape: Shape) -> str:
    return "[" + ", ".join("?" if size == -1 else str(size) for size in shape) + "]"


def _told(profile: Profile) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in profile)
