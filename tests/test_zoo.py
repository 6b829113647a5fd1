"""The zoo's own machinery, and some of its networks: all of them are `make zoo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.further_networks import EVERY
from benchmarks.zoo.table import fault, right, tables
from benchmarks.zoo.vision_operators import define_missing

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GOOD: dict[str, Any] = {
    "tool": "ours",
    "name": "resnet18",
    "family": "resnet",
    "form": "module",
    "why": "its forward code follows the widths",
    "prunable": 1.0,
    "kept": 0.26,
    "kept_over_asked": 1.0,
    "frozen": [],
    "cost": 3.0,
    "error": 1e-6,
    "onnx": 1e-6,
    "other_batch": 1e-7,
    "trains": True,
    "disk": True,
}


def measure(name: str) -> dict[str, Any]:
    script = str(BENCHMARKS / "zoo" / "row_ours.py")
    done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row | {"tool": "ours", "name": name, "family": "any"}


def test_no_network_is_in_the_zoo_twice() -> None:
    names = [network.name for network in EVERY]
    assert len(names) == len(set(names)) > 220


def test_a_network_of_the_zoo_is_halved_and_right_in_everything() -> None:
    row = measure("PilotNet")
    assert right(row), fault(row)
    assert row["kept"] < 0.26


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("error", 1e-3),
        ("gradients", 1e-3),
        ("sizes", {"x (2,)": 1e-9, "x (3,)": 1e-3}),
        ("judged", "wrong"),
        ("error", None),
        ("onnx", None),
        ("other_batch", "fixed at 2"),
        ("trains", None),
        ("disk", None),
        ("failed", {"onnx": "it does not export"}),
        ("refused", "it cannot be captured"),
        ("gave_up", "no answer in 400 s"),
    ],
)
def test_a_row_in_which_anything_failed_is_not_right_and_says_what(key: str, value: object) -> None:
    assert right(GOOD)
    assert fault(GOOD) == ""
    bad = GOOD | {key: value}
    assert not right(bad)
    assert fault(bad)


def test_the_table_names_what_was_not_measured() -> None:
    text = tables([GOOD], ["resnet18", "alexnet"])
    assert "alexnet (ours), resnet18 (rival), alexnet (rival)" in text
    assert "| right in everything tried | 1 | 0 |" in text


def test_a_silent_mistake_of_the_rival_is_called_so() -> None:
    rival = {"tool": "rival", "name": "x", "family": "any", "correct": "wrong", "silent": True, "runs": True}
    assert fault(rival | {"other_batch": 0.0, "trains": True}) == "runs, and is wrong"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "shufflenet_v2_x1_0", "vit_tiny_patch16_224", "levit_128s", "llama", "bert"],
)
def test_a_network_of_others_is_halved_and_right_in_everything(name: str) -> None:
    define_missing()  # timm imports torchvision
    pytest.importorskip("timm", reason="make zoo installs it")
    pytest.importorskip("transformers", reason="make zoo installs it")
    row = measure(name)
    assert right(row), fault(row)
