"""The commands about boards: targets, doctor and bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from ..targets.doctor import Check
from ..targets.errors import DeadweightError, RecipeError, RefusedError
from ..terminal.options import JetPack, TargetName
from ..terminal.printer import out
from ..terminal.tables import explain, listing


def targets(
    name: Annotated[str | None, Argument(help="A board's name, or its .toml file.")] = None,
    jetpack: JetPack = None,
    source: Annotated[
        str | None,
        Option("--from", metavar="USER@HOST", help="Write a target of what this board says; or local."),
    ] = None,
    to: Annotated[Path | None, Option("--out", help="The .toml; default: the board's name.")] = None,
) -> None:
    """List the known boards, one board's facts with their sources, or write a board's own facts."""
    from ..targets.board_file import with_jetpack
    from ..targets.target import load_target, target_names

    if source is not None and name is not None:
        raise RecipeError(
            f"--from reads a board, and {name} names a known one.", f"Omit {name}, or name the file: --out."
        )
    if source is not None:
        name = str(_written(source, to))
        out.say(f"The target: {name}")
    if name is None:
        table = listing("target", "board", "runtime", "precisions")
        for each in map(load_target, target_names()):
            table.add_row(each.name, each.title, str(each.runtime), ", ".join(each.precisions))
        out.print(table)
        return
    target = load_target(with_jetpack(name, jetpack) or name)
    out.say((target.title, "bold"), f": {target.runtime}, {', '.join(target.precisions)}")
    table = listing("fact", "value", "certainty", "source")
    for kind, rule in target.alignment.items():
        table.add_row(f"width of {kind}", f"multiple of {rule.step}", rule.certainty, rule.source)
    for key, fact in target.facts.items():
        table.add_row(key, str(fact.value), fact.certainty, fact.source)
    out.print(table)


def _written(source: str, to: Path | None) -> Path:
    """The file with the facts that a board reports."""
    from ..targets.artifact import write_text
    from ..targets.board_file import board_file, described
    from ..targets.remote.on_board import facts_of
    from ..targets.remote.ssh import connected

    with connected(source) as board:
        facts = facts_of(board)
    name = re.sub(r"[^a-z0-9]+", "-", facts["board"]["model"].lower()).strip("-")
    path = to or Path(f"{name}.toml")
    if path.exists():
        raise RecipeError(
            f"{path} exists, and may have your corrections.", "Remove it, or choose another --out."
        )
    write_text(path, board_file(described(facts, path.stem)))
    return path


def doctor(
    on: Annotated[
        list[str] | None, Option("--on", metavar="USER@HOST", help="A board, by its ssh name; repeatable.")
    ] = None,
) -> None:
    """Check what works on this machine, or on boards, and give the command that fixes the rest.

    Exit code: 1 if something is missing.
    """
    from ..targets.doctor import doctor as examine
    from ..targets.doctor import next_step
    from ..targets.remote.board import doctor_on
    from ..targets.remote.ssh import on_each

    if not on:
        checks = examine()
        raise typer.Exit(_show_checks(checks, next_step(checks)))
    code = 0
    for host, answer in on_each(on, doctor_on).items():
        out.say((host, "bold"))
        if isinstance(answer, DeadweightError):
            explain(answer.what, answer.cure)
            code = 2
        else:
            code = max(code, _show_checks(*answer))
    raise typer.Exit(code)


def bundle(
    run: Annotated[Path, Argument(help="A run's directory, or an ONNX file.")],
    to: Annotated[Path | None, Option("--out", help="Default: the run's name and .bundle.")] = None,
    network: Annotated[
        str | None, Option(help="The network of the run; default: the one that its report says to ship.")
    ] = None,
    even_so: Annotated[
        bool, Option("--even-so", help="Take a network that breaks a budget of its run, too.")
    ] = False,
    target: TargetName = None,
    engine: Annotated[Path | None, Option(help="An engine that was built on such a board.")] = None,
    also: Annotated[
        list[Path] | None, Option("--add", help="Licence, recipe, measurements; repeatable.")
    ] = None,
    sign: Annotated[Path | None, Option(help="An SSH key; a board refuses an unsigned bundle.")] = None,
    release: Annotated[
        int | None, Option(help="Its number, higher than any before; default: the time, e.g. 20261123021500.")
    ] = None,
    expires: Annotated[
        str | None, Option(metavar="YYYY-MM-DD", help="The last day on which a board installs it.")
    ] = None,
    tolerance: Annotated[
        float | None, Option(help="Largest error of outputs on the board, as a share of the largest value.")
    ] = None,
) -> None:
    """Make a bundle to ship: the network, its golden inputs and outputs, and every file's hash, signed.

    Exit code: 1 the network breaks a budget of its run; nothing is written then.
    """
    from ..export.release.bundle import bundle as make
    from ..targets.artifact import read_json
    from ..targets.target import load_target

    recorded = None
    if target is None and (run / "report.json").is_file():
        recorded = read_json(run / "report.json").get("conditions", {}).get("target")
    try:
        made = make(
            run,
            to or run.with_name(f"{run.stem}.bundle"),
            target=load_target(target or recorded or "x86-cpu"),
            network=network,
            even_so=even_so,
            engine=engine,
            extras=also or (),
            key=sign,
            release=release,
            expires=expires,
            tolerance=tolerance,
        )
    except RefusedError as error:
        explain(error.what, error.cure)
        raise typer.Exit(1) from error
    out.say(f"The bundle: {made}")
    if sign is None:
        out.say("It is not signed, so boards will refuse it: --sign KEY.")


def _show_checks(checks: Sequence[Check], advice: str) -> int:
    table = listing("", "what", "found", "needed for")
    for check in checks:
        sign = Text("works", style="green") if check.works else Text("missing", style="red")
        table.add_row(sign, check.name, check.found, check.needed_for)
    out.print(table)
    for check in checks:
        if check.cure:
            out.say(f"{check.name}: {check.cure}")
    out.say(advice)
    return int(not all(check.works for check in checks))
