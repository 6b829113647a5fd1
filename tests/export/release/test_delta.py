"""Updates as one file: what comes out is the new release, and small changes take few bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.releases import make_bundle, make_key, make_release, trust

from deadweight.export.release.delta import delta, sent_bytes
from deadweight.targets.errors import ArtifactError, ModelError, RefusedError
from deadweight.targets.release.install import install
from deadweight.targets.release.patch import open_patch


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


def model(weights: dict[str, np.ndarray]) -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:], held)
    return bytes(helper.make_model(graph, ir_version=8).SerializeToString())


def released(place: Path, key: Path, number: int, files: dict[str, bytes]) -> Path:
    return make_bundle(place / str(number), key, files, release=number)


def weights(seed: int = 0, *, rows: int = 200) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "int8": np.clip(np.round(generator.standard_normal((rows, 300)) * 32), -127, 127).astype(np.int8),
        "float": generator.standard_normal((50, 40)).astype(np.float32),
        "half": generator.standard_normal((50, 40)).astype(np.float16),
        "wide": generator.integers(-(2**40), 2**40, (500,)),
    }


def tuned(old: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(9)
    steps = np.round(generator.standard_normal(old["int8"].shape) * 1.5)
    new = {name: (value * (1 + 1e-3)).astype(value.dtype) for name, value in old.items()}
    return {**new, "int8": np.clip(old["int8"] + steps, -127, 127).astype(np.int8)}


def made(patch: Path, place: Path, root: Path) -> dict[str, bytes]:
    """The files that an update puts in place."""
    current = Path(install(patch, place, root=root, tried=False)["path"])
    return {
        path.relative_to(current).as_posix(): path.read_bytes()
        for path in current.rglob("*")
        if path.is_file() and not path.name.startswith("manifest.json")
    }


def test_weights_of_every_width_come_out_as_they_were_and_take_less_than_half(
    tmp_path: Path, key: Path
) -> None:
    trust(key, tmp_path / "root")
    files = {1: model(weights()), 2: model(tuned(weights()))}
    old, new = (released(tmp_path, key, number, {"model.onnx": data}) for number, data in files.items())
    patch, whole = delta(old, new, tmp_path / "patch"), delta(None, new, tmp_path / "whole")
    assert patch.bytes == patch.path.stat().st_size < 0.5 * whole.bytes < 0.5 * len(files[2])
    install(old, tmp_path / "place", root=tmp_path / "root", tried=False)
    assert made(patch.path, tmp_path / "place", tmp_path / "root") == {"model.onnx": files[2]}
    assert made(whole.path, tmp_path / "empty", tmp_path / "root") == {"model.onnx": files[2]}


def test_a_model_whose_weights_are_few_different_numbers_is_sent_as_a_container(
    tmp_path: Path, key: Path
) -> None:
    """What clustering leaves: a code book of 16 floats and four bits a weight, and no more."""
    trust(key, tmp_path / "root")
    generator = np.random.default_rng(0)
    book = generator.standard_normal(16).astype(np.float32)
    data = model({"clustered": book[generator.integers(0, 16, (300, 200))]})
    whole = delta(None, released(tmp_path, key, 1, {"model.onnx": data}), tmp_path / "whole")
    assert open_patch(whole.path, root=tmp_path / "root").files["model.onnx"].coder == "dwz"
    assert whole.bytes < 1.1 * 300 * 200 / 2 + 1500
    assert made(whole.path, tmp_path / "place", tmp_path / "root") == {"model.onnx": data}


def test_tensors_that_were_renamed_resized_added_or_removed_come_out_too(tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "root")
    old = weights()
    new = tuned(old)
    new["renamed"] = new.pop("half")
    new["float"] = new["float"][:, :30].copy()
    new["more"] = np.arange(500, dtype=np.float64)
    del new["wide"]
    pair = [released(tmp_path, key, n, {"model.onnx": model(each)}) for n, each in ((1, old), (2, new))]
    patch = delta(pair[0], pair[1], tmp_path / "patch").path
    install(pair[0], tmp_path / "place", root=tmp_path / "root", tried=False)
    assert made(patch, tmp_path / "place", tmp_path / "root") == {"model.onnx": model(new)}


def test_other_files_are_copied_under_whatever_name_the_base_has_them(tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "root")
    page, network = np.random.default_rng(0).bytes(50_000), model(weights())
    old = released(tmp_path, key, 1, {"report.html": page, "model.onnx": network, "gone": b"x"})
    files = {"renamed.html": page, "report.html": b"another", "empty": b"", "model.onnx": network}
    patch = delta(old, released(tmp_path, key, 2, files), tmp_path / "patch")
    assert patch.bytes < 2000
    install(old, tmp_path / "place", root=tmp_path / "root", tried=False)
    assert made(patch.path, tmp_path / "place", tmp_path / "root") == files


def test_a_graph_with_other_constants_costs_as_little_as_they_do(tmp_path: Path, key: Path) -> None:
    """Small tensors are part of the graph, which is sent as a difference too."""
    drawn = np.random.default_rng(0).standard_normal((300, 1)).astype(np.float32)
    scales = {f"scale {number}": one for number, one in enumerate(drawn)}
    changed = {**scales, "scale 7": np.array([0.5], np.float32)}
    pair = [
        released(tmp_path, key, n, {"model.onnx": model(each)}) for n, each in ((1, scales), (2, changed))
    ]
    assert delta(pair[0], pair[1], tmp_path / "patch").bytes < 1000
    assert sent_bytes(pair[1] / "model.onnx") > 1500


def test_what_a_model_takes_is_what_it_adds_to_a_whole_update(tmp_path: Path, key: Path) -> None:
    data = model(weights())
    (tmp_path / "model.onnx").write_bytes(data)
    sent = sent_bytes(tmp_path / "model.onnx")
    bundle = released(tmp_path, key, 1, {"model.onnx": data})
    whole = delta(None, bundle, tmp_path / "whole").bytes
    assert whole - 1000 < sent < whole < len(data)  # a manifest and a signature are some 600 bytes


def test_the_same_releases_give_the_same_bytes(tmp_path: Path, key: Path) -> None:
    pair = [make_release(tmp_path / str(number), key, number) for number in (1, 2)]
    first, second = (delta(pair[0], pair[1], tmp_path / name).path.read_bytes() for name in ("a", "b"))
    assert first == second


def test_two_networks_and_the_wrong_order_are_refused(tmp_path: Path, key: Path) -> None:
    one, two = (make_release(tmp_path / str(number), key, number) for number in (1, 2))
    other = make_release(tmp_path / "other", key, 3, name="large")
    with pytest.raises(ArtifactError, match="two networks, small and large"):
        delta(one, other, tmp_path / "patch")
    for old, new in ((two, one), (one, one)):
        with pytest.raises(ArtifactError, match="is not newer than"):
            delta(old, new, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()


def test_a_bundle_that_is_not_signed_or_not_whole_is_refused(tmp_path: Path, key: Path) -> None:
    one, two = (make_release(tmp_path / str(number), key, number) for number in (1, 2))
    unsigned = make_release(tmp_path / "unsigned", None, 2)
    with pytest.raises(ArtifactError, match=r"manifest\.json\.sig is missing"):
        delta(one, unsigned, tmp_path / "patch")
    with pytest.raises(ArtifactError, match="is not a signed bundle"):
        delta(tmp_path / "none", two, tmp_path / "patch")
    changed = shutil.copytree(two, tmp_path / "changed")
    (changed / "LICENSE").write_bytes(b"changed")
    for old, new in ((one, changed), (changed, make_release(tmp_path / "3", key, 3))):
        with pytest.raises(RefusedError, match="LICENSE was changed"):
            delta(old, new, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()


def test_a_model_whose_onnx_is_broken_is_reported(tmp_path: Path, key: Path) -> None:
    broken = make_bundle(tmp_path / "b", key, {"model.onnx": b"\xff\xff broken"}, release=2)
    with pytest.raises(ModelError, match="is a truncated or damaged ONNX file"):
        delta(None, broken, tmp_path / "patch")


def test_an_update_of_a_real_network_is_read_by_onnx(tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "root")
    pair = [make_release(tmp_path / str(number), key, number) for number in (1, 2)]
    patch = delta(pair[0], pair[1], tmp_path / "patch")
    for source in (pair[0], patch.path):
        result = install(source, tmp_path / "place", root=tmp_path / "root")
    onnx.checker.check_model(onnx.load(Path(result["path"]) / "model.onnx"))
    assert json.loads((Path(result["path"]) / "manifest.json").read_text())["release"] == 2
