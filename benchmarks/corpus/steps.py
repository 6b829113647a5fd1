"""One command on one model, in the worker: what it measured, as plain values."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpus.samples import true_noise, write_samples
from deadweight import api
from deadweight.commands import packing
from deadweight.export.memory.footprint import footprint
from deadweight.terminal.show import show

QUICK = ("lint", "memory", "pack")
SLOW = ("profile", "quantize", "compare")
BRIEF = {"events": 2, "event_s": 0.01}


def step(job: tuple[str, str, dict[str, list[int]] | None, str]) -> dict[str, Any]:
    """`job`: the command, the model, the shapes of its samples if any, and their folder."""
    name, model, shapes, samples = job
    path, folder = Path(model), Path(samples)
    first = folder / "0.npz" if shapes else None
    if name == "samples":
        return {"shapes": write_samples(path, folder)}
    if name == "lint":
        show(api.lint(path))
    elif name == "memory":
        show(api.memory(path))
    elif name == "pack":
        _packed(path)
    elif name == "compare":
        show(api.compare(path, path, inputs=first, **BRIEF))  # type: ignore[arg-type]
    elif name == "profile":
        found = api.profile(path, inputs=first, **BRIEF)  # type: ignore[arg-type]
        show(found)
        band = footprint(path, shapes=shapes or {}, runtime="onnxruntime")
        resident = found.memory.resident_bytes if found.memory else None
        return {"resident": resident, "low": band.low_bytes, "high": band.high_bytes}
    elif name == "quantize":
        return _quantized(path, folder)
    return {}


def _packed(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        packed, again = Path(folder) / "model.dwz", Path(folder) / "again.onnx"
        packing.pack(path, packed)
        packing.unpack(packed, again)
        assert again.read_bytes() == path.read_bytes(), "unpack gave other bytes than pack took"


def _quantized(path: Path, samples: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = api.quantize(path, samples, out=folder)
        show(found)
        made = found.made
        told = {name: one.noise for name, one in made.hop.outputs.items()} if made.hop else {}
        true = true_noise(path, made.path, tuple(told), samples) if made.path else {}
        layers = (len(made.quantized.in_int8), len(made.quantized.left_float))
        return {"told": told, "true": dict(true), "verdict": made.verdict, "layers": layers}
