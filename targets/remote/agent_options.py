"""What the agent is asked: its commands and their options, by argparse, which every Python has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, Tuple

from ..paths import CACHE, PLACE

PROTOCOL = 1
PROGRESS = "deadweight-progress"


def parser() -> argparse.ArgumentParser:
    """The agent's command line."""
    made = argparse.ArgumentParser(prog="deadweight agent", description="What a board is asked to do.")
    made.add_argument("--cache", type=Path, default=CACHE, help="the agent's own folder")
    made.add_argument("--root", type=Path, default=Path("/"), help="another directory as the board's root")
    commands = made.add_subparsers(dest="command", required=True)

    def command(name: str, words: str) -> Callable[..., argparse.Action]:
        return commands.add_parser(name, help=words).add_argument

    command("doctor", "what works here, and what mends the rest")
    add = command("verify", "whether a bundle may be loaded here")
    add("bundle", type=Path, help="a bundle's directory, or an update file")
    add("--golden", action="store_true", help="run it on its golden inputs too")
    add("--threads", type=int, default=1)
    add = command("install", "verify a bundle and put it in place")
    add("bundle", type=Path, nargs="?", help="a bundle's directory, or an update file")
    add("--files", help="JSON: the bundle's files, as name and path")
    add("--untried", action="store_true", help="do not run it on its golden inputs first")
    add("--place", type=Path, default=PLACE)
    add = command("rollback", "back to the version before")
    add("name")
    add("--if-wrong", action="store_true", help="only if the one in use does not give its golden outputs")
    add("--place", type=Path, default=PLACE)
    add = command("profile", "time models by turns")
    add("models", type=_named, nargs="+", metavar="[NAME=]MODEL")
    add("--protocol", default="{}", help="JSON")
    add("--inputs", type=Path, help="an NPZ file in place of random inputs")
    add("--memory", action="store_true")
    add = command("layers", "time the layers of models by turns")
    add("models", type=_named, nargs="+", metavar="[NAME=]MODEL")
    add("--protocol", default="{}", help="JSON")
    add("--inputs", type=Path, help="an NPZ file in place of random inputs")
    add = command("compare", "time two models by turns and judge them")
    add("baseline")
    add("candidate")
    add("--protocol", default="{}", help="JSON")
    add("--inputs", type=Path, help="an NPZ file in place of random inputs")
    add("--margin", type=float, default=0.02)
    add("--until-decided", action="store_true", help="draw events until the answer can be told")
    add = command("infer", "run a folder of inputs through a model")
    add("model")
    add("inputs", type=Path)
    add("outputs", type=Path)
    add("--batch", type=int, default=64)
    add("--threads", type=int, default=1)
    add = command("unpack", "the ONNX file of a .dwz file")
    add("packed", type=Path)
    add("model", type=Path)
    add = command("build", "build an engine from an ONNX file")
    add("model", type=Path)
    add("plan", type=Path)
    add("--settings", default="{}", help="JSON")
    add("--target", help="JSON")
    add("--need", help="JSON: the model's memory, worked out from its file")
    command("held", "what is here of the files listed on stdin")
    add = command("receive", "take files from stdin")
    add("--sizes", required=True, help="JSON: bytes by hash")
    add = command("send", "give a file to stdout")
    add("path", type=Path)
    add("--offset", type=int, default=0)
    return made


def _named(text: str) -> Tuple[str, str]:
    name, _, path = text.rpartition("=")
    return name or Path(path).name, path
