"""A model tried on its golden inputs: what holds, what does not, and what must never pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.releases import make_bundle, make_key, make_release, packed, trust

from deadweight.targets.errors import ModelError, RefusedError
from deadweight.targets.release.self_test import furthest, refuse_wrong, rehearse
from deadweight.targets.release.trust import Bundle, open_bundle

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


def opened(place: Path, key: Path, **files: bytes) -> Bundle:
    """Release 1 with other golden files."""
    trust(key, place / "root")
    made = make_release(place / "1", key, 1)
    names = ("model.onnx", "golden/inputs.npz", "golden/outputs.npz")
    held = {name: files.get(Path(name).stem, (made / name).read_bytes()) for name in names}
    return open_bundle(make_bundle(place / "other", key, held), root=place / "root")


def test_a_model_that_does_what_it_should_holds(tmp_path: Path, key: Path) -> None:
    found = rehearse(opened(tmp_path, key))
    assert found.holds
    assert found.furthest < 1e-6
    assert found.to_json()["runtime"].startswith("onnxruntime")


def test_outputs_off_by_more_than_the_bundle_allows_are_refused(tmp_path: Path, key: Path) -> None:
    expected = dict(np.load(make_release(tmp_path / "1", key, 1) / "golden/outputs.npz"))["y"]
    near = opened(tmp_path / "near", key, outputs=packed(y=expected * 1.009))
    assert 0.008 < refuse_wrong(near).furthest < 0.01
    far = opened(tmp_path / "far", key, outputs=packed(y=expected * 1.02))
    with pytest.raises(RefusedError, match=r"they deviate by 2 % of the largest, 1 % are allowed"):
        refuse_wrong(far)
    assert rehearse(far).to_json()["holds"] is False


def test_outputs_of_another_name_or_shape_are_refused(tmp_path: Path, key: Path) -> None:
    for number, arrays in enumerate(({"z": np.zeros((3, 16))}, {"y": np.zeros((3, 15))}, {})):
        wrong = opened(tmp_path / str(number), key, outputs=packed(**arrays))
        with pytest.raises(RefusedError, match="does not run here"):
            refuse_wrong(wrong)


def test_inputs_that_the_model_does_not_take_are_refused(tmp_path: Path, key: Path) -> None:
    wrong = opened(tmp_path, key, inputs=packed(x=np.zeros((3, 5), np.float32)))
    with pytest.raises(RefusedError, match="does not run here"):
        refuse_wrong(wrong)


def test_bytes_that_were_changed_are_refused_before_anything_runs(tmp_path: Path, key: Path) -> None:
    bundle = opened(tmp_path, key)
    (tmp_path / "other/model.onnx").write_bytes(b"changed")
    with pytest.raises(RefusedError, match="was changed after it was signed"):
        rehearse(bundle)


def test_the_difference_is_a_share_of_the_largest_expected_value() -> None:
    assert furthest({"y": np.array([1.0, -4.0])}, {"y": np.array([1.0, -3.0])}) == pytest.approx(0.25)
    assert furthest({"y": np.array([1.0])}, {"y": np.array([1.0]), "more": np.zeros(2)}) == 0
    assert furthest({"y": np.zeros(2), "e": np.zeros(0)}, {"y": np.zeros(2), "e": np.zeros(0)}) == 0


@pytest.mark.parametrize(
    ("expected", "found", "off"),
    [
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, 2.0], [1.0, INF], INF),
        ([NAN, 2.0], [1.0, 2.0], INF),
        ([INF, 2.0], [-INF, 2.0], INF),
        ([NAN, INF, 2.0], [NAN, INF, 2.0], 0.0),
        ([NAN, NAN], [NAN, NAN], 0.0),
    ],
)
def test_nan_and_infinity_pass_only_where_they_are_expected(
    expected: list[float], found: list[float], off: float
) -> None:
    assert furthest({"y": np.array(expected)}, {"y": np.array(found)}) == off


def test_nothing_expected_proves_nothing() -> None:
    for expected in ({}, {"y": np.zeros((0, 3))}):
        with pytest.raises(ModelError, match="has no golden outputs"):
            furthest(expected, {"y": np.zeros((0, 3))})


def test_a_board_with_trtexec_alone_tries_a_release_as_an_engine(
    tmp_path: Path, key: Path, trtexec_only: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = opened(tmp_path, key)
    expected = dict(np.load(tmp_path / "1/golden/outputs.npz"))["y"]
    wrong = opened(tmp_path / "wrong", key, outputs=packed(y=expected * 1.2))
    trtexec_only()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = rehearse(bundle)
    assert found.holds
    assert found.to_json()["runtime"] == "trtexec of TensorRT 10.3.0"
    with pytest.raises(RefusedError, match="outputs are wrong"):
        refuse_wrong(wrong)
