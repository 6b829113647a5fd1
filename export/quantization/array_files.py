"""Reading arrays from .npz and .npy files, their headers first; nothing that could run code."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...targets.errors import ArtifactError
from ..onnx_graph.graph import Array

ONLY = "the array of an .npy file"


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of a file, without reading the arrays.

    Raises:
        ArtifactError: as for `arrays`.
    """
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error


def arrays(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """The arrays of a file by name; the one of an .npy file is called `ONLY`.

    Raises:
        ArtifactError: the file is damaged, or holds Python objects.
    """
    try:
        if path.suffix == ".npy":
            return {ONLY: np.load(path, allow_pickle=False)}
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and opening those could run code")
    return shape, dtype


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be read as arrays: {error}.", "Save it again with numpy.savez, plain numbers only."
    )
