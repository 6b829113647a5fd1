"""Pictures of the signs: every class, or what a network of a run gets wrong.

    python examples/signs/pictures.py classes FILE.png
    python examples/signs/pictures.py mistakes RUN FILE.png [NETWORK]

"mistakes" shows images of the test split that the original reads and the network (default: the newest) does
not; each has the sign that it is and the sign that was read at its right.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faces import CLASSES, face
from png import tiled, write_png
from rendering import DIFFICULTY, signs
from signs import Signs

from deadweight.pipeline.training.predict import session_predict
from deadweight.targets.runtimes.open import open_session

MOST = 24


def classes() -> NDArray[np.uint8]:
    """Every class without disturbance, and at the setting at which networks are compared."""
    images = [image for difficulty in (0, DIFFICULTY) for image in signs(len(CLASSES), 9, difficulty)[0]]
    return tiled([_enlarged(image.transpose(1, 2, 0), 2) for image in images], columns=20)


def mistakes(run: Path, network: str) -> NDArray[np.uint8]:
    """Rows of image, true sign and sign that was read."""
    readers = [
        session_predict(open_session(run / "networks" / f"{name}.onnx")) for name in ("original", network)
    ]
    tiles: list[NDArray[np.uint8]] = []
    for batch in Signs().batches("test"):
        images, true = batch["image"].numpy(), batch["class"].numpy()
        read, wrong = (reader({"image": images})["output"].argmax(1) for reader in readers)
        for at in np.flatnonzero((read == true) & (wrong != true)):
            seen = (images[at].transpose(1, 2, 0) * 64 + 128).astype(np.uint8)
            signs_of = [face(*CLASSES[kind])[..., :3] for kind in (true[at], wrong[at])]
            tiles.append(np.concatenate([_enlarged(seen, 3), *signs_of], axis=1))
    print(f"{len(tiles)} images of the test split that original reads and {network} does not")
    return tiled(tiles[:MOST], columns=4)


def _enlarged(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["classes", file]:
            write_png(Path(file), classes())
        case ["mistakes", run, file, *network]:
            write_png(Path(file), mistakes(Path(run), *network or ["tuned"]))
        case _:
            sys.exit(__doc__)
