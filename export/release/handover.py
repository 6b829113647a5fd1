"""The hand-over of a bundle: the files that DeepStream, Triton or trtexec want beside its network.

A destination is a function of this file, from the facts of a bundle to files: texts, or files to copy, so
that the folder can be used as it is. Two optional files of a bundle (`--add`) say what an ONNX file cannot:

    labels.txt            one name of a class a line
    preprocessing.toml    mean, std and scale: the network's input is (pixel * scale - mean) / std

Keys are those of DeepStream's property parser (gstnvinfer_property_parser.h), of Triton's model_config.proto
and of trtexec, by docs/handover.md.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...targets.artifact import sha256_of, unfinished, write_text
from ...targets.engines.build_settings import BuildSettings, Prepared, needs_half, profiles_for
from ...targets.engines.trtexec import build_flags, shapes_flag, timing_flags
from ...targets.errors import ArtifactError, ModelError
from ...targets.onnx_file import End, Nodes, read_nodes
from ...targets.release.manifest import MANIFEST, parsed
from ...targets.target import load_target
from ..onnx_graph.camera_input import Preprocessing, read_preprocessing
from ..quantization.fp16 import write_half

MODEL, PLAN, LABELS, CACHE, PREPROCESSING = (
    "model.onnx",
    "model.plan",
    "labels.txt",
    "calibration.cache",
    "preprocessing.toml",
)
_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
_NEWEST = "10.3.0"
_MODES = {"fp32": 0, "int8": 1, "fp16": 2, "best": 2}
Files = dict[str, str | Path]
_TYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}


@dataclass(frozen=True)
class Handed:
    """What a destination is made of."""

    name: str
    model: Path
    file: Nodes
    settings: BuildSettings
    tensorrt: str
    """The version to build with; empty where the target runs ONNX files."""
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    parser: str = ""
    """A detector's own parser for DeepStream, as in `libparser.so:NvDsInferParseYolo`."""

    @property
    def classes(self) -> int | None:
        """The classes of a classifier: its one output is [batch, classes]."""
        only = self.file.outputs[0] if len(self.file.outputs) == 1 else None
        return only.shape[1] if only is not None and len(only.shape) == 2 and only.shape[1] > 0 else None

    @property
    def batched(self) -> bool:
        """Whether the first dimension of all inputs and outputs is a dynamic batch."""
        return all(end.shape[:1] == (-1,) for end in (*self.file.inputs, *self.file.outputs))


def trtexec(handed: Handed, folder: str = "") -> Files:
    """The lines that build the engine and time it; `folder` is that of model and engine, ending in /."""
    version = handed.tensorrt or _NEWEST
    shapes = {end.name: end.shape for end in handed.file.inputs}
    profiles = profiles_for(shapes, batch=handed.settings.batch, given={}, model=MODEL)
    prepared = Prepared(Path(folder + MODEL), handed.settings, handed.file, version, {}, None, None)
    build = [flag for flag in build_flags(prepared, Path(folder + PLAN), profiles) if flag != "--verbose"]
    usual = shapes_flag("shapes", {name: profile[1] for name, profile in profiles.items()})
    dla = [] if handed.settings.dla_core is None else [f"--useDLACore={handed.settings.dla_core}"]
    times = [
        f"--loadEngine={folder}{PLAN}",
        *usual,
        *dla,
        *timing_flags(version=version, graph=False, duration_s=10),
    ]
    lines = [shlex.join([_TRTEXEC, *flags]) for flags in (build, times)]
    script = "\n".join(("#!/bin/sh -e", f"# For TensorRT {version}: build, then time.", *lines, ""))
    return {folder + MODEL: handed.model, "trtexec.sh": script}


def deepstream(handed: Handed) -> Files:
    """The configuration of DeepStream's nvinfer, and the lines that build its engine."""
    ends = handed.file.inputs
    image = ends[0]
    if len(ends) != 1 or len(image.shape) != 4 or image.shape[1] not in (1, 3) or image.dtype not in _TYPES:
        shown = ", ".join(f"{end.name} {end.dtype}{list(end.shape)}" for end in ends)
        raise ModelError(
            f"DeepStream's nvinfer feeds one float image [batch, channels, height, width]; {handed.name} has "
            f"{shown}.",
            "Hand it over to Triton, which DeepStream calls by nvinferserver: --to triton",
        )
    settings, channels = handed.settings, image.shape[1]
    mode = _MODES["int8" if handed.file.quantized or settings.calibration_cache else settings.precision]
    keys: dict[str, object] = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        **_normalization(handed, channels),
        "onnx-file": MODEL,
        "model-engine-file": PLAN,
        "batch-size": max(settings.batch[2], image.shape[0]),
        "network-mode": mode,
        "infer-dims": ";".join(map(str, image.shape[1:])),
        "network-input-order": 0,
    }
    if settings.calibration_cache:
        keys["int8-calib-file"] = CACHE
    if settings.dla_core is not None:
        keys |= {"enable-dla": 1, "use-dla-core": settings.dla_core}
    more: Files = {}
    if handed.labels:
        keys["labelfile-path"] = LABELS
    if handed.parser:
        library, _, function = handed.parser.rpartition(":")
        keys |= {"network-type": 0, "num-detected-classes": len(handed.labels), "cluster-mode": 2}
        keys |= {"parse-bbox-func-name": function, "custom-lib-path": library}
    elif handed.classes:
        keys |= {"network-type": 1, "classifier-threshold": 0}
        # Of a classifier the names are one line.
        more = {LABELS: ";".join(handed.labels) + "\n"} if handed.labels else {}
    else:
        keys |= {"network-type": 100, "output-tensor-meta": 1}
    text = "".join(f"{key}={value}\n" for key, value in keys.items())
    return {"config_infer_primary.txt": f"[property]\n{text}", **trtexec(handed), **more}


def triton(handed: Handed) -> Files:
    """A model of Triton's repository, and the lines that build its engine."""
    built, core = bool(handed.tensorrt), handed.settings.dla_core
    most = handed.settings.batch[2] if handed.batched else 0
    labels = LABELS if handed.labels and handed.classes == len(handed.labels) else ""
    blocks = [_block("input", end, most) for end in handed.file.inputs]
    blocks += [_block("output", end, most, labels) for end in handed.file.outputs]
    dla = "" if core is None else f" secondary_devices [ {{ kind: KIND_NVDLA device_id: {core} }} ]"
    group = f"{{ count: 1 kind: {'KIND_GPU' if built else 'KIND_CPU'}{dla} }}"
    platform = "tensorrt_plan" if built else "onnxruntime_onnx"
    head = f'name: "{handed.name}"\nplatform: "{platform}"\nmax_batch_size: {most}\n'
    text = head + "".join(blocks) + f"instance_group [ {group} ]\n"
    files = trtexec(handed, "1/") if built else {f"1/{MODEL}": handed.model}
    return {**files, "config.pbtxt": text}


DESTINATIONS: Mapping[str, Callable[[Handed], Files]] = {
    one.__name__: one for one in (deepstream, triton, trtexec)
}


def handover(
    bundle: Path,
    place: Path,
    *,
    to: str,
    batch: int = 1,
    precision: str = "fp16",
    dla_core: int | None = None,
    parser: str = "",
) -> list[Path]:
    """Writes the files of a destination, with copies of what they name, and returns their paths.

    Raises:
        ArtifactError: there is no such destination or bundle, a file of it was changed, or `place` exists.
        ModelError: the destination cannot run such a network.
    """
    if to not in DESTINATIONS:
        raise ArtifactError(f"There is no hand-over to {to!r}.", f"Give {', '.join(DESTINATIONS)}.")
    if not (bundle / MANIFEST).is_file():
        raise ArtifactError(f"{bundle} is not a bundle.", "Make one: deadweight bundle RUN")
    if place.exists():
        raise ArtifactError(f"{place} exists already.", "Remove it, or choose another path with --out.")
    manifest = parsed((bundle / MANIFEST).read_bytes())
    for name, entry in manifest.files.items():
        if not (bundle / name).is_file() or sha256_of(bundle / name) != entry.sha256:
            raise ArtifactError(f"{name} of {bundle} is missing or was changed.", "Make the bundle again.")
    target = load_target(manifest.target)
    version = (manifest.board.tensorrt or _NEWEST) if target.runtime.builds else ""
    cache = CACHE if CACHE in manifest.files and dla_core is not None else ""
    dynamic = any(end.shape[:1] == (-1,) for end in read_nodes(bundle / MODEL).inputs)
    sizes = (1, batch, batch) if dynamic else (1, 1, 1)
    settings = BuildSettings(batch=sizes, precision=precision, dla_core=dla_core, calibration_cache=cache)
    with unfinished(place) as part:
        model = part / MODEL
        shutil.copyfile(bundle / MODEL, model)
        if version and needs_half(read_nodes(model), settings, version=version):
            write_half(bundle / MODEL, model)
        handed = Handed(
            manifest.name,
            model,
            read_nodes(model),
            settings,
            version,
            _labels(bundle / LABELS),
            read_preprocessing(given) if (given := bundle / PREPROCESSING).is_file() else None,
            parser,
        )
        named = [*([cache] if cache else []), *([LABELS] if handed.labels else [])]
        files: Files = {name: bundle / name for name in named}
        files |= DESTINATIONS[to](handed)
        for name, content in files.items():
            if isinstance(content, str):
                write_text(part / name, content)
            elif content != part / name:
                (part / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(content, part / name)
        if MODEL not in files:
            model.unlink()
        for path in sorted(part.iterdir()):
            path.rename(place / path.name)
    return sorted(path for path in place.rglob("*") if path.is_file())


def _labels(path: Path) -> tuple[str, ...]:
    return tuple(filter(None, path.read_text("utf-8").splitlines())) if path.is_file() else ()


def _normalization(handed: Handed, channels: int) -> dict[str, object]:
    """DeepStream's own: net-scale-factor * (pixel - offsets), of one factor for all channels."""
    given = handed.preprocessing
    if given is None:
        return {"net-scale-factor": 1, "model-color-format": 2 if channels == 1 else 0}
    if len(set(given.std)) > 1:
        raise ModelError(
            f"DeepStream has one scale for all channels, and {PREPROCESSING} has the std {list(given.std)}.",
            "Put the normalization into the network: deadweight camera MODEL --preprocessing FILE",
        )
    offsets = [mean / given.scale for mean in given.mean]
    offsets = offsets * channels if len(offsets) == 1 else offsets
    return {
        "net-scale-factor": f"{given.scale / given.std[0]:.12g}",
        "offsets": ";".join(f"{one:.12g}" for one in offsets),
        "model-color-format": ("rgb", "bgr", "gray").index(given.colour),
    }


def _block(side: str, end: End, most: int, labels: str = "") -> str:
    kind = _TYPES.get(end.dtype, end.dtype.upper())
    dims = ", ".join(str(size) for size in end.shape[1 if most else 0 :])
    more = f' label_filename: "{labels}"' if labels else ""
    return f'{side} [ {{ name: "{end.name}" data_type: TYPE_{kind} dims: [ {dims} ]{more} }} ]\n'
