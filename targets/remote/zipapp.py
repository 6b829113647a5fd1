"""The agent as a zipapp: this floor's sources in a zip file that Python runs without an install.

It is sent with the first call and stored on the board by its hash. Equal sources give equal bytes. It has no
docstrings, and not the boards' TOML files, since a target is sent as JSON.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

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
    """The zip file, some 190 KB. Its sources are Python 3.8; `python3 FILE doctor` runs it."""
    import io
    import zipfile  # imported here, so that the agent starts fast

    files = {
        "__main__.py": _MAIN.replace("VERSION", __version__),
        "deadweight/__init__.py": '"""The part of deadweight for boards."""\n',
    }
    for path in sorted(_SOURCES.rglob("*.py")):
        name = f"deadweight/targets/{path.relative_to(_SOURCES).as_posix()}"
        files[name] = _without_docstrings(path.read_text("utf-8"))
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
