"""The agent's command line: commands and options, by argparse, which every Python has."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, Tuple

from ..paths import CACHE, PLACE

PROTOCOL = 1
PROGRESS = "deadweight-progress"
SAME = "Use the same version of deadweight on both sides."


def parser() -> argparse.ArgumentParser:
    """The agent's command line."""
    root = argparse.ArgumentParser(prog="deadweight agent", description="Commands that a board runs.")
    root.add_argument("--cache", type=Path, default=CACHE, help="the agent's folder")
    root.add_argument("--root", type=Path, default=Path("/"), help="another directory as the board's root")
    root.add_argument(
        "--plugin", action="append", default=[], help="a plugin library of engines, on this board"
    )
    commands = root.add_subparsers(dest="command", required=True)

    def command(name: str, words: str) -> Callable[..., argparse.Action]:
        return commands.add_parser(name, help=words).add_argument

    def timing(name: str, words: str) -> Callable[..., argparse.Action]:
        add = command(name, words)
        add("--protocol", default="{}", help="JSON")
        add("--inputs", type=Path, help="an NPZ file to use in place of random inputs")
        return add

    command("doctor", "what works here, and how to fix the rest")
    command("facts", "what this machine is, and which runtimes work here")
    add = command("verify", "whether a bundle may be loaded here")
    add("bundle", type=Path, help="a bundle's directory, or an update file")
    add("--golden", action="store_true", help="run it on its golden inputs too")
    add("--threads", type=int, default=1)
    add = command("install", "verify a bundle and install it")
    add("bundle", type=Path, help="a bundle's directory, or an update file")
    add("--untried", action="store_true", help="do not run it on its golden inputs before")
    add("--place", type=Path, default=PLACE)
    add = command("rollback", "go back to the previous version")
    add("name")
    add("--if-wrong", action="store_true", help="only if the version in use fails its golden test")
    add("--place", type=Path, default=PLACE)
    add = timing("profile", "time models interleaved")
    add("models", type=_named, nargs="+", metavar="[NAME=]MODEL")
    add("--memory", action="store_true")
    add = timing("layers", "time the layers of models interleaved")
    add("models", type=_named, nargs="+", metavar="[NAME=]MODEL")
    add = timing("compare", "time two models interleaved and judge them")
    add("baseline")
    add("candidate")
    add("--margin", type=float, default=0.02)
    add("--until-decided", action="store_true", help="add events until the outcome is clear")
    add = command("soak", "run models for minutes to hours, and record what happens")
    add("--plan", required=True, help="JSON")
    add = command("infer", "run the arrays of an NPZ file through a model")
    add("model")
    add("inputs", type=Path)
    add("outputs", type=Path)
    add("--batch", type=int, default=64)
    add("--runtime", default="", help="by default that of the file's name")
    add("--threads", type=int, default=1)
    add = command("unpack", "the ONNX file of a .dwz file")
    add("packed", type=Path)
    add("model", type=Path)
    add = command("build", "build an engine from an ONNX file")
    add("model", type=Path)
    add("plan", type=Path, nargs="?", help="where to write it; by default it is kept, and built only once")
    add("--settings", default="{}", help="JSON")
    add("--target", help="JSON")
    add("--need", help="JSON: the model's memory, computed from its file")
    command("held", "which of the files listed on stdin are stored here")
    add = command("receive", "receive files from stdin")
    add("--sizes", required=True, help="JSON: bytes by hash")
    add = command("send", "send a file to stdout")
    add("path", type=Path)
    add("--offset", type=int, default=0)
    return root


def _named(text: str) -> Tuple[str, str]:
    name, _, path = text.rpartition("=")
    return name or Path(path).name, path
