"""The monitor's line, in the 14 variants that public reports show."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from deadweight.targets.machine.tegrastats import Engine, Tegrastats, parse_tegrastats, total_power_w

HERE = Path(__file__).parent / "tegrastats"
NAMES = sorted(path.stem for path in HERE.glob("*.txt"))
LINES = [line for name in NAMES for line in (HERE / f"{name}.txt").read_text("utf-8").splitlines()]
GB = 1 << 30

# Facts read off the lines by eye: cores, cores off, GPU clocks in MHz, zones, rails, total power in watts.
FACTS = {
    "agx_orin_jp5_r35_array": (12, 0, (0, 0), 11, 4, 6.755),
    "agx_orin_jp5_r35_two_gr3d": (12, 0, (0,), 11, 4, 6.831),
    "agx_orin_jp6_r36.4.4": (12, 0, (0, 0), 5, 3, 8.626),
    "agx_orin_jp7.2_cores_off": (12, 4, (0, 0), 5, 3, 9.63),
    "agx_orin_jp7.2_r39.2": (12, 0, (1300, 1300), 4, 3, 13.907),
    "agx_thor_jp7.1_r38.4": (14, 0, (0, 0, 0), 4, 3, 9.25),
    "agx_thor_jp7.2_r39.2": (14, 0, (314, 314, 314), 5, 3, 20.402),
    "agx_thor_jp7_vin_nosudo": (14, 0, None, 4, 4, 16.802),
    "orin_nano_super_jp7.2.1_r39.2.1": (6, 0, (305,), 6, 3, 3.582),
    "tx2_jp3_mts_r28": (6, 0, (140,), 8, 6, 1.776),
    "tx2_jp4_r32": (6, 2, (114,), 8, 6, 3.024),
    "xavier_nx_jp4_nosudo": (6, 0, (), 6, 0, None),
    "xavier_nx_jp4_sudo": (6, 0, (114,), 6, 3, 3.528),
    "xavier_nx_jp5_r35": (6, 2, (510,), 5, 3, 5.079),
}


def first(name: str) -> Tegrastats:
    return parse_tegrastats((HERE / f"{name}.txt").read_text("utf-8").splitlines()[0])


def test_there_are_facts_for_all_fourteen_variants() -> None:
    assert sorted(FACTS) == NAMES
    assert len(NAMES) == 14


@pytest.mark.parametrize("line", LINES)
def test_no_word_of_a_real_line_is_unknown(line: str) -> None:
    assert parse_tegrastats(line).unknown == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_tells_what_a_person_reads_in_it(name: str) -> None:
    cores, off, gpu_mhz, zones, rails, power_w = FACTS[name]
    result = first(name)
    assert len(result.cores) == cores
    assert sum(core is None for core in result.cores) == off
    assert len(result.temperatures_c) == zones
    assert len(result.rails_w) == rails
    gpu = result.engines.get("GR3D")
    assert (None if gpu is None else tuple(clock // 1_000_000 for clock in gpu.clocks_hz)) == gpu_mhz
    total = total_power_w(result.rails_w)
    assert (None if total is None else round(total[0], 3)) == power_w


def test_units_are_reported_by_load_and_clock_whatever_form_they_take() -> None:
    assert first("agx_orin_jp6_r36.4.4").engines["NVENC"] == Engine(78.0, (166_000_000,))
    assert first("agx_orin_jp6_r36.4.4").engines["NVDEC"] == Engine(None, ())
    assert first("agx_thor_jp7.2_r39.2").engines["NVENC0"] == Engine(None, (1_556_000_000,))
    assert first("xavier_nx_jp4_nosudo").engines["EMC"] == Engine(0.0, ())
    assert first("xavier_nx_jp5_r35").engines["VIC"] == Engine(None, (601_000_000,))


def test_a_sensor_that_is_switched_off_has_no_temperature() -> None:
    zones = first("agx_orin_jp5_r35_array").temperatures_c
    assert zones["GPU"] is None
    assert zones["CPU"] == 44.562


def test_power_without_units_is_milliwatts_and_a_sum_says_so() -> None:
    assert first("tx2_jp4_r32").rails_w["VDD_IN"] == 3.024
    assert (total_power_w(first("agx_orin_jp6_r36.4.4").rails_w) or (0, ""))[1] == "sum of rails"
    assert total_power_w(first("agx_thor_jp7_vin_nosudo").rails_w) == (16.802, "VIN")


def test_words_that_are_not_known_are_kept() -> None:
    result = parse_tegrastats("RAM 1/2MB WARP_CORE engaged cpu@40C")
    assert result.unknown == ("WARP_CORE", "engaged")
    assert result.temperatures_c == {"cpu": 40.0}


def test_a_line_of_nothing_is_no_error() -> None:
    assert parse_tegrastats("") == Tegrastats((), ())


LETTERS = "0123456789%@/[](),.-_ ABCDEFGRXZabc\t\x00é٣²"


def mutated(token: str, dice: random.Random) -> str:
    """The token with one to four characters changed, dropped or put in; a space may cut it in two."""
    characters = list(token)
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(characters) + 1)
        kind = dice.randrange(3)
        if kind == 0 or not characters:
            characters.insert(at, dice.choice(LETTERS))
        elif kind == 1:
            del characters[at - 1]
        else:
            characters[at - 1] = dice.choice(LETTERS)
    return "".join(characters)


def printed(line: str) -> list[str]:
    """The line cut into its tokens, as they were printed."""
    return [str(part) for part in cut(line)]


def cut(line: str) -> list[str]:
    """Cuts before every word that begins a token: a name whose token alone is read as exactly one reading."""
    words, tokens = line.split(), []
    while words:
        for length in range(min(5, len(words)), 0, -1):
            token = " ".join(words[:length])
            result = parse_tegrastats(token)
            if len(result.readings) == 1 and not result.unknown:
                tokens.append(token)
                del words[:length]
                break
        else:
            raise AssertionError(f"{words[0]} begins no token")
    return tokens


def test_every_token_that_was_not_mutated_is_still_read() -> None:
    dice = random.Random(7)
    for line in LINES:
        tokens = printed(line)
        alone = [parse_tegrastats(token).readings[0] for token in tokens]
        for _ in range(120):
            hurt = set(dice.sample(range(len(tokens)), dice.randrange(1, 6)))
            text = " ".join(
                mutated(token, dice) if index in hurt else token for index, token in enumerate(tokens)
            )
            result = Counter(parse_tegrastats(text).readings)
            whole = Counter(reading for index, reading in enumerate(alone) if index not in hurt)
            assert not whole - result, text


def test_noise_never_raises() -> None:
    dice = random.Random(8)
    for line in LINES:
        for _ in range(60):
            cutoff = dice.randrange(len(line))
            result = parse_tegrastats(mutated(line[:cutoff] or "x", dice) + "9" * dice.randrange(5000))
            assert result.cores is not None
            assert result.engines is not None
            assert result.rails_w is not None
            assert result.temperatures_c is not None
