"""The data of a workload: images in folders, NPZ files, or the user's loaders."""

from __future__ import annotations

import functools
import hashlib
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...targets.artifact import sha256_of
from ...targets.errors import WorkloadError, reported, users_code

SPLITS = ("train", "validation", "calibration", "test")
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
"""Of samples that are in no split of their own; which is which is drawn with seed 0."""
CALIBRATION = 512
"""How many samples of "train" calibrate, where no data are given for that."""
LABEL = "label"
_ALSO = {"val": "validation", "valid": "validation"}
_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CACHE_BYTES = 1 << 31


@dataclass(frozen=True)
class Picture:
    """How an image becomes an input: its side in pixels, and the mean and deviation that are taken out."""

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class Data(Protocol):
    """Batches by split, and a hash of all of it."""

    def batches(self, split: str, *, seed: int = 0) -> Iterable[Any]: ...
    def fingerprint(self) -> str: ...


class Batches:
    """Samples of given numbers in batches, read when they are needed."""

    def __init__(self, order: Tensor, size: int, take: Callable[[Tensor], Any]) -> None:
        self.parts, self.take = torch.split(order, size), take

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Any]:
        return map(self.take, self.parts)


@dataclass(frozen=True)
class Samples:
    """Samples that are read by their numbers.

    Attributes:
        numbers: by split.
        take: the batch of some numbers.
        mark: a hash of all samples.
    """

    numbers: Mapping[str, Tensor]
    take: Callable[[Tensor], Mapping[str, Tensor]]
    mark: str
    size: int

    def batches(self, split: str, *, seed: int = 0) -> Batches:
        """The batches of a split; "train" is shuffled by the seed."""
        order = self.numbers["train"][:CALIBRATION] if split not in self.numbers else self.numbers[split]
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        return Batches(order, self.size, self.take)

    def fingerprint(self) -> str:
        return self.mark


@dataclass(frozen=True)
class Loaders:
    """The user's own batches by split, e.g. DataLoaders; what is missing is derived.

    Without "test", every second sample of "validation" is for the test. Without "calibration", the first
    batches of "train" calibrate.
    """

    given: Mapping[str, Iterable[Any]]
    mark: str = ""

    def batches(self, split: str, *, seed: int = 0) -> Iterable[Any]:
        """The batches of a split; a loader shuffles by the seed."""
        if split in self.given and (split != "validation" or "test" in self.given):
            return _seeded(self.given[split], seed)
        if split == "calibration":
            return _first_samples(_seeded(self.given["train"], 0))
        return _every_second(self.given["validation"], 0 if split == "validation" else 1)

    def fingerprint(self) -> str:
        """The hash of one pass over all batches, unless the user gave one."""
        digest = hashlib.sha256()
        for split in () if self.mark else self.given:
            for batch in _seeded(self.given[split], 0):
                for value in pytree.tree_leaves(_plain(batch)):
                    digest.update(np.ascontiguousarray(value).tobytes())
        return self.mark or digest.hexdigest()


class _Seeded:
    """A loader that draws its order from a seed."""

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed = loader, seed

    def __iter__(self) -> Iterator[Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            batches = iter(self.loader)
            first = list(itertools.islice(batches, 1))  # a DataLoader draws its order for the first batch
        yield from first
        yield from batches


class _Counted(_Seeded):
    """The same, of a loader that knows how many batches it has."""

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def _seeded(loader: Iterable[Any], seed: int) -> _Seeded:
    try:
        len(loader)  # type: ignore[arg-type]
    except TypeError:
        return _Seeded(loader, seed)
    return _Counted(loader, seed)


def _first_samples(batches: Iterable[Any]) -> Iterator[Any]:
    left = CALIBRATION
    for batch in batches:
        if left <= 0:
            return
        left -= max(
            (len(one) for one in pytree.tree_leaves(_plain(batch)) if hasattr(one, "shape")), default=1
        )
        yield batch


def _every_second(batches: Iterable[Any], start: int) -> Iterator[Any]:
    """Of each batch the samples start, start + 2, ...; one of a single sample counts as a whole."""
    for number, batch in enumerate(batches):
        leaves, spec = pytree.tree_flatten(_plain(batch))
        if min(map(len, leaves)) > 1:
            yield pytree.tree_unflatten([one[start::2] for one in leaves], spec)
        elif number % 2 == start:
            yield batch


def _plain(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, Mapping) else batch


def loaders(given: Mapping[str, Any], mark: str = "", *, of: str) -> Loaders:
    """The user's loaders, checked.

    Args:
        of: where they come from, for messages.

    Raises:
        WorkloadError: a split is unknown or missing, or its batches could be read only once.
    """
    named = {_ALSO.get(split, split): one for split, one in given.items() if one is not None}
    unknown, lacking = set(named) - set(SPLITS), {"train", "validation"} - set(named)
    if unknown or lacking:
        raise WorkloadError(
            f"{of} has the splits {', '.join(named) or 'none'}"
            f"{''.join(f'; {one} is missing' for one in sorted(lacking))}.",
            f'Give {{"train": ..., "validation": ...}}, and "test" and "calibration" if there are such data; '
            f"known are {', '.join(SPLITS)}.",
        )
    for split, one in named.items():
        if not isinstance(one, Iterable) or isinstance(one, Iterator):
            raise WorkloadError(
                f'{of}: "{split}" is a {type(one).__name__}, which cannot be read again in every epoch.',
                "Give a DataLoader, or a list of batches.",
            )
    return Loaders(named, mark)


def read_data(place: Path, picture: Picture, size: int) -> Data:
    """The samples of an NPZ file, of a folder of such files, or of a folder of images.

    Args:
        size: of a batch.

    Raises:
        WorkloadError: there is no such place, or nothing in it is known.
    """
    if place.suffix == ".npz" and place.is_file():
        return _of_arrays({"": place}, size)
    if not place.is_dir():
        raise WorkloadError(
            f"The data {place} do not exist.", "Name a folder of images, an .npz file, or file.py:function."
        )
    files = {_ALSO.get(path.stem, path.stem): path for path in sorted(place.glob("*.npz"))}
    return _of_arrays(files, size) if files else _of_images(place, picture, size)


def side_of_images(place: Path, most: int) -> int:
    """The longest side of a folder's first images, up to a multiple of 32, at most `most`; 0 for none."""
    sides = [0]
    for path in itertools.islice((one for one in place.rglob("*") if one.suffix.lower() in _IMAGES), 64):
        cure = "Remove it, or repair it."
        with (
            users_code("images were read"),
            reported(WorkloadError, f"{path} cannot be read", cure, *_UNREADABLE),
        ):
            from PIL import Image  # pyright: ignore[reportMissingImports]

            with Image.open(path) as image:
                sides += image.size
    return min(most, -(-max(sides) // 32) * 32)


def _numbers(splits: Mapping[str, int]) -> dict[str, Tensor]:
    """The samples of each split, from the number in each; "" is to be divided."""
    found, start = {}, 0
    for split, count in splits.items():
        if split:
            found[split] = torch.arange(start, start + count)
        else:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + start
            ends = [round(count * share) for share in np.cumsum([*SHARES.values()])]
            found |= zip(SHARES, (part.sort().values for part in order.tensor_split(ends[:-1])), strict=True)
        start += count
    if "test" not in found and "validation" in found:
        whole = found["validation"]
        found |= {"validation": whole[::2], "test": whole[1::2]}
    return found


def _checked(numbers: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    for split in ("train", "validation", "test"):
        if not len(numbers.get(split, ())):
            cure = f"Give at least 7 samples, or all of them in parts named {', '.join(SPLITS)}."
            raise WorkloadError(f'{place} has no samples for "{split}".', cure)
    return numbers


def _of_arrays(files: Mapping[str, Path], size: int) -> Samples:
    where = next(iter(files.values()))
    parts = {}
    for split, path in files.items():
        with reported(WorkloadError, f"{path} cannot be read", "Write it with numpy.savez.", *_UNREADABLE):
            held = np.load(path, allow_pickle=False)
            parts[split] = {name: _tensor(held[name]) for name in held.files}
    names = [*next(iter(parts.values()))]
    for split, arrays in parts.items():
        if [*arrays] != names or len({len(one) for one in arrays.values()}) != 1:
            shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in arrays.items())
            cure = "Give arrays by the inputs' names, then the label, each with a row for every sample."
            raise WorkloadError(f"{files[split]} has {shapes or 'no arrays'}.", cure)
    whole = {name: torch.cat([arrays[name] for arrays in parts.values()]) for name in names}
    counts = {split: len(arrays[names[0]]) for split, arrays in parts.items()}
    mark = hashlib.sha256("".join(map(sha256_of, files.values())).encode()).hexdigest()
    take = functools.partial(_rows, whole)
    return Samples(_checked(_numbers(counts), where), take, mark, size)


_UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, EOFError)


def _rows(arrays: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: one[index] for name, one in arrays.items()}


def _tensor(array: Any) -> Tensor:
    value = torch.from_numpy(np.ascontiguousarray(array))
    return value.float() if value.dtype in (torch.float64, torch.float16) else value


def _of_images(place: Path, picture: Picture, size: int) -> Samples:
    """Folders of classes, `photos/[train/]cat/*.jpg`; or images/ beside masks/ (PNG) or labels/ (text)."""
    beside = [name for name in ("masks", "labels") if (place / name).is_dir()]
    root = place / "images" if beside else place
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _IMAGES)
    by_split: dict[str, list[Path]] = {}
    for path in files:
        first = path.relative_to(root).parts[0]
        split = _ALSO.get(first, first)
        by_split.setdefault(split if split in SPLITS else "", []).append(path)
    if not files or (len(by_split) > 1 and "" in by_split):
        raise WorkloadError(
            f"{place} is no folder of images: {'none is in it' if not files else 'some are in no split'}.",
            "Make folders photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg and photos/validation/CLASS/*.jpg; "
            "for pixels images/ and masks/, for boxes images/ and labels/.",
        )
    paths = [path for split in by_split.values() for path in split]
    classes = sorted({path.parent.name for path in paths})
    if beside:
        of = functools.partial(
            {"masks": _mask, "labels": _boxes}[beside[0]], root, place / beside[0], picture.size
        )
    else:
        of = functools.partial(_class_of, classes)
    most = max(1, _CACHE_BYTES // (3 * picture.size**2))
    read = functools.lru_cache(most)(functools.partial(_pixels, picture.size))
    mark = hashlib.sha256(repr((picture, classes)).encode())
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        about = path.stat()
        mark.update(f"{path.relative_to(place)} {about.st_size} {about.st_mtime_ns}".encode())

    def take(index: Tensor) -> dict[str, Tensor]:
        chosen = [paths[at] for at in index.tolist()]
        pixels = torch.stack([read(path) for path in chosen]).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(one).reshape(1, -1, 1, 1) for one in (picture.mean, picture.std))
        return {"image": (pixels - mean) / std, LABEL: _stacked([of(path) for path in chosen])}

    numbers = _numbers({split: len(found) for split, found in by_split.items()})
    return Samples(_checked(numbers, place), take, mark.hexdigest(), size)


def _pixels(size: int, path: Path, kind: str = "RGB") -> Tensor:
    from PIL import Image  # pyright: ignore[reportMissingImports]

    with Image.open(path) as image:
        how = Image.Resampling.BILINEAR if kind == "RGB" else Image.Resampling.NEAREST
        given = image if image.mode == "P" and kind == "L" else image.convert(kind)  # a palette's numbers
        return torch.from_numpy(np.array(given.resize((size, size), how)))


def _class_of(classes: Sequence[str], path: Path) -> Tensor:
    return torch.tensor(classes.index(path.parent.name))


def _mask(root: Path, masks: Path, size: int, path: Path) -> Tensor:
    place = masks / path.relative_to(root).with_suffix(".png")
    if not place.exists():
        raise WorkloadError(f"{path} has no mask: there is no {place}.", "Give a mask for every image.")
    return _pixels(size, place, "L").long()


def _boxes(root: Path, labels: Path, size: int, path: Path) -> Tensor:
    """The boxes of an image: float32[boxes, 5], the class and two corners in pixels."""
    place = labels / path.relative_to(root).with_suffix(".txt")
    lines = place.read_text("utf-8").split("\n") if place.exists() else []
    cure = "Write a line for each box: class x y width height, the last four as shares of the image."
    with reported(WorkloadError, f"{place} is not a list of boxes", cure, ValueError):
        rows = torch.tensor([[*map(float, line.split())] for line in lines if line.strip()]).reshape(-1, 5)
    middle, half = rows[:, 1:3] * size, rows[:, 3:] * size / 2
    return torch.cat([rows[:, :1], middle - half, middle + half], 1)


def _stacked(labels: Sequence[Tensor]) -> Tensor:
    """Labels as one tensor; lists of boxes are filled up with the class -1."""
    if labels[0].dim() == 2 and labels[0].is_floating_point():
        return nn.utils.rnn.pad_sequence([*labels], batch_first=True, padding_value=-1.0)
    return torch.stack([*labels])
