"""Checkpoints from outside: each is read as plain tensors that fit, or refused with a reason."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deadweight.pipeline.stages.load import read_weights
from deadweight.pipeline.training.checkpoint import fill
from deadweight.targets.errors import ArtifactError, ModelError

WEIGHTS = nn.Linear(3, 2).state_dict()


class Code:
    def __reduce__(self) -> Any:
        return print, ("code from data ran",)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def zipped(value: Any) -> bytes:
    """The same file with its entries packed, as a bomb is."""
    file, out = zipfile.ZipFile(io.BytesIO(saved(value))), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    return out.getvalue()


def header(length: int, text: str = "") -> bytes:
    return struct.pack("<Q", length) + text.encode()


VAST = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.pt", lambda: saved(WEIGHTS)[:-40], "is damaged or not a checkpoint"),
        ("a.pt", lambda: saved(WEIGHTS)[:200], "is damaged or not a checkpoint"),
        ("a.pt", lambda: b"", "neither a file of torch.save nor a pickle"),
        ("a.pt", lambda: b"version https://git-lfs", "neither a file of torch.save nor a pickle"),
        ("a.pt", lambda: saved({"w": Code()}), "opening it could run foreign code"),
        ("a.pt", lambda: saved(nn.Linear(2, 2)), "opening it could run foreign code"),
        ("a.pt", lambda: pickle.dumps(Code()), "opening it could run foreign code"),
        ("a.pt", lambda: zipped({"w": torch.zeros(1 << 20)}), "would unpack to more than its own size"),
        ("a.pt", lambda: saved({"w": torch.zeros(1).expand(1 << 40)}), "'w' is sparse, or larger than"),
        ("a.pt", lambda: saved({"w": torch.eye(4).to_sparse()}), "'w' is sparse, or larger than"),
        ("a.pt", lambda: saved([torch.zeros(2)]), "has no state dict, but list"),
        ("a.pt", lambda: saved({"model": WEIGHTS, "epoch": 3}), "but ['epoch', 'model']"),
        ("a.safetensors", lambda: header(1 << 60), "is damaged or not a checkpoint"),
        ("a.safetensors", lambda: header(len(VAST), VAST), "is damaged or not a checkpoint"),
        ("a.safetensors", lambda: header(9, "[" * 9), "is damaged or not a checkpoint"),
        ("a.safetensors", lambda: saved(WEIGHTS), "is damaged or not a checkpoint"),
    ],
)
def test_a_hostile_checkpoint_is_refused_in_one_sentence_and_runs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, data: Callable[[], bytes], says: str
) -> None:
    (tmp_path / name).write_bytes(data())
    with pytest.raises(ArtifactError) as caught:
        read_weights(tmp_path / name)
    assert says in caught.value.what
    assert len(caught.value.what) < 400
    assert "code from data" not in capfd.readouterr().out


def test_whatever_bytes_of_a_checkpoint_are_damaged_it_is_read_or_refused(tmp_path: Path) -> None:
    drawn = random.Random(3)
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    old = io.BytesIO()
    torch.save(WEIGHTS, old, _use_new_zipfile_serialization=False)
    kinds = {"b.pt": saved(WEIGHTS), "c.pt": old.getvalue()}
    kinds["d.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    for name, whole in kinds.items():
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(drawn.randint(1, 6)):
                data[drawn.randrange(len(data))] = drawn.randrange(256)
            (tmp_path / name).write_bytes(data[: drawn.choice((len(data), drawn.randrange(len(data))))])
            with contextlib.suppress(ArtifactError, ModelError):
                fill(nn.Linear(3, 2), read_weights(tmp_path / name), tmp_path / name, "Give another.")


def test_what_does_not_fit_a_network_is_named_shortly() -> None:
    wide = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))
    with pytest.raises(ModelError) as caught:
        fill(wide, {"0.weight": torch.zeros(3, 2), "other": torch.zeros(1)}, Path("a.pt"), "Give another.")
    assert 'Missing key(s) in state_dict: "0.bias"' in caught.value.what
    assert 'Unexpected key(s) in state_dict: "other"' in caught.value.what
    assert "size mismatch for 0.weight" in caught.value.what
    assert len(caught.value.what) < 600


def test_integers_are_not_taken_as_float_weights() -> None:
    whole = {name: value.to(torch.int8) for name, value in WEIGHTS.items()}
    with pytest.raises(ModelError, match=r"weight is torch\.int8, not torch\.float32"):
        fill(nn.Linear(3, 2), whole, Path("a.pt"), "Give another.")
