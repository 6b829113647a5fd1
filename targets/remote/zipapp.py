"""The agent as a zipapp: this floor's sources in a zip file that Python runs without an install.

It is sent with the first call and stored on the board by its hash. Equal sources give equal bytes. The
boards' TOML files are left out, since a target is sent as JSON.
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
    """The zip file, some 240 KB. Its sources are Python 3.8; `python3 FILE doctor` runs it."""
    import io
    import zipfile  # imported here, so that the agent starts fast

    files = {"__main__.py": _MAIN.replace("VERSION", __version__).encode(), "deadweight/__init__.py": b""}
    for path in sorted((*_SOURCES.rglob("*.py"), *_SOURCES.rglob("*.dat"))):
        files[f"deadweight/targets/{path.relative_to(_SOURCES).as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def agent_sha256() -> str:
    """The hash under which a board stores the agent."""
    return hashlib.sha256(agent_bytes()).hexdigest()
