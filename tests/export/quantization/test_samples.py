"""Calibration samples from files: what is taken, in which batches, and what is refused with which cure."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deadweight.export.quantization.samples import inputs_of, open_samples
from deadweight.targets.errors import ArtifactError, ModelError, WorkloadError

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741


def model(path: Path, **inputs: Any) -> Path:
    """A file whose inputs have these types and shapes; what it computes does not matter here."""
    ends = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    node = helper.make_node("Shape", [next(iter(inputs))], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph([node], "g", ends, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return model(tmp_path / "m.onnx", image=(F, ["batch", 3, 4, 5]))


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_single_samples_and_batches_come_in_the_order_of_the_names(pictures: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    values = numbers(7, 3, 4, 5)
    np.savez(folder / "1.npz", image=values[:4], label=np.arange(4))
    np.save(folder / "2.npy", values[4].astype(np.float64))
    np.savez_compressed(folder / "3.npz", values[5:])
    (folder / "readme.txt").write_text("not data")
    samples = open_samples(pictures, folder)
    (batch,) = samples.batches()
    assert batch["image"].dtype == np.float32
    np.testing.assert_array_equal(batch["image"], values)
    assert samples.count == 7
    assert samples.place(5) == "3.npz, sample 0"


@pytest.mark.parametrize(("size", "batches", "left_out"), [(3, 3, 1), (1, 10, 0), (10, 1, 0)])
def test_a_fixed_batch_is_filled_across_files(tmp_path: Path, size: int, batches: int, left_out: int) -> None:
    path = model(tmp_path / "m.onnx", image=(F, [size, 2]))
    (folder := tmp_path / "data").mkdir()
    values = numbers(10, 2)
    for place in range(5):
        np.savez(folder / f"{place}.npz", image=values[2 * place : 2 * place + 2])
    samples = open_samples(path, folder)
    found = [batch["image"] for batch in samples.batches()]
    assert [len(one) for one in found] == [size] * batches
    np.testing.assert_array_equal(np.concatenate(found), values[: size * batches])
    assert samples.left_out == left_out


def test_samples_of_other_sizes_are_not_put_into_one_batch(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", tokens=(I, ["batch", "length"]), mask=(I, ["batch", "length"]))
    (folder := tmp_path / "data").mkdir()
    for place, length in enumerate((3, 3, 5)):
        row = np.arange(length, dtype=np.int32)
        np.savez(folder / f"{place}.npz", tokens=row, mask=np.ones(length, np.int64))
    batches = list(open_samples(path, folder).batches())
    assert [batch["tokens"].shape for batch in batches] == [(2, 3), (1, 5)]
    assert batches[0]["tokens"].dtype == np.int64


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"array.transpose\(2, 0, 1\)"),
        (np.zeros((8, 4, 5, 3), np.float32), r"array.transpose\(0, 3, 1, 2\)"),
        (np.zeros((2, 3, 4, 6), np.float32), r"the shape \[2, 3, 4, 6\] does not fit the input image"),
        (np.zeros((5,), np.float32), "does not fit the input image"),
        (np.zeros((0, 3, 4, 5), np.float32), "is empty"),
        (np.zeros((3, 4, 5), np.uint8), "Scale and normalize the samples"),
        (np.zeros((3, 4, 5), np.complex64), "has complex64"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    pictures: Path, tmp_path: Path, array: np.ndarray[Any, Any], message: str
) -> None:
    (folder := tmp_path / "data").mkdir()
    np.savez(folder / "0.npz", image=numbers(3, 4, 5))
    np.savez(folder / "1.npz", image=array)
    with pytest.raises(WorkloadError, match=message) as caught:
        open_samples(pictures, folder)
    assert "1.npz" in caught.value.what


@pytest.mark.parametrize(
    "kind",
    [
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None)),
        helper.make_optional_type_proto(helper.make_tensor_type_proto(F, None)),
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(F, [])),
        helper.make_tensor_type_proto(TensorProto.STRING, ["n"]),
    ],
)
def test_inputs_that_are_no_tensors_of_numbers_are_refused_by_name(tmp_path: Path, kind: Any) -> None:
    made = onnx.load(model(tmp_path / "m.onnx", odd=(F, ["n"])))
    made.graph.input[0].type.CopyFrom(kind)
    with pytest.raises(ModelError, match="The input 'odd' takes no numbers"):
        inputs_of(made)


def test_names_that_the_model_does_not_know_are_listed(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", left=(F, ["batch", 2]), right=(F, ["batch", 2]))
    np.savez(tmp_path / "0.npz", left=numbers(4, 2), rigth=numbers(4, 2))
    with pytest.raises(WorkloadError, match="no array 'right'; it has left, rigth") as caught:
        open_samples(path, tmp_path / "0.npz")
    assert "numpy.savez(path, left=..., right=...)" in caught.value.cure
    np.savez(tmp_path / "0.npz", left=numbers(4, 2), right=numbers(3, 2))
    with pytest.raises(WorkloadError, match="different numbers of samples"):
        open_samples(path, tmp_path / "0.npz")


def test_too_few_samples_for_a_fixed_batch_are_an_error(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", image=(F, [8, 2]))
    np.save(tmp_path / "0.npy", numbers(5, 2))
    with pytest.raises(WorkloadError, match=r"has 5 samples, but m\.onnx needs batches of 8"):
        open_samples(path, tmp_path / "0.npy")


def test_a_folder_without_arrays_says_how_to_make_them(pictures: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    with pytest.raises(WorkloadError, match=r"no \.npz or \.npy files"):
        open_samples(pictures, folder)
    (folder / "cat.JPG").write_bytes(b"a picture")
    with pytest.raises(WorkloadError, match="pictures, but no arrays") as caught:
        open_samples(pictures, folder)
    assert "numpy.savez" in caught.value.cure
    with pytest.raises(WorkloadError, match=r"is not a \.npz or \.npy file"):
        open_samples(pictures, folder / "cat.JPG")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_samples(pictures, tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["text", "cut", "objects", "pickle"])
def test_damaged_files_and_code_are_refused(pictures: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "0.npz"
    np.savez(path, image=numbers(3, 4, 5))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "objects":
        np.savez(path, image=np.array([{"a": 1}], dtype=object))
    else:
        path.write_bytes(b"not an archive" if damage == "text" else pickle.dumps([1, 2]))
    with pytest.raises(ArtifactError, match="cannot be read as arrays"):
        open_samples(pictures, path)


def test_an_archive_that_is_damaged_inside_is_found_when_it_is_read(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    np.savez(path, image=numbers(50, 3, 4, 5))
    held = bytearray(path.read_bytes())
    held[2000] ^= 0xFF
    path.write_bytes(held)
    samples = open_samples(pictures, path)
    with pytest.raises(ArtifactError, match="cannot be read as arrays"):
        list(samples.batches())


def test_whole_numbers_that_do_not_fit_are_not_wrapped_around(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", tokens=(TensorProto.INT32, ["batch", 2]))
    np.savez(tmp_path / "0.npz", tokens=np.array([[1, 2**40]]))
    with pytest.raises(WorkloadError, match="do not fit its type"):
        list(open_samples(path, tmp_path / "0.npz").batches())


def test_what_a_file_says_once_for_all_of_its_samples_is_handed_on_with_each_of_its_batches(
    tmp_path: Path,
) -> None:
    path = model(tmp_path / "m.onnx", scale=(F, []), size=(I, [2]), image=(F, ["batch", 3]))
    (folder := tmp_path / "data").mkdir()
    for place, count in enumerate((40, 2)):
        size = np.array([place, 7])
        np.savez(folder / f"{place}.npz", image=numbers(count, 3), scale=np.float32(place), size=size)
    samples = open_samples(path, folder)
    batches = list(samples.batches())
    assert [len(batch["image"]) for batch in batches] == [32, 8, 2]
    assert [float(batch["scale"]) for batch in batches] == [0, 0, 1]
    assert [list(batch["size"]) for batch in batches] == [[0, 7], [0, 7], [1, 7]]
    assert (samples.count, samples.place(41)) == (42, "1.npz, sample 1")


def test_single_samples_for_a_fixed_batch_of_one_may_have_sizes_beside_them(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", size=(F, [2]), image=(F, [1, 3, 4]))
    (folder := tmp_path / "data").mkdir()
    for place in range(3):
        np.savez(folder / f"{place}.npz", image=numbers(3, 4), size=np.full(2, place, np.float32))
    samples = open_samples(path, folder)
    assert [(len(b["image"]), b["size"][0]) for b in samples.batches()] == [(1, 0), (1, 1), (1, 2)]
    assert samples.left_out == 0
