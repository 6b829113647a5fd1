"""A file quantized alone: equal to the stage's parts, with a report of what changed, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.int8_files import calibrate, compare_files, opened, to_qdq

from deadweight.export.int8 import flip_details, to_int8
from deadweight.export.onnx_graph import external_data
from deadweight.export.onnx_graph.graph import load
from deadweight.export.quantization.samples import Samples, open_samples
from deadweight.targets.artifact import sha256_of
from deadweight.targets.errors import ArtifactError, ModelError, TargetError
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target

Nets = Callable[[str], Any]
CPU, BOARD = load_target("x86-cpu"), load_target("orin-nano-8gb")


def saved(net: Any, folder: Path) -> Samples:
    """The network's own batches as files."""
    folder.mkdir()
    for place, batch in enumerate(net.batches):
        np.savez(folder / f"{place}.npz", **{name: value.numpy() for name, value in batch.items()})
    return open_samples(net.path, folder)


@pytest.mark.parametrize(("name", "target"), [("residual", CPU), ("residual", BOARD), ("joined", BOARD)])
def test_the_file_is_the_one_that_the_stages_parts_make(
    net: Nets, tmp_path: Path, name: str, target: Any
) -> None:
    one = net(name)
    made = to_int8(one.path, saved(one, tmp_path / "data"), tmp_path / "out", target=target)
    dialect: Any = "tensorrt" if target is BOARD else "x86"
    to_qdq(one.path, calibrate(one.path, one.batches), tmp_path / "same.onnx", dialect=dialect)
    assert made.path
    assert made.path == tmp_path / "out" / "int8.onnx"
    assert sha256_of(made.path) == sha256_of(tmp_path / "same.onnx")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "int8.onnx",
        "quantize.json",
        "ranges.json",
    ]
    assert (made.lint is not None) is (target is BOARD)
    assert made.hop
    assert made.hop.labels == ("output" if name == "residual" else "")
    answer = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert answer["sha256"] == sha256_of(made.path)
    assert answer["model"]["sha256"] == sha256_of(one.path)
    assert answer["samples"] == 27


def test_the_best_method_is_the_one_with_the_least_noise(net: Nets, tmp_path: Path) -> None:
    samples = saved(net("mlp"), tmp_path / "data")
    made = to_int8(net("mlp").path, samples, tmp_path / "out", target=CPU, method="best")
    assert set(made.noises) == {"minmax", "percentile", "entropy", "mse"}
    assert made.noises[made.method] == min(made.noises.values())
    alone = to_int8(net("mlp").path, samples, tmp_path / "alone", target=CPU, method=made.method)
    assert alone.path
    assert made.path
    assert sha256_of(made.path) == sha256_of(alone.path)


def test_layers_stay_in_float_where_asked_and_unknown_ones_are_named(net: Nets, tmp_path: Path) -> None:
    samples = saved(net("mlp"), tmp_path / "data")
    made = to_int8(net("mlp").path, samples, tmp_path / "out", target=BOARD, skip=["fc3/Gemm"])
    assert made.quantized.left_float == {"fc3/Gemm": "requested"}
    with pytest.raises(ModelError, match="Did you mean 'fc3/Gemm'"):
        to_int8(net("mlp").path, samples, tmp_path / "no", target=BOARD, skip=["fc3/Gem"])
    assert not (tmp_path / "no").exists()


def test_flips_are_found_where_they_are(digits: Any, tmp_path: Path) -> None:
    rounded = load(digits.net.path).proto
    for tensor in rounded.graph.initializer:  # three bits or so: coarse enough to change some labels
        values = numpy_helper.to_array(tensor)
        step = np.abs(values).max() / 3
        tensor.CopyFrom(numpy_helper.from_array((np.rint(values / step) * step).astype("f"), tensor.name))
    onnx.save(rounded, tmp_path / "coarse.onnx")
    np.savez(tmp_path / "a.npz", x=digits.images.numpy())
    samples = open_samples(digits.net.path, tmp_path / "a.npz")
    before, after = (
        open_session(path).run({"x": digits.images.numpy()})["output"]
        for path in (digits.net.path, tmp_path / "coarse.onnx")
    )
    wanted = np.flatnonzero(before.argmax(1) != after.argmax(1))
    assert wanted.size > 2
    runs = opened(digits.net.path), opened(tmp_path / "coarse.onnx")
    found = flip_details(*runs, samples, wanted[:3].tolist(), "output")
    assert [one.place for one in found] == [f"a.npz, sample {index}" for index in wanted[:3]]
    for one, index in zip(found, wanted[:3], strict=True):
        assert (one.before, one.after) == (before[index].argmax(), after[index].argmax())
        assert one.lead == pytest.approx(before[index].max() - before[index][one.after], rel=1e-4)


def test_batch_norms_of_other_exporters_are_folded_first(net: Nets, tmp_path: Path) -> None:
    samples = saved(net("mlp"), tmp_path / "data")
    model, generator = load(net("mlp").path).proto, np.random.default_rng(0)
    names = ["gamma", "beta", "mean", "variance"]
    for name in names:
        values = generator.uniform(0.5, 1.5, 48).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    norm = helper.make_node("BatchNormalization", [relu.input[0], *names], ["normed"], name="bn")
    relu.input[0] = "normed"
    nodes = [one for node in model.graph.node for one in ([norm, node] if node == relu else [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "m.onnx")
    made = to_int8(tmp_path / "m.onnx", samples, tmp_path / "out", target=BOARD)
    assert made.path
    assert made.folded == 1
    assert "BatchNormalization" not in {node.op_type for node in load(made.path).graph.node}
    assert made.hop is not None
    assert 0 < made.hop.outputs["output"].noise < 0.05


def test_what_tensorrt_refuses_is_not_written(net: Nets, tmp_path: Path) -> None:
    model = load(net("mlp").path).proto
    node = helper.make_node("Compress", ["output", "which"], ["chosen"], axis=1, name="last/Compress")
    model.graph.node.append(node)
    model.graph.initializer.append(numpy_helper.from_array(np.array([True, False, True]), "which"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("chosen", 1, ["batch", None]))
    onnx.save(model, tmp_path / "m.onnx")
    samples = saved(net("mlp"), tmp_path / "data")
    made = to_int8(tmp_path / "m.onnx", samples, tmp_path / "out", target=BOARD)
    assert made.path is None
    assert made.lint is not None
    assert made.lint.counts["error"] == 1
    assert not (tmp_path / "out").exists()
    assert to_int8(tmp_path / "m.onnx", samples, tmp_path / "out", target=CPU).path is not None


def test_half_precision_is_for_the_tensorrt_that_takes_it(net: Nets, tmp_path: Path) -> None:
    samples = saved(net("residual"), tmp_path / "data")
    made = to_int8(net("residual").path, samples, tmp_path / "out", target=BOARD, half=True)
    assert made.path
    kinds = {tensor.data_type for tensor in load(made.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert made.half.startswith("FP16 for operators in float: noise ")
    with pytest.raises(TargetError, match="runs onnxruntime"):
        to_int8(net("residual").path, samples, tmp_path / "no", target=CPU, half=True)


def test_a_place_that_cannot_be_written_is_an_error_and_an_old_file_stays(net: Nets, tmp_path: Path) -> None:
    samples = saved(net("mlp"), tmp_path / "data")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="cannot be written"):
        to_int8(net("mlp").path, samples, tmp_path / "file", target=CPU)
    made = to_int8(net("mlp").path, samples, tmp_path / "out", target=CPU)
    assert made.path
    before = made.path.read_bytes()
    quantized = open_samples(made.path, tmp_path / "data")
    with pytest.raises(ModelError, match="is quantized already"):
        to_int8(made.path, quantized, tmp_path / "out", target=CPU)
    assert made.path.read_bytes() == before
    assert not (tmp_path / "out" / ".part").exists()


def test_large_weights_go_beside_it_and_old_ones_go(
    net: Nets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = net("mlp")
    samples = saved(one, tmp_path / "data")
    monkeypatch.setattr(external_data, "INLINE_BYTES", 3000)  # as if one message held 3 KB
    for skip in ([], ["fc1/Gemm"]):
        to_int8(one.path, samples, tmp_path / "out", target=CPU, skip=skip)
        assert len(list((tmp_path / "out").glob("int8.onnx.*.weights"))) == 1
    hop = compare_files(one.path, tmp_path / "out/int8.onnx", one.batches, kind="lossy", name="int8")
    assert hop.samples == 27


COUNTED = """
import collections, sys
from pathlib import Path
import onnx, onnxruntime
from deadweight.export.int8 import to_int8
from deadweight.export.quantization.samples import open_samples
from deadweight.targets.target import load_target

model, data, out = map(Path, sys.argv[1:])
found = collections.Counter()

def counted(module, name):
    call = getattr(module, name)
    def instead(*args, **settings):
        found[name] += 1
        return call(*args, **settings)
    setattr(module, name, instead)

def opened(event, args):
    if event == "open" and str(args[0]) == str(model):
        found["opened"] += 1

counted(onnx, "load")
counted(onnx.shape_inference, "infer_shapes")
counted(onnxruntime, "InferenceSession")
sys.addaudithook(opened)
to_int8(model, open_samples(model, data), out, target=load_target("x86-cpu"))
print(*(found[name] for name in ("load", "infer_shapes", "InferenceSession", "opened")))
"""


def test_a_file_is_read_once_and_its_sessions_serve_every_step(net: Nets, tmp_path: Path) -> None:
    saved(net("mlp"), tmp_path / "data")
    command = [sys.executable, "-c", COUNTED, net("mlp").path, tmp_path / "data", tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    loads, inferences, sessions, opened = map(int, run.stdout.split())
    # The samples are checked against the model, it is quantized, and ONNX Runtime's own graph is read.
    assert 1 <= loads <= 3
    assert 1 <= inferences <= 4  # two of them correct the stored shapes
    assert 1 <= sessions <= 4
    assert 1 <= opened <= 3
