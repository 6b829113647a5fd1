from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support.int8_files import calibrate, compare_files, correct_biases, noise_between, to_qdq
from support.onnx_files import numbers, op, write_network

from deadweight.export.onnx_graph.graph import Index, load
from deadweight.targets.errors import WorkloadError

Nets = Callable[[str], Any]
ALL = ["mlp", "residual", "depthwise", "joined", "attentive"]


def corrected(
    made: Any, directory: Path, dialect: Any, skip: Any = ()
) -> tuple[dict[str, float], Path, Path]:
    """What was taken off, the INT8 file before, and the one after."""
    to_qdq(made.path, made.ranges, directory / "q.onnx", dialect=dialect, skip=skip)
    taken = correct_biases(made.path, directory / "q.onnx", made.batches, directory / "f.onnx")
    to_qdq(directory / "f.onnx", made.ranges, directory / "better.onnx", dialect=dialect, skip=skip)
    return taken, directory / "q.onnx", directory / "better.onnx"


@pytest.mark.parametrize("dialect", ["tensorrt", "x86"])
@pytest.mark.parametrize("name", ALL)
def test_every_network_gets_its_file_and_is_not_worse(
    net: Nets, tmp_path: Path, name: str, dialect: Any
) -> None:
    made = net(name)
    taken, before, after = corrected(made, tmp_path, dialect)
    assert taken
    assert all(0 <= share < 1 for share in taken.values())
    noises = [noise_between(made.path, path, made.batches) for path in (before, after)]
    assert noises[1] < 1.1 * noises[0]
    compare_files(made.path, after, made.batches, kind="lossy", name="int8", rounded_from=tmp_path / "f.onnx")


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_the_mean_of_a_last_layer_is_corrected(net: Nets, tmp_path: Path, name: str) -> None:
    # With all others in float, the last layer's mean error is what was measured, and it goes.
    made = net(name)
    layers = [node.name for node in load(made.path).graph.node if node.op_type in ("Conv", "Gemm")]
    _, before, after = corrected(made, tmp_path, "tensorrt", skip=layers[:-1])
    inputs = {key: np.concatenate([b[key].numpy() for b in made.batches]) for key in made.example}
    exact, rough, fixed = (
        np.asarray(onnxruntime.InferenceSession(path).run(None, inputs)[0])
        for path in (made.path, before, after)
    )
    shift = np.abs((rough - exact).mean(axis=0)).max()
    assert np.abs((fixed - exact).mean(axis=0)).max() < 0.02 * shift


def test_what_stays_in_float_keeps_its_bias(net: Nets, tmp_path: Path) -> None:
    made = net("residual")
    taken, _, _ = corrected(made, tmp_path, "x86", skip=["stem/Conv"])
    assert "stem/Conv" not in taken
    before, after = (Index.of(load(path).graph) for path in (made.path, tmp_path / "f.onnx"))
    one, two = (np.asarray(graph.value("stem.weight_bias")) for graph in (before, after))
    assert np.array_equal(one, two)
    assert "same.conv1/Conv:bias" in after.constants


def test_no_samples_are_an_error(net: Nets, tmp_path: Path) -> None:
    made = net("mlp")
    to_qdq(made.path, made.ranges, tmp_path / "q.onnx")
    with pytest.raises(WorkloadError, match="no calibration data"):
        correct_biases(made.path, tmp_path / "q.onnx", [], tmp_path / "f.onnx")
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize(("bias", "beta"), [(numbers(16, 9), 1.0), (numbers(16, 1), 1.0), (numbers(9), 0.5)])
def test_a_term_of_gemm_that_is_no_bias_by_channel_is_left_as_it_is(
    tmp_path: Path, bias: Any, beta: float
) -> None:
    gemm = op("Gemm", ["x", "w", "b"], ["y"], beta=beta)
    path = write_network(tmp_path / "m.onnx", [gemm], {"w": numbers(24, 9), "b": bias}, [16, 24])
    data = [{"x": numbers(16, 24, size=1.0)}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    assert correct_biases(path, tmp_path / "q.onnx", data, tmp_path / "corrected.onnx") == {}


def test_the_shift_of_a_channel_that_hardly_varies_is_reported_as_a_share_of_the_whole_output(
    tmp_path: Path,
) -> None:
    # Channel 3 reads the one input that never changes: by its own deviation the shift was 1e29 of it.
    weight = numbers(16, 8)
    weight[:, 3] = 0.0
    weight[0, 3] = 0.0137
    x = numbers(40, 16, size=1.0)
    x[:, 0] = 0.777
    gemm = op("Gemm", ["x", "w", "b"], ["y"], name="product")
    path = write_network(tmp_path / "m.onnx", [gemm], {"w": weight, "b": numbers(8)}, ["batch", 16])
    data = [{"x": x}]
    to_qdq(path, calibrate(path, data), tmp_path / "q.onnx")
    taken = correct_biases(path, tmp_path / "q.onnx", data, tmp_path / "f.onnx")
    assert 0 < taken["product"] < 0.05
