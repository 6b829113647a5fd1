"""What pyproject.toml cannot say: how an editable install finds the package.

setuptools looks last, behind sys.path, so a script in the folder that holds a clone named `deadweight` would
get that folder as an empty namespace package. One line in a .pth file looks as if the clone were the last
entry of sys.path, for this one name. The clone is no entry: its `export/` would hide a user's own.
"""

import base64
import hashlib
from pathlib import Path
from zipfile import ZipFile

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

_ROOT = str(Path(__file__).resolve().parent)
LOOK = f"""\
import sys; from importlib.machinery import PathFinder; sys.meta_path.insert(0, type("DeadweightFinder", (), \
{{"find_spec": staticmethod(lambda name, path=None, target=None, find=PathFinder.find_spec, sys=sys: \
find(name, [*sys.path, {_ROOT!r}]) if name == "deadweight" else None)}}))
"""


class EditableWheel(editable_wheel):
    """setuptools' own, with one file more."""

    def run(self) -> None:
        super().run()
        (wheel,) = Path(self.dist_dir).glob("*.whl")
        with ZipFile(wheel) as made:
            files = {name: made.read(name) for name in made.namelist()}
        name, content = "__editable__deadweight_finder.pth", LOOK.encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record = next(each for each in files if each.endswith(".dist-info/RECORD"))
        files[record] += f"{name},sha256={digest},{len(content)}\n".encode()
        with ZipFile(wheel, "w") as changed:
            for each, held in {name: content, **files}.items():
                changed.writestr(each, held)


if __name__ == "__main__":
    setup(cmdclass={"editable_wheel": EditableWheel})
