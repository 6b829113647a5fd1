"""Inputs that a stranger's model accepts, found by trying, and the noise of INT8 on them, computed apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
SIDES = (64, 160, 512, 1, 16000)  # tried for open sides: pictures, windows of sound, steps, a second of sound
COUNT = 4
FAINT = 0.1  # of the median sample: a fainter one has no scale of its own
KINDS = {"float": "f4", "float16": "f2", "double": "f8", "bool": "?", "int8": "i1", "uint8": "u1"}
KINDS |= {"int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8"}


def session(model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def write_samples(path: Path, folder: Path, seed: int = 0) -> dict[str, list[int]] | None:
    """Writes `COUNT` NPZ files that the model runs on; their shapes, or None where nothing was accepted."""
    opened = session(path)
    for side in SIDES:
        for batch in (1, side):
            made = [_arrays(opened, side, batch, np.random.default_rng([seed, n])) for n in range(COUNT)]
            first = made[0]
            if first is None:
                return None
            try:
                opened.run(None, first)
            except Exception:  # another size is tried
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for number, arrays in enumerate(made):
                np.savez(folder / f"{number}.npz", **arrays)  # type: ignore[arg-type]
            return {name: list(value.shape) for name, value in first.items()}
    return None


def _arrays(opened: onnxruntime.InferenceSession, side: int, batch: int, random: Any) -> Arrays | None:
    found: Arrays = {}
    for spec in opened.get_inputs():
        kind = KINDS.get(spec.type.removeprefix("tensor(").removesuffix(")"))
        if kind is None:
            return None  # text, or a sequence
        shape = [
            size if isinstance(size, int) else batch if axis == 0 else side
            for axis, size in enumerate(spec.shape or ())
        ]
        if kind[0] == "f":
            found[spec.name] = _signal(shape, random).astype(kind)
        else:  # a lone whole number is a rate
            value = random.integers(0, 2 if kind == "?" else 9, shape) if shape else 16000
            found[spec.name] = np.asarray(value).astype(kind)
    return found


def _signal(shape: Sequence[int], random: Any) -> NDArray[Any]:
    """Numbers of unit size that are alike nearby, as in pictures and sound."""
    value: NDArray[Any] = random.standard_normal(shape)
    for axis, size in enumerate(shape):
        if size > 8:
            value = value.cumsum(axis) / np.sqrt(size)
    return (value - value.mean()) / (value.std() or 1.0) if value.size > 8 else value


def true_noise(float_: Path, int8: Path, names: Sequence[str], folder: Path) -> Mapping[str, float]:
    """By tensor, the median over the files of RMS(error) / RMS(value); ONNX Runtime runs each file whole."""
    models = [onnx.load(str(path)) for path in (float_, int8)]
    found = {}
    for name in names:
        if any(name not in {each for node in model.graph.node for each in node.output} for model in models):
            continue
        runs = []
        for model in models:
            asked = onnx.ModelProto()
            asked.CopyFrom(model)
            if name not in {value.name for value in asked.graph.output}:
                asked.graph.output.append(onnx.ValueInfoProto(name=name))
            runs.append(session(asked))
        squares = []
        for place in sorted(folder.glob("*.npz")):
            arrays = dict(np.load(place))
            was, now = (np.asarray(run.run([name], arrays)[0], np.float64) for run in runs)
            squares.append((np.square(was - now).mean(), np.square(was).mean()))
        errors, sizes = np.array(squares).T
        scales = np.maximum(np.maximum(sizes, FAINT**2 * np.median(sizes)), np.finfo(np.float64).tiny)
        found[name] = float(np.median(np.sqrt(errors / scales)))
    return found
