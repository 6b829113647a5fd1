"""A folder of inputs through a model: a file of named arrays in, a file of named arrays out, one by one.

Only one file and one batch are in memory at a time. A model of fixed batch gets the last batch padded with
its own last sample, and the padding's answers are dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

import numpy as np

from ..artifact import writing
from ..errors import ArtifactError, ModelError
from ..progress import Counted
from .session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 64


def infer_folder(
    session: Session,
    inputs: Path,
    outputs: Path,
    *,
    batch: int = _BATCH,
    progress: Optional[Counted] = None,
) -> List[str]:
    """Runs every NPZ file of `inputs` and writes one of the same name to `outputs`; returns the names.

    The first axis of every array is the batch. Files that are there already are kept: a run that was cut off
    goes on.

    Raises:
        ArtifactError: no files, or one that is no NPZ file of plain arrays.
        ModelError: the arrays do not fit the model.
    """
    names = sorted(path.name for path in Path(inputs).glob("*.npz"))
    if not names:
        raise ArtifactError(
            f"{inputs} holds no inputs.", "Save named arrays there: numpy.savez('0000.npz', x=x)."
        )
    for index, name in enumerate(names):
        if not (Path(outputs) / name).exists():
            found = run_all(session, load_arrays(Path(inputs) / name), batch=batch)
            # savez adds .npz to a name without it, so the file is opened here.
            with writing(Path(outputs) / name) as beside, beside.open("wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]  # outputs' own names
        if progress is not None:
            progress(index + 1, len(names))
    return names


def run_all(
    session: Session, arrays: Mapping[str, NDArray[Any]], *, batch: int = _BATCH
) -> Dict[str, NDArray[Any]]:
    """Runs any number of samples in batches that the model takes, and returns all outputs in order.

    Raises:
        ModelError: inputs of different lengths, or none.
    """
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ModelError(
            f"The inputs have {sorted(counts)} samples.", "Give all of them the same number, 1 or more."
        )
    fixed = {spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)}
    size = int(max(fixed)) if fixed else batch
    count = counts.pop()
    found: Dict[str, List[NDArray[Any]]] = {}
    for start in range(0, count, size):
        taken = min(size, count - start)
        fed = {name: array[start : start + taken] for name, array in arrays.items()}
        if fixed and taken < size:
            fed = {
                name: np.concatenate([array, np.repeat(array[-1:], size - taken, axis=0)])
                for name, array in fed.items()
            }
        for name, answer in session.run(fed).items():
            found.setdefault(name, []).append(answer[:taken])
    return {name: np.concatenate(answers) for name, answers in found.items()}


def load_arrays(path: Path) -> Dict[str, NDArray[Any]]:
    """The arrays of an NPZ file; none that would need pickle, which runs code.

    Raises:
        ArtifactError: it is none, or is cut short.
    """
    try:
        with np.load(str(path), allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except Exception as error:  # numpy passes on what zipfile, zlib and its own parser raise
        raise ArtifactError(
            f"{path.name} is no file of named arrays: {error}.",
            "Write it with numpy.savez, plain arrays only.",
        ) from error
