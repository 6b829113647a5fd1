"""Lint's own planted faults, and their clean twins, held against NVIDIA's parser and builder.

    python benchmarks/int8/lint_rules.py --rtx DIR

For every graph that the tests plant a fault in, of rules whose finding is an error: does TensorRT-RTX (see
rtx_parser.py) refuse it too, and does it take the clean twin? It is newer than the versions that the rules
speak of, so it may take what they refuse; a clean twin that it refuses would be a hole in the rules. Each
graph goes through a process of its own: a graph made to break a parser may.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = ("test_explicit", "test_fusion", "test_operators", "test_restrictions")


def one(module: str, place: int, faulty: bool, rtx: Path) -> str:
    """What NVIDIA's tools say of one graph: why not, or its layers and what their products read."""
    sys.path[:0] = [str(ROOT / "tests" / "export" / "lint"), str(ROOT / "tests"), str(ROOT)]
    import importlib

    import onnx

    from benchmarks.int8.rtx_parser import opinion

    case = importlib.import_module(module).CASES[place]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(case.build(faulty), path)
        said = opinion(path, rtx)
        products = ", ".join(sorted(said.products.values()))
        layers = sum(said.kinds.values())
        return said.refused or f"taken: {layers} layers" + (f", products in {products}" if products else "")


def cases() -> list[tuple[str, int, int, str, str]]:
    """(module, place, rule, name, platform) of each planted error."""
    sys.path[:0] = [str(ROOT / "tests" / "export" / "lint"), str(ROOT / "tests")]
    import importlib

    return [
        (module, place, case.rule, case.words, case.on)
        for module in MODULES
        for place, case in enumerate(importlib.import_module(module).CASES)
        if case.severity == "error" or case.rule in range(301, 309)
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Planted faults through NVIDIA's parser.")
    parser.add_argument("--rtx", type=Path, required=True)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        module, place, faulty = given.one
        print("said " + json.dumps(one(module, int(place), faulty == "1", given.rtx)))
        return
    print("| rule | planted | on | with the fault | without |\n| --- | --- | --- | --- | --- |")
    for module, place, rule, name, platform in cases():
        told = []
        for faulty in ("1", "0"):
            done = subprocess.run(
                [sys.executable, __file__, "--rtx", str(given.rtx), "--one", module, str(place), faulty],
                capture_output=True,
                text=True,
            )
            lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("said ")]
            said = json.loads(lines[-1]) if lines else f"crashed ({done.returncode}) {done.stderr[-200:]}"
            told.append(" ".join(said.split())[:160].replace("|", "/"))
        print(f"| {rule} | {name} | {platform} | {told[0]} | {told[1]} |", flush=True)


if __name__ == "__main__":
    main()
