"""Bundles made of a run, and taken by the machine that trusts their key."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.boards import unpack
from support.releases import make_key, trust

from deadweight.export.release.bundle import _plausible, bundle
from deadweight.targets.errors import ArtifactError, ModelError, RefusedError
from deadweight.targets.release.trust import verify
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target

CPU = load_target("x86-cpu")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def root(tmp_path: Path, key: Path) -> Path:
    trust(key, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run that shipped two networks."""
    place = tmp_path / "mlp"
    (place / "networks").mkdir(parents=True)
    for name, operator in (("original", "Relu"), ("int8", "Abs")):
        values = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 3]) for end in ("x", "y")]
        graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], name, values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, str(place / "networks" / f"{name}.onnx"))
    rows = [{"name": name} for name in ("original", "pruned", "int8")]
    (place / "report.json").write_text(json.dumps({"name": "my mlp", "rows": rows}))
    (place / "report.html").write_text("<html></html>")
    return place


def test_a_run_becomes_a_bundle_that_is_taken_where_its_key_is_trusted(
    run: Path, key: Path, root: Path, tmp_path: Path
) -> None:
    place = bundle(run, tmp_path / "out", target=CPU, key=key)
    checked = verify(place, root=root)
    assert checked.manifest.name == "my-mlp-int8"
    assert checked.manifest.target == "x86-cpu"
    assert set(checked.files) == {
        "model.onnx",
        "golden/inputs.npz",
        "golden/outputs.npz",
        "report.json",
        "report.html",
    }
    assert checked.read("model.onnx") == (run / "networks/int8.onnx").read_bytes()


def test_the_golden_outputs_are_the_networks_own(run: Path, tmp_path: Path) -> None:
    place = bundle(run, tmp_path / "out", target=CPU, network="original")
    inputs, outputs = (dict(np.load(place / "golden" / f"{name}.npz")) for name in ("inputs", "outputs"))
    np.testing.assert_array_equal(open_session(place / "model.onnx").run(inputs)["y"], outputs["y"])
    assert inputs["x"].shape == (4, 3)
    np.testing.assert_array_equal(outputs["y"], np.maximum(inputs["x"], 0))


def test_a_bundle_that_was_not_signed_is_refused(run: Path, root: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is not signed"):
        verify(bundle(run, tmp_path / "out", target=CPU), root=root)


def test_a_bundle_for_a_board_names_its_tensorrt_and_its_gpu(run: Path, tmp_path: Path) -> None:
    place = bundle(run, tmp_path / "out", target=load_target("orin-nano-8gb"))
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["board"] == {"compute_capability": "8.7", "tensorrt": "10.3.0.30"}


def test_an_engine_is_for_the_tensorrt_that_built_it(
    run: Path, key: Path, root: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "int8.engine"
    engine.write_bytes(b"ftrt")
    (tmp_path / "int8.engine.json").write_text(json.dumps({"tensorrt": {"version": "10.16.2.10"}}))
    target = load_target("orin-nano-8gb")
    place = bundle(run, tmp_path / "out", target=target, engine=engine, key=key)
    unpack("orin_nano_super_jp72", root)
    assert verify(place, root=root).manifest.model == "int8.engine"


def test_extras_travel_along_and_code_does_not(run: Path, tmp_path: Path) -> None:
    licence = tmp_path / "LICENSE"
    licence.write_text("Apache-2.0")
    assert (bundle(run, tmp_path / "out", target=CPU, extras=[licence]) / "LICENSE").exists()
    plugin = tmp_path / "plugin.so"
    plugin.write_bytes(b"\x7fELF")
    with pytest.raises(RefusedError, match="is code"):
        bundle(run, tmp_path / "other", target=CPU, extras=[plugin])
    assert not (tmp_path / "other").exists()


def test_a_model_alone_can_be_bundled(run: Path, tmp_path: Path) -> None:
    place = bundle(run / "networks/int8.onnx", tmp_path / "out", target=CPU)
    assert json.loads((place / "manifest.json").read_text())["name"] == "int8"


def test_weights_beside_the_model_go_into_it_since_a_board_opens_one_file(
    key: Path, root: Path, tmp_path: Path
) -> None:
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "m", ends[:1], ends[1:], [weight]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    apart = tmp_path / "apart" / "m.onnx"
    apart.parent.mkdir()
    onnx.save(made, str(apart), save_as_external_data=True, location="m.bin", size_threshold=0)
    place = bundle(apart, tmp_path / "out", target=CPU, key=key)
    (apart.parent / "m.bin").unlink()
    with verify(place, root=root).sealed("model.onnx") as path:
        answer = open_session(path, runtime="onnxruntime").run({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(answer["y"], [[12, 15, 18, 21]])


def test_an_old_bundle_is_replaced_and_anything_else_is_not(run: Path, tmp_path: Path) -> None:
    place = bundle(run, tmp_path / "out", target=CPU)
    (place / "stale.txt").write_text("old")
    bundle(run, place, target=CPU)
    assert not (place / "stale.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not a bundle"):
        bundle(run, tmp_path / "mine", target=CPU)
    assert (tmp_path / "mine/thesis.txt").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "pruned"}, "does not have a network named 'pruned'.\nIt has original, int8."),
        ({"key": Path("/nowhere/key")}, "There is no key at /nowhere/key"),
        ({"extras": [Path("/nowhere/LICENSE")]}, "/nowhere/LICENSE does not exist"),
        ({"engine": Path("/nowhere/a.engine")}, "/nowhere/a.engine does not exist"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left_behind(
    run: Path, tmp_path: Path, given: dict[str, object], message: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        bundle(run, tmp_path / "out", target=CPU, **given)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp"]


def test_a_network_that_does_not_run_is_not_shipped(run: Path, tmp_path: Path) -> None:
    (run / "networks/int8.onnx").write_bytes(b"\x08\x09broken\x00")
    with pytest.raises(ArtifactError, match="is a truncated or damaged ONNX file"):
        bundle(run, tmp_path / "out", target=CPU)
    unknown = helper.make_node("Unheard", ["x"], ["y"])
    model = onnx.load(str(run / "networks/original.onnx"))
    model.graph.node[0].CopyFrom(unknown)
    onnx.save(model, str(run / "networks/int8.onnx"))
    with pytest.raises(ModelError):
        bundle(run, tmp_path / "out", target=CPU)
    assert not (tmp_path / "out").exists()


def test_a_clock_that_is_years_ahead_makes_no_release() -> None:
    assert _plausible(datetime(2027, 1, 1, tzinfo=timezone.utc)).year == 2027
    with pytest.raises(ArtifactError, match=r"says 2036-01-01, more than five years") as caught:
        _plausible(datetime(2036, 1, 1, tzinfo=timezone.utc))
    assert "Set the clock" in caught.value.cure


def test_a_public_key_alone_cannot_sign(run: Path, key: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.pub"
    alone.write_text(key.with_suffix(".pub").read_text())
    with pytest.raises(ArtifactError, match="cannot sign"):
        bundle(run, tmp_path / "out", target=CPU, key=alone)


def with_report(run: Path, ship: str | None, **broken: list[str]) -> Path:
    rows = [{"name": name, "broken": broken.get(name, [])} for name in ("original", "pruned", "int8")]
    report = {"name": "my mlp", "rows": rows, "ship": {"network": ship, "sentence": ""}}
    (run / "report.json").write_text(json.dumps(report))
    return run


def test_the_network_that_the_report_says_to_ship_is_taken(run: Path, tmp_path: Path) -> None:
    place = bundle(with_report(run, "original", int8=["too slow"]), tmp_path / "out", target=CPU)
    assert (place / "model.onnx").read_bytes() == (run / "networks/original.onnx").read_bytes()


def test_a_network_that_breaks_a_budget_is_refused_unless_it_is_wanted_even_so(
    run: Path, tmp_path: Path
) -> None:
    with_report(run, "original", int8=["drop of accuracy: 5.00 points, at most 1.00 points: broken"])
    with pytest.raises(RefusedError, match="int8 breaks a budget of its run: drop of accuracy: 5") as caught:
        bundle(run, tmp_path / "out", target=CPU, network="int8")
    assert "The run says to ship original" in caught.value.what
    assert "--even-so" in caught.value.cure
    assert not (tmp_path / "out").exists()
    assert bundle(run, tmp_path / "out", target=CPU, network="int8", even_so=True).is_dir()
    with pytest.raises(RefusedError, match="int8 breaks a budget"):
        bundle(with_report(run, None, int8=["too slow"]), tmp_path / "none", target=CPU)
