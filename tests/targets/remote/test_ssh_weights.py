"""Models with external weights, as torch's exporter writes them, on a board behind sshd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import ssh_board

from deadweight.targets.errors import ModelError
from deadweight.targets.onnx_file import files_of, model_sha256
from deadweight.targets.remote.board import compare_on, infer_on, layers_on, time_on
from deadweight.targets.remote.on_board import ready_on
from deadweight.targets.remote.ssh import Transport, connected
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.timing.measurement import Protocol

MakeMlp = Callable[..., Path]
QUICK = Protocol(events=6, event_s=0.01)

pytestmark = pytest.mark.skipif(
    ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"
)


@pytest.fixture
def board(tmp_path: Path) -> ssh_board.Board:
    return ssh_board.make_board(tmp_path / "board", python=str(Path(sys.executable).parent))


@pytest.fixture
def there(board: ssh_board.Board) -> Iterator[Transport]:
    with connected("board", config=board.config) as transport:
        yield transport


def outside(path: Path, location: str = "", *, folder: str = "outside", scale: float = 1.0) -> Path:
    """The same network with all its weights in another file, in a folder of its own."""
    place = path.parent / folder / path.name
    place.parent.mkdir(exist_ok=True)
    model = onnx.load(str(path))
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight) * np.float32(scale)
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    beside = location or f"{path.name}.data"
    (place.parent / beside).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(place), save_as_external_data=True, location=beside, size_threshold=0)
    return place


@pytest.mark.parametrize("location", ["", "weights/of it.bin", "data"])
def test_a_model_runs_on_a_board_with_the_weights_that_lie_beside_it(
    there: Transport, mlp: MakeMlp, tmp_path: Path, location: str
) -> None:
    model = outside(mlp(64, 32, 4), location)
    (tmp_path / "in").mkdir()
    given = np.ones((3, 64), np.float32)
    np.savez(tmp_path / "in/0.npz", x=given)
    ready = ready_on(there, {"it": model})
    answers = infer_on(there, ready, "it", tmp_path / "in/0.npz", tmp_path / "out/0.npz")
    np.testing.assert_allclose(np.load(answers)["y"], open_session(model).run({"x": given})["y"], rtol=1e-5)
    timed = time_on(there, ready, protocol=QUICK, memory=True)
    assert timed.measurements["it"].model_sha256 == model_sha256(model)
    assert timed.memory["it"].file_bytes == sum(file.stat().st_size for file in files_of(model))


def test_the_same_graph_with_other_weights_is_another_model_on_the_board(
    board: ssh_board.Board, there: Transport, mlp: MakeMlp, tmp_path: Path
) -> None:
    whole = mlp(64, 32, 4)
    first, second = outside(whole, folder="first"), outside(whole, folder="second", scale=2.0)
    assert first.read_bytes() == second.read_bytes()
    pair = ready_on(there, {"baseline": first, "candidate": second})
    timed, _ = compare_on(there, pair, protocol=QUICK, margin=0.02)
    hashes = [timed.measurements[name].model_sha256 for name in ("baseline", "candidate")]
    assert hashes == [model_sha256(first), model_sha256(second)]
    layers, _ = layers_on(there, pair, protocol=Protocol(events=2, event_s=0.005))
    assert layers["baseline"]
    copies = sorted(board.home.rglob("files/*/data"))
    assert len(copies) == 3  # the graph that both have, and the weights of each, sent once


def test_weights_that_are_missing_are_reported_before_anything_is_sent(
    board: ssh_board.Board, there: Transport, mlp: MakeMlp
) -> None:
    model = outside(mlp(8, 4))
    weights = model.with_name("model.onnx.data")
    weights.unlink()
    with pytest.raises(ModelError, match=r"has weights in .*model\.onnx\.data, which is missing"):
        there.put([model])
    assert not list(board.home.rglob("files/*/data"))


@pytest.mark.parametrize("elsewhere", ["../secret", "/etc/hostname"])
def test_a_model_cannot_have_files_sent_that_lie_outside_of_its_folder(
    board: ssh_board.Board, there: Transport, mlp: MakeMlp, tmp_path: Path, elsewhere: str
) -> None:
    path = outside(mlp(8, 4))
    model = onnx.load(str(path), load_external_data=False)
    for weight in model.graph.initializer:
        next(entry for entry in weight.external_data if entry.key == "location").value = elsewhere
    path.write_bytes(model.SerializeToString())
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    with pytest.raises(ModelError, match="is outside its folder and cannot be sent"):
        there.put([path])
    assert not list(board.home.rglob("files/*/data"))
