"""Changed files of every kind that is read, one after another: each must be read, or refused with a cure.

    python benchmarks/fuzz/fuzz.py [--minutes 5 | --tries N] [--seed S] [--kind NAME]
    python benchmarks/fuzz/fuzz.py --seed S --again NUMBER ...      these tries once more, with all they print

A try is named by its seed and number: it is a valid file with one to four changes, read by the code of a
command in a watched process. Counted as bad are tracebacks, hangs, a process that dies, a line that a CI
obeys or a character that a terminal obeys, and a file read or written outside of the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from functools import cache
from itertools import count
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the tests have valid files of most kinds

from benchmarks.common.worker import BAD, Outcome, Worker  # noqa: E402
from benchmarks.fuzz.kind import Files, Kind  # noqa: E402
from benchmarks.fuzz.mutations import changed  # noqa: E402

LIMIT_S = 60.0
SECRET = b"what nothing may read"
_touched: list[str] = []


@cache
def kinds() -> dict[str, Kind]:
    from benchmarks.fuzz import models, records, releases

    return models.KINDS | records.KINDS | releases.KINDS


@cache
def seeds(name: str) -> list[Files]:
    """The valid examples of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "seeds"
        place.mkdir()
        found = kinds()[name].seeds(place)
    assert found, f"there is no valid example of {name}"
    return found


def one_try(job: tuple[int, int, str]) -> str:
    """Reads the file of a try; returns its kind. An AssertionError where it reached out of its folder."""
    seed, number, only = job
    random = Random(f"{seed} {number}")
    names = [only] if only else list(kinds())
    name = random.choices(names, [kinds()[one].weight for one in names])[0]
    kind = kinds()[name]
    files = dict(random.choice(seeds(name)))
    for _ in range(random.choice((1, 1, 2))):
        victim = random.choice(list(files))
        files[victim] = changed(victim, files[victim], random)
    files = kind.seal(files)
    with tempfile.TemporaryDirectory() as place:
        folder, secret = Path(place) / "try", Path(place) / "outside" / "secret"
        for path, data in (*((folder / path, data) for path, data in files.items()), (secret, SECRET)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        os.utime(secret, (1, 1))  # so that any reading, by a library in C too, leaves a mark
        _touched.clear()
        _watch()
        try:
            os.chdir(folder)
            kind.read(folder, random)
        finally:
            os.chdir("/")
            reached = secret.stat().st_atime != 1 or any(str(secret) in one for one in _touched)
            held = (
                sorted(path.name for path in Path(place).iterdir()),
                [path.name for path in secret.parent.iterdir()],
            )
            if reached or held != (["outside", "try"], ["secret"]) or secret.read_bytes() != SECRET:
                raise AssertionError(f"outside: {name}: {_touched or held}")
    return name


@cache
def _watch() -> None:
    """Notes every file below a folder "outside" that Python opens."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and "outside" in str(arguments[0]) and arguments[1] is not None:
            _touched.append(os.path.realpath(str(arguments[0])))

    sys.addaudithook(hook)


def told(seed: int, number: int, only: str, ended: Outcome) -> str:
    """A bad try in a few lines, with the command that repeats it."""
    says = ended.says.strip().splitlines()
    again = f"python benchmarks/fuzz/fuzz.py --seed {seed} --again {number}" + (
        f" --kind '{only}'" if only else ""
    )
    return f"{ended.kind}: {says[-1][:300] if says else ''}\n    {again}"


def main() -> int:
    """The command line; exit code 1 where a try was bad."""
    parser = argparse.ArgumentParser(description="Changed files of every kind that is read.")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tries", type=int, default=0, help="so many, however long they take")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kind", default="", help="only this one, as in the table")
    parser.add_argument("--again", type=int, nargs="+", default=[], metavar="NUMBER")
    given = parser.parse_args()
    worker = Worker("benchmarks.fuzz.fuzz", "one_try", limit_s=LIMIT_S)
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    bad: Counter[str] = Counter()
    stop = time.monotonic() + 60 * given.minutes
    print(f"seed {given.seed}", file=sys.stderr)
    try:
        for number in given.again or count():
            if not given.again and (number >= given.tries if given.tries else time.monotonic() > stop):
                break
            ended = worker.ask((given.seed, number, given.kind))
            kind = "outside" if "AssertionError: outside" in ended.says else ended.kind
            name = ended.gave or kind_of(given.seed, number, given.kind)
            ends[name][kind] += 1
            if given.again:
                print(ended.says)
            elif kind in BAD:
                bad[kind] += 1
                print(f"{name}: {told(given.seed, number, given.kind, ended)}", file=sys.stderr, flush=True)
    finally:
        worker.stop()
    print(table(ends, given.seed))
    return int(bool(bad))


def kind_of(seed: int, number: int, only: str) -> str:
    """The kind of a try, from its number alone."""
    names = [only] if only else list(kinds())
    return Random(f"{seed} {number}").choices(names, [kinds()[one].weight for one in names])[0]


def table(ends: dict[str, Counter[str]], seed: int) -> str:
    """How the tries ended, by kind, in Markdown."""
    columns = ("done", "refused", *BAD)
    lines = [f"| file | tries | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    total = sum(ends.values(), Counter[str]())
    for name, counts in (*sorted(ends.items()), (f"all, seed {seed}", total)):
        numbers = " | ".join(str(counts[column]) for column in columns)
        lines.append(f"| {name} | {counts.total()} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
