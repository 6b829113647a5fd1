"""Small signed bundles, made by hand with real keys, for the tests of trust."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

FILES = {"model.onnx": b"not run by these tests", "golden/inputs.npz": b"in", "golden/outputs.npz": b"out"}


def make_key(place: Path, name: str = "release") -> Path:
    """A new key pair; returns the private one's path."""
    place.mkdir(parents=True, exist_ok=True)
    key = place / name
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return key


def trust(key: Path, root: Path, *, options: str = 'namespaces="deadweight-bundle"') -> Path:
    """Makes the machine at `root` trust the key under its name."""
    signers = root / "etc/deadweight/allowed_signers"
    signers.parent.mkdir(parents=True, exist_ok=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    signers.write_text(f"{key.name} {options} {public}\n".replace("  ", " "))
    return signers


def make_bundle(place: Path, key: Path | None, held: dict[str, bytes] | None = None, **changed: Any) -> Path:
    """A bundle of these files; keyword arguments replace keys of its manifest."""
    held = FILES if held is None else held
    place.mkdir(parents=True, exist_ok=True)
    for name, data in held.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    manifest: dict[str, Any] = {
        "schema": 2,
        "name": "small",
        "made_by": "a test",
        "target": "x86-cpu",
        "release": 1,
        "made_at": "2026-01-01T00:00:00+00:00",
        "expires": None,
        "board": {"compute_capability": None, "tensorrt": None},
        "model": "model.onnx",
        "golden": {"inputs": "golden/inputs.npz", "outputs": "golden/outputs.npz", "tolerance": 0.01},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in held.items()
        },
    }
    (place / "manifest.json").write_text(json.dumps({**manifest, **changed}))
    if key is not None:
        sign(place / "manifest.json", key)
    return place


def sign(manifest: Path, key: Path, *, namespace: str = "deadweight-bundle") -> None:
    """Signs a manifest anew."""
    (manifest.parent / "manifest.json.sig").unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(key), str(manifest)]
    subprocess.run(command, check=True, capture_output=True)
