"""Small signed bundles, made with real keys, and real releases whose golden outputs are the network's own."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deadweight.targets.release.trust import open_bundle
from deadweight.targets.runtimes.open import open_session

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


Arrays = dict[str, NDArray[Any]]
INPUTS = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)


def network(number: int, *, width: int = 16) -> bytes:
    """An INT8 network of one layer; from one number to the next most of its weights change by a little."""
    generator = np.random.default_rng(7)
    weights = np.clip(np.round(generator.standard_normal((16, width)) * 40), -127, 127)
    weights = np.clip(weights + np.random.default_rng(number).integers(-2, 3, weights.shape), -127, 127)
    held = {"w": weights.astype(np.int8), "s": np.float32(0.01), "z": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 16), ("y", width))
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(made.SerializeToString())


def answer(model: Path) -> NDArray[Any]:
    """What a model file answers to `INPUTS`, by ONNX Runtime."""
    session = open_session(model, runtime="onnxruntime")
    try:
        return np.asarray(session.run({"x": INPUTS})["y"])
    finally:
        session.close()


def make_release(place: Path, key: Path | None, number: int, *, width: int = 16, **changed: Any) -> Path:
    """Release `number` of the network "small"; keyword arguments replace keys of its manifest."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.onnx").write_bytes(network(number, width=width))
    held = {
        "model.onnx": network(number, width=width),
        "golden/inputs.npz": packed(x=INPUTS),
        "golden/outputs.npz": packed(y=answer(place / "model.onnx")),
        "LICENSE": b"Apache-2.0\n" * 20,
    }
    return make_bundle(place, key, held, **{"release": number, **changed})


def packed(**arrays: NDArray[Any]) -> bytes:
    """An NPZ file's bytes."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # names are the model's own
    return file.getvalue()


def release_in_use(place: Path, root: Path) -> int:
    """Which release of "small" is in use, once it was seen to be trusted and to answer as it should."""
    bundle = open_bundle(place / "small/current", root=root)
    number = bundle.manifest.release
    with bundle.sealed("model.onnx") as path:
        found = answer(path)
    expected = np.load(io.BytesIO(bundle.read("golden/outputs.npz")))["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert bundle.read("model.onnx") == network(number, width=found.shape[1])
    return number
