"""Calibration samples from files: named arrays in .npz, or .npy for a model with a single input.

A file has one sample or a batch, by the number of axes. All files are checked by their headers before any is
read, so that a wrong shape in the last one is reported at once. Plausible errors are refused too: bytes for a
network with float inputs were probably not scaled. Samples are combined into the model's batches, across
files. Pickled data, which could run code, are not read.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...targets.errors import ArtifactError, ModelError, WorkloadError
from ..onnx_graph.graph import Array, given_inputs, load
from ..onnx_graph.run import PIECE, WHOLE, may_lack_batch

AT_ONCE = 32  # samples in a batch, for a dynamic batch
ENDINGS = (".npz", ".npy")
ONLY = "the array of an .npy file"
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_PREPARED = "Prepare samples exactly as for inference: same names, shapes and types."
Batch = tuple[tuple[int, int], ...]
"""Its samples: the number of a file, and the place in it."""
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Input:
    """An input; a dynamic size is 0, an unknown shape None. `axis` is the name of its first axis, or ""."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    axis: str = ""

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join(str(size or "?") for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


@dataclass(frozen=True)
class Samples:
    """Checked files, and the plan of their batches.

    Attributes:
        names: by file, the array of each input.
        plan: the samples of each batch; those of one file follow each other.
        left_out: the number of samples that do not fill a batch of the model's fixed size.
        whole: the inputs without a batch axis, see `run.may_lack_batch`.
        by_row: whether the rows of a file are samples; else each file is one, whatever its first axis is.
    """

    files: tuple[Path, ...]
    inputs: tuple[Input, ...]
    names: tuple[Mapping[str, str], ...]
    plan: tuple[Batch, ...]
    left_out: int
    whole: tuple[str, ...] = ()
    by_row: bool = True

    @property
    def at_once(self) -> int:
        """The number of samples in a run."""
        return PIECE if self.by_row else WHOLE

    def by_file(self) -> Samples:
        """Each file as one sample."""
        plan = tuple(((file, 0),) for file in range(len(self.files)))
        return replace(self, plan=plan, left_out=0, by_row=False)

    def as_saved(self) -> Samples:
        """The same samples, without batches of rows from several files, if the model takes any batch.

        A runtime may compute one row otherwise than several: INT8 kernels differ then.
        """
        if any(one.shape and one.shape[0] for one in self.inputs if one.name not in self.whole):
            return self
        groups = (itertools.groupby(batch, key=lambda sample: sample[0]) for batch in self.plan)
        return replace(self, plan=tuple(tuple(rows) for files in groups for _, rows in files))

    @property
    def count(self) -> int:
        """The number of samples in the batches."""
        return sum(map(len, self.plan))

    def batches(self) -> Iterator[dict[str, Array]]:
        """The batches in the order of the files, arrays by input name; one file is in memory at a time."""
        if not self.by_row:
            yield from map(self._read, range(len(self.files)))
            return
        current, loaded = -1, dict[str, Array]()
        for batch in self.plan:
            parts: list[dict[str, Array]] = []
            for file, samples in itertools.groupby(batch, key=lambda sample: sample[0]):
                if file != current:
                    current, loaded = file, self._read(file)
                rows = [row for _, row in samples]
                parts.append({n: loaded[n][rows[0] : rows[-1] + 1] for n in loaded if n not in self.whole})
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            yield joined | {name: loaded[name] for name in self.whole}

    def place(self, index: int) -> str:
        """The origin of a sample, as in `003.npz, sample 12`, counted from 0; or the file."""
        if not self.by_row:
            return self.files[index].name
        file, row = next(itertools.islice(itertools.chain(*self.plan), index, None))
        return f"{self.files[file].name}, sample {row}"

    def _read(self, file: int) -> dict[str, Array]:
        """A file's arrays by input name, with the batch as first axis and the input's type."""
        path, names, found = self.files[file], self.names[file], {}
        stored = arrays(path, names.values())
        for one in self.inputs:
            value = stored[names[one.name]]
            rank = value.ndim if one.shape is None else len(one.shape)
            whole = value if value.ndim == rank else value[None]
            found[one.name] = whole.astype(one.dtype)
            if one.dtype.kind in "iu" and not np.array_equal(found[one.name], whole):
                raise WorkloadError(f"{path} has values for {one} that do not fit its type.", _PREPARED)
        return found


def open_samples(model: Path, data: Path) -> Samples:
    """Checks the samples for a model.

    Args:
        data: a folder of .npz and .npy files, in the order of their names, or one such file.

    Raises:
        ArtifactError: the model or the data cannot be read.
        WorkloadError: there are no samples, or they do not fit the model; it names the file.
    """
    loaded = load(model).proto
    inputs, may = inputs_of(loaded), may_lack_batch(given_inputs(loaded.graph))
    files = _files(data)
    checked = [_checked(path, inputs) for path in files]
    names = [one.names for one in checked]
    whole = tuple(name for name in names[0] if name in may and any(one.alone(name, may) for one in checked))
    counts = [_agreed(path, one, inputs, whole) for path, one in zip(files, checked, strict=True)]
    # An input without a batch axis applies only to the samples of its file.
    shapes = [(place if whole else 0, one.shapes) for place, one in enumerate(checked)]
    if 0 in counts:  # the first axes of a file differ, so they are not samples
        return Samples(files, inputs, tuple(names), (), 0, whole).by_file()
    fixed = next((one.shape[0] for one in inputs if one.shape and one.shape[0] and one.name not in whole), 0)
    plan = _plan(shapes, counts, size=fixed or AT_ONCE, whole=bool(fixed))
    if not plan:
        raise WorkloadError(
            f"{data} has {sum(counts)} samples, but {model.name} needs batches of {fixed}.",
            f"Give at least {fixed} samples of one shape, or export the model with a dynamic batch.",
        )
    return Samples(files, inputs, tuple(names), plan, sum(counts) - sum(map(len, plan)), whole)


def inputs_of(model: onnx.ModelProto) -> tuple[Input, ...]:
    """The inputs of a model, in order."""
    found = []
    for value in given_inputs(model.graph):
        kind = value.type.tensor_type
        if kind.elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            cure = "Export the part behind it, which takes numbers."
            raise ModelError(f"The input {value.name!r} takes no numbers, as samples have.", cure)
        shape = tuple(axis.dim_value for axis in kind.shape.dim) if kind.HasField("shape") else None
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        found.append(Input(value.name, dtype, shape, kind.shape.dim[0].dim_param if shape else ""))
    return tuple(found)


def _arguments(inputs: tuple[Input, ...]) -> str:
    """The inputs as arguments of a Python call; a name like "input:0" needs a dict."""
    if all(one.name.isidentifier() and not iskeyword(one.name) for one in inputs):
        return ", ".join(f"{one.name}=..." for one in inputs)
    return "**{" + ", ".join(f"{one.name!r}: ..." for one in inputs) + "}"


def _files(data: Path) -> tuple[Path, ...]:
    if not data.exists():
        raise ArtifactError(f"{data} does not exist.", "Check the path.")
    if data.is_file():
        if data.suffix not in ENDINGS:
            raise WorkloadError(f"{data} is not a .npz or .npy file.", _how_to_save(data))
        return (data,)
    files = tuple(sorted(path for path in data.iterdir() if path.suffix in ENDINGS))
    if not files:
        pictures = any(path.suffix.lower() in _PICTURES for path in data.iterdir())
        content = "pictures, but no arrays" if pictures else "no .npz or .npy files"
        raise WorkloadError(f"{data} has {content}.", _how_to_save(data))
    return files


def _how_to_save(data: Path) -> str:
    place = data.with_suffix("") / "0000.npz"
    return (
        "Prepare some hundred real samples exactly as for inference, and save them as arrays under the names "
        f'of the model\'s inputs, one sample or a batch per file: numpy.savez("{place}", INPUT=array).'
    )


@dataclass(frozen=True)
class _Checked:
    """A file's headers by input: the array's name and number of samples, 0 for a scalar. `shapes` are those
    of a sample, in the order of the inputs."""

    names: dict[str, str]
    counts: dict[str, int]
    shapes: tuple[Any, ...]

    def alone(self, name: str, may: frozenset[str]) -> bool:
        """Whether an input has no entry per sample, by comparison with those that must."""
        return self.counts[name] not in {n for key, n in self.counts.items() if key not in may}


def _agreed(path: Path, checked: _Checked, inputs: tuple[Input, ...], whole: tuple[str, ...]) -> int:
    """The number of samples of a file; 0 where its inputs have first axes of other names and sizes."""
    counts = {name: count for name, count in checked.counts.items() if name not in whole}
    by_axis = {(one.axis, counts[one.name]) for one in inputs if one.name in counts}
    if len(set(counts.values())) != 1 and len(by_axis) == len(dict(by_axis)) and "" not in dict(by_axis):
        return 0
    if len(set(counts.values())) != 1:
        raise WorkloadError(
            f"{path} has different numbers of samples: {checked.counts}.",
            "Give every input the batch as first axis.",
        )
    return next(iter(counts.values()))


def _checked(path: Path, inputs: tuple[Input, ...]) -> _Checked:
    found = headers(path)
    names, shapes, counts = {}, [], {}
    for one in inputs:
        name = one.name if one.name in found else next(iter(found), "")
        if name != one.name and (len(inputs) > 1 or len(found) != 1):
            raise WorkloadError(
                f"{path} has no array {one.name!r}; it has {', '.join(found) or 'none'}.",
                f"Name arrays as the model names its inputs ({', '.join(map(str, inputs))}): "
                f"numpy.savez(path, {_arguments(inputs)}).",
            )
        shape, dtype = found[name]
        counts[one.name] = _count(path, one, shape)
        _check_type(path, one, dtype)
        names[one.name] = name
        shapes.append(shape[len(shape) - len(one.shape) + 1 :] if one.shape else shape[1:])
    return _Checked(names, counts, tuple(shapes))


def _count(path: Path, wanted: Input, shape: tuple[int, ...]) -> int:
    """The number of samples in an array of this shape; 0 for a scalar."""
    if not wanted.shape:
        single, fits = False, len(shape) > 0 if wanted.shape is None else not shape
    else:
        single = len(shape) == len(wanted.shape) - 1
        sizes = shape if single else shape[1:]
        axes = len(shape) in (len(wanted.shape), len(wanted.shape) - 1)
        fits = axes and all(size in (0, got) for size, got in zip(wanted.shape[1:], sizes, strict=True))
    if not fits:
        raise WorkloadError(
            f"{path}: the shape {list(shape)} does not fit the input {wanted}.", _cure(wanted, shape)
        )
    if not single and shape[:1] == (0,):  # another axis may be empty: a past of length 0
        raise WorkloadError(f"{path} is empty for {wanted}: its shape is {list(shape)}.", "Omit it.")
    return 1 if single else shape[0] if shape else 0


def _cure(wanted: Input, shape: tuple[int, ...]) -> str:
    """The cure for a wrong shape; the most frequent case is a picture with channels last."""
    one = shape[-3:]
    if wanted.shape and len(wanted.shape) == 4 and len(shape) in (3, 4):
        last = (one[2], one[0], one[1])
        if all(size in (0, got) for size, got in zip(wanted.shape[1:], last, strict=True)):
            axes = "2, 0, 1" if len(shape) == 3 else "0, 3, 1, 2"
            return f"The channels seem to be last: save array.transpose({axes})."
    return _PREPARED


def _check_type(path: Path, wanted: Input, dtype: np.dtype[Any]) -> None:
    if dtype.kind == wanted.dtype.kind or {dtype.kind, wanted.dtype.kind} <= {"i", "u"}:
        return
    scale = (
        "Scale and normalize the samples as for inference, and save the floats: raw pixels would give wrong "
        "ranges."
    )
    cure = scale if wanted.dtype.kind == "f" and dtype.kind in "iu" else _PREPARED
    raise WorkloadError(f"{path} has {dtype} for the input {wanted}.", cure)


def _plan(shapes: list[tuple[Any, ...]], counts: list[int], *, size: int, whole: bool) -> tuple[Batch, ...]:
    """Batches of `size` samples of one shape, in the order of the files; smaller ones unless `whole`."""
    plan: list[Batch] = []
    for _, alike in itertools.groupby(range(len(counts)), key=lambda file: shapes[file]):
        samples = [(file, row) for file in alike for row in range(counts[file])]
        plan += [tuple(samples[at : at + size]) for at in range(0, len(samples), size)]
    return tuple(batch for batch in plan if len(batch) == size or not whole)


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of a file, without reading the arrays; errors as of `arrays`."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {ONLY: _header(file)}
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    found[name.removesuffix(".npy")] = _header(file)
            return found
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def arrays(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """The arrays of a file by name; the one of an .npy file is named `ONLY`.

    Raises:
        ArtifactError: the file is damaged, or has Python objects.
    """
    try:
        if path.suffix == ".npy":
            return {ONLY: np.load(path, allow_pickle=False)}
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in names}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it has Python objects, and opening them could run code")
    return shape, dtype


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be read as arrays: {error}.", "Save it again with numpy.savez, plain numbers only."
    )
