from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from support.int8_files import calibrate, compare_files, compare_module, to_qdq

from deadweight.export.lint.check import lint
from deadweight.export.onnx_graph import external_data, run
from deadweight.export.onnx_graph.counts import count
from deadweight.export.onnx_graph.graph import load, save
from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import ArtifactError

Nets = Callable[[str], Any]


@pytest.fixture
def low_limit(net: Nets, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one message held 10 KB: every network here is too large, once it was exported as one file, and
    sessions read it from files."""
    for name in ("mlp", "residual"):
        net(name)
    monkeypatch.setattr(external_data, "INLINE_BYTES", 10_000)
    monkeypatch.setattr(run, "IN_MEMORY_BYTES", 10_000)


def weights(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.weights"))


@pytest.mark.usefixtures("low_limit")
def test_a_large_network_goes_the_whole_way(net: Nets, tmp_path: Path) -> None:
    made, path = net("residual"), tmp_path / "large.onnx"
    written = to_onnx(made.module, made.example, path)
    assert written.simplified_by == "nothing"
    assert "2 GB" in written.notes[0]
    assert len(weights(path)) == 1
    assert path.stat().st_size < 10_000
    compare_module(made.module, path, made.batches)
    ranges = calibrate(path, made.batches)
    for dialect in ("tensorrt", "x86"):
        to_qdq(path, ranges, tmp_path / "q.onnx", dialect=dialect)
        compare_files(path, tmp_path / "q.onnx", made.batches, kind="lossy", name="int8")
    assert count(path).macs == count(made.path).macs
    assert lint(path, tensorrt="10.1").counts["error"] == 0


@pytest.mark.usefixtures("low_limit")
def test_what_comes_back_is_what_was_written_and_other_runtimes_read_it(net: Nets, tmp_path: Path) -> None:
    model = onnx.load(net("residual").path)
    save(model, tmp_path / "apart.onnx")
    assert load(tmp_path / "apart.onnx").graph == load(net("residual").path).graph
    x = {"image": net("residual").batches[0]["image"].numpy()}
    one, two = (
        np.asarray(onnxruntime.InferenceSession(path).run(None, x)[0])
        for path in (net("residual").path, tmp_path / "apart.onnx")
    )
    assert np.array_equal(one, two)


@pytest.mark.usefixtures("low_limit")
def test_new_weights_get_a_new_file_and_the_old_one_goes(net: Nets, tmp_path: Path) -> None:
    model, path = onnx.load(net("mlp").path), tmp_path / "m.onnx"
    save(model, path)
    (first,) = weights(path)
    before = path.read_bytes()
    save(model, path)
    assert weights(path) == [first]
    assert path.read_bytes() == before
    tensor = next(one for one in model.graph.initializer if one.name == "fc1.weight")
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    save(model, path)
    (second,) = weights(path)
    assert second != first
    assert path.read_bytes() != before


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damaged_weights_are_found(net: Nets, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.onnx"
    save(onnx.load(net("mlp").path), path)
    (file,) = weights(path)
    if damage == "missing":
        file.unlink()
    else:
        held = bytearray(file.read_bytes())
        held[100] ^= 1
        file.write_bytes(held[:50] if damage == "cut" else held)
    with pytest.raises(ArtifactError, match="not beside it" if damage == "missing" else "is damaged"):
        load(path)


@pytest.mark.parametrize("as_one", [False, True])
def test_a_model_is_copied_with_the_weights_that_another_tool_put_beside_it(
    net: Nets, tmp_path: Path, as_one: bool
) -> None:
    source, out = tmp_path / "here" / "m.onnx", tmp_path / "there" / "model.onnx"
    source.parent.mkdir()
    onnx.save(onnx.load(net("mlp").path), source, save_as_external_data=True, location="w.bin")
    assert external_data.names_beside(source) == ["w.bin"]
    (external_data.copy_as_one if as_one else external_data.copy)(source, out)
    assert [path.name for path in sorted(out.parent.iterdir())] == [
        "model.onnx",
        *([] if as_one else ["w.bin"]),
    ]
    source.with_name("w.bin").unlink()
    compare_files(net("mlp").path, out, net("mlp").batches, kind="exact", name="copy")


def test_weights_that_may_still_be_named_are_kept(net: Nets, tmp_path: Path) -> None:
    stale = tmp_path / "m.onnx.0123456789abcdef.weights"
    stale.write_bytes(b"old")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    external_data.drop_stale(tmp_path)
    assert stale.exists()
    (tmp_path / "broken.onnx").unlink()
    external_data.copy(net("mlp").path, tmp_path / "m.onnx")
    external_data.drop_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_model_that_lacks_its_weights_or_keeps_them_elsewhere_is_not_copied(
    net: Nets, tmp_path: Path
) -> None:
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(onnx.load(net("mlp").path), source, save_as_external_data=True, location="w.bin")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ArtifactError, match="not beside it"):
        external_data.copy(source, out)
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../../etc/passwd" if entry.key == "location" else entry.value
    source.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="outside its folder"):
        external_data.copy(source, out)
    assert not out.exists()


def test_weights_inside_the_body_of_a_branch_are_copied_too(net: Nets, tmp_path: Path) -> None:
    body = onnx.load(net("mlp").path).graph
    del body.input[:]
    value = helper.make_tensor_value_info("y", 1, None)
    node = helper.make_node("If", ["condition"], ["y"], then_branch=body, else_branch=body)
    flag = helper.make_tensor_value_info("condition", 9, [1])
    graph = helper.make_graph([node], "branches", [flag], [value])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    external_data.copy(tmp_path / "m.onnx", tmp_path / "there" / "m.onnx")
    assert (tmp_path / "there" / "w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()


def test_weights_that_another_tool_put_apart_are_read(net: Nets, tmp_path: Path) -> None:
    model = onnx.load(net("mlp").path)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    compare_files(net("mlp").path, tmp_path / "m.onnx", net("mlp").batches, kind="exact", name="copy")


def test_a_small_model_is_one_file(net: Nets, tmp_path: Path) -> None:
    save(onnx.load(net("mlp").path), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_a_model_of_3_gb_is_calibrated_quantized_compared_and_linted(tmp_path: Path) -> None:
    size = 16384
    nodes, x = [], "x"
    model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    model.graph.name = "large"
    for layer in range(3):
        weight = np.zeros((size, size), np.float32)
        weight[np.arange(size), (7 * np.arange(size) + layer) % size] = 1.0
        model.graph.initializer.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(
            helper.make_node("Gemm", [x, f"w{layer}"], [f"y{layer}"], name=f"{layer}/Gemm", transB=1)
        )
        x = f"y{layer}"
    model.graph.node.extend(nodes)
    model.graph.input.append(helper.make_tensor_value_info("x", 1, ["batch", size]))
    model.graph.output.append(helper.make_tensor_value_info(x, 1, ["batch", size]))
    path = tmp_path / "large.onnx"
    save(model, path)
    del model
    assert weights(path)[0].stat().st_size >= 3 * 2**30
    batches = [{"x": np.random.default_rng(0).standard_normal((4, size)).astype(np.float32)}]
    to_qdq(path, calibrate(path, batches), tmp_path / "q.onnx")
    hop = compare_files(path, tmp_path / "q.onnx", batches, kind="lossy", name="int8")
    assert 0 < hop.outputs[x].noise < 0.05
    assert lint(path, tensorrt="10.1").counts["error"] == 0
