"""The monitor's line, in the 14 variants that public reports show."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from deadweight.targets.machine.tegrastats import Reading, Tegrastats, parse_tegrastats, total_power_w

HERE = Path(__file__).parent / "tegrastats"
NAMES = sorted(path.stem for path in HERE.glob("*.txt"))
LINES = [line for name in NAMES for line in (HERE / f"{name}.txt").read_text("utf-8").splitlines()]

# Counted in the lines by eye: cores, cores off, tokens of the GPU, zones, rails (with those not connected).
FACTS = {
    "agx_orin_jp5_r35_array": (12, 0, 1, 11, 6),
    "agx_orin_jp5_r35_two_gr3d": (12, 0, 1, 11, 6),
    "agx_orin_jp6_r36.4.4": (12, 0, 1, 5, 3),
    "agx_orin_jp7.2_cores_off": (12, 4, 1, 5, 3),
    "agx_orin_jp7.2_r39.2": (12, 0, 1, 4, 3),
    "agx_thor_jp7.1_r38.4": (14, 0, 1, 4, 3),
    "agx_thor_jp7.2_r39.2": (14, 0, 1, 5, 3),
    "agx_thor_jp7_vin_nosudo": (14, 0, 0, 4, 4),
    "orin_nano_super_jp7.2.1_r39.2.1": (6, 0, 1, 6, 3),
    "tx2_jp3_mts_r28": (6, 0, 1, 8, 6),
    "tx2_jp4_r32": (6, 2, 1, 8, 6),
    "xavier_nx_jp4_nosudo": (6, 0, 1, 6, 0),
    "xavier_nx_jp4_sudo": (6, 0, 1, 6, 3),
    "xavier_nx_jp5_r35": (6, 2, 1, 5, 3),
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
def test_a_variant_has_the_tokens_that_a_person_counts_in_it(name: str) -> None:
    cores, off, gpu, zones, rails = FACTS[name]
    kinds = Counter(reading.kind for reading in first(name).readings)
    listed = [reading.values[0] or "" for reading in first(name).readings if reading.kind == "cores"]
    assert (len(listed[0].split(",")), listed[0].split(",").count("off")) == (cores, off)
    assert sum(reading.name == "GR3D_FREQ" for reading in first(name).readings) == gpu
    assert (kinds["temperature"], kinds["rail"]) == (zones, rails)


def test_power_is_that_of_the_rail_that_supplies_the_board_else_a_sum_that_says_so() -> None:
    assert total_power_w({"VIN": 16.802, "VDD_GPU": 3.0}) == (16.802, "VIN")
    assert total_power_w({"VDD_GPU": 3.0, "VDDQ_VDD2_1V8AO": 1.0}) == (3.0, "sum of rails")
    assert total_power_w({}) is None


def test_words_that_are_not_known_are_kept() -> None:
    result = parse_tegrastats("RAM 1/2MB WARP_CORE engaged cpu@40C")
    assert result.unknown == ("WARP_CORE", "engaged")
    assert result.readings[-1] == Reading("temperature", "cpu", ("40", None))


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
            text = mutated(line[:cutoff] or "x", dice) + "9" * dice.randrange(5000)
            result = parse_tegrastats(text)
            assert bool(result.readings or result.unknown) == bool(text.strip(" \t"))
