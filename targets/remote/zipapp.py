"""The agent as one file: this floor's sources in a zip that Python runs, so that a board needs no install.

It travels with the first call and is kept there by its hash. Two builds of the same sources are the same
bytes. Only what the agent imports is in it, and no boards' TOML files, since a target is sent as JSON.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Set

from .. import __version__

_SOURCES = Path(__file__).parents[1]
_EPOCH = (1980, 1, 1, 0, 0, 0)

# Says in words why an old Python cannot run it, so it is written in what Python 3.5 reads.
_MAIN = """\
import json, sys
if sys.version_info < (3, 8):
    found = "%d.%d" % sys.version_info[:2]
    told = {"kind": "TargetError", "what": "The agent needs Python 3.8, and this one is %s." % found,
            "cure": "Install a newer one beside it: sudo apt install python3.8"}
    print(json.dumps({"agent": {"version": "VERSION", "protocol": 0}, "error": told}))
    sys.exit(2)
from deadweight.targets.agent import main
sys.exit(main())
"""


@lru_cache(maxsize=1)
def agent_bytes() -> bytes:
    """The zip file, some 130 KB. Its sources are Python 3.8; `python3 FILE doctor` runs it."""
    import io
    import zipfile  # the agent itself only asks for its version, and should start fast

    files = {
        "__main__.py": _MAIN.replace("VERSION", __version__),
        "deadweight/__init__.py": '"""Only what a board needs."""\n',
    }
    for path in sorted(_needed()):
        files[f"deadweight/targets/{path}"] = (_SOURCES / path).read_text("utf-8")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def _needed() -> Set[str]:
    """The files of the modules that the agent imports, at once or in a command, and that these import."""
    import ast

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
    return found


def agent_sha256() -> str:
    """The name under which a board keeps it."""
    return hashlib.sha256(agent_bytes()).hexdigest()
