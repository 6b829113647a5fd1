"""INT8 is judged sample by sample, on files as they were saved, and ahead of what the network decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support.cpu import exact_int8
from support.onnx_files import numbers, op, write_network

from deadweight.export.int8 import Int8, to_int8
from deadweight.export.quantization.samples import open_samples
from deadweight.export.quantization.to_qdq import saturation
from deadweight.targets.errors import ModelError
from deadweight.targets.target import load_target

CPU = load_target("x86-cpu")


def saved(folder: Path, feeds: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for place, feed in enumerate(feeds):
        np.savez(folder / f"{place:04}.npz", **feed)
    return folder


def quantized(path: Path, feeds: Sequence[Mapping[str, Any]], **settings: Any) -> Int8:
    data = saved(path.parent / "data", feeds)
    return to_int8(path, open_samples(path, data), path.parent / "out", target=CPU, **settings)


def true_noise(made: Int8, path: Path, feeds: Sequence[Mapping[str, Any]], output: str) -> float:
    """The median over whole files, by ONNX Runtime alone."""
    assert made.path
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    two = [
        onnxruntime.InferenceSession(str(one), options, providers=["CPUExecutionProvider"])
        for one in (path, made.path)
    ]
    noises = []
    for feed in feeds:
        before, after = (np.asarray(each.run([output], dict(feed))[0], np.float64) for each in two)
        noises.append(float(np.sqrt(np.square(after - before).sum() / np.square(before).sum())))
    return float(np.median(noises))


def weights(*shapes: Sequence[int]) -> dict[str, Any]:
    return {f"w{place}": numbers(*shape, seed=place) for place, shape in enumerate(shapes)}


def test_files_of_one_row_are_judged_one_by_one_as_the_runtime_will_run_them(tmp_path: Path) -> None:
    nodes = [op("MatMul", ["x", "w0"], ["h"]), op("Relu", ["h"], ["a"]), op("MatMul", ["a", "w1"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, weights((256, 256), (256, 16)), ["n", 256])
    feeds = [{"x": numbers(rows, 256, size=3.0, seed=rows)} for rows in (1, 1, 1, 5)]
    data = open_samples(path, saved(tmp_path / "mixed", feeds))
    assert [len(batch["x"]) for batch in data.batches()] == [8]
    assert [len(batch["x"]) for batch in data.as_saved().batches()] == [1, 1, 1, 5]
    made = quantized(path, feeds[:3])
    assert made.hop
    assert made.hop.outputs["y"].noise == pytest.approx(true_noise(made, path, feeds[:3], "y"), rel=1e-3)


def test_a_first_axis_that_is_time_keeps_files_whole(tmp_path: Path) -> None:
    nodes = [
        op("CumSum", ["x", "axis"], ["sums"]),
        *(op("MatMul", ["sums", "w0"], ["h"]), op("Relu", ["h"], ["a"]), op("MatMul", ["a", "w1"], ["y"])),
    ]
    constants = {**weights((16, 16), (16, 16)), "axis": np.array(0)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["time", 1, 16])
    feeds = [{"x": numbers(400, 1, 16, seed=seed) + np.float32(0.3)} for seed in range(12)]
    made = quantized(path, feeds)
    assert not made.samples.by_row
    assert made.samples.count == 12
    assert "is no batch" in " ".join(made.remarks)
    assert made.hop
    told = made.hop.outputs["y"]
    assert told.noise == pytest.approx(true_noise(made, path, feeds, "y"), rel=0.02)
    assert made.samples.place(told.worst_sample) == f"{told.worst_sample:04}.npz"
    assert made.verdict == "good"


def test_inputs_whose_open_first_axes_differ_keep_files_whole(tmp_path: Path) -> None:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [name, 16]) for name in ("nodes", "queries")
    ]
    nodes = [
        op("MatMul", ["nodes", "w0"], ["keys"]),
        op("Transpose", ["keys"], ["turned"], perm=[1, 0]),
        op("MatMul", ["queries", "turned"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])]
    path = write_network(tmp_path / "m.onnx", nodes, weights((16, 16)), ["nodes", 16], outputs=outputs)
    model = onnx.load(path)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, path)
    feeds = [{"nodes": numbers(9 + n, 16, seed=n), "queries": numbers(3, 16, seed=50 + n)} for n in range(8)]
    made = quantized(path, feeds)
    assert made.samples.count == 8
    assert made.hop
    assert made.hop.outputs["y"].noise == pytest.approx(true_noise(made, path, feeds, "y"), rel=0.02)


def test_rows_that_do_not_depend_on_each_other_are_samples(tmp_path: Path) -> None:
    nodes = [op("MatMul", ["x", "w0"], ["h"]), op("Relu", ["h"], ["a"]), op("MatMul", ["a", "w1"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, weights((16, 16), (16, 4)), ["n", 16])
    made = quantized(path, [{"x": numbers(20, 16, seed=seed)} for seed in range(4)])
    assert made.samples.by_row
    assert made.samples.count == 80
    assert made.remarks == tuple(saturation(CPU, 8, "--weight-bits 7"))


def network(path: Path, *, offset: float = 0.0, more: Sequence[Any] = (), outputs: Any = ()) -> Path:
    nodes = [
        *(op("Conv", ["x", "w0"], ["h"], pads=[1, 1, 1, 1]), op("Relu", ["h"], ["a"])),
        *(op("Conv", ["a", "w1"], ["z0"]), op("Add", ["z0", "offset"], ["z"])),
        *more,
    ]
    constants = {**weights((16, 8, 3, 3), (8, 16, 1, 1)), "offset": np.float32(offset)}
    constants |= {"k": np.array([12]), "flat": np.array([0, -1])}
    return write_network(path, nodes, constants, ["n", 8, 8, 8], outputs=outputs)


def output(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


PICTURES = [{"x": numbers(2, 8, 8, 8, size=1.0, seed=seed)} for seed in range(16)]


@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_a_wild_sample_is_named_and_does_not_choose_the_method(tmp_path: Path, size: float) -> None:
    path = network(tmp_path / "m.onnx", outputs=[output("z", None, 8, 8, 8)])
    feeds = [{"x": np.array(one["x"])} for one in PICTURES]
    feeds[5]["x"][1, 3, 2, 2] = size
    made = quantized(path, feeds, method="best")
    assert made.method != "minmax"
    assert made.hop
    assert made.hop.outputs["z"].noise == made.noises[made.method] < made.noises["minmax"] / 2
    assert made.samples.place(made.hop.outputs["z"].worst_sample) == "0005.npz, sample 1"
    assert any(remark.startswith("CHECK 0005.npz, sample 1: x reaches") for remark in made.remarks)


def test_a_network_whose_outputs_are_broken_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", outputs=[output("z", None, 8, 8, 8)])
    feeds = [{"x": np.array(one["x"])} for one in PICTURES]
    feeds[5]["x"][1, 3, 2, 2] = 1e4
    with pytest.raises(ModelError, match="is broken"):
        quantized(path, feeds, method="minmax")
    assert not (tmp_path / "out").exists()


def test_what_lies_behind_topk_is_judged_ahead_of_it_and_by_agreement(tmp_path: Path) -> None:
    more = [op("Reshape", ["z", "flat"], ["s"]), op("TopK", ["s", "k"], ["best", "at"], axis=1)]
    outputs = [output("best", None, 12), output("at", None, 12, kind=TensorProto.INT64)]
    path = network(tmp_path / "m.onnx", more=more, outputs=outputs)
    made = quantized(path, PICTURES)
    assert made.hop
    assert dict(made.hop.decided) == {"at": "TopK"}
    assert set(made.hop.outputs) == {"s", "best"}  # the values of the best are continuous
    assert 0.3 < made.hop.agree["at"] <= 1.0
    assert made.verdict == "good"


def test_a_saturated_sigmoid_is_judged_at_its_input(tmp_path: Path) -> None:
    path = network(
        tmp_path / "m.onnx",
        offset=-30,
        more=[op("Sigmoid", ["z"], ["y"])],
        outputs=[output("y", None, 8, 8, 8)],
    )
    made = quantized(path, PICTURES)
    assert made.hop
    assert set(made.hop.outputs) == {"z"}
    assert made.verdict == "good"


def test_a_random_draw_is_judged_at_what_it_is_added_to(tmp_path: Path) -> None:
    more = [op("RandomNormalLike", ["z"], ["noise"]), op("Add", ["z", "noise"], ["y"])]
    path = network(tmp_path / "m.onnx", more=more, outputs=[output("y", None, 8, 8, 8)])
    made = quantized(path, PICTURES)
    assert made.hop
    assert dict(made.hop.decided) == {"y": "RandomNormalLike"}
    assert set(made.hop.outputs) == {"z"}
    assert made.samples.by_row


@exact_int8
def test_a_batch_norm_in_training_mode_is_not_folded(tmp_path: Path) -> None:
    norm = op("BatchNormalization", ["h", "g", "b", "m", "v"], ["n", "m2", "v2"], training_mode=1)
    nodes = [op("Conv", ["x", "w0"], ["h"]), norm, op("Conv", ["n", "w1"], ["y"])]
    statistics = {
        name: np.full(16, value, np.float32) for name, value in zip("gbmv", (1, 0, 2, 5), strict=True)
    }
    constants = {**weights((16, 8, 1, 1), (8, 16, 1, 1)), **statistics}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["n", 8, 8, 8])
    made = quantized(path, PICTURES)
    assert made.folded == 0
    assert made.verdict == "good"


def test_nan_in_a_weight_is_the_weights_fault(tmp_path: Path) -> None:
    bad = numbers(16, 16)
    bad[3, 3] = np.nan
    nodes = [op("MatMul", ["x", "w"], ["h"]), op("Relu", ["h"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, {"w": bad}, ["n", 16])
    with pytest.raises(ModelError, match="weight 'w' has NaN in 1 of "):
        quantized(path, [{"x": numbers(20, 16)}])


def test_raw_pixels_in_float_are_said(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", outputs=[output("z", None, 8, 8, 8)])
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.integers(0, 256, (2, 8, 8, 8)).astype(np.float32)} for _ in range(8)]
    assert "as raw pixels" in " ".join(quantized(path, feeds).remarks)


def test_a_past_of_length_zero_is_a_sample(tmp_path: Path) -> None:
    nodes = [op("MatMul", ["x", "w0"], ["k"]), op("Concat", ["past", "k"], ["all"], axis=1)]
    nodes += [op("MatMul", ["all", "w1"], ["y"])]
    path = write_network(tmp_path / "m.onnx", nodes, weights((16, 16), (16, 16)), ["n", "s", 16])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("past", TensorProto.FLOAT, ["n", "p", 16]))
    onnx.save(model, path)
    feeds = [{"x": numbers(1, 4, 16, seed=n), "past": numbers(1, n // 2, 16, seed=99 + n)} for n in range(12)]
    made = quantized(path, feeds)
    assert made.samples.count == 12
    assert made.verdict == "good"


def test_labels_as_text_and_maps_do_not_stop_the_numbers_from_being_judged(tmp_path: Path) -> None:
    nodes = [
        *(op("MatMul", ["x", "w0"], ["h"]), op("Relu", ["h"], ["a"]), op("MatMul", ["a", "w1"], ["z"])),
        op("Softmax", ["z"], ["p"], axis=1),
        op("ArgMax", ["p"], ["class"], axis=1, keepdims=0),
        op("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_strings=list("abcd")),
    ]
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    outputs = [output("class", "n", kind=TensorProto.INT64), helper.make_value_info("maps", kind)]
    path = write_network(tmp_path / "m.onnx", nodes, weights((16, 16), (16, 4)), ["n", 16], outputs=outputs)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, path)
    made = quantized(path, [{"x": numbers(20, 16, seed=seed)} for seed in range(4)])
    assert made.hop
    assert set(made.hop.outputs) == {"p"}
    assert made.hop.agree["class"] > 0.8
