"""The build of an engine on its machine, from an ONNX file, with explicit Q/DQ for INT8.

One path serves TensorRT 8.5 to 11 and TensorRT-RTX. Precisions are set by flags or by the file's types, as
`build_settings.typing_of` says for each version. Features of a version are looked up by name, because the
values of its enums differ between versions. A builder that fails returns None and logs the reason, which
becomes the error.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ..artifact import sha256_of, write_json, write_text, writing
from ..errors import ModelError, TargetError
from ..machine.board_facts import device_facts, find_trtexec
from ..machine.jetson import read_state
from ..memory_fit import Footprint
from ..onnx_file import read_nodes
from ..plain import plain
from ..target import Target
from .build_settings import BuildSettings, Made, Prepared, Profile, profiles_for, typing_of
from .dla import calibrator, check_core, check_dla, check_fallbacks, put_on_dla, read_ranges, set_formats
from .log import Findings, Line, cause, heard, import_tensorrt, is_simulated, read_log, reason
from .machine import check_target, fit_for, limits_for, room_for
from .plugins import load_plugins
from .record import SCHEMA, command_for, platform_facts, record_path
from .trtexec import build_by_trtexec, version_of

_DEFAULT = BuildSettings()


@dataclass(frozen=True)
class Built:
    """A plan, its record (see docs/engines.md) and what the log of its build says."""

    plan: Path
    record: Mapping[str, Any]
    findings: Findings


def builder_here(flavour: str) -> Tuple[Any, str]:
    """What builds here, and its version: the module of Python's bindings, else the path of trtexec."""
    try:
        trt = import_tensorrt(flavour)
        return trt, str(trt.__version__)
    except TargetError:
        program = find_trtexec() if flavour == "tensorrt" else None
        if program is None:
            raise
        return program, version_of(program)


def build_engine(
    model: Union[str, Path],
    plan: Union[str, Path],
    *,
    settings: BuildSettings = _DEFAULT,
    target: Optional[Target] = None,
    timing_folder: Optional[Path] = None,
    need: Optional[Footprint] = None,
    root: Path = Path("/"),
) -> Built:
    """Builds `model` (ONNX) for this machine and writes the plan, its record and its log, all or none.

    Kernel timings are cached in `timing_folder` by version, GPU and power mode: two builds of one file choose
    different kernels where timings are close, so two engines to be compared should use the same timings, and
    the same limits: set `workspace_bytes`. `need` is the model's memory, computed from its file
    (export/memory/footprint.py): with it a model that cannot fit is refused, and the workspace is capped.

    Raises:
        ModelError: the file is missing, TensorRT refuses it, or too many layers fall back.
        TargetError: no TensorRT, no GPU, too little memory, or a setting unknown to this TensorRT.
    """
    model, plan = Path(model), Path(plan)
    if not model.is_file():
        raise ModelError(f"There is no model at {model}.", "Check the path.")
    builder, version = builder_here(settings.flavour)
    device = device_facts()
    check_target(builder, target, device, settings, version=version, root=root)
    file = read_nodes(model)
    check_dla(file, settings, version=version, model=model)
    if settings.calibration_cache:
        read_ranges(Path(settings.calibration_cache))
    free = room_for(model, target, root)
    fitted = fit_for(version, need, free, settings)
    limits = limits_for(settings, free, fitted)
    timings = cache_path(version, settings.flavour, device, timing_folder, root)
    started = perf_counter()
    prepared = Prepared(model, settings, file, version, limits, timings, free)
    by = build_by_trtexec if isinstance(builder, Path) else _build_by_bindings
    with writing(plan) as beside:
        made = by(builder, prepared, beside)
        findings = read_log(made.lines)
        check_fallbacks(findings, settings, model)
    ranges, (used, why) = settings.calibration_cache, made.timing
    name = None if target is None else target.name
    record = {
        "schema": SCHEMA,
        "kind": "engine",
        "plan": {"file": plan.name, "bytes": plan.stat().st_size, "sha256": sha256_of(plan)},
        "model": {"file": str(model), "bytes": model.stat().st_size, "sha256": sha256_of(model)},
        "inputs": [[end.name, end.dtype, list(end.shape)] for end in file.inputs],
        "outputs": [[end.name, end.dtype, list(end.shape)] for end in file.outputs],
        "types": {"int8": file.quantized, "half": file.half},
        "evidence": "simulated" if is_simulated(made.lines) else "measured",
        "platform": platform_facts(root),
        "target": name,
        "settings": asdict(settings),
        "rebuild": command_for(model, plan, asdict(settings), name),
        "tensorrt": {"flavour": settings.flavour, "version": version, "strongly_typed": made.strong},
        "device": device,
        "flags": made.flags,
        "limits": limits,
        "fit": plain(fitted),
        "profiles": {name: list(map(list, shapes)) for name, shapes in made.profiles.items()},
        "calibration_cache": {"file": ranges, "sha256": sha256_of(Path(ranges))} if ranges else None,
        "timing_cache": {"file": None if timings is None else str(timings), "used": used, "why": why},
        "build_s": round(perf_counter() - started, 3),
        "findings": plain(findings),
        **made.more,
    }
    write_text(Path(f"{plan}.log"), "".join(f"[{severity}] {text}\n" for severity, text in made.lines))
    write_json(record_path(plan), record)
    return Built(plan, record, findings)


def _build_by_bindings(trt: Any, prepared: Prepared, plan: Path) -> Made:
    model, settings = prepared.model, prepared.settings
    strong, creation, names = _typing(trt, prepared)
    refused: List[str] = []
    formats: Dict[str, str] = {}
    with heard(trt) as (logger, lines):
        builder = _builder(trt, logger, lines)
        plugins = load_plugins(settings.plugins)
        network = builder.create_network(creation)
        config = builder.create_builder_config()
        parser = trt.OnnxParser(network, logger)
        if settings.dla_core is not None:
            check_core(trt, builder, settings.dla_core)
            _parse_for_dla(trt, parser, config)
        if not parser.parse_from_file(str(model)):
            raise _unparsed(parser, model, trt.__version__, lines)
        if prepared.limits:
            workspace = prepared.limits["workspace_bytes"]
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        _set_precisions(trt, config, names)
        names = _flags(trt, config, settings) + names
        profiles = _profiles(builder, network, config, settings, model)
        if settings.dla_core is not None:
            refused, added = put_on_dla(trt, network, config, settings, model)
            names += added
        if settings.standalone:
            formats = set_formats(trt, network, strong=strong)
        if settings.calibration_cache and hasattr(trt.IBuilderConfig, "int8_calibrator"):
            config.int8_calibrator = calibrator(trt, Path(settings.calibration_cache).read_bytes())
        timing = give_cache(config, prepared.timings, lines)
        before = len(lines)
        plan_bytes = builder.build_serialized_network(network, config)
        if plan_bytes is None:
            raise _unbuilt(model, trt.__version__, lines[before:], prepared.free)
        keep_cache(config, prepared.timings)
    plan.write_bytes(plan_bytes)
    more = {"refused_by_dla": refused, "io_formats": formats, "plugins": plugins}
    return Made(strong, names, profiles, timing, lines, more)


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


def _typing(trt: Any, prepared: Prepared) -> Tuple[bool, int, List[str]]:
    """Whether the network is strongly typed, its creation flags, and the builder's flags of precision."""
    creation, flags = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    strong, names = typing_of(
        prepared.file,
        prepared.settings,
        name=prepared.model.name,
        strong=hasattr(creation, "STRONGLY_TYPED"),
        weak=hasattr(flags, "FP16"),
        bf16=hasattr(flags, "BF16"),
    )
    if strong and hasattr(creation, "STRONGLY_TYPED"):
        return True, 1 << int(creation.STRONGLY_TYPED), names
    if hasattr(creation, "EXPLICIT_BATCH"):
        return False, 1 << int(creation.EXPLICIT_BATCH), names
    return False, 0, names


def _parse_for_dla(trt: Any, parser: Any, config: Any) -> None:
    """From TensorRT 10.16 on, the parser adapts a network to DLA and reports what DLA cannot run."""
    if not hasattr(trt.OnnxParser, "set_builder_config"):
        return
    parser.set_builder_config(config)
    if hasattr(trt.OnnxParserFlag, "ADJUST_FOR_DLA"):
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    if hasattr(trt.OnnxParserFlag, "REPORT_CAPABILITY_DLA"):
        parser.set_flag(trt.OnnxParserFlag.REPORT_CAPABILITY_DLA)


def _flags(trt: Any, config: Any, settings: BuildSettings) -> List[str]:
    """Sets the requested options; returns the names of the flags that are on."""
    names: List[str] = []
    verbosity = trt.ProfilingVerbosity
    config.profiling_verbosity = verbosity.NONE if settings.hide_layers else verbosity.DETAILED
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


def _set_precisions(trt: Any, config: Any, names: Sequence[str]) -> None:
    if hasattr(trt.BuilderFlag, "INT8") and "INT8" in names:
        config.set_flag(trt.BuilderFlag.INT8)
    if hasattr(trt.BuilderFlag, "FP16") and "FP16" in names:
        config.set_flag(trt.BuilderFlag.FP16)
    if hasattr(trt.BuilderFlag, "BF16") and "BF16" in names:
        config.set_flag(trt.BuilderFlag.BF16)


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
        _cure([*lines, *(("error", text) for text in errors)], model),
    )


def _cure(lines: Sequence[Line], model: Path, room: str = "") -> str:
    """The cure for the kind of reason that the log has."""
    lint = f"deadweight lint {model.name} --target NAME"
    cures = {
        "types": "In a strongly typed network a node's inputs have one type: add a Cast before the node, or "
        "make the file from its float original again (deadweight build --precision, quantize --half).",
        "plugin": f"If the operator is your own, give its library: --plugin LIB.so. Otherwise: {lint}.",
        "memory": f"Free some memory{room}, set a smaller --workspace-bytes, or a smaller largest --batch.",
        "profile": "Give the sizes of the dynamic dimensions: --batch 1,8,16 or --shapes NAME=1x3x32x32,...",
        "dla": "Build for the GPU (omit --dla-core), or replace the layers that DLA refuses.",
        "driver": "TensorRT finds no usable GPU: check the driver, or build on the board itself.",
    }
    return cures.get(cause(lines), f"See which operators it supports and what to use instead: {lint}.")


def _unbuilt(model: Path, version: str, lines: Sequence[Line], free: Optional[int]) -> ModelError:
    """The reason why the builder returned None, with the cure for that kind of reason."""
    room = "" if free is None else f" ({free / 1e6:.0f} MB were free)"
    return ModelError(
        f"TensorRT {version} could not build {model.name}: {reason(lines)}.", _cure(lines, model, room)
    )


def cache_path(
    version: str, flavour: str, device: Optional[Mapping[str, Any]], folder: Optional[Path], root: Path
) -> Optional[Path]:
    """The file of kernel timings for this TensorRT, GPU and power mode; None where the GPU is unknown.

    Two builds choose from equal timings only if they share it.
    """
    if device is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    at = folder or Path(home) / "deadweight" / "timing"
    kind = f"sm{device['compute_capability'].replace('.', '')}x{device['streaming_multiprocessors']}"
    mode = read_state(root).power_mode
    power = "" if mode is None else "-" + re.sub(r"[^\w.]", "_", mode.name or str(mode.id))
    return at / f"{flavour}-{version}-{kind}{power}.cache"


def give_cache(config: Any, path: Optional[Path], lines: List[Line]) -> Tuple[bool, str]:
    """Attaches the stored timings, or else an empty cache; whether they are used, and why not.

    TensorRT reports timings of another device only when they are set, by False. `lines` is the log that is
    being recorded.
    """
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    before = len(lines)
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, False):
        if stored:
            return True, ""
        return False, "the GPU is unknown here" if path is None else "there were none"
    # Damaged, or of another device: this build fills an empty one, which replaces the file.
    why = reason(lines[before:])
    empty = config.create_timing_cache(b"")
    if empty is None or not config.set_timing_cache(empty, False):
        why = f"TensorRT accepts no timing cache: {why}"
    return False, why


def keep_cache(config: Any, path: Optional[Path]) -> None:
    """Writes the timings, including those of this build."""
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    with writing(path) as beside:
        beside.write_bytes(cache.serialize())
