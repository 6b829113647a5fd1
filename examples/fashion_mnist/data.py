"""Finds Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 + 10,000 images, 28 x 28, 10 classes.

It searches in this order, so that the example works offline, on a cluster and in CI: $DEADWEIGHT_DATA (the
CLI's --data), the user's cache, Debian's system folder, the public download, and Debian's package unpacked
into the cache without root. Every file is checked by its SHA-256. If none of these works, scikit-learn's
digits (1,797 images, 8 x 8) are used instead, with a warning.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deadweight.targets.artifact import writing
from deadweight.targets.errors import DeadweightError, WorkloadError

FILES = {  # name: SHA-256 of the .gz
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
# This address has no https; the hashes protect the download.
DOWNLOAD = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
PACKAGE = "dataset-fashion-mnist"

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


def load(part: str) -> Arrays:
    """Images (n, 1, 28, 28), scaled to mean 0 and deviation 1 over the data set, and labels (n,).

    Args:
        part: "train" (60,000) or "t10k" (10,000); fewer if the digits are used instead.

    Raises:
        WorkloadError: $DEADWEIGHT_DATA is set but does not have the files.
    """
    folder = find()
    if folder is None:
        return _digits(part)
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    pixels = images.astype(np.float32)
    pixels /= 255
    pixels -= 0.2860
    pixels /= 0.3530
    return pixels, labels.astype(np.int64)


def find() -> Path | None:
    """The folder with the four files, downloaded into the cache if needed; None if that fails."""
    chosen = os.environ.get("DEADWEIGHT_DATA")
    if chosen == "digits":
        return None
    if chosen:
        if not _complete(Path(chosen)):
            raise WorkloadError(
                f"{chosen} does not hold Fashion-MNIST's four .gz files, or one of them is damaged.",
                "Give the folder that holds train-images-idx3-ubyte.gz and its three neighbours, or leave "
                "--data out.",
            )
        return Path(chosen)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deadweight" / "fashion-mnist"
    for folder in (cache, SYSTEM):
        if _complete(folder):
            return folder
    for fetch in (_download, _unpack_package):
        with contextlib.suppress(OSError, HTTPException, subprocess.SubprocessError, DeadweightError):
            fetch(cache)
        if _complete(cache):
            return cache
    print(
        "Fashion-MNIST was not found and could not be fetched: scikit-learn's digits stand in for it.\n"
        f"For the real data set, put its four .gz files into {cache} or give their folder with --data.",
        file=sys.stderr,
    )
    return None


def _complete(folder: Path) -> bool:
    paths = {name: folder / name for name in FILES}
    return all(path.is_file() for path in paths.values()) and all(
        hashlib.sha256(path.read_bytes()).hexdigest() == FILES[name] for name, path in paths.items()
    )


def _download(cache: Path) -> None:
    for name in FILES:
        with urllib.request.urlopen(DOWNLOAD + name, timeout=10) as reply, writing(cache / name) as beside:
            beside.write_bytes(reply.read())


def _unpack_package(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        download = f"apt-get -q download {PACKAGE}"
        # The package lists of a new machine are empty: update them first.
        for command in (f"{download} || (apt-get -q update && {download})", f"dpkg -x {PACKAGE}_*.deb ."):
            subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True, timeout=300)
        for name in FILES:
            with writing(cache / name) as beside:
                shutil.copyfile(Path(folder) / SYSTEM.relative_to("/") / name, beside)


def _idx(path: Path, *, header: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file after its header (LeCun's format: 4 bytes a dimension, and a magic word)."""
    return np.frombuffer(gzip.decompress(path.read_bytes())[header:], np.uint8)


def _digits(part: str) -> Arrays:
    """scikit-learn's digits, each pixel three wide, in a frame of two: 28 x 28 as the recipes expect."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.kron(np.asarray(pixels).reshape(-1, 8, 8), np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None] / 16
    half = slice(None, 1437) if part == "train" else slice(1437, None)
    return ((images[half] - 0.30) / 0.37).astype(np.float32), np.asarray(labels)[half].astype(np.int64)
