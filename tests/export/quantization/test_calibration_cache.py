from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.int8_files import opened
from support.onnx_files import numbers, op, write_network

from deadweight.export.int8 import to_int8
from deadweight.export.lint.check import lint
from deadweight.export.onnx_graph.graph import load
from deadweight.export.quantization.calibration_cache import header, with_batch
from deadweight.export.quantization.samples import Samples, open_samples
from deadweight.targets.engines.dla import read_ranges
from deadweight.targets.errors import ModelError, TargetError
from deadweight.targets.target import load_target

Nets = Callable[[str], Any]
ORIN = load_target("agx-orin-64gb")

# Lines of caches that TensorRT wrote, as they stand in public repositories: each file's first line, and lines
# whose value is known: a sigmoid reaches 1, an output of a MaxPool or Reshape has its input's range.
PUBLIC = {
    "NVIDIA-AI-IOT/cuDLA-samples data/model/qat2ptq.cache": """TRT-8600-EntropyCalibration2
images: 3c00f9f4
/model.0/act/Mul_output_0: 3e6c9314
""",
    "Data-Prodigy/cpp_chicken_tracking calibration.cache": """TRT-100300-EntropyCalibration2
images: 3c008912
/model.0/act/Sigmoid_output_0: 3c010a14
/model.9/cv1/conv/Conv_output_0: 3d7b2745
/model.9/m/MaxPool_output_0: 3d7b2745
""",
    "dnth/DEIMKit calibration.cache": """TRT-100900-EntropyCalibration2
images: 3c021406
ONNXTRT_Broadcast_1855_output: 0
""",
    "NicolaSansoni/DeepStream-Yolo calib.table": """TRT-8001-EntropyCalibration2
data: 3c020660
(Unnamed Layer* 3) [Activation]_output: 3c010a14
""",
}


def read(text: str) -> tuple[str, dict[str, float]]:
    """A second reader, from the facts of the public files alone: first line, scale by tensor."""
    first, *lines = text.splitlines()
    found = {}
    for line in lines:
        name, digits = line.rsplit(": ", 1)
        assert name not in found
        assert digits == digits.lower().strip()
        (found[name],) = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))
    return first, found


@pytest.mark.parametrize("where", PUBLIC)
def test_the_second_reader_reads_what_public_repositories_hold(where: str) -> None:
    first, scales = read(PUBLIC[where])
    assert first.startswith("TRT-")
    assert first.endswith("-EntropyCalibration2")
    assert all(0.0 <= scale < 1.0 for scale in scales.values())
    # Normalized images reach 1, or nearly.
    image = next(iter(scales.values())) * 127
    assert 0.99 < image < 1.02
    for name, scale in scales.items():
        if "Sigmoid" in name or "Activation" in name:
            assert scale == pytest.approx(1 / 127, rel=3e-4)


@pytest.mark.parametrize(
    ("version", "digits"),
    [
        ((8, 0, 1), "8001"),
        ((8, 5, 2), "8502"),
        ((8, 6), "8600"),
        ((10, 3, 0, 30), "100300"),
        ((10, 9), "100900"),
        ((10, 13, 3, 9), "101303"),
    ],
)
def test_the_first_line_has_the_digits_of_the_version(version: tuple[int, ...], digits: str) -> None:
    assert header(version) == f"TRT-{digits}-EntropyCalibration2"


def test_tensorrt_11_takes_no_cache_and_the_cure_names_what_it_takes() -> None:
    with pytest.raises(TargetError, match=r"11\.4\.1 takes no calibration cache") as caught:
        header((11, 4, 1))
    assert "int8.onnx" in caught.value.cure


def saved(net: Any, folder: Path) -> Samples:
    folder.mkdir()
    for place, batch in enumerate(net.batches):
        np.savez(folder / f"{place}.npz", **{name: value.numpy() for name, value in batch.items()})
    return open_samples(net.path, folder)


@pytest.mark.parametrize("name", ["residual", "depthwise", "joined", "attentive"])
def test_its_ranges_are_those_of_the_qdq_file_and_every_layer_of_the_float_file_has_one(
    net: Nets, tmp_path: Path, name: str
) -> None:
    one = net(name)
    made = to_int8(one.path, saved(one, tmp_path / "data"), tmp_path / "out", target=ORIN, cache_batch=3)
    assert made.cache
    assert made.path
    first, scales = read(made.cache.path.read_text("utf-8"))
    assert first == "TRT-100300-EntropyCalibration2"
    int8 = load(made.path)
    pairs = [node for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert pairs
    for node in pairs:
        scale = int8.index.value(node.input[1])
        assert scale is not None
        assert scales[node.input[0]] == pytest.approx(float(scale), rel=1e-6)
    float_ = load(made.cache.model)
    assert set(float_.float_names()) <= set(scales)
    assert read_ranges(made.cache.path) == scales  # as a build for DLA reads it
    # The float file is the one that was calibrated, with a batch that DLA takes.
    assert float_.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    feeds = {key: value[:3].numpy() for key, value in one.batches[0].items()}
    for key, value in opened(one.path).run(feeds).items():
        np.testing.assert_allclose(opened(made.cache.model).run(feeds)[key], value, atol=1e-4)
    facts = json.loads((tmp_path / "out" / "quantize.json").read_text())["cache"]
    assert facts["tensors"] == len(scales)


def test_what_dla_leaves_to_the_gpu_is_listed(net: Nets, tmp_path: Path) -> None:
    one = net("attentive")
    made = to_int8(one.path, saved(one, tmp_path / "data"), tmp_path / "out", target=ORIN, cache_batch=1)
    assert made.cache
    assert made.cache.on_gpu
    report = lint(made.cache.model, target=ORIN, dla=True)
    assert report.counts["error"] == 0
    layer_norms = [f.node for f in report.findings if f.rule == 502 and "LayerNormalization" in f.what]
    assert layer_norms
    assert set(layer_norms) <= set(made.cache.on_gpu)
    # The file with pairs is refused for DLA, and the cure is this command.
    assert made.path
    refused = [f for f in lint(made.path, target=ORIN, dla=True).findings if f.rule == 501]
    assert {finding.severity for finding in refused} == {"error"}
    assert "--calibration-cache" in refused[0].cure
    assert lint(made.path, target=ORIN).counts["error"] == 0


def test_what_only_moves_values_has_the_scale_of_its_input_and_constants_have_one(
    tmp_path: Path,
) -> None:
    nodes = [
        op("Conv", ["x", "w"], ["c"]),
        op("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        op("Mul", ["p", "k"], ["m"]),
        op("Sigmoid", ["m"], ["y"]),
    ]
    constants = {"w": numbers(8, 8, 3, 3), "k": np.array([-2.54], np.float32)}
    path = write_network(tmp_path / "m.onnx", nodes, constants, ["n", 8, 8, 8])
    np.savez(tmp_path / "d.npz", x=numbers(8, 8, 8, 8))
    samples = open_samples(path, tmp_path / "d.npz")
    made = to_int8(path, samples, tmp_path / "out", target=ORIN, cache_batch=1)
    assert made.cache
    _, scales = read(made.cache.path.read_text("utf-8"))
    assert scales["p"] == scales["c"]
    assert scales["k_output"] == pytest.approx(0.02, rel=1e-6)
    assert "w_output" not in scales


def test_a_target_without_such_caches_is_refused_before_the_calibration(net: Nets, tmp_path: Path) -> None:
    samples = saved(net("mlp"), tmp_path / "data")
    with pytest.raises(TargetError, match="runs onnxruntime"):
        to_int8(net("mlp").path, samples, tmp_path / "no", target=load_target("x86-cpu"), cache_batch=1)
    assert not (tmp_path / "no").exists()


def test_another_dynamic_axis_than_the_batch_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write_network(tmp_path / "m.onnx", [op("Relu", ["x"], ["y"])], {}, ["n", "length"])
    with pytest.raises(ModelError, match=r"Axis 1 of the input 'x' has no fixed size"):
        with_batch(load(path), 1)


def test_a_batch_is_fixed_in_inputs_and_outputs(tmp_path: Path) -> None:
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])
    path = write_network(tmp_path / "m.onnx", [op("Relu", ["x"], ["y"])], {}, ["n", 4], outputs=[out])
    made = with_batch(load(path), 2)
    values = (made.graph.input[0], made.graph.output[0])
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in values] == [2, 2]
