from __future__ import annotations

from typing import Any, cast

import pytest

from deadweight.pipeline.report.schema import Row
from deadweight.pipeline.report.words import sparse_sentences
from deadweight.targets.target import load_target

FACTS: dict[str, Any] = {
    "parameters": 1_333_770,
    "left": 333_770,
    "structured": False,
}


def row(name: str, judged: tuple[str, float, float, float] | None) -> Row:
    empty = dict.fromkeys(("score", "macs", "file_bytes", "latency_s", "memory_bytes"))
    speedup = None if judged is None else dict(zip(("outcome", "ratio", "low", "high"), judged, strict=True))
    return cast(Row, {"name": name, "parameters": 333_000, "speedup": speedup, **empty})


def said(judged: tuple[str, float, float, float] | None, target: str = "x86-cpu", **facts: Any) -> str:
    others = [row("tuned", ("faster", 3.1, 3.0, 3.2))]
    words = sparse_sentences(
        {**FACTS, **facts}, row("sparse", judged), others, load_target(target), label="Sparse"
    )
    return " ".join(words).replace("\N{NO-BREAK SPACE}", " ")


def test_zeros_that_gained_no_time_are_said_to_gain_none_beside_neurons_that_did() -> None:
    for outcome in ("equal", "cannot_tell", "slower"):
        words = said((outcome, 1.0, 0.98, 1.02))
        assert "Zeros do not make dense kernels faster" in words
        assert "The tuned network, whose 333 k parameters are in smaller dense layers: speed-up 3.10" in words
    assert "25.0 %" in words


def test_nothing_is_said_of_a_speed_that_was_not_measured() -> None:
    words = said(None)
    assert "was not measured" in words
    assert "Zeros do not" not in words


def test_a_speed_up_by_zeros_is_not_explained_away() -> None:
    assert "look for another cause" in said(("faster", 1.3, 1.2, 1.4))
    assert "Zeros do not" not in said(("faster", 1.3, 1.2, 1.4))
    assert "kernels for 2:4 are faster" in said(("faster", 1.3, 1.2, 1.4), "orin-nano-8gb", structured=True)


@pytest.mark.parametrize(
    ("target", "ends"),
    [("x86-cpu", "has no kernels for it."), ("orin-nano-8gb", "if that is faster.")],
)
def test_two_of_four_says_how_it_is_enabled(target: str, ends: str) -> None:
    words = said(("equal", 1.0, 0.99, 1.01), target, structured=True)
    assert "deadweight build MODEL.onnx --sparse sets TensorRT's flag SPARSE_WEIGHTS" in words
    assert words.endswith(ends)
    assert "SPARSE_WEIGHTS" not in said(("equal", 1.0, 0.99, 1.01), target)
