"""A board behind a real sshd: copies that go on, cables that are cut, and every way not to be let in."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ssh_board
from support.boards import put
from support.releases import make_key, make_release, release_in_use, trust

from deadweight.export.release.delta import delta
from deadweight.targets.artifact import sha256_of
from deadweight.targets.errors import ArtifactError, DeadweightError, RefusedError, TargetError
from deadweight.targets.remote.board import infer_on, install_on, layers_on, time_on
from deadweight.targets.remote.exchange import agent_bytes, agent_sha256
from deadweight.targets.remote.on_board import ready_on
from deadweight.targets.remote.ssh import Ssh, Transport, connected, on_each
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.timing.layers import judge_layers
from deadweight.targets.timing.measurement import Protocol

MakeMlp = Callable[..., Path]
QUICK = json.dumps({"events": 6, "event_s": 0.01})

pytestmark = pytest.mark.skipif(
    ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"
)


@pytest.fixture
def board(tmp_path: Path) -> ssh_board.Board:
    """A board of its own for each test; it has this environment's Python."""
    return ssh_board.make_board(tmp_path / "board", python=str(Path(sys.executable).parent))


@pytest.fixture
def there(board: ssh_board.Board) -> Iterator[Transport]:
    with connected("board", config=board.config) as transport:
        yield transport


def kept(board: ssh_board.Board, name: str = "data") -> list[Path]:
    return sorted(board.home.rglob(f"files/*/{name}"))


def blob(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def test_the_agent_travels_once_and_is_whole(board: ssh_board.Board) -> None:
    for _ in range(2):
        with connected("board", config=board.config) as there:
            assert there.run(["doctor"])[1]["checks"]
    kept_agents = list(board.home.rglob("agent-*.pyz"))
    assert [path.read_bytes() for path in kept_agents] == [agent_bytes()]
    assert kept_agents[0].stat().st_mode & 0o077 == 0
    first, second = board.traffic()
    assert first > len(agent_bytes()) > 5 * second


def test_an_agent_that_is_damaged_there_is_replaced(board: ssh_board.Board, there: Transport) -> None:
    there.run(["held"], stdin=b"[]")
    place = next(board.home.rglob("agent-*.pyz"))
    place.unlink()
    with connected("board", config=board.config) as again:
        again.run(["held"], stdin=b"[]")
    assert place.read_bytes() == agent_bytes()


def test_files_arrive_under_their_names_and_are_not_sent_twice(
    board: ssh_board.Board, there: Transport, tmp_path: Path
) -> None:
    files = [blob(tmp_path / "a.bin", 300_000), blob(tmp_path / "b.bin", 5), blob(tmp_path / "empty", 0)]
    calls: list[int] = []
    there.progress = lambda done, total, what: calls.append(done)
    paths = there.put(files)
    assert [Path(path).name for path in paths] == ["a.bin", "b.bin", "empty"]
    assert [Path(path).read_bytes() for path in paths] == [path.read_bytes() for path in files]
    assert calls[-1] == 300_005
    calls.clear()
    assert there.put(files) == paths
    assert calls == []


def test_a_file_comes_back_whole(board: ssh_board.Board, there: Transport, tmp_path: Path) -> None:
    data = blob(tmp_path / "a.bin", 200_000)
    there.get(str(data), tmp_path / "back/a.bin")
    assert (tmp_path / "back/a.bin").read_bytes() == data.read_bytes()


def test_two_models_are_compared_there(there: Transport, mlp: MakeMlp) -> None:
    models = there.put([mlp(256, 1024, 10, name="wide.onnx"), mlp(256, 64, 10, name="narrow.onnx")])
    seen: list[tuple[int, int, str]] = []
    there.progress = lambda *done: seen.append(done)
    code, result = there.run(["compare", *models, "--protocol", QUICK])
    assert (code, result["judgement"]["outcome"]) == (0, "faster")
    assert seen[-1] == (6, 6, "timing")


# What is cut, and what the first try must have said. Each is resumed by the same call.


def resumed(board: ssh_board.Board, act: Callable[[Transport], Any]) -> tuple[str, Any]:
    """The call's error when the connection is cut, and its result when it is repeated."""
    with pytest.raises(DeadweightError) as caught, connected("board", config=board.config) as there:
        act(there)
    board.reconnect()
    with connected("board", config=board.config) as there:
        return str(caught.value), act(there)


def test_cut_while_connecting(board: ssh_board.Board) -> None:
    board.cut_after(40)
    message, (code, _) = resumed(board, lambda there: there.run(["held"], stdin=b"[]"))
    assert "The connection to board broke while connecting" in message
    assert code == 0


def test_cut_while_the_agent_travels(board: ssh_board.Board) -> None:
    board.cut_after(60_000)
    message, (code, _) = resumed(board, lambda there: there.run(["held"], stdin=b"[]"))
    assert "broke while sending the agent" in message
    assert code == 0
    assert not [path for path in board.home.rglob("*") if path.name == f"agent-{agent_sha256()}.part"]


def test_cut_while_files_are_copied_goes_on_where_it_stopped(board: ssh_board.Board, tmp_path: Path) -> None:
    with connected("board", config=board.config) as there:
        there.run(["held"], stdin=b"[]")  # the agent is there
    data = blob(tmp_path / "large.bin", 20_000_000)
    board.cut_after(12_000_000)
    message, paths = resumed(board, lambda there: there.put([data]))
    assert "broke while copying files" in message
    assert "received data is stored" in message
    assert Path(paths[0]).read_bytes() == data.read_bytes()
    assert board.traffic()[-1] < 12_000_000
    assert not kept(board, "part")


def test_cut_while_measuring_leaves_no_measurement_behind(board: ssh_board.Board, mlp: MakeMlp) -> None:
    model, seen = mlp(64, 64), threading.Event()
    forever = json.dumps({"events": 100_000, "event_s": 0.01})

    def cut() -> None:
        seen.wait(60)
        board.cut_now()

    threading.Thread(target=cut, daemon=True).start()
    with connected("board", config=board.config) as there:
        asked = ["profile", there.put([model])[0], "--protocol", forever]
        there.progress = lambda *done: seen.set()
        with pytest.raises(TargetError, match="broke while running profile"):
            there.run(asked)
    # The same board takes the next measurement at once: the one that nobody listened to has ended.
    with connected("board", config=board.config) as there:
        path = there.put([model])[0]
        assert there.run(["profile", path, "--protocol", QUICK])[0] == 0


def test_cut_while_a_result_is_fetched_goes_on_where_it_stopped(
    board: ssh_board.Board, tmp_path: Path
) -> None:
    data = blob(tmp_path / "large.bin", 8_000_000)
    with connected("board", config=board.config) as there:
        there.run(["held"], stdin=b"[]")
    board.cut_after(received=4_000_000)
    message, _ = resumed(board, lambda there: there.get(str(data), tmp_path / "here/large.bin"))
    assert "broke while fetching a file" in message
    assert (tmp_path / "here/large.bin").read_bytes() == data.read_bytes()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["large.bin"]


def test_a_host_key_that_changed_is_reported_with_both_explanations(board: ssh_board.Board) -> None:
    ssh_board.new_key(board.place / "host")
    with (
        pytest.raises(TargetError, match="another host key than before") as caught,
        connected("board", config=board.config),
    ):
        pass
    assert "ssh-keygen -R board" in caught.value.cure


def refused(config: Path, host: str = "board") -> str:
    with pytest.raises(TargetError) as caught, connected(host, config=config):
        pass
    return str(caught.value)


def test_a_host_that_was_never_met_is_to_be_met_by_hand(board: ssh_board.Board) -> None:
    (board.place / "known_hosts").write_text("")
    assert "is not known to this machine yet" in refused(board.config)


def test_a_key_that_the_board_does_not_know_is_reported(board: ssh_board.Board) -> None:
    (board.place / "authorized").write_text("")
    assert "ssh-copy-id board" in refused(board.config)


def test_a_name_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")
    result = refused(tmp_path / "config", "user@no-such-board.invalid")
    assert "no machine named no-such-board.invalid" in result


def test_a_machine_without_sshd_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host board\nHostName 127.0.0.1\nPort 1\n")
    assert "refuses ssh connections" in refused(tmp_path / "config")


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "", "a b"])
def test_a_name_that_would_be_an_option_is_refused(host: str, tmp_path: Path) -> None:
    assert "is not a name for ssh" in refused(tmp_path / "config", host)


def test_a_board_without_a_python_new_enough_is_reported(tmp_path: Path) -> None:
    old = put(tmp_path, "bin/python3", '#!/bin/sh\ncase "$2" in *exit*) exit 1;; esac\necho Python 3.6\n')
    for version in range(8, 14):
        (tmp_path / "bin" / f"python3.{version}").symlink_to("python3")
    old.chmod(0o755)
    board = ssh_board.make_board(tmp_path / "board", python=str(tmp_path / "bin"))
    assert "no Python 3.8 or newer (Python 3.6)" in refused(board.config)


def test_a_board_that_greets_its_users_is_understood(board: ssh_board.Board, tmp_path: Path) -> None:
    put(board.home, ".bashrc", "echo Welcome to the board\n")
    with connected("board", config=board.config) as there:
        assert there.run(["held"], stdin=b"[]")[0] == 0
        data = blob(tmp_path / "a.bin", 1000)
        there.get(str(data), tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == data.read_bytes()


def test_no_space_on_the_board_is_seen_before_anything_is_sent(
    board: ssh_board.Board, there: Transport, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(1 << 20)

    assert isinstance(there, Ssh)
    stored = there._stored
    there._stored = lambda wanted: (*stored(wanted)[:2], 1000)  # type: ignore[method-assign]
    with pytest.raises(TargetError, match="0 MB left for 1 MB"):
        there.put([huge])
    assert kept(board) == []


def test_a_disk_that_fills_up_is_reported(board: ssh_board.Board, there: Transport, tmp_path: Path) -> None:
    there.run(["held"], stdin=b"[]")
    files = board.home / ".cache/deadweight/files"
    data = blob(tmp_path / "a.bin", 1000)
    (files / sha256_of(data)).mkdir()
    (files / sha256_of(data) / "part").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="On board: The board cannot store the file"):
        there.put([data])


def test_what_arrives_wrong_is_thrown_away(board: ssh_board.Board, there: Transport, tmp_path: Path) -> None:
    data = blob(tmp_path / "a.bin", 1000)
    place = board.home / ".cache/deadweight/files" / sha256_of(data)
    place.mkdir(parents=True)
    (place / "part").write_bytes(b"wrong from the start")
    with pytest.raises(ArtifactError, match="it was deleted"):
        there.put([data])
    assert Path(there.put([data])[0]).read_bytes() == data.read_bytes()


def test_an_error_there_is_the_same_error_here(there: Transport) -> None:
    with pytest.raises(DeadweightError, match=r"On board: There is no model at /none\.onnx") as caught:
        there.run(["profile", "/none.onnx"])
    assert type(caught.value).__name__ == "ModelError"


def test_an_agent_of_another_version_is_reported(there: Transport) -> None:
    with pytest.raises(TargetError, match="gave no answer") as caught:
        there.run(["frobnicate"])
    assert "same version" in caught.value.cure


def test_a_bundle_is_sent_and_installed(board: ssh_board.Board, there: Transport, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys")
    root = tmp_path / "root"
    trust(key, root)
    bundle = make_release(tmp_path / "1", key, 1)
    result = install_on(there, bundle, root=root)
    installed = Path(result["path"])
    assert str(installed).startswith(str(board.home))
    assert release_in_use(installed.parents[1], root) == 1
    make_release(tmp_path / "2", key, 2)
    assert install_on(there, delta(bundle, tmp_path / "2", tmp_path / "1to2").path, root=root)["release"] == 2
    assert release_in_use(installed.parents[1], root) == 2
    bad = make_release(tmp_path / "3", key, 3)
    (bad / "model.onnx").write_bytes(b"changed")
    with pytest.raises(RefusedError, match="was changed after it was signed"):
        install_on(there, bad, root=root)
    assert release_in_use(installed.parents[1], root) == 2


def test_models_are_timed_there_and_their_raw_samples_come_back(there: Transport, mlp: MakeMlp) -> None:
    models = {"a": mlp(8, 8, name="a.onnx"), "b": mlp(8, 4, name="b.onnx")}
    timed = time_on(there, ready_on(there, models), protocol=Protocol(events=6, event_s=0.01), memory=True)
    assert timed.measurements["a"].void == ()
    assert timed.measurements["a"].events == 6
    assert timed.measurements["a"].run_id == timed.measurements["b"].run_id
    assert timed.memory["b"].file_bytes == models["b"].stat().st_size


def test_layers_are_timed_there_and_judged_here(
    board: ssh_board.Board, there: Transport, mlp: MakeMlp
) -> None:
    protocol = Protocol(events=3, event_s=0.005, block_s=0.001, settle_s=0.0005)
    models = {"wide": mlp(16, 64, 4, name="a.onnx"), "narrow": mlp(16, 32, 4, name="b.onnx")}
    layers, void = layers_on(there, ready_on(there, models), protocol=protocol)
    assert void == ()
    judged = judge_layers(layers["wide"], layers["narrow"])
    assert [one.pruned for one in judged if one.kind == "MatMul"] == [True, True]
    assert len(kept(board)) == 2  # they ran where they were copied to


def test_an_engine_that_the_board_did_not_build_is_refused(there: Transport, tmp_path: Path) -> None:
    ready = ready_on(there, {"a": blob(tmp_path / "a.engine", 10)})
    with pytest.raises(RefusedError, match="was not built on this board"):
        time_on(there, ready, protocol=Protocol())


def test_files_of_inputs_come_back_as_outputs(there: Transport, mlp: MakeMlp, tmp_path: Path) -> None:
    model, inputs = mlp(5, 3), tmp_path / "in"
    inputs.mkdir()
    for index in range(2):
        np.savez(inputs / f"{index}.npz", x=np.full((3, 5), index, np.float32))
    ready = ready_on(there, {"it": model})
    for index in range(2):
        path = infer_on(there, ready, "it", inputs / f"{index}.npz", tmp_path / f"out/{index}.npz")
        expected = open_session(model).run({"x": np.full((3, 5), index, np.float32)})["y"]
        np.testing.assert_allclose(np.load(path)["y"], expected, rtol=1e-6)


def test_several_boards_are_asked_at_once_and_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = [ssh_board.make_board(tmp_path / name) for name in ("one", "two")]
    texts = [board.config.read_text().replace("Host board", f"Host {board.place.name}") for board in boards]
    (tmp_path / "config").write_text("\n".join(texts))
    for board in boards:
        hosts = board.place / "known_hosts"
        hosts.write_text(hosts.read_text().replace("board ", f"{board.place.name} "))
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(tmp_path / "config"))
    meet = threading.Barrier(3)

    def act(there: Transport) -> str:
        meet.wait(60)  # reached by all of them at once, or by none
        return str(there.run(["doctor"])[1]["next"])

    found = on_each(["one", "two", "local"], act)
    assert all(isinstance(answer, str) for answer in found.values())
    found = on_each(["one", "no-such-board.invalid"], lambda there: there.name)
    assert found["one"] == "one"
    assert isinstance(found["no-such-board.invalid"], TargetError)


def test_this_machine_is_a_board_with_the_same_methods(tmp_path: Path, mlp: MakeMlp) -> None:
    with connected("local") as here:
        model = here.put([mlp(8, 8)])[0]
        assert here.run(["profile", model, "--protocol", QUICK])[0] == 0
        here.get(model, tmp_path / "copy.onnx")
        assert (tmp_path / "copy.onnx").read_bytes() == Path(model).read_bytes()
        with pytest.raises(ArtifactError, match="does not exist"):
            here.put([tmp_path / "none"])


def test_a_connection_leaves_nothing_open(board: ssh_board.Board) -> None:
    with connected("board", config=board.config) as there:
        there.run(["held"], stdin=b"[]")
    cables = [int(line) for line in (board.place / "cables").read_text().split()]
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in cables) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in cables if Path(f"/proc/{pid}").exists()]
