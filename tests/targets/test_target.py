import json
from pathlib import Path

import pytest

from deadweight.targets.errors import TargetError
from deadweight.targets.target import CERTAINTIES, Alignment, Target, load_target, target_names

MINIMAL = 'name = "mine"\ntitle = "Mine"\nruntime = "onnxruntime"\nprecisions = ["fp32"]\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_five_boards_are_known() -> None:
    assert target_names() == ("agx-orin-64gb", "orin-nano-8gb", "orin-nx-16gb", "thor-t5000", "x86-cpu")


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
    thor = load_target("thor-t5000")
    bandwidth = thor.fact("bandwidth_bytes_per_s")
    assert bandwidth is not None
    assert bandwidth.certainty == "low"
    assert bandwidth.value == 273_000_000_000
    assert thor.certain("bandwidth_bytes_per_s") is None
    assert thor.certain("fp16_ops_per_s") == 258_500_000_000_000
    assert thor.certain("int8_ops_per_s") is None


def test_published_totals_of_orin_follow_from_its_facts() -> None:
    for name, sparse_tops in (("orin-nano-8gb", 67), ("agx-orin-64gb", 171)):
        rate = load_target(name).certain("int8_ops_per_s")
        assert isinstance(rate, int)
        assert round(2 * rate / 1e12) == sparse_tops


def test_cores_for_deep_learning_are_where_nvidia_put_them() -> None:
    cores = {name: load_target(name).certain("dla_cores") for name in target_names()}
    assert cores == {"agx-orin-64gb": 2, "orin-nano-8gb": 0, "orin-nx-16gb": 2, "thor-t5000": 0, "x86-cpu": 0}


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
    assert load_target("x86-cpu").align("recurrent") == Alignment(step=1, hard=1)
    assert load_target("x86-cpu").align("recurrent").rounded(7, width=9) == 7


def test_an_unknown_target_gets_the_nearest_name_proposed() -> None:
    with pytest.raises(TargetError, match="There is no target named 'orin-nano'") as caught:
        load_target("orin-nano")
    assert caught.value.cure.startswith("Did you mean 'orin-nano-8gb")
    assert "x86-cpu" in caught.value.cure


def test_a_board_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    target = load_target(written(tmp_path, MINIMAL))
    assert target.precisions == ("fp32",)
    assert target.facts == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "mine', "is not TOML"),
        ('name = "mine"', "misses precisions, runtime, title"),
        (MINIMAL + "colour = 1", "does not know colour"),
        (MINIMAL.replace("onnxruntime", "onnxruntme"), "runtime is 'onnxruntme'"),
        (MINIMAL.replace('["fp32"]', '"fp32"'), "precisions is 'fp32'"),
        (MINIMAL.replace("fp32", "fp31"), "precisions is 'fp31'"),
        (MINIMAL + "[facts.memory_bytes]\nvalue = 1\n", "facts.memory_bytes misses certainty, source"),
        (
            MINIMAL + '[facts.a]\nvalue = 1\nsource = " "\ncertainty = "high"',
            "facts.a has the value 1 from ' '",
        ),
        (MINIMAL + '[facts.a]\nvalue = 1\nsource = "x"\ncertainty = "sure"', "facts.a is 'sure'"),
        (MINIMAL + "[alignment]\nconv = 16", "alignment.conv is 16, not a table"),
        (MINIMAL + "[alignment.convv]\nstep = 16", "alignment is 'convv'"),
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
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(tmp_path / "none.toml")
