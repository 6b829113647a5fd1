"""The agent as a zipapp: this floor's sources in a zip file that Python runs without an install.

It is sent with the first call and stored on the board by its hash. Equal sources give equal bytes. It has
only what the agent imports, without docstrings, and without the boards' TOML files, since a target is sent as
JSON.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Set

from .. import __version__

_SOURCES = Path(__file__).parents[1]
_EPOCH = (1980, 1, 1, 0, 0, 0)

# Says why an old Python cannot run it, so its syntax is that of Python 3.5.
_MAIN = """\
import json, sys
if sys.version_info < (3, 8):
    found = "%d.%d" % sys.version_info[:2]
    error = {"kind": "TargetError", "what": "The agent needs Python 3.8, but this one is %s." % found,
             "cure": "Install a newer one beside it: sudo apt install python3.8"}
    print(json.dumps({"agent": {"version": "VERSION", "protocol": 0}, "error": error}))
    sys.exit(2)
from deadweight.targets.agent import main
sys.exit(main())
"""


@lru_cache(maxsize=1)
def agent_bytes() -> bytes:
    """The zip file, some 160 KB. Its sources are Python 3.8; `python3 FILE doctor` runs it."""
    import ast
    import io
    import zipfile  # imported here, so that the agent starts fast

    found: Set[str] = set()
    # The runtimes are found by their files' names, not imported by them.
    runtimes = _SOURCES.glob("runtimes/*_runtime.py")
    waiting = ["__init__.py", "agent.py", *(f"runtimes/{path.name}" for path in runtimes)]
    while waiting:
        path = waiting.pop()
        if path in found or not (_SOURCES / path).is_file():
            continue
        found.add(path)
        folders = path.split("/")[:-1]
        waiting += ["/".join((*folders, "__init__.py"))]
        for node in ast.walk(ast.parse((_SOURCES / path).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(folders) + 1:
                home = folders[: len(folders) + 1 - node.level] + (node.module or "").split(".")
                home = [part for part in home if part]
                waiting += ["/".join(home) + ".py"]
                waiting += ["/".join((*home, f"{each.name}.py")) for each in node.names]
    files = {
        "__main__.py": _MAIN.replace("VERSION", __version__),
        "deadweight/__init__.py": '"""The part of deadweight for boards."""\n',
    }
    for path in sorted(found):
        files[f"deadweight/targets/{path}"] = _without_docstrings((_SOURCES / path).read_text("utf-8"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _without_docstrings(source: str) -> str:
    """A source without its docstrings, which nobody reads on a board. Each line keeps its number."""
    import ast

    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and node.end_lineno is not None
        ):
            lines[node.lineno - 1] = lines[node.lineno - 1][: node.col_offset] + '""'
            lines[node.lineno : node.end_lineno] = [""] * (node.end_lineno - node.lineno)
    return "\n".join(lines)


def agent_sha256() -> str:
    """The hash under which a board stores the agent."""
    return hashlib.sha256(agent_bytes()).hexdigest()
