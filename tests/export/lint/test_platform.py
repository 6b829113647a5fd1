from __future__ import annotations

from dataclasses import replace

import pytest

from deadweight.export.lint.platform import TABLES, Platform, keeps_int8, operators
from deadweight.targets.errors import TargetError
from deadweight.targets.target import Fact, load_target


@pytest.mark.parametrize(
    ("version", "table"),
    [
        ("8.4.12", "8.4"),
        ("8.5", "8.5"),
        ("8.5.2", "8.5"),
        ("8.6.1", "8.6"),
        ("9.3", "8.6"),
        ("10.0.1", "10.0"),
        ("10.1", "10.1"),
        ("10.3.0.30", "10.1"),
        ("11.4.1", "10.1"),
    ],
)
def test_a_version_is_judged_by_the_newest_table_that_is_not_newer(version: str, table: str) -> None:
    platform = Platform.of(tensorrt=version)
    assert platform.table == table
    said = any("operator table" in sentence for sentence in platform.words())
    assert said == (not version.startswith(table))


def test_a_board_brings_its_own_version_and_may_be_given_another() -> None:
    board = load_target("agx-orin-64gb")
    assert Platform.of(board).name == "TensorRT 10.3.0.30"
    assert Platform.of(board, "8.5").table == "8.5"


def test_without_board_and_version_the_newest_table_is_asked() -> None:
    platform = Platform.of()
    assert (platform.table, platform.name) == ("10.1", "TensorRT 10.1")
    assert "No board was given" in " ".join(platform.words())


@pytest.mark.parametrize("version", ["abc", "10", "", "10.x", "-8.5"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(TargetError, match="is not a version"):
        Platform.of(tensorrt=version)


def test_what_is_older_than_all_tables_is_refused() -> None:
    with pytest.raises(TargetError, match=r"8\.2 is older than the oldest table"):
        Platform.of(tensorrt="8.2")


def test_a_board_without_tensorrt_is_refused() -> None:
    with pytest.raises(TargetError, match="x86-cpu runs onnxruntime"):
        Platform.of(load_target("x86-cpu"))


def test_a_version_of_low_certainty_is_not_believed() -> None:
    board = load_target("thor-t5000")
    facts = {**board.facts, "tensorrt": Fact("10.13", "hearsay", "low")}
    with pytest.raises(TargetError, match="is not certain"):
        Platform.of(replace(board, facts=facts))


def test_a_board_whose_version_lost_its_accelerator_says_so() -> None:
    board = load_target("agx-orin-64gb")
    assert Platform.of(board).dla_cores == 2
    lost = Platform.of(board, "10.13")
    assert lost.dla_cores == 0
    assert "does not support the DLA" in " ".join(lost.words())


def test_no_version_lost_an_operator_that_an_older_one_took() -> None:
    assert len(operators()) == 196
    for operator, row in operators().items():
        taken = [row[table] is not None for table in TABLES]
        assert taken == sorted(taken), operator


def test_the_table_says_what_changed_between_versions() -> None:
    def takes(operator: str) -> list[str]:
        return [table for table in TABLES if operators()[operator][table]]

    assert takes("Relu") == ["8.4", "8.5", "8.6", "10.0", "10.1"]
    assert takes("LayerNormalization") == ["8.6", "10.0", "10.1"]
    assert takes("Gelu") == ["10.0", "10.1"]
    assert takes("DeformConv") == ["10.1"]
    assert takes("QLinearConv") == []
    assert takes("NonZero") == ["8.5", "8.6", "10.0", "10.1"]
    assert operators()["Cast"]["8.5"] == frozenset(("f32", "f16", "i32", "i8", "bool"))


@pytest.mark.parametrize(
    ("operator", "version", "supported"),
    [
        ("Attention", "10.13.3.9", False),
        ("Attention", "10.14.1", True),
        ("RMSNormalization", "10.16.2", True),
        ("Swish", "10.16.2", False),
        ("Swish", "11.0", True),
        ("HannWindow", "10.3.0", False),
        ("HannWindow", "10.4", True),
        ("Col2Im", "11.4.1", False),  # TensorRT-RTX 1.7.1 refuses it, too
        ("Col2Im", "12.0", None),
        ("CumProd", "10.3", False),
        ("CumProd", "11.4", False),
        ("LinearAttention", "10.13", None),
        ("Relu", "12.0", True),
    ],
)
def test_operators_that_nvidia_added_after_the_newest_table_are_known_and_others_are_not_denied(
    operator: str, version: str, supported: bool | None
) -> None:
    assert Platform.of(tensorrt=version).supports(operator) is supported


def test_what_runs_between_int8_operators_without_a_detour() -> None:
    assert all(keeps_int8(name) for name in ("Relu", "MaxPool", "Reshape", "Resize", "Add", "Concat"))
    assert not any(keeps_int8(name) for name in ("Softmax", "LayerNormalization", "Conv", "Shape", "NoSuch"))
