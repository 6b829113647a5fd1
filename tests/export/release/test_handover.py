"""Hand-overs read back: shapes, types, names, labels and normalization are those of the bundle."""

from __future__ import annotations

import configparser
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper
from support import tensorrt_versions

from deadweight.export.onnx_graph.camera_input import read_preprocessing
from deadweight.export.release.bundle import bundle
from deadweight.export.release.handover import DESTINATIONS, handover
from deadweight.targets.errors import ArtifactError, ModelError, module_in
from deadweight.targets.target import load_target

ORIN, CPU = load_target("agx-orin-64gb"), load_target("x86-cpu")
TRITON = "tritonclient==2.73.0"
SAME = "mean = [0.5, 0.25, 0.125]\nstd = [0.5]\n"
# Of DeepStream's header gstnvinfer_property_parser.h, those that a hand-over may write.
KEYS = {
    *("gpu-id", "gie-unique-id", "process-mode", "net-scale-factor", "offsets", "model-color-format"),
    *("onnx-file", "model-engine-file", "batch-size", "network-mode", "infer-dims"),
    *("network-input-order", "int8-calib-file", "enable-dla", "use-dla-core", "labelfile-path"),
    *("network-type", "num-detected-classes", "cluster-mode", "parse-bbox-func-name"),
    *("custom-lib-path", "classifier-threshold", "output-tensor-meta"),
}


def network(
    path: Path,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any],
) -> Path:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "network", ends[0], ends[1], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def convolution() -> Any:
    return np.random.default_rng(0).normal(0, 0.1, (4, 3, 3, 3)).astype(np.float32)


def classifier(folder: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["class"]),
    ]
    ends: tuple[Any, Any] = {"image": ["batch", 3, 16, 24]}, {"class": ["batch", 4]}
    return network(folder / "classifier.onnx", *ends, nodes, {"w": convolution()})


def two_inputs(folder: Path) -> Path:
    nodes = [helper.make_node("Add", ["left", "right"], ["sum"])]
    ends: tuple[Any, Any] = {"left": ["batch", 8], "right": ["batch", 8]}, {"sum": ["batch", 8]}
    return network(folder / "two.onnx", *ends, nodes, {})


def detector(folder: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["boxes"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["image", "w"], ["scores"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    ends = {"image": [1, 3, 32, 32]}, {"boxes": [1, 4, 32, 32], "scores": [1, 4, 16, 16]}
    return network(folder / "detector.onnx", *ends, nodes, {"w": convolution()})


def bundled(model: Path, *, target: Any = ORIN, files: Mapping[str, str] = {}) -> Path:
    extras = []
    for name, text in files.items():
        (model.parent / name).write_text(text)
        extras.append(model.parent / name)
    return bundle(model, model.parent / "net.bundle", target=target, extras=extras, release=1)


def read_deepstream(place: Path) -> dict[str, str]:
    read = configparser.ConfigParser(delimiters="=")
    read.read_string((place / "config_infer_primary.txt").read_text())
    assert read.sections() == ["property"]
    found = dict(read["property"])
    assert set(found) <= KEYS
    for key in ("onnx-file", "labelfile-path", "int8-calib-file"):
        assert key not in found or (place / found[key]).is_file()
    return found


def read_triton(place: Path) -> Any:
    """By Triton's own schema; the package itself would need grpc."""
    schema = tensorrt_versions.installed(TRITON) / "tritonclient/grpc/model_config_pb2.py"
    return text_format.Parse((place / "config.pbtxt").read_text(), module_in(schema).ModelConfig())


def lines_of(place: Path) -> list[list[str]]:
    text = (place / "trtexec.sh").read_text()
    return [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]


def test_a_classifier_for_deepstream(tmp_path: Path) -> None:
    labels = "cat\ndog\nhorse\nsnail\n"
    made = bundled(classifier(tmp_path), files={"labels.txt": labels, "preprocessing.toml": SAME})
    handover(made, tmp_path / "out", to="deepstream", batch=4)
    found = read_deepstream(tmp_path / "out")
    assert found["infer-dims"] == "3;16;24"
    assert (found["batch-size"], found["network-mode"], found["network-type"]) == ("4", "2", "1")
    assert (tmp_path / "out" / found["labelfile-path"]).read_text() == "cat;dog;horse;snail\n"
    pixels = np.arange(3 * 16 * 24, dtype=np.float64).reshape(1, 3, 16, 24) % 256
    offsets = np.array(found["offsets"].split(";"), float).reshape(1, 3, 1, 1)
    given = read_preprocessing(tmp_path / "preprocessing.toml")
    mean = np.array(given.mean).reshape(1, 3, 1, 1)
    wanted = (pixels * given.scale - mean) / given.std[0]
    np.testing.assert_allclose(float(found["net-scale-factor"]) * (pixels - offsets), wanted, atol=1e-9)
    assert found["model-color-format"] == "0"


def test_a_detector_for_deepstream_has_its_parser_or_gives_its_tensors(tmp_path: Path) -> None:
    made = bundled(detector(tmp_path), files={"labels.txt": "car\nbus\n"})
    handover(made, tmp_path / "plain", to="deepstream")
    found = read_deepstream(tmp_path / "plain")
    assert (found["network-type"], found["output-tensor-meta"]) == ("100", "1")
    handover(made, tmp_path / "parsed", to="deepstream", parser="/opt/libyolo.so:Parse")
    found = read_deepstream(tmp_path / "parsed")
    assert found["num-detected-classes"] == "2"
    assert (found["parse-bbox-func-name"], found["custom-lib-path"]) == ("Parse", "/opt/libyolo.so")
    assert (tmp_path / "parsed" / found["labelfile-path"]).read_text() == "car\nbus\n"


def test_dla_gets_its_calibration_cache_everywhere(tmp_path: Path) -> None:
    cache = "TRT-100300-EntropyCalibration2\nimage: 3c010a14\n"
    made = bundled(detector(tmp_path), files={"calibration.cache": cache})
    handover(made, tmp_path / "deepstream", to="deepstream", dla_core=1)
    found = read_deepstream(tmp_path / "deepstream")
    assert (found["enable-dla"], found["use-dla-core"], found["network-mode"]) == ("1", "1", "1")
    assert (tmp_path / "deepstream" / found["int8-calib-file"]).read_text() == cache
    handover(made, tmp_path / "trtexec", to="trtexec", dla_core=1)
    build, time = lines_of(tmp_path / "trtexec")
    assert {"--useDLACore=1", "--allowGPUFallback", "--int8", "--fp16", "--calib=calibration.cache"} <= set(
        build
    )
    assert (tmp_path / "trtexec/calibration.cache").read_text() == cache
    assert "--useDLACore=1" in time
    handover(made, tmp_path / "triton", to="triton", dla_core=1)
    [group] = read_triton(tmp_path / "triton").instance_group
    assert [(one.kind, one.device_id) for one in group.secondary_devices] == [(0, 1)]  # KIND_NVDLA


@pytest.mark.parametrize("make", [classifier, two_inputs, detector])
@pytest.mark.parametrize("target", [ORIN, CPU], ids=["engine", "onnx"])
def test_triton_gets_names_types_and_shapes(make: Any, target: Any, tmp_path: Path) -> None:
    made = bundled(make(tmp_path), target=target, files={"labels.txt": "a\nb\nc\nd\n"})
    handover(made, tmp_path / "out", to="triton", batch=8)
    read = read_triton(tmp_path / "out")
    model = onnx.load(made / "model.onnx")
    dynamic = make is not detector
    assert read.max_batch_size == (8 if dynamic else 0)
    assert read.platform == ("tensorrt_plan" if target is ORIN else "onnxruntime_onnx")
    for side, ends in ((read.input, model.graph.input), (read.output, model.graph.output)):
        assert [one.name for one in side] == [end.name for end in ends]
        for one, end in zip(side, ends, strict=True):
            sizes = [size.dim_value or -1 for size in end.type.tensor_type.shape.dim]
            assert list(one.dims) == sizes[1 if dynamic else 0 :]
            assert one.data_type == 11  # TYPE_FP32
    assert read.output[0].label_filename == ("labels.txt" if make is classifier else "")
    assert (tmp_path / "out/1/model.onnx").read_bytes() == (made / "model.onnx").read_bytes()


def test_trtexec_gets_the_shapes_of_both_inputs(tmp_path: Path) -> None:
    written = handover(bundled(two_inputs(tmp_path)), tmp_path / "out", to="trtexec", batch=8)
    assert {path.name for path in written} == {"model.onnx", "trtexec.sh"}
    build, time = lines_of(tmp_path / "out")
    assert "--minShapes='left':1x8,'right':1x8" in build or "--minShapes=left:1x8,right:1x8" in build
    assert any(flag.startswith("--maxShapes") and "8x8" in flag for flag in build)
    assert "--onnx=model.onnx" in build
    assert "--loadEngine=model.plan" in time


def test_what_deepstream_cannot_do_is_refused_with_a_cure(tmp_path: Path) -> None:
    made = bundled(two_inputs(tmp_path))
    with pytest.raises(ModelError, match="feeds one float image") as caught:
        handover(made, tmp_path / "out", to="deepstream")
    assert "--to triton" in caught.value.cure
    assert not (tmp_path / "out").exists()
    imagenet = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
    made = bundled(classifier(tmp_path), files={"preprocessing.toml": imagenet})
    with pytest.raises(ModelError, match="one scale for all channels") as caught:
        handover(made, tmp_path / "out", to="deepstream")
    assert "deadweight camera" in caught.value.cure


def test_bad_input_is_refused(tmp_path: Path) -> None:
    made = bundled(classifier(tmp_path))
    with pytest.raises(ArtifactError, match="no hand-over to 'tflite'"):
        handover(made, tmp_path / "out", to="tflite")
    with pytest.raises(ArtifactError, match="is not a bundle"):
        handover(tmp_path, tmp_path / "out", to="triton")
    with pytest.raises(ArtifactError, match="exists already"):
        handover(made, tmp_path, to="triton")
    (made / "model.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"model\.onnx of .* was changed"):
        handover(made, tmp_path / "out", to="triton")
    assert list(DESTINATIONS) == ["deepstream", "triton", "trtexec"]
