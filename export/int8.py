"""An ONNX file and calibration samples in, an INT8 file out: what the stage "quantize" does, for any file.

The stage has a workload to ask for a score; here there are samples alone. So what INT8 changed is told by the
outputs: their noise, and the samples whose largest output is another one now. Nothing is written before all
of it was seen to be right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from ..targets import __version__
from ..targets.artifact import sha256_of, unfinished, write_json
from ..targets.errors import ModelError, TargetError
from ..targets.progress import Progress
from ..targets.target import Target
from .lint.check import Report, lint
from .lint.platform import Platform
from .onnx_graph.canonical import fold_batch_norm
from .onnx_graph.counts import float_kernels
from .onnx_graph.external_data import drop_stale, move, names_beside
from .onnx_graph.float_input import load_float
from .onnx_graph.graph import Array, load, save
from .onnx_graph.run import pieces, runner, samples_in
from .parity.compare import LIMITS, Hop, compare_files, noise_between
from .quantization import adequacy
from .quantization.calibrate import Ranges, calibrate_by
from .quantization.fp16 import to_half
from .quantization.histogram import METHODS, Method
from .quantization.placement import rules_of
from .quantization.samples import Samples
from .quantization.to_qdq import Quantized, to_qdq

NAME = "int8.onnx"
NAMED = 5  # samples that are told one by one
COMPARED = 4  # batches by which methods, and FP16, are judged


@dataclass(frozen=True)
class Flip:
    """A sample whose largest output is another one after quantization.

    Attributes:
        lead: by how much the float network preferred its own, in the output's unit.
    """

    place: str
    before: int
    after: int
    lead: float


@dataclass(frozen=True)
class Int8:
    """What was made of a file.

    Attributes:
        path: the INT8 file; None where TensorRT of the target would refuse it, and nothing was written.
        noises: by method that was tried, the noise of the outputs; empty where one was.
        classes: the output whose largest value `hop` and `flips` follow; "" where the first is no table of
            samples and classes.
        folded: how many batch norms went into the layers before them, to be rounded with these.
        adequacy: whether the samples were enough, in sentences.
        half: what FP16 changed, in a sentence; "" where it was not asked for.
        float_kernels: what ONNX Runtime would run in float all the same; nothing for TensorRT.
        lint: what the rules say; None where the target runs no TensorRT, or `unjudged` says why not.
    """

    path: Path | None
    method: Method
    noises: Mapping[Method, float]
    quantized: Quantized
    hop: Hop | None
    classes: str
    flips: tuple[Flip, ...]
    folded: int
    adequacy: tuple[str, ...]
    half: str
    float_kernels: tuple[str, ...]
    lint: Report | None
    unjudged: str
    bytes_before: int
    bytes_after: int


def to_int8(
    model: Path,
    samples: Samples,
    folder: Path,
    *,
    target: Target,
    method: Method | Literal["best"] = "minmax",
    skip: Sequence[str] = (),
    half: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> Int8:
    """Writes int8.onnx, ranges.json and quantize.json into a folder, in the dialect of the target's runtime.

    Args:
        method: how ranges follow from activations; "best" tries all from one calibration and keeps the one
            with the least noise in the outputs on the first batches.
        skip: weighted operators that stay in float.
        half: whether what stays in float becomes FP16, for TensorRT 10 and later.

    Raises:
        ModelError: the model is quantized already or cannot be; INT8 or FP16 breaks its outputs.
        WorkloadError: the samples do not fit, or are constant.
        TargetError: FP16 was asked for where the target runs no TensorRT.
        ArtifactError: a file is damaged, or the folder cannot be written.
    """
    dialect = target.runtime.dialect
    if half and "file" not in target.runtime.fp16:
        raise TargetError(
            f"{target.name} runs {target.runtime}, and FP16 in the file is for TensorRT 10 and later.",
            "Leave --half out, or name a board with TensorRT.",
        )
    with unfinished(folder) as part:
        methods: tuple[Method, ...] = METHODS if method == "best" else (method,)
        fed = _told(samples, progress, "calibrate")
        source, folded = _folded(model, samples, part)
        ranges = calibrate_by(methods, source, fed)
        made = {
            one: to_qdq(source, ranges[one], _in(part, one) / NAME, dialect=dialect, skip=skip)
            for one in methods
        }
        noises: dict[Method, float] = {}
        if len(made) > 1:
            noises = {one: _noise(model, made[one].path, samples) for one in methods}
        chosen = min(methods, key=lambda one: noises.get(one, 0.0))
        path, quantized = made[chosen].path, made[chosen]
        report, unjudged = _judged(path, target)
        hop, flips, said = None, tuple[Flip, ...](), ""
        taken = report is None or not report.counts["error"]
        if taken:
            fed = _told(samples, progress, "compare")
            hop = compare_files(model, path, fed, kind="lossy", name="ONNX -> INT8", rounded_from=source)
            flips = flip_details(model, path, samples, hop.flips[:NAMED])
            if half:
                path, said = _halved(path, samples, target, part)
                report, unjudged = _judged(path, target)
        found = ranges[chosen]
        rounded = {name: found.adequacy[name] for name in quantized.tensors}
        result = Int8(
            path=folder / NAME if taken else None,
            method=chosen,
            noises=noises,
            quantized=quantized,
            hop=hop,
            classes=classes_of(model),
            flips=flips,
            folded=folded,
            adequacy=adequacy.words(rounded, samples=found.samples, method=found.method),
            half=said,
            float_kernels=tuple(float_kernels(path)) if rules_of(dialect).onnx_runtime else (),
            lint=report,
            unjudged=unjudged,
            bytes_before=_bytes(model),
            bytes_after=_bytes(path),
        )
        if taken:
            _deliver(path, folder, result, found, _record(model, samples, target))
    return result


def classes_of(path: Path) -> str:
    """The name of the first output if it looks like class scores, two axes and several columns; else ""."""
    first = load(path).graph.output[0]
    axes = first.type.tensor_type.shape.dim
    return first.name if len(axes) == 2 and axes[1].dim_value != 1 else ""


def _folded(path: Path, samples: Samples, part: Path) -> tuple[Path, int]:
    """The file with its batch norms in the layers before them, as our own export writes it; and how many."""
    model = load_float(path)
    before = _norms(model)
    fold_batch_norm(model)
    if _norms(model) == before:
        return path, 0
    out = _in(part, "folded") / NAME
    save(model, out)
    near = itertools.islice(samples.batches(), COMPARED)
    compare_files(path, out, near, kind="float", name="ONNX -> batch norms folded")
    return out, before - _norms(model)


def _norms(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def flip_details(before: Path, after: Path, samples: Samples, flips: Sequence[int]) -> tuple[Flip, ...]:
    """What a few samples were taken for, before and after."""
    if not flips:
        return ()
    first = load(before)
    runs, name, found, start = (runner(first), runner(load(after))), first.graph.output[0].name, [], 0
    for piece in pieces(first, samples.batches()):
        here = [index for index in flips if start <= index < start + samples_in(piece)]
        if here:
            one, two = (run(piece)[name] for run in runs)
            found += [_flip(samples.place(index), one[index - start], two[index - start]) for index in here]
        start += samples_in(piece)
    return tuple(found)


def _flip(place: str, before: Array, after: Array) -> Flip:
    was, now = int(before.argmax()), int(after.argmax())
    return Flip(place, was, now, float(before[was] - before[now]))


def _told(samples: Samples, progress: Progress, what: str) -> Iterator[dict[str, Array]]:
    done, total = 0, samples.count
    for batch in samples.batches():
        progress(done, total, what)
        yield batch
        done += samples_in(batch)
    progress(done, total, what)


def _noise(model: Path, made: Path, samples: Samples) -> float:
    return noise_between(model, made, itertools.islice(samples.batches(), COMPARED))


def _judged(path: Path, target: Target) -> tuple[Report | None, str]:
    if not target.runtime.linted:
        return None, ""
    try:
        return lint(path, target=target), ""
    except TargetError as error:
        return None, f"not held against TensorRT's rules: {error.what}"


def _halved(path: Path, samples: Samples, target: Target, part: Path) -> tuple[Path, str]:
    """The file with FP16 for what stays in float, and how much that changed."""
    out = _in(part, "half") / NAME
    halved = to_half(path, out, tensorrt=Platform.of(target).version)
    noise = _noise(path, out, samples)
    if not noise < LIMITS["lossy"]:
        raise ModelError(
            f"FP16 changes the outputs by {noise:.3g} of their values: numbers inside leave its range.",
            "Leave --half out.",
        )
    left = "".join(f", {name} stays in FP32: {why}" for name, why in halved.left_float.items())
    return out, f"FP16 for what stays in float: noise {noise:.2%}{left}"


def _in(part: Path, name: str) -> Path:
    place = part / name
    place.mkdir(parents=True, exist_ok=True)
    return place


def _record(model: Path, samples: Samples, target: Target) -> dict[str, Any]:
    """What went into it, so that it can be told later what a file was made from."""
    return {
        "schema": 1,
        "made_by": f"deadweight {__version__}",
        "model": {"name": model.name, "sha256": sha256_of(model)},
        "data": {path.name: sha256_of(path) for path in samples.files},
        "samples": samples.count,
        "target": target.name,
    }


def _deliver(path: Path, folder: Path, result: Int8, ranges: Ranges, record: dict[str, Any]) -> None:
    """Puts the files into their folder, the record of them last."""
    move(path, folder / NAME)
    drop_stale(folder)
    write_json(folder / "ranges.json", ranges.to_json())
    told = {
        "method": result.method,
        "dialect": result.quantized.dialect,
        "noises": dict(result.noises),
        "in_int8": list(result.quantized.in_int8),
        "batch_norms_folded": result.folded,
        "left_float": result.quantized.left_float,
        "adequacy": list(result.adequacy),
        "half": result.half,
        "classes": result.classes,
        "hop": None if result.hop is None else result.hop.to_json(),
        "flips": [asdict(flip) for flip in result.flips],
        "lint": None if result.lint is None else result.lint.counts,
        "sha256": sha256_of(folder / NAME),
    }
    write_json(folder / "quantize.json", {**record, **told})


def _bytes(path: Path) -> int:
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names_beside(path))
