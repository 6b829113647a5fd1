"""The agent as one file: this floor's sources in a zip that Python runs, so that a board needs no install.

It travels with the first call and is kept there by its hash. Two builds of the same sources are the same
bytes. Only what the agent imports is in it, and no boards' TOML files, since a target is sent as JSON.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Set

_SOURCES = Path(__file__).parent
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
    files = {
        "__main__.py": _MAIN.replace("VERSION", version()),
        "deadweight/__init__.py": f'"""Only what a board needs."""\n\n__version__ = "{version()}"\n',
    }
    for name in sorted(_needed()):
        files[f"deadweight/targets/{name}.py"] = (_SOURCES / f"{name}.py").read_text("utf-8")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def _needed() -> Set[str]:
    """The modules that the agent imports, at once or in a command, and those that these import."""
    found: Set[str] = set()
    waiting = ["__init__", "agent"]
    while waiting:
        name = waiting.pop()
        if name in found or not (_SOURCES / f"{name}.py").is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse((_SOURCES / f"{name}.py").read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                waiting += [node.module] if node.module else [each.name for each in node.names]
    return found


def version() -> str:
    """The version of deadweight, also inside the zip, where no package metadata is."""
    return str(importlib.import_module("deadweight").__version__)


def agent_sha256() -> str:
    """The name under which a board keeps it."""
    return hashlib.sha256(agent_bytes()).hexdigest()
