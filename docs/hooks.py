"""What the site has beside the pages of docs/: the reference, files that pages link to, and a report.

The commands are made from the command line's own help, the stages from the files of pipeline/stages/.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
OUT = re.compile(r"(?<=\]\()\.\./[^)#\s]+(?:#[^)\s]*)?(?=\))")
NAMED = re.compile(r"<!-- file: (\S+) -->\n```(\w+)\n")
PICTURE = re.compile(r"!\[[^\]]*\]\(images/report\.png\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".md": "markdown", ".json": "json"}
PARTS = {  # of the public names, by the beginning of their homes
    "api": "Commands as functions",
    "pipeline.pruning": "Pruning",
    "pipeline.importance": "Scores of units",
    "pipeline": "Recipes and workloads",
    "export": "ONNX and INT8",
    "targets.timing": "Measuring and judging",
    "targets": "Boards and runtimes",
    "": "More",
}
REPORT = ROOT / "runs" / "digits" / "report.html"


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, the linked files of the repository, and the report of a real run."""
    for make in (commands, stages, python):
        files.append(File.generated(config, f"reference/{make.__name__}.md", content=make()))
    for target in sorted({target for page in (ROOT / "docs").glob("*.md") for target in outside(page)}):
        files.append(copied(target, config))
    if REPORT.is_file():
        files.append(File.generated(config, "report.html", abs_src_path=str(REPORT)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to the repository's files lead to their pages; a block that is a file has its name as a title."""
    if page.file.generated_by:
        return markdown
    markdown = OUT.sub(lambda link: place_of(target_of(link.group())), markdown)
    if REPORT.is_file():
        markdown = PICTURE.sub(r"[\g<0>](report.html)", markdown)
    return NAMED.sub(r'```\2 title="\1"\n', markdown)


def outside(page: Path) -> Iterator[Path]:
    """The files and folders of the repository, out of docs/, that a page of docs/ links to."""
    yield from (target_of(link) for link in OUT.findall(page.read_text("utf-8")))


def target_of(link: str) -> Path:
    return Path(os.path.normpath(ROOT / "docs" / link.partition("#")[0]))


def place_of(target: Path) -> str:
    """Where the site has a file of the repository: a notebook as it is, all else as a page."""
    name = target.relative_to(ROOT).as_posix()
    return f"source/{name}" if target.suffix == ".ipynb" else f"source/{name}.md"


def copied(target: Path, config: Any) -> File:
    if target.suffix == ".ipynb":
        return File.generated(config, place_of(target), abs_src_path=str(target))
    text = f"# {target.relative_to(ROOT).as_posix()}\n\n{shown(target)}"
    level = InclusionLevel.NOT_IN_NAV
    return File.generated(config, place_of(target), content=text, inclusion=level)


def shown(target: Path) -> str:
    """A file as a code block; the files of a folder, one below the other."""
    if target.is_dir():
        inside = sorted(path for path in target.iterdir() if path.suffix in LANGUAGES)
        return "\n\n".join(f"## {path.name}\n\n{shown(path)}" for path in inside)
    return f"````{LANGUAGES.get(target.suffix, 'text')}\n{target.read_text('utf-8')}\n````"


def commands() -> str:
    """All commands, with what `--help` says of each."""
    import typer

    from deadweight.cli import app

    group: Any = typer.main.get_command(app)
    above = typer.Context(group, info_name="deadweight")
    parts = ["# Commands\n\nMade from `deadweight COMMAND --help`."]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=name, parent=above)
        options = [one for one in command.params if one.param_type_name == "option"]
        rows = [
            "| `{}` | {} |".format(*(text.replace("|", "\\|").replace("\n", " ") for text in record))
            for one in options
            if (record := one.get_help_record(context))
        ]
        table = ["\n| option | what |\n| --- | --- |", *rows] if rows else []
        words = f"{inspect.cleandoc(command.help or '')}\n\n```text\n{command.get_usage(context)}\n```"
        parts.append("\n".join([f"## {name}\n\n{words}", *table]))
    return "\n\n".join(parts)


def stages() -> str:
    """All stages that a recipe can name, with their settings."""
    from deadweight.pipeline.stage import stage_names

    parts = ["# Stages\n\nEvery stage that a recipe can name, and its settings."]
    for name in stage_names():
        place = f"deadweight.pipeline.stages.{name}"
        about = f"::: {place}\n    options: {{members: false, show_root_heading: false}}"
        settings = (
            f"::: {place}.{name.title().replace('_', '')}\n    options: {{members: false, heading_level: 3}}"
        )
        parts += [f"## {name}", about, settings]
    return "\n\n".join(parts)


def python() -> str:
    """All public names, with their docstrings."""
    import deadweight

    parts: dict[str, list[str]] = {title: [] for title in PARTS.values()}
    for home, names in deadweight._HOMES.items():
        title = next(title for start, title in PARTS.items() if home.startswith(start))
        parts[title] += [f"::: deadweight.{name}" for name in names]
    more = {
        "Results of commands": ["::: deadweight.api.results"],
        "Logs": ["::: deadweight.pipeline.loggers.log.Entry"],
        "For tests of your own": ["::: deadweight.testing"],
    }
    text = [f"## {title}\n\n" + "\n\n".join(each) for title, each in {**parts, **more}.items() if each]
    head = "# Python\n\nThe public names; everything else may change. Each is imported on first use."
    return "\n\n".join([head, *text])
