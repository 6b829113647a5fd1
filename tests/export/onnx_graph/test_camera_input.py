"""Camera input: the network on pixels computes what it did on normalized images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.onnx_files import numbers, write_network

from deadweight.export.onnx_graph.camera_input import Preprocessing, read_preprocessing, with_camera_input
from deadweight.export.onnx_graph.graph import load, save
from deadweight.targets.errors import ArtifactError, ModelError
from deadweight.targets.runtimes.open import open_session

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def conv(path: Path, *, pads: int = 0, bias: bool = True, operator: str = "Conv") -> Path:
    weights: dict[str, Any] = {"w": numbers(4, 3, 3, 3), **({"b": numbers(4)} if bias else {})}
    nodes = [helper.make_node("Conv", ["x", *weights], ["y"], pads=[pads] * 4)]
    if operator != "Conv":
        nodes = [helper.make_node(operator, ["x"], ["y"])]
        weights = {}
    return write_network(path, nodes, weights, ["batch", 3, 12, 12])


@pytest.mark.parametrize(
    ("pads", "bias", "operator", "folded", "left"),
    [
        (0, True, "Conv", "scale and mean", ["Cast", "Conv"]),
        (0, False, "Conv", "scale and mean", ["Cast", "Conv"]),
        (1, True, "Conv", "the scale", ["Cast", "Sub", "Conv"]),
        (0, True, "Relu", "nothing", ["Cast", "Sub", "Mul", "Relu"]),
    ],
)
def test_pixels_give_what_normalized_images_gave(
    pads: int, bias: bool, operator: str, folded: str, left: list[str], tmp_path: Path
) -> None:
    path = conv(tmp_path / "a.onnx", pads=pads, bias=bias, operator=operator)
    made, what = with_camera_input(load(path), IMAGENET)
    save(made.proto, tmp_path / "b.onnx")
    onnx.checker.check_model(str(tmp_path / "b.onnx"))
    assert what == folded
    assert [node.op_type for node in made.graph.node] == left
    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, 12, 12), dtype=np.uint8)
    mean, std = (np.array(one).reshape(1, 3, 1, 1) for one in (IMAGENET.mean, IMAGENET.std))
    image = ((pixels / 255 - mean) / std).astype(np.float32)
    before, after = open_session(path), open_session(tmp_path / "b.onnx")
    assert after.inputs[0].dtype == "uint8"
    wanted, got = before.run({"x": image})["y"], after.run({"x": pixels})["y"]
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_scale_alone_is_folded_beside_padding_too(tmp_path: Path) -> None:
    made, what = with_camera_input(load(conv(tmp_path / "a.onnx", pads=1)), Preprocessing())
    assert what == "scale and mean"
    assert [node.op_type for node in made.graph.node] == ["Cast", "Conv"]


def test_a_network_without_an_image_is_refused(tmp_path: Path) -> None:
    path = write_network(
        tmp_path / "a.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        {},
        ["batch", 3],
        kind=TensorProto.FLOAT,
    )
    with pytest.raises(ModelError, match="no single float32 input"):
        with_camera_input(load(path), IMAGENET)


@pytest.mark.parametrize(
    "wrong", ["std = [0.0]", 'colour = "pink"', "mean = [1.0, 2.0]", "scale = 0.0", "sd = [1.0]"]
)
def test_a_wrong_preprocessing_is_reported(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(wrong)
    with pytest.raises(ArtifactError):
        read_preprocessing(tmp_path / "p.toml")
