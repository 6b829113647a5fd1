"""The build of an engine on its machine, from an ONNX file, with explicit Q/DQ for INT8.

One path serves TensorRT 8.5 to 11 and TensorRT-RTX. Precisions are set by flags or by the file's types, as
`build_settings.typing_of` says for each version. Features of a version are looked up by name, because the
values of its enums differ between versions. A builder that fails returns None and logs the reason, which
becomes the error.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ..artifact import writing
from ..errors import ModelError, TargetError
from ..memory_fit import Fit, Footprint
from ..onnx_file import read_nodes
from ..target import Target
from .build_settings import BuildSettings, Profile, profiles_for, typing_of
from .dla import check_fallbacks, put_on_dla
from .log import Line, cause, heard, import_tensorrt, is_simulated, read_log, reason
from .machine import check_target, device_facts, fit_for, room_for
from .record import Built, made_of, written
from .trtexec import build_by_trtexec, find_trtexec

_DEFAULT = BuildSettings()


def build_engine(
    model: Union[str, Path],
    plan: Union[str, Path],
    *,
    settings: BuildSettings = _DEFAULT,
    target: Optional[Target] = None,
    timing_folder: Optional[Path] = None,
    cuda: Optional[str] = None,
    need: Optional[Footprint] = None,
    root: Path = Path("/"),
) -> Built:
    """Builds `model` (ONNX) for this machine and writes the plan, its record and its log, all or none.

    Kernel timings are cached in `timing_folder` by version and GPU: two builds of one file choose different
    kernels where timings are close, so two engines to be compared should use the same timings. `need` is the
    model's memory, computed from its file (export/memory/footprint.py): with it a model that cannot fit is
    refused, and the workspace is capped.

    Raises:
        ModelError: the file is missing, TensorRT refuses it, or too many layers fall back.
        TargetError: no TensorRT, no GPU, too little memory, or a setting unknown to this TensorRT.
    """
    model, plan = Path(model), Path(plan)
    if not model.is_file():
        raise ModelError(f"There is no model at {model}.", "Check the path.")
    try:
        trt = import_tensorrt(settings.flavour)
    except TargetError:
        program = find_trtexec() if settings.flavour == "tensorrt" else None
        if program is None:
            raise
        return build_by_trtexec(program, model, plan, settings=settings, target=target, root=root)
    device = device_facts(cuda)
    check_target(trt, target, device, settings, root=root)
    strong, creation, precisions = _typing(trt, settings, model)
    free = room_for(model, target, root)
    fitted = fit_for(trt, need, free, settings)
    cache_path = _timing_path(trt, settings.flavour, device, timing_folder)
    started = perf_counter()
    with heard(trt) as (logger, lines):
        builder = _builder(trt, logger, lines)
        network = builder.create_network(creation)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(model)):
            raise _unparsed(parser, model, trt.__version__, lines)
        config = builder.create_builder_config()
        limits = _limits(trt, config, settings, free, fitted)
        names = _flags(trt, config, settings)
        names += _precisions(trt, config, precisions)
        profiles = _profiles(builder, network, config, settings, model)
        refused = (
            [] if settings.dla_core is None else put_on_dla(trt, builder, network, config, settings, model)
        )
        cache_used = _give_cache(config, cache_path)
        before = len(lines)
        plan_bytes = builder.build_serialized_network(network, config)
        if plan_bytes is None:
            raise _unbuilt(model, trt.__version__, lines[before:], free)
        findings = read_log(lines)
        check_fallbacks(findings, settings, model)
        _keep_cache(config, cache_path)
    with writing(plan) as beside:
        beside.write_bytes(plan_bytes)
    record = {
        **made_of(model, plan, settings, target=target, root=root, simulated=is_simulated(lines)),
        "tensorrt": {"flavour": settings.flavour, "version": trt.__version__, "strongly_typed": strong},
        "device": device,
        "flags": names,
        "limits": limits,
        "fit": None if fitted is None else fitted.to_json(),
        "profiles": {name: list(map(list, shapes)) for name, shapes in profiles.items()},
        "refused_by_dla": refused,
        "timing_cache": {"file": None if cache_path is None else str(cache_path), "used": cache_used},
        "build_s": round(perf_counter() - started, 3),
        "findings": findings.to_json(),
    }
    return written(plan, record, findings, lines)


def _builder(trt: Any, logger: Any, lines: Sequence[Line]) -> Any:
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        # The bindings only say that a factory returned nothing; the log has the reason.
        raise TargetError(
            f"TensorRT {trt.__version__} does not start here: {reason(lines)}.",
            "Run `deadweight doctor`. In a container, start it with --runtime nvidia; elsewhere check the "
            "driver with nvidia-smi.",
        ) from error


def _typing(trt: Any, settings: BuildSettings, model: Path) -> Tuple[bool, int, List[str]]:
    """Whether the network is strongly typed, its creation flags, and the builder's flags of precision."""
    creation, flags = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    strong, names = typing_of(
        read_nodes(model),
        settings,
        name=model.name,
        strong=hasattr(creation, "STRONGLY_TYPED"),
        weak=hasattr(flags, "FP16"),
        bf16=hasattr(flags, "BF16"),
    )
    if strong and hasattr(creation, "STRONGLY_TYPED"):
        return True, 1 << int(creation.STRONGLY_TYPED), names
    if hasattr(creation, "EXPLICIT_BATCH"):
        return False, 1 << int(creation.EXPLICIT_BATCH), names
    return False, 0, names


def _limits(
    trt: Any, config: Any, settings: BuildSettings, free: Optional[int], fitted: Optional[Fit]
) -> Dict[str, int]:
    """Caps the memory of one layer and of the trial of a kernel, since the system needs memory too."""
    limits: Dict[str, int] = {}
    workspace = settings.workspace_bytes or (None if free is None else free // 2)
    if fitted is not None:
        workspace = fitted.workspace_bytes
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        limits["workspace_bytes"] = workspace
    if free is not None and hasattr(trt.MemoryPoolType, "TACTIC_DRAM"):
        # Anything but a power of two is refused, and only the log says so.
        tactic = 1 << ((free // 4 * 3).bit_length() - 1)
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, tactic)
        limits["tactic_bytes"] = tactic
    return limits


def _flags(trt: Any, config: Any, settings: BuildSettings) -> List[str]:
    """Sets the requested options; returns the names of the flags that are on."""
    names: List[str] = []
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        names.append("SPARSE_WEIGHTS")
    if settings.version_compatible:
        if not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
            raise _unknown(trt, "version-compatible engines", "--version-compatible")
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        names.append("VERSION_COMPATIBLE")
    if settings.optimization_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise _unknown(trt, "optimization levels", "--optimization-level")
        config.builder_optimization_level = settings.optimization_level
    if settings.hardware_compatibility:
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        level = getattr(levels, settings.hardware_compatibility.upper(), None)
        if level is None:
            raise _unknown(trt, f"level '{settings.hardware_compatibility}'", "--hardware-compatibility")
        config.hardware_compatibility_level = level
    if settings.compute_capability:
        known = getattr(trt, "ComputeCapability", None)
        capability = getattr(known, "SM" + settings.compute_capability.replace(".", ""), None)
        if capability is None or not hasattr(config, "num_compute_capabilities"):
            raise _unknown(trt, f"GPU of capability {settings.compute_capability}", "--compute-capability")
        config.num_compute_capabilities = 1
        if hasattr(config, "set_compute_capability"):
            config.set_compute_capability(capability, 0)
    return names


def _unknown(trt: Any, what: str, option: str) -> TargetError:
    return TargetError(
        f"TensorRT {trt.__version__} ({trt.__name__}) has no {what}.", f"Omit {option}, or change it."
    )


def _precisions(trt: Any, config: Any, names: Sequence[str]) -> List[str]:
    """Sets the flags of precision; returns their names."""
    if hasattr(trt.BuilderFlag, "INT8") and "INT8" in names:
        config.set_flag(trt.BuilderFlag.INT8)
    if hasattr(trt.BuilderFlag, "FP16") and "FP16" in names:
        config.set_flag(trt.BuilderFlag.FP16)
    if hasattr(trt.BuilderFlag, "BF16") and "BF16" in names:
        config.set_flag(trt.BuilderFlag.BF16)
    return list(names)


def _profiles(
    builder: Any, network: Any, config: Any, settings: BuildSettings, model: Path
) -> Dict[str, Profile]:
    """Adds one profile for all inputs with dynamic dimensions."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    profiles = profiles_for(shapes, batch=settings.batch, given=settings.shapes, model=model.name)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in profiles.items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
    return profiles


def _timing_path(
    trt: Any, flavour: str, device: Optional[Mapping[str, Any]], folder: Optional[Path]
) -> Optional[Path]:
    """The cache file of kernel timings for this TensorRT on this GPU; None where the GPU is unknown."""
    if device is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    at = folder or Path(home) / "deadweight" / "timing"
    kind = f"sm{device['compute_capability'].replace('.', '')}x{device['streaming_multiprocessors']}"
    return at / f"{flavour}-{trt.__version__}-{kind}.cache"


def _give_cache(config: Any, path: Optional[Path]) -> bool:
    """Loads the cached timings; whether there were any that this builder accepts."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None and stored:  # damaged, or of another board: start empty
        stored, cache = b"", config.create_timing_cache(b"")
    return bool(cache is not None and config.set_timing_cache(cache, False) and stored)


def _keep_cache(config: Any, path: Optional[Path]) -> None:
    """Writes the timings, including those of this build."""
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    with writing(path) as beside:
        beside.write_bytes(cache.serialize())


def _unparsed(parser: Any, model: Path, version: str, lines: Sequence[Line]) -> ModelError:
    """The parser's first five errors, each with its node."""
    errors = []
    for index in range(min(parser.num_errors, 5)):
        objection = parser.get_error(index)
        where = f"node {objection.node()}"
        if hasattr(objection, "node_operator") and objection.node_operator():
            where += f", {objection.node_operator()}"
        if hasattr(objection, "node_name") and objection.node_name():
            where += f" '{objection.node_name()}'"
        errors.append(f"{where}: {' '.join(objection.desc().split())[:300]}")
    # TensorRT 8 names the operator only in its log.
    errors += [text for severity, text in lines if severity == "error" and "While parsing node" in text][:1]
    return ModelError(
        f"TensorRT {version} cannot read {model.name}: {'; '.join(errors) or reason(lines)}.",
        f"See which operators it supports and what to use instead: deadweight lint {model} --target NAME.",
    )


def _unbuilt(model: Path, version: str, lines: Sequence[Line], free: Optional[int]) -> ModelError:
    """The reason why the builder returned None, with the cure for that kind of reason."""
    room = "" if free is None else f" ({free / 1e6:.0f} MB were free)"
    cures = {
        "memory": f"Free some memory{room}, set a smaller --workspace-bytes, or a smaller largest --batch.",
        "profile": "Give the sizes of the dynamic dimensions: --batch 1,8,16 or --shapes NAME=1x3x32x32,...",
        "dla": "Build for the GPU (omit --dla-core), or replace the layers that DLA refuses.",
        "driver": "TensorRT finds no usable GPU: check the driver, or build on the board itself.",
    }
    usual = f"Check it for unsupported operators: deadweight lint {model} --target NAME."
    return ModelError(
        f"TensorRT {version} could not build {model.name}: {reason(lines)}.", cures.get(cause(lines), usual)
    )
