"""Bundles and update files: changed before and after they were signed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path
from random import Random

from support.releases import make_key, make_release, sign, trust

from benchmarks.fuzz.kind import Files, Kind, files_in

MAGIC = b"DWPATCH\x01"
FRAMES = ("manifest.json", "signature.txt", "instructions.json")


@cache
def _board() -> Path:
    """A folder with a key, a machine that trusts it (`root`), and two releases: 1 is in use there."""
    from deadweight.export.release.delta import delta
    from deadweight.targets.release.install import install

    place = Path(tempfile.mkdtemp(prefix="fuzz-board-"))
    key = make_key(place / "key")
    trust(key, place / "root")
    for number in (1, 2):
        make_release(place / str(number), key, number)
    install(place / "1", place / "place", root=place / "root", tried=False)
    delta(place / "1", place / "2", place / "patch")
    delta(None, place / "2", place / "whole")
    return place


def _bundles(place: Path) -> list[Files]:
    return [{f"bundle/{name}": data for name, data in files_in(_board() / "2").items()}]


def _signed(files: Files) -> Files:
    """The manifest with the hashes of the files as they are, signed."""
    made = dict(files)
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        value = json.loads(files["bundle/manifest.json"])
        for name, data in files.items():
            if (held := value["files"].get(name.removeprefix("bundle/"))) is not None:
                held |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        made["bundle/manifest.json"] = json.dumps(value).encode()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.json"
        manifest.write_bytes(made["bundle/manifest.json"])
        sign(manifest, _board() / "key" / "release")
        made["bundle/manifest.json.sig"] = Path(f"{manifest}.sig").read_bytes()
    return made


def _bundle(folder: Path, random: Random) -> None:
    from deadweight.targets.release.install import install

    if random.random() < 0.1:
        name = random.choice([path for path in (folder / "bundle").rglob("*") if path.is_file()])
        name.unlink()
        name.symlink_to("../../outside/secret")
    install(folder / "bundle", folder / "place", root=_board() / "root", tried=random.random() < 0.2)


def _patches(place: Path) -> list[Files]:
    """Update files in parts, so that what is compressed can be changed."""
    found = []
    for name in ("patch", "whole"):
        data = (_board() / name).read_bytes()[len(MAGIC) + 32 :]
        files: Files = {}
        for frame in FRAMES:
            (size,) = struct.unpack("<I", data[:4])
            files[frame], data = zlib.decompress(data[4 : 4 + size]), data[4 + size :]
        found.append({**files, "sections": data})
    return found


def _joined(files: Files) -> Files:
    frames = [zlib.compress(files[frame], 9) for frame in FRAMES]
    body = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames) + files["sections"]
    return {"patch": MAGIC + hashlib.sha256(body).digest() + body}


def _patch(folder: Path, random: Random) -> None:
    from deadweight.targets.release.install import install

    shutil.copytree(_board() / "place", folder / "place", symlinks=True)
    install(folder / "patch", folder / "place", root=_board() / "root", tried=False)


KINDS = {
    "bundle, changed": Kind(5, _bundles, _bundle),
    "bundle, signed": Kind(10, _bundles, _bundle, _signed),
    "update file": Kind(10, _patches, _patch, _joined),
}
