"""An engine built on a board, behind a real sshd, by NVIDIA's own bindings over the fake TensorRT.

A board runs what it built and refuses the rest. Nothing here is a latency: times are simulated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support import ssh_board, tensorrt_versions
from support.releases import make_bundle, make_key, make_release, release_in_use, trust
from support.simulated_board import simulated_board

from deadweight.__main__ import main
from deadweight.export.memory.footprint import footprint
from deadweight.export.quantization.fp16 import write_half
from deadweight.targets.engines.build_settings import BuildSettings
from deadweight.targets.errors import RefusedError, TargetError
from deadweight.targets.remote.board import build_on, install_on, soak_on, time_on
from deadweight.targets.remote.on_board import HowThere, ready_on
from deadweight.targets.remote.ssh import Transport, connected
from deadweight.targets.timing.loads import Load
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.soak_record import SoakPlan
from deadweight.targets.timing.soak_summary import summarized

VERSION = "10.3.0"
SETTINGS = asdict(BuildSettings(batch=(1, 4, 8)))
QUICK = Protocol(events=6, event_s=0.01, runtime="tensorrt", batch=4)
pytestmark = pytest.mark.skipif(
    ssh_board.SSHD is None, reason="there is no sshd here: apt install openssh-server"
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> ssh_board.Board:
    return simulated_board(tmp_path_factory.mktemp("trt"), VERSION)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensorrt_versions.save_models(tmp_path_factory.mktemp("models")) / "qdq.onnx"


@pytest.fixture
def there(simulated: ssh_board.Board) -> Iterator[Transport]:
    with connected("board", config=simulated.config) as transport:
        yield transport


@pytest.mark.slow
def test_a_board_builds_an_engine_and_is_reported_what_the_model_needs(
    there: Transport, model: Path, tmp_path: Path
) -> None:
    need = footprint(model, batch=8, runtime="tensorrt")
    record = build_on(there, model, tmp_path / "q.plan", settings=SETTINGS, need=need)
    assert record["evidence"] == "simulated"
    assert record["tensorrt"]["version"].startswith("10.3")
    assert record["fit"] is not None
    assert record == json.loads((tmp_path / "q.plan.json").read_text())
    assert (tmp_path / "q.plan").stat().st_size == record["plan"]["bytes"]
    assert build_on(there, model, tmp_path / "r.plan", settings=SETTINGS)["fit"] is None


@pytest.mark.slow
def test_what_cannot_fit_is_refused_there_before_it_is_built(
    there: Transport, model: Path, tmp_path: Path
) -> None:
    need = footprint(model, batch=8, runtime="tensorrt")
    need = replace(need, weights_low_bytes=1 << 50, weights_high_bytes=1 << 50)
    with pytest.raises(TargetError, match="On board: "):
        build_on(there, model, tmp_path / "q.plan", settings=SETTINGS, need=need)
    assert not (tmp_path / "q.plan").exists()


def test_an_engine_is_soaked_on_the_board_and_simulated_times_prove_nothing(
    there: Transport, model: Path
) -> None:
    ready = ready_on(there, {"q": model}, HowThere(cast=write_half), batch=4)
    load = Load(ready.there["q"], ready.runtime.name, batch=4)
    loads = {"baseline": load, "candidate": load, "beside": Load("cpu", rate_hz=5.0)}
    done = soak_on(there, SoakPlan(loads, minutes=0.01, period_s=0.1))
    summary = summarized(done)
    assert summary.rows[0].latency.value > 0
    assert "simulated" in summary.judgements[""].reason
    assert done.plan.loads["baseline"].model == ready.there["q"]


def test_a_board_runs_the_engine_that_it_built_and_no_other(
    there: Transport, simulated: ssh_board.Board, model: Path, tmp_path: Path
) -> None:
    ready = ready_on(there, {"q": model}, HowThere(cast=write_half), batch=4)
    timed = time_on(there, ready, protocol=QUICK)
    assert timed.measurements["q"].evidence == "simulated"
    assert timed.measurements["q"].protocol.runtime.startswith("tensorrt")
    plan = Path(ready.there["q"])
    plan.write_bytes(plan.read_bytes() + b"\n")
    with pytest.raises(RefusedError, match=r"On board: engine\.plan was not built on this board"):
        there.run(["profile", str(plan), "--protocol", json.dumps(asdict(QUICK))])


@pytest.mark.slow
def test_a_board_that_has_only_tensorrt_tries_a_release_as_an_engine(
    there: Transport, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "keys")
    trust(key, tmp_path / "root")
    result = install_on(there, make_release(tmp_path / "1", key, 1), root=tmp_path / "root")
    assert result["golden"]["runtime"].startswith("tensorrt 10.3")
    assert result["golden"]["holds"]
    wrong = make_release(tmp_path / "2", key, 2)
    held = {name: (wrong / name).read_bytes() for name in ("model.onnx", "golden/inputs.npz", "LICENSE")}
    held["golden/outputs.npz"] = (tmp_path / "1/golden/outputs.npz").read_bytes()
    make_bundle(wrong, key, held, release=2)
    with pytest.raises(RefusedError, match="outputs are wrong"):
        install_on(there, wrong, root=tmp_path / "root")
    assert release_in_use(Path(result["path"]).parents[1], tmp_path / "root") == 1


@pytest.mark.slow
def test_build_on_brings_plan_record_and_log_here(
    simulated: ssh_board.Board,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEADWEIGHT_SSH_CONFIG", str(simulated.config))
    out = tmp_path / "q.plan"
    options = ["--on", "board", "--batch", "1,4,8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["deadweight", "build", str(model), *options])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert not caught.value.code, printed.out + printed.err
    assert {path.name for path in tmp_path.glob("q.plan*")} == {"q.plan", "q.plan.json", "q.plan.log"}
    assert json.loads((tmp_path / "q.plan.json").read_text())["fit"] is not None
