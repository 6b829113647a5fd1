"""The commands about machines: the boards that are known, and what works on this one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .console import out


def targets(
    name: Annotated[str | None, typer.Argument(help="A board's name, or its .toml file.")] = None,
) -> None:
    """List the boards that are known, or one board's facts with their sources."""
    from .targets.target import load_target, target_names

    if name is None:
        table = Table("target", "board", "runtime", "precisions", header_style="bold")
        for each in map(load_target, target_names()):
            table.add_row(each.name, each.title, each.runtime, ", ".join(each.precisions))
        out.print(table)
        return
    target = load_target(name)
    out.print(f"[bold]{escape(target.title)}[/]: {target.runtime}, {', '.join(target.precisions)}")
    table = Table("fact", "value", "certainty", "source", header_style="bold")
    for kind, rule in target.alignment.items():
        table.add_row(f"width of {kind}", f"multiple of {rule.step}", rule.certainty, escape(rule.source))
    for key, fact in target.facts.items():
        table.add_row(key, escape(str(fact.value)), fact.certainty, escape(fact.source))
    out.print(table)


def doctor() -> None:
    """Say what works on this machine, and the line that mends what does not.

    Exit code: 1 if something is missing.
    """
    from .targets.doctor import doctor as examine
    from .targets.doctor import next_step

    checks = examine()
    table = Table("", "what", "found", "needed for", header_style="bold")
    for check in checks:
        sign = "[green]works[/]" if check.works else "[red]missing[/]"
        table.add_row(sign, check.name, escape(check.found), escape(check.needed_for))
    out.print(table)
    for check in checks:
        if check.cure:
            out.print(f"{check.name}: {check.cure}", markup=False, soft_wrap=True)
    out.print(next_step(checks), markup=False, soft_wrap=True)
    raise typer.Exit(0 if all(check.works for check in checks) else 1)
