"""Frames of voices and instruments with a known pitch, with noise, in a room; all drawn from a seed.

The instruments and noises of the test split are in no other split. "unlabelled" has more than "train":
from those a network learns by a teacher, not by the pitch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

RATE, FRAME, LEAD = 16_000, 1024, 2048  # Hz; samples of a frame, and of the sound before it
TABLE, HARMONICS = 1024, 128  # points of a period, and its harmonics at most
LOWEST, HIGHEST = 60.0, 1200.0  # Hz
_FORMANTS = np.array(
    [[250.0, 600.0], [800.0, 1700.0], [2300.0, 900.0]]
)  # the lowest of each, and the range, Hz
PART = 500  # frames that are drawn at once

HEARD = ("strings", "pulse", "whistle"), ("white", "hum")
KINDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "train": HEARD,
    "validation": HEARD,
    "unlabelled": (
        ("strings", "pulse", "whistle", "voice", "organ", "modulated"),
        ("white", "hum", "pink", "clicks"),
    ),
    "calibration": HEARD,
    "test": (("clarinet", "brass", "plucked"), ("babble", "wind")),
}


def frames(split: str, count: int) -> tuple[Array, Array]:
    """Frames (count, 1024) of mean 0 and deviation 1, and the pitch in the middle of each, (count,), Hz."""
    instruments, noises = KINDS[split]
    seed = list(KINDS).index(split)
    parts = [
        _part(np.random.default_rng([seed, start]), min(PART, count - start), instruments, noises)
        for start in range(0, count, PART)
    ]
    sounds, pitches = zip(*parts, strict=True)
    return np.concatenate(sounds), np.concatenate(pitches)


def _part(
    random: np.random.Generator, count: int, instruments: Sequence[str], noises: Sequence[str]
) -> tuple[Array, Array]:
    pitch = np.exp(random.uniform(np.log(LOWEST), np.log(HIGHEST), (count, 1)))
    seconds = (np.arange(LEAD + FRAME) - LEAD - FRAME / 2) / RATE
    wobble = np.sin(2 * np.pi * (random.uniform(4, 7, (count, 1)) * seconds + random.random((count, 1))))
    cents = random.uniform(-300, 300, (count, 1)) * seconds + random.uniform(0, 40, (count, 1)) * wobble
    hertz = pitch * 2 ** (cents / 1200)
    kind = random.integers(len(instruments), size=count)
    dry = np.empty((count, LEAD + FRAME), np.float32)
    for at, name in enumerate(instruments):
        own = kind == at
        play = _plucked if name == "plucked" else _periodic
        dry[own] = play(name, random, hertz[own])
    swell = 1 + random.uniform(-0.9, 0.9, (count, 1)) * np.linspace(-1, 1, LEAD + FRAME)
    wet = _in_room(random, dry * swell)[:, LEAD:]
    kind = random.integers(len(noises), size=count)
    noise = np.stack([_noise(noises[one], random) for one in map(int, kind)])
    decibels = random.uniform(0, 30, (count, 1))
    mixed = _even(wet) + 10 ** (-decibels / 20) * _even(noise)
    return _even(mixed), hertz[:, LEAD + FRAME // 2].astype(np.float32)


def _even(sound: NDArray[np.floating]) -> Array:
    """With mean 0 and deviation 1, as CREPE takes its frames."""
    sound = sound - sound.mean(1, keepdims=True)
    return np.asarray(sound / (sound.std(1, keepdims=True) + 1e-9), np.float32)


def _periodic(name: str, random: np.random.Generator, hertz: NDArray[np.float64]) -> Array:
    """One period as a table, read at the pitch."""
    count, rows = len(hertz), np.arange(len(hertz))[:, None]
    k = np.arange(1, HARMONICS + 1)
    at, any_of = k * hertz.mean(1, keepdims=True), random.random((3, count, 1))
    spectra: dict[str, Callable[[], NDArray[Any]]] = {
        "strings": lambda: k ** -(0.6 + 1.4 * any_of[0]),
        "pulse": lambda: np.abs(np.sin(np.pi * k * (0.05 + 0.4 * any_of[0]))) / k,
        "whistle": lambda: (k == 1) + 0.1 * any_of[0] * (k == 2),
        "organ": lambda: np.isin(k, (1, 2, 3, 4, 6, 8)) * random.uniform(0.2, 1, (count, len(k))),
        "voice": lambda: _peak(at, _FORMANTS[:, :1, None] + _FORMANTS[:, 1:, None] * any_of, 90).sum(0) / k,
        "modulated": lambda: (k == 1) * 1.0,
        "clarinet": lambda: np.where(k % 2, 1.0, 0.15 * any_of[0]) * k**-1.2 * (1 + 4 * _peak(at, 1500, 500)),
        "brass": lambda: k ** (0.3 + any_of[0]) * np.exp(-at / (400 + 900 * any_of[1])),
    }
    tones = spectra[name]() * (at < 0.47 * RATE) * np.exp(2j * np.pi * random.random((count, len(k))))
    table = np.fft.irfft(np.pad(tones, ((0, 0), (1, 0))), TABLE)
    if name == "modulated":
        turns = np.arange(TABLE) / TABLE
        index, ratio = 0.5 + 3 * any_of[0], random.integers(1, 4, (count, 1))
        table = np.sin(2 * np.pi * turns + index * np.sin(2 * np.pi * ratio * turns))
    place = (np.cumsum(hertz, axis=1) / RATE % 1) * TABLE
    low = place.astype(np.int64)
    share = place - low
    read = (1 - share) * table[rows, low % TABLE] + share * table[rows, (low + 1) % TABLE]
    return np.asarray(read / (table.std(1, keepdims=True) + 1e-9), np.float32)


def _peak(at: NDArray[np.float64], centre: float | NDArray[np.float64], width: float) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + ((at - centre) / width) ** 2))


def _plucked(name: str, random: np.random.Generator, hertz: NDArray[np.float64]) -> Array:
    """A noise that goes round in a damped delay line (Karplus and Strong 1983), with vibrato."""
    count, length = hertz.shape
    most = int(RATE / LOWEST) + 40
    line = np.zeros((count, most + length))
    line[:, :most] = random.standard_normal((count, most))
    rows = np.arange(count)
    back = RATE / hertz - 0.5  # the mean of two samples delays by half a sample
    damp = 1 - random.uniform(0, 0.004, count)
    for now in range(length):
        place = most + now - back[:, now]
        low = place.astype(np.int64)
        share = place - low
        two = [(1 - share) * line[rows, low + d] + share * line[rows, low + 1 + d] for d in (-1, 0)]
        line[:, most + now] = damp * (two[0] + two[1]) / 2
    return np.asarray(_even(line[:, most:]), np.float32)


def _in_room(random: np.random.Generator, dry: NDArray[np.floating]) -> Array:
    """With the decaying echoes of a room, the same for a hundred frames."""
    wet, time = np.empty(dry.shape, np.float32), np.arange(LEAD) / RATE
    for start in range(0, len(dry), 100):
        echo = random.standard_normal(LEAD) * np.exp(-time / random.uniform(0.01, 0.08))
        echo *= random.uniform(0, 0.6) / np.sqrt((echo**2).sum())
        echo[0] += 1
        size = 2 * LEAD + FRAME
        both = np.fft.rfft(dry[start : start + 100], size) * np.fft.rfft(echo, size)
        wet[start : start + 100] = np.fft.irfft(both, size)[:, : LEAD + FRAME]
    return wet


def _noise(name: str, random: np.random.Generator) -> NDArray[np.float64]:
    """One frame of a noise."""
    time, white = np.arange(FRAME) / RATE, random.standard_normal(FRAME)
    if name == "hum":
        mains, k = random.choice([50.0, 60.0]), np.arange(1, 12)[:, None]
        tones = np.sin(2 * np.pi * (k * mains * time + random.random(k.shape)))
        return np.asarray((tones / k).sum(0) + 0.1 * white)
    if name == "clicks":
        return np.asarray(white * (random.random(FRAME) < 0.01) + 0.02 * white)
    if name == "babble":
        hertz = random.uniform(90, 260, (4, 1)) + np.zeros(FRAME)
        return np.asarray(_periodic("voice", random, hertz).sum(0) + 0.3 * white)
    tilt = {"white": 0.0, "pink": 0.5, "wind": 1.0}[name]
    tones = np.fft.rfft(white) / np.maximum(np.arange(FRAME // 2 + 1), 1) ** tilt
    return np.asarray(np.fft.irfft(tones))
