"""The quantization of an ONNX file with calibration samples: the stage "quantize" for any file.

The stage has a workload for a score; here there are only samples. So the effect of INT8 is measured by the
outputs: their noise, and the samples whose largest output changes. Nothing is written before all of it was
checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from ..targets import __version__
from ..targets.artifact import sha256_of, unfinished, write_json, writing
from ..targets.errors import ModelError, TargetError
from ..targets.plain import plain
from ..targets.progress import Progress
from ..targets.target import Target
from .lint.check import Report, lint
from .lint.platform import Platform
from .onnx_graph.canonical import fold_batch_norm
from .onnx_graph.counts import float_kernels, read_optimized
from .onnx_graph.float_input import as_float
from .onnx_graph.graph import Array, OnnxModel, load, save
from .onnx_graph.run import Opened, pieces, rows_are_samples, samples_in
from .parity.compare import GOOD, LIMITS, Hop, compare, noise_between
from .quantization import adequacy, calibration_cache
from .quantization.calibrate import Ranges, Watched, calibrate_by
from .quantization.extremes import Extremes
from .quantization.fp16 import to_half
from .quantization.histogram import METHODS, Method
from .quantization.placement import rules_of
from .quantization.samples import AT_ONCE, Samples
from .quantization.to_qdq import Placed, Quantized, saturation, to_qdq

NAME, FLOAT_NAME, CACHE_NAME = "int8.onnx", "float.onnx", "calibration.cache"
DLA_RULES = range(502, 505)  # of lint: what DLA leaves to the GPU
NAMED = 5  # samples that are listed
COMPARED = 4  # batches by which methods and FP16 are judged


@dataclass(frozen=True)
class Flip:
    """A sample whose largest output changes with quantization.

    Attributes:
        lead: the difference of both outputs in the float network, in the output's unit.
    """

    place: str
    before: int
    after: int
    lead: float


@dataclass(frozen=True)
class Cache:
    """A calibration cache, and the float file it is for.

    Attributes:
        model: the float file, with a fixed batch.
        tensors: how many tensors have a range.
        on_gpu: the layers that DLA leaves to the GPU; None for a target without DLA.
    """

    path: Path
    model: Path
    tensors: int
    on_gpu: tuple[str, ...] | None


@dataclass(frozen=True)
class Int8:
    """The result of `to_int8`.

    Attributes:
        path: the INT8 file; None where the target's TensorRT would refuse it, and nothing was written.
        noises: the noise of the outputs by method; empty for a single method.
        folded: the number of batch norms that were folded into the layers before them.
        adequacy: sentences on whether the samples were enough.
        half: a sentence on the effect of FP16; "" without FP16.
        float_kernels: the operators that ONNX Runtime would run in float; empty for TensorRT.
        samples: as they were judged: the rows of the files, or whole files.
        remarks: sentences on the samples, and on what could not be done.
        lint: the findings; None where the target has no TensorRT, or for the reason in `unjudged`.
    """

    path: Path | None
    method: Method
    noises: Mapping[Method, float]
    quantized: Placed
    hop: Hop | None
    flips: tuple[Flip, ...]
    folded: int
    adequacy: tuple[str, ...]
    half: str
    float_kernels: tuple[str, ...]
    lint: Report | None
    unjudged: str
    bytes_before: int
    bytes_after: int
    samples: Samples
    remarks: tuple[str, ...]
    cache: Cache | None = None

    @property
    def verdict(self) -> str:
        """The noise in words: good, or look at it; beyond, nothing is written. "" if it was not judged."""
        noises = [one.noise for one in self.hop.outputs.values()] if self.hop else []
        return "" if not noises else "good" if max(noises) <= GOOD else "look at it"


def to_int8(
    model: Path,
    samples: Samples,
    folder: Path,
    *,
    target: Target,
    method: Method | Literal["best"] = "minmax",
    skip: Sequence[str] = (),
    weight_bits: int = 8,
    half: bool = False,
    cache_batch: int | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Int8:
    """Writes int8.onnx, ranges.json and quantize.json into a folder, in the dialect of the target's runtime.

    Args:
        method: the calibration method; "best" tries all with one calibration and uses the one with the least
            noise in the outputs on the first batches.
        skip: weighted operators that stay in float.
        weight_bits: 2 to 8, see `to_qdq`.
        half: whether the float part becomes FP16, for TensorRT 10 and later.
        cache_batch: the batch of a float file and its calibration cache, which are written too, for DLA and
            other programs; None without.

    Raises:
        ModelError: the model is quantized already or cannot be; INT8 or FP16 breaks its outputs.
        WorkloadError: the samples do not fit, or are constant.
        TargetError: FP16 was requested for a target without TensorRT, or a cache for a TensorRT without.
        ArtifactError: a file is damaged, or the folder cannot be written.
    """
    dialect = target.runtime.dialect
    in_onnx_runtime = rules_of(dialect).onnx_runtime
    if half and "file" not in target.runtime.fp16:
        raise TargetError(
            f"{target.name} runs {target.runtime}, but FP16 in the file is for TensorRT 10 and later.",
            "Omit --half, or give a board with TensorRT.",
        )
    if cache_batch is not None:
        check_cache(target)  # before the calibration, which takes long
    methods: tuple[Method, ...] = METHODS if method == "best" else (method,)
    with unfinished(folder) as part:
        original = load(model)
        _refuse_damaged(original)
        before = Opened.of(original)
        samples, remarks = _by_row_or_file(samples, before)
        before = replace(before, at_once=samples.at_once)
        source, folded, said = _folded(original, before, samples)
        watched = Watched.of(source, every=cache_batch is not None, by_row=samples.by_row)
        extremes = Extremes(samples)
        fed = extremes.watching(_with_progress(samples, progress, "calibrate"))
        ranges = calibrate_by(methods, watched, fed)
        samples = samples.as_saved()
        remarks += said + extremes.words() + saturation(target, weight_bits, "--weight-bits 7")
        noises: dict[Method, float] = {}
        best: tuple[Method, Quantized, Opened] | None = None
        for one in methods:
            one_quantized = to_qdq(source, ranges[one], dialect=dialect, skip=skip, weight_bits=weight_bits)
            there = part / one if in_onnx_runtime else None
            opened = Opened.of(one_quantized.model, samples.at_once, optimized_path=there)
            if len(methods) > 1:
                noises[one] = _noise(before, opened, samples)
            if best is None or noises[one] < noises[best[0]]:
                best = one, one_quantized, opened
        assert best is not None  # there is one method at least
        chosen, quantized, after = best
        final, half_sentence = quantized.model, ""
        report, unjudged = _lint(final, folder / NAME, target)
        hop, flips = None, tuple[Flip, ...]()
        accepted = report is None or not report.counts["error"]
        if accepted:
            batches = _with_progress(samples, progress, "compare")
            hop = compare(before, after, batches, kind="lossy", name="ONNX -> INT8", rounded_from=source)
            flips = flip_details(before, after, samples, hop.flips[:NAMED], hop.labels)
            if half:
                final, half_sentence = _to_half(after, samples, target)
                report, unjudged = _lint(final, folder / NAME, target)
        chosen_ranges = ranges[chosen]
        rounded = {name: chosen_ranges.adequacy[name] for name in quantized.tensors}
        result = Int8(
            path=folder / NAME if accepted else None,
            method=chosen,
            noises=noises,
            quantized=quantized.placed,
            hop=hop,
            flips=flips,
            folded=folded,
            adequacy=adequacy.words(rounded, samples=chosen_ranges.samples, method=chosen_ranges.method),
            half=half_sentence,
            float_kernels=tuple(float_kernels(read_optimized(part / chosen))) if in_onnx_runtime else (),
            lint=report,
            unjudged=unjudged,
            bytes_before=original.file_bytes,
            bytes_after=save(final.proto, (folder if accepted else part) / NAME),
            samples=samples,
            remarks=tuple(remarks),
        )
        if accepted and cache_batch is not None:
            cache = write_cache(folder, source, quantized, chosen_ranges, cache_batch, target, report)
            result = replace(result, cache=cache)
        if accepted:
            _write_records(folder, result, chosen_ranges, _record(model, samples, target))
    return result


def _refuse_damaged(model: OnnxModel) -> None:
    """Checks the weights, before NaN in one is blamed on the samples."""
    for tensor in model.graph.initializer:
        value = model.index.value(tensor.name) if tensor.data_type == onnx.TensorProto.FLOAT else None
        if value is not None and np.isnan(value).any():
            raise ModelError(
                f"The weight {tensor.name!r} has NaN in {np.isnan(value).sum()} of {value.size} values.",
                "The training diverged, or the file is damaged: export an earlier checkpoint.",
            )


def _by_row_or_file(samples: Samples, before: Opened) -> tuple[Samples, list[str]]:
    """The samples: rows of the files, if those in pieces give what a file gives whole; else the files."""
    if not samples.by_row or any(one.shape and one.shape[0] for one in samples.inputs):
        return samples, []  # a fixed size says what a batch is
    if rows_are_samples(before, next(samples.batches()), samples.whole):
        return samples, []
    said = "a file in pieces gives something else than whole: its first axis is no batch, so files stay whole"
    return samples.by_file(), [said]


def _folded(model: OnnxModel, before: Opened, samples: Samples) -> tuple[OnnxModel, int, list[str]]:
    """The model with folded batch norms, as in our export, and their number; as it was if that changes it."""
    model = as_float(model)
    if not (norms := _norms(model)):
        return model, 0, []
    folded = model.copy()
    fold_batch_norm(folded.proto)
    if not (count := norms - _norms(folded)):
        return model, 0, []
    near = itertools.islice(samples.batches(), COMPARED)
    try:
        compare(before, Opened.of(folded), near, kind="float", name="ONNX -> batch norms folded")
    except ModelError as error:
        return model, 0, [f"the batch norms were not folded: {error.what}"]
    return folded, count, []


def _norms(model: OnnxModel) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def flip_details(
    before: Opened, after: Opened, samples: Samples, flips: Sequence[int], output: str
) -> tuple[Flip, ...]:
    """The largest values of an output for a few samples, before and after."""
    if not flips:
        return ()
    first, details, start = before.model.proto, [], 0
    for piece in pieces(first, samples.batches(), before.at_once):
        count = samples_in(piece, before.at_once)
        here = [index for index in flips if start <= index < start + count]
        if here:
            was, now = (model.run(piece)[output] for model in (before, after))
            details += [_flip(samples.place(index), was[index - start], now[index - start]) for index in here]
        start += count
    return tuple(details)


def _flip(place: str, before: Array, after: Array) -> Flip:
    was, now = int(before.argmax()), int(after.argmax())
    return Flip(place, was, now, float(before[was] - before[now]))


def _with_progress(samples: Samples, progress: Progress, what: str) -> Iterator[dict[str, Array]]:
    done, total = 0, samples.count
    for batch in samples.batches():
        progress(done, total, what)
        yield batch
        done += samples_in(batch, samples.at_once)
    progress(done, total, what)


def _noise(before: Opened, after: Opened, samples: Samples) -> float:
    """The noise on the first samples: those of `COMPARED` full batches, or so many whole files."""
    most = COMPARED * (AT_ONCE if samples.by_row else 1)
    starts = itertools.accumulate(map(len, samples.plan), initial=0)
    return noise_between(
        before, after, itertools.islice(samples.batches(), sum(start < most for start in starts))
    )


def _lint(model: OnnxModel, path: Path, target: Target) -> tuple[Report | None, str]:
    if not target.runtime.linted:
        return None, ""
    try:
        return lint(replace(model, path=path), target=target), ""
    except TargetError as error:
        return None, f"not checked against TensorRT's rules: {error.what}"


def _to_half(model: Opened, samples: Samples, target: Target) -> tuple[OnnxModel, str]:
    result = to_half(model.model, tensorrt=Platform.of(target).version)
    noise = _noise(model, Opened.of(result.model), samples)
    if not noise < LIMITS["lossy"]:
        raise ModelError(
            f"FP16 changes the outputs by {noise:.3g} of their values: some exceed its range or vanish.",
            "Omit --half.",
        )
    return result.model, f"FP16 for operators in float: noise {noise:.2%}{result.words()}"


def check_cache(target: Target) -> tuple[int, ...]:
    """The target's TensorRT; a TargetError if it has none, or takes no calibration cache."""
    if not target.runtime.linted:
        raise TargetError(
            f"{target.name} runs {target.runtime}; a calibration cache is for TensorRT.",
            "Give a board with TensorRT, or omit --calibration-cache.",
        )
    version = Platform.of(target).version
    calibration_cache.header(version)
    return version


def write_cache(
    folder: Path,
    source: OnnxModel,
    quantized: Quantized,
    ranges: Ranges,
    batch: int,
    target: Target,
    report: Report | None = None,
) -> Cache:
    """Writes a float file with this batch, and the calibration cache that gives it the scales of `quantized`.

    Args:
        ranges: of the other tensors of `source`.
        report: of lint, which names the layers that DLA leaves to the GPU.
    """
    scales = calibration_cache.scales(source, quantized.model, ranges)
    save(calibration_cache.with_batch(source, batch).proto, folder / FLOAT_NAME)
    text = calibration_cache.as_text(scales, check_cache(target))
    with writing(folder / CACHE_NAME) as beside:
        beside.write_text(text, encoding="utf-8")
    on_gpu: tuple[str, ...] | None = None
    if report is not None and report.gpu_fallbacks is not None:
        on_gpu = tuple(dict.fromkeys(one.node for one in report.findings if one.rule in DLA_RULES))
    return Cache(folder / CACHE_NAME, folder / FLOAT_NAME, len(scales), on_gpu)


def _record(model: Path, samples: Samples, target: Target) -> dict[str, Any]:
    return {
        "schema": 1,
        "made_by": f"deadweight {__version__}",
        "model": {"name": model.name, "sha256": sha256_of(model)},
        "data": {path.name: sha256_of(path) for path in samples.files},
        "samples": samples.count,
        "target": target.name,
    }


def _write_records(folder: Path, result: Int8, ranges: Ranges, record: dict[str, Any]) -> None:
    write_json(folder / "ranges.json", ranges.to_json())
    facts = {
        "method": result.method,
        "dialect": result.quantized.dialect,
        "noises": dict(result.noises),
        "in_int8": list(result.quantized.in_int8),
        "batch_norms_folded": result.folded,
        "left_float": result.quantized.left_float,
        "adequacy": list(result.adequacy),
        "half": result.half,
        "verdict": result.verdict,
        "remarks": list(result.remarks),
        "hop": plain(result.hop),
        "flips": plain(result.flips),
        "lint": None if result.lint is None else result.lint.counts,
        "sha256": sha256_of(folder / NAME),
    }
    if result.cache is not None:
        facts["cache"] = {
            "sha256": sha256_of(result.cache.path),
            "model_sha256": sha256_of(result.cache.model),
            "tensors": result.cache.tensors,
            "on_gpu": result.cache.on_gpu,
        }
    write_json(folder / "quantize.json", {**record, **facts})
