"""The execution of ONNX models during preparation: any inner tensor, in bounded pieces, on one thread.

The sessions of the floor below run and time finished files; here inner tensors are read, so outputs are added
to the graph in memory. One thread gives equal numbers on every machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...targets.errors import ModelError, WorkloadError
from .external_data import weight_bytes, write_apart
from .graph import Array, OnnxModel, given_inputs, number_outputs

PIECE = 8  # samples in memory at a time, where the batch axis is dynamic
WHOLE = 0
"""As a number of samples at a time: each batch is one sample. Its first axis may be time, nodes or points."""
IN_MEMORY_BYTES = 1 << 26  # of weights; a session opened from bytes keeps them besides its own copy

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
Stream = Callable[[Mapping[str, Array], Sequence[str]], Iterator[tuple[str, Array]]]


@dataclass(frozen=True)
class Opened:
    """A model in an open session that several steps share.

    Attributes:
        at_once: the maximum number of samples in a run, or `WHOLE`.
    """

    model: OnnxModel
    run: Run
    at_once: int = PIECE

    @classmethod
    def of(cls, model: OnnxModel, at_once: int = PIECE, *, optimized_path: Path | None = None) -> Opened:
        """The model with all of the runtime's optimizations; see `streamer`."""
        return cls(model, runner(model.proto, optimized_path=optimized_path), at_once)

    def returning(self, tensors: Sequence[str]) -> Opened:
        """The model in another session that returns these tensors."""
        return replace(self, run=runner(self.model.proto, tensors))


def runner(
    model: onnx.ModelProto,
    tensors: Sequence[str] | None = None,
    *,
    optimize: bool = True,
    optimized_path: Path | None = None,
) -> Run:
    """A function from inputs to `tensors` by name, when None `number_outputs`; see `streamer`."""
    names = number_outputs(model.graph) if tensors is None else tensors
    stream = streamer(model, names, optimize=optimize, optimized_path=optimized_path)
    return lambda feeds: dict(stream(feeds, names))


def streamer(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    *,
    optimize: bool = True,
    optimized_path: Path | None = None,
) -> Stream:
    """A function from inputs and names to tensors, one by one: each is freed before the next is copied.

    Args:
        tensors: names that may be requested besides the model's outputs: any float32 tensors of the graph.
            Inputs are returned.
        optimize: False runs each node unfused, so that two graphs can be compared node by node.
        optimized_path: where the runtime writes the graph that it runs. Only then Q/DQ pairs run in its INT8
            kernels, which saturate on some processors; else in float, which is exact everywhere.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        WorkloadError: (when called) the inputs do not fit the model.
    """
    import onnxruntime

    inputs = input_names(model)
    available = {*inputs, *(value.name for value in model.graph.output)}
    inner = [name for name in dict.fromkeys(tensors) if name not in available]
    kind = onnx.TensorProto.FLOAT
    more = onnx.ModelProto()
    more.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in inner)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path is None:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    else:
        options.optimized_model_filepath = str(optimized_path)
    try:
        session = _session(model, more.SerializeToString(), options)
    except Exception as error:  # its errors have no public base class
        raise ModelError(
            f"ONNX Runtime refuses the model: {first_line(error)}",
            "Use float32 and operators of standard ONNX, and export again.",
        ) from error

    def run(feeds: Mapping[str, Array], names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        requested = [name for name in names if name not in inputs]
        try:
            ort_values = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()
            }
            results = session.run_with_ort_values(requested, ort_values) if requested else []
        except Exception as error:
            raise WorkloadError(
                f"The inputs do not fit the model: {first_line(error)}",
                "Prepare samples exactly as for inference: same names, shapes and types.",
            ) from error
        waiting = dict(zip(requested, results, strict=True))
        del results
        for name in names:
            yield name, waiting.pop(name).numpy() if name in waiting else feeds[name]

    return run


def _session(model: onnx.ModelProto, more: bytes, options: Any) -> Any:
    # Protobuf merges two concatenated messages, so that more outputs need no copy of the weights.
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    if weight_bytes(model) <= IN_MEMORY_BYTES:
        return onnxruntime.InferenceSession(model.SerializeToString() + more, options, providers=providers)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        write_apart(model, path)
        with path.open("ab") as file:
            file.write(more)
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def input_names(model: onnx.ModelProto) -> list[str]:
    """The names of `given_inputs`."""
    return [value.name for value in given_inputs(model.graph)]


def pieces(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, Any]], size: int = PIECE
) -> Iterator[dict[str, Array]]:
    """The model's inputs of each batch as arrays, at most `size` samples at a time.

    Batches have arrays or tensors, and perhaps labels, which are ignored. A model with a fixed batch size
    gets its batches whole, and so does every model with `WHOLE`. Inputs without a batch axis come with every
    piece, after the others (`may_lack_batch`).

    Raises:
        WorkloadError: a batch is not a dict of arrays, lacks an input, an input has another type or shape, or
            their lengths differ.
    """
    values = given_inputs(model.graph)
    names = [value.name for value in values]
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise WorkloadError(
                f"A batch is a {type(batch).__name__}, and its inputs have no names.",
                f"Give each batch as a dict of arrays: {', '.join(names)}.",
            )
        absent = [name for name in names if name not in batch]
        if absent:
            raise WorkloadError(
                f"A batch lacks the inputs {absent}; it has {sorted(batch)}.",
                "Name the tensors of a batch as the model names its inputs.",
            )
        feeds = {name: _array(name, batch[name]) for name in names}
        batched = [] if size == WHOLE else _batched(values, feeds)
        for value in values:
            _check_fit(value, feeds[value.name])
        if size == WHOLE:
            yield feeds
            continue
        total = len(feeds[batched[0]])
        step = size if all(_is_open(value) for value in values if value.name in batched) else max(total, 1)
        whole = {name: feeds[name] for name in names if name not in batched}
        for start in range(0, total, step):
            yield {name: feeds[name][start : start + step] for name in batched} | whole


def _is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether the first axis of an input is dynamic."""
    axes = value.type.tensor_type.shape.dim
    return len(axes) > 0 and not axes[0].HasField("dim_value")


def may_lack_batch(values: Sequence[onnx.ValueInfoProto]) -> frozenset[str]:
    """The inputs that may have no batch axis, as a scale or the sizes of an image, by their shapes.

    They have no axis, or a fixed first one where others have a dynamic one, or where all are fixed a single
    axis where others have more.
    """
    opened = any(_is_open(value) for value in values)
    several = any(len(value.type.tensor_type.shape.dim) > 1 for value in values)
    found = set()
    for value in values:
        axes = len(value.type.tensor_type.shape.dim)
        lacks = axes == 0 or (not _is_open(value) if opened else several and axes == 1)
        if lacks and value.type.tensor_type.HasField("shape"):
            found.add(value.name)
    return frozenset(found)


def _batched(values: Sequence[onnx.ValueInfoProto], feeds: Mapping[str, Array]) -> list[str]:
    """The inputs with the batch as first axis: those that must have it, and those of the same length.

    Raises:
        WorkloadError: their lengths differ.
    """
    without = may_lack_batch(values)
    lengths = {name: len(value) if value.ndim else 0 for name, value in feeds.items()}
    found = {lengths[name] for name in feeds if name not in without}
    if len(found) != 1 or any(name not in without and not feeds[name].ndim for name in feeds):
        raise WorkloadError(
            f"The inputs of a batch have different numbers of samples: {lengths}.",
            "Give every input the batch as its first axis.",
        )
    return [name for name, value in feeds.items() if value.ndim and len(value) in found]


def _check_fit(value: onnx.ValueInfoProto, given: Array) -> None:
    """Checks an input, since no runtime does where only inputs are read."""
    kind = value.type.tensor_type
    if not kind.elem_type:  # a sequence, or unknown
        return
    wanted = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if wanted.kind != "O" and given.dtype != wanted:  # strings are objects
        raw = wanted.kind == "f" and given.dtype.kind in "iub"
        raise WorkloadError(
            f"The input {value.name!r} of a batch is {given.dtype}, but the model needs {wanted}.",
            "Scale and normalize the samples as for inference: raw pixels give wrong ranges."
            if raw
            else f"Give it as numpy.{wanted}.",
        )
    sizes = [axis.dim_value for axis in kind.shape.dim]
    fits = len(sizes) == given.ndim and all(
        size in (0, got) for size, got in zip(sizes, given.shape, strict=True)
    )
    if kind.HasField("shape") and not fits:
        raise WorkloadError(
            f"The inputs do not fit the model: {value.name!r} has the shape {list(given.shape)}, but the "
            f"model needs [{', '.join(str(size or '?') for size in sizes)}].",
            "Prepare samples exactly as for inference: same names, shapes and types.",
        )


def _array(name: str, value: Any) -> Array:
    try:
        # A tensor may be on a GPU, or part of an autograd graph.
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, order="C")
    except (TypeError, ValueError) as error:  # numpy has no bfloat16, lists may be ragged
        raise WorkloadError(
            f"The input {name!r} of a batch cannot be made an array: {first_line(error)}.",
            "Give arrays, or tensors of a type that numpy has.",
        ) from error


def samples_in(feeds: Mapping[str, Array], size: int = PIECE) -> int:
    """The number of samples in one piece, whose first input has the batch as its first axis; 1 if `WHOLE`."""
    return 1 if size == WHOLE else len(next(iter(feeds.values())))


def rows_are_samples(opened: Opened, batch: Mapping[str, Array], alone: Collection[str]) -> bool:
    """Whether a batch in pieces gives what it gives whole.

    Args:
        batch: the inputs; the first rows are tried.
        alone: the inputs without a batch axis.
    """
    batched = [name for name in batch if name not in alone]
    rows = min(2 * PIECE, *(len(batch[name]) for name in batched))
    if len({len(batch[name]) for name in batched}) != 1:
        return False
    middle = (rows + 1) // 2

    def run(start: int, stop: int) -> dict[str, Array]:
        return opened.run({name: batch[name] if name in alone else batch[name][start:stop] for name in batch})

    try:
        together = run(0, rows)
        parts = [run(start, stop) for start, stop in ((0, 1), (1, middle), (middle, rows)) if start < stop]
    except WorkloadError:
        return False
    unlike = [name for name, value in together.items() if not _joins(value, [part[name] for part in parts])]
    again = run(0, rows) if unlike else {}  # what is drawn at random is unlike itself too
    return not any(_joins(together[name], [again[name]]) for name in unlike)


def _joins(whole: Array, parts: Sequence[Array]) -> bool:
    if not all(one.ndim for one in (whole, *parts)) or sum(map(len, parts)) != len(whole):
        return False
    if len({part.shape[1:] for part in (whole, *parts)}) != 1:
        return False
    joined = np.concatenate(parts)
    if whole.dtype.kind != "f":  # a label may change with the order of sums
        return float(np.mean(joined == whole)) > 0.99 if whole.size else True
    scale = np.abs(whole[np.isfinite(whole)]).max(initial=0.0)
    return bool(np.allclose(joined, whole, rtol=0, atol=1e-3 * scale, equal_nan=True))


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
