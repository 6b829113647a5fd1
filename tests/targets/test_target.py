import json
from pathlib import Path
from typing import Any

import pytest
from support.boards import put, unpack

from deadweight.targets.board_file import board_file, described, with_jetpack
from deadweight.targets.errors import TargetError
from deadweight.targets.machine.board_facts import board_facts
from deadweight.targets.target import (
    CERTAINTIES,
    Alignment,
    Target,
    load_target,
    target_names,
    target_of,
    target_on,
)

MINIMAL = 'name = "mine"\ntitle = "Mine"\nruntime = "onnxruntime"\nprecisions = ["fp32"]\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_known_boards_are_jetsons_drives_and_cpus_and_families_are_none() -> None:
    assert target_names() == (
        *("agx-orin-32gb", "agx-orin-64gb", "agx-xavier", "arm64-cpu", "drive-agx-orin", "drive-agx-thor"),
        *("nvidia-gpu", "orin-nano-4gb", "orin-nano-8gb", "orin-nx-16gb", "orin-nx-8gb"),
        *("thor-t4000", "thor-t5000", "x86-cpu", "xavier-nx"),
    )


@pytest.mark.parametrize("name", target_names())
def test_every_fact_of_every_board_has_a_source_and_a_certainty(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    result = [(fact.source, fact.certainty) for fact in target.facts.values()]
    result += [(rule.source, rule.certainty) for rule in target.alignment.values()]
    for source, certainty in result:
        assert source.strip()
        assert certainty in CERTAINTIES


@pytest.mark.parametrize("name", target_names())
def test_an_agent_gets_the_same_target_through_json(name: str) -> None:
    target = load_target(name)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_a_fact_of_low_certainty_is_shown_but_enters_no_verdict() -> None:
    drive = load_target("drive-agx-orin")
    count = drive.fact("streaming_multiprocessors")
    assert count is not None
    assert (count.value, count.certainty) == (16, "low")
    assert drive.certain("streaming_multiprocessors") is None
    assert drive.certain("tensorrt") == "8.6.13"


def test_thor_s_rates_are_those_of_its_data_sheet() -> None:
    """2070 sparse FP4; 1035 sparse FP8 and INT8; 517 sparse FP16: each dense rate is half."""
    thor = load_target("thor-t5000")
    assert thor.certain("int8_ops_per_s") == 517_000_000_000_000
    assert thor.certain("fp16_ops_per_s") == 258_500_000_000_000


def test_published_totals_of_orin_follow_from_its_facts() -> None:
    for name, sparse_tops in (("orin-nano-8gb", 67), ("orin-nano-8gb@5.1.3", 41), ("agx-orin-64gb", 171)):
        rate = load_target(name).certain("int8_ops_per_s")
        assert isinstance(rate, int)
        assert round(2 * rate / 1e12) == sparse_tops


def test_cores_for_deep_learning_are_where_nvidia_put_them() -> None:
    cores = {name: load_target(name).certain("dla_cores") for name in target_names()}
    with_two = {"agx-orin-32gb", "agx-orin-64gb", "agx-xavier", "drive-agx-orin", "orin-nx-16gb", "xavier-nx"}
    assert {name for name, count in cores.items() if count == 2} == with_two
    assert {name for name, count in cores.items() if count == 1} == {"orin-nx-8gb"}
    assert {name for name, count in cores.items() if count == 0} == set(cores) - with_two - {"orin-nx-8gb"}


@pytest.mark.parametrize(
    ("name", "tensorrt", "cuda", "l4t"),
    [
        ("agx-orin-64gb", "10.3.0.30", "12.6.11", "36.4.4"),
        ("agx-orin-64gb@5.1.3", "8.5.2", "11.4.19", "35.5.0"),
        ("agx-orin-64gb@5.1.5", "8.5.2", "11.4.19", "35.6.1"),
        ("agx-orin-64gb@6.0", "8.6.2", "12.2", "36.3.0"),
        ("orin-nx-16gb@7.2", "10.16.2.10", "13.2.1", "39.2.0"),
        ("thor-t5000@7.0", "10.13.3.9", "13.0.0", "38.2.0"),
        ("drive-agx-orin@6.0.9.1", "8.6.12", "11.4", None),
    ],
)
def test_a_board_with_a_jetpack_has_that_software(
    name: str, tensorrt: str, cuda: str, l4t: str | None
) -> None:
    target = load_target(name)
    assert [target.facts[key].value for key in ("tensorrt", "cuda")] == [tensorrt, cuda]
    assert (target.facts["l4t"].value if "l4t" in target.facts else None) == l4t
    assert target.name == name
    assert ("JetPack" in target.title or "DriveOS" in target.title) == ("@" in name)


@pytest.mark.parametrize("name", target_names())
def test_the_page_has_every_target_as_it_is(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "boards.md").read_text("utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |")).split(" | ")
    target = load_target(name)
    assert row[1] == target.title.replace("NVIDIA ", "")
    for place, key in ((4, "jetpack"), (5, "tensorrt"), (6, "dla_cores")):
        if key in target.facts:
            assert row[place].strip(" |") == str(target.facts[key].value)


def test_the_default_jetpack_is_the_same_target_as_none() -> None:
    assert load_target("orin-nano-8gb@6.2.1") == load_target("orin-nano-8gb")


def test_clocks_before_the_super_modes_are_those_of_the_older_jetpack() -> None:
    assert load_target("orin-nano-8gb@6.1").certain("gpu_hz") == 625_000_000
    assert load_target("orin-nano-8gb@6.2").certain("gpu_hz") == 1_020_000_000


def test_thor_on_driveos_is_10_1_until_cuda_13_renames_it() -> None:
    assert load_target("drive-agx-thor").certain("compute_capability") == "10.1"
    assert load_target("drive-agx-thor@7.0.5").certain("compute_capability") is None
    assert load_target("thor-t5000").certain("compute_capability") == "11.0"


@pytest.mark.parametrize(
    ("name", "cure"),
    [("xavier-nx@6.2", "Known: 5.1, 5.1.1"), ("x86-cpu@5.1.3", "Omit it: this target has no JetPack.")],
)
def test_a_jetpack_that_a_board_never_had_is_refused(name: str, cure: str) -> None:
    with pytest.raises(TargetError, match="There is no JetPack") as caught:
        load_target(name)
    assert caught.value.cure.startswith(cure)


def test_a_jetpack_without_a_board_is_refused() -> None:
    assert with_jetpack("agx-orin-64gb@6.0", "5.1.3") == "agx-orin-64gb@5.1.3"
    assert with_jetpack("drive-agx-thor", "DriveOS 7.0.3") == "drive-agx-thor@7.0.3"
    with pytest.raises(TargetError, match=r"--jetpack 5\.1\.3 needs a board"):
        with_jetpack(None, "5.1.3")


def facts_of(jetpack: str | None, tensorrt: str | None, capability: str | None = "8.7") -> dict[str, Any]:
    board = {"model": "a board", "soc": "tegra234", "jetpack": jetpack, "l4t": None, "tensorrt": tensorrt}
    return {"board": {**board, "cuda": None, "compute_capability": capability}}


def test_a_target_learns_its_jetpack_from_the_board() -> None:
    target = target_on("orin-nano-8gb", facts_of("5.1.3", "8.5.2"))
    assert target.name == "orin-nano-8gb@5.1.3"
    assert target.facts["tensorrt"].value == "8.5.2"
    assert target.facts["tensorrt"].source == "read from a board"
    assert target.certain("gpu_hz") == 625_000_000


def test_a_tensorrt_that_no_jetpack_brought_is_the_board_s_own() -> None:
    target = target_on("orin-nano-8gb", facts_of("6.x", "10.7.0"))
    assert target.certain("tensorrt") == "10.7.0"


def test_a_jetpack_that_the_board_has_not_is_refused_with_the_line_that_cures_it() -> None:
    with pytest.raises(TargetError, match=r"means TensorRT 10\.3\.0\.30 \(JetPack 6\.2\)") as caught:
        target_on("agx-orin-64gb@6.2", facts_of("5.1.3", "8.5.2"))
    assert caught.value.cure.startswith("Give --jetpack 5.1.3;")


def test_another_board_is_refused_with_the_targets_that_it_may_be() -> None:
    with pytest.raises(TargetError, match=r"has compute capability 8\.7, but a board has 7\.2") as caught:
        target_on("agx-orin-64gb", facts_of("5.1.3", "8.5.2", "7.2"))
    assert "--target agx-xavier or xavier-nx" in caught.value.cure


def test_x86_convolutions_go_by_sixteen_and_never_off_four() -> None:
    conv = load_target("x86-cpu").align("conv")
    assert (conv.step, conv.hard) == (16, 4)
    assert conv.rounded(49, width=64) == 64
    assert conv.rounded(48, width=64) == 48
    assert conv.rounded(17, width=30) == 24


def test_a_width_is_never_rounded_to_zero_nor_above_what_is_there() -> None:
    conv = load_target("x86-cpu").align("conv")
    assert conv.rounded(0, width=64) == 16
    assert conv.rounded(60, width=62) == 62


def test_an_operator_kind_without_a_rule_takes_any_width() -> None:
    assert load_target("x86-cpu").align("recurrent") == Alignment(1, 1, "", "high")
    assert load_target("x86-cpu").align("recurrent").rounded(7, width=9) == 7


def test_an_unknown_target_gets_the_nearest_name_proposed() -> None:
    with pytest.raises(TargetError, match="There is no target named 'orin-nano'") as caught:
        load_target("orin-nano")
    assert caught.value.cure.startswith("Did you mean 'orin-nano-8gb")
    assert "x86-cpu" in caught.value.cure


def test_a_board_of_ones_own_may_be_like_another_or_like_a_family(tmp_path: Path) -> None:
    own = 'name = "mine"\ntitle = "Mine"\nlike = "%s"\n[facts]\ntensorrt = %s\n'
    fact = '{ value = "10.7.0", source = "apt", certainty = "high" }'
    for like in ("orin", "orin-nx-16gb"):
        target = load_target(written(tmp_path, own % (like, fact)))
        assert target.facts["tensorrt"].value == "10.7.0"
        assert target.facts["cuda"].value == "12.6.11"
        assert target.align("conv").step == 16
        assert ("memory_bytes" in target.facts) == (like != "orin")
        assert load_target(f"{tmp_path / 'mine.toml'}@5.1.3").facts["tensorrt"].value == "8.5.2"


@pytest.mark.parametrize(
    ("board", "family", "jetpack"),
    [
        ("orin_nx_jp6", "orin", "6.2.1"),
        ("xavier_nx_jp5", "xavier", "5.1.2"),
        ("agx_thor_jp71", "thor", "7.1"),
    ],
)
def test_a_board_writes_its_own_file_and_what_is_unsure_is_marked(
    board: str, family: str, jetpack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADWEIGHT_CUDA", "ctypes:/nowhere/libcudart.so")
    root = unpack(board, tmp_path)
    put(root, "proc/device-tree/bus@0/host1x@13e00000/nvdla0@15880000/status", "okay\0")
    facts = board_facts(root)
    text = board_file(described(facts, "mine"))
    assert f'like = "{family}"' in text
    target = load_target(written(tmp_path, text))
    assert target == target_of(facts, name="mine")
    assert (target.title, target.runtime.builds) == (facts["board"]["model"], True)
    assert target.certain("jetpack") == jetpack
    assert target.certain("tensorrt") == facts["board"]["tensorrt"]
    assert target.certain("usable_memory_bytes") == facts["memory_bytes"]
    assert target.facts["dla_cores"].certainty == target.facts["gpu_hz"].certainty == "low"
    assert target.align("conv").hard == 8


def test_of_a_board_whose_release_is_not_known_no_software_is_guessed(tmp_path: Path) -> None:
    facts = board_facts(unpack("orin_nx_jp6", tmp_path))
    facts["board"]["jetpack"] = None
    target = load_target(written(tmp_path, board_file(described(facts, "mine"))))
    assert {"jetpack", "python"} & set(target.facts) == set()
    assert target.certain("tensorrt") == facts["board"]["tensorrt"]
    facts["board"]["jetpack"] = "5.1.2"
    target = load_target(written(tmp_path, board_file(described(facts, "mine"))))
    assert (target.certain("jetpack"), target.certain("python")) == ("5.1.2", "3.8")


def test_a_machine_without_tensorrt_writes_a_file_for_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADWEIGHT_CUDA", "ctypes:/nowhere/libcudart.so")
    target = load_target(written(tmp_path, board_file(described(board_facts(tmp_path), "mine"))))
    assert not target.runtime.builds


def test_a_board_like_none_and_a_circle_of_boards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"mine\.toml is like 'orn', which does not exist"):
        load_target(written(tmp_path, 'like = "orn"\n' + MINIMAL))
    with pytest.raises(TargetError, match="which is like this file again"):
        load_target(written(tmp_path, 'like = "mine.toml"\n' + MINIMAL))


def test_the_workstation_s_card_is_read_here_and_without_one_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEADWEIGHT_CUDA", "ctypes:/nowhere/libcudart.so")
    target = load_target("nvidia-gpu")
    if not Path("/usr/bin/nvidia-smi").exists():
        assert target.certain("compute_capability") is None
    assert target.runtime.builds


def test_a_board_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    target = load_target(written(tmp_path, MINIMAL))
    assert target.precisions == ("fp32",)
    assert target.facts == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "mine', "is not valid TOML"),
        ('name = "mine"', "misses title, runtime, precisions"),
        (MINIMAL + "colour = 1", "has the unknown key colour"),
        (MINIMAL.replace("onnxruntime", "onnxruntme"), "runtime is 'onnxruntme'"),
        (MINIMAL.replace('["fp32"]', '"fp32"'), "precisions is 'fp32'"),
        (MINIMAL.replace("fp32", "fp31"), "precisions is 'fp31'"),
        (MINIMAL.replace('"fp32"', ""), "precisions is empty"),
        (MINIMAL + "[facts.memory_bytes]\nvalue = 1\n", "facts.memory_bytes misses source, certainty"),
        (
            MINIMAL + '[facts.a]\nvalue = 1\nsource = " "\ncertainty = "high"',
            "facts.a has the value 1 from ' '",
        ),
        (MINIMAL + '[facts.a]\nvalue = 1\nsource = "x"\ncertainty = "sure"', "facts.a.certainty is 'sure'"),
        (MINIMAL + "[alignment]\nconv = 16", "alignment.conv is 16, not a table"),
        (
            MINIMAL + '[alignment.convv]\nstep = 16\nhard = 8\nsource = "x"\ncertainty = "low"',
            "alignment is 'convv'",
        ),
        (
            MINIMAL + '[alignment.conv]\nstep = 16.5\nhard = 4\nsource = "x"\ncertainty = "high"',
            "alignment.conv.step is 16.5",
        ),
        (
            MINIMAL + '[alignment.conv]\nstep = 6\nhard = 4\nsource = "x"\ncertainty = "high"',
            "are not multiples of 4",
        ),
    ],
)
def test_a_board_file_that_does_not_describe_a_target_says_where(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(written(tmp_path, text))


def test_a_board_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="does not exist"):
        load_target(tmp_path / "none.toml")
