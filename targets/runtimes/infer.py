"""Inference over a file of named arrays, batch by batch.

For a model with a fixed batch the last batch is padded with its last sample, and the padding's outputs are
dropped.
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


def infer_file(session: Session, inputs: Path, outputs: Path, *, batch: int = _BATCH) -> None:
    """Runs the arrays of an NPZ file, whose first axis is the batch; outputs that are there are kept."""
    if not outputs.exists():
        results = run_all(session, load_arrays(inputs), batch=batch)
        # savez adds .npz to a name without it, so the file is opened here.
        with writing(outputs) as beside, beside.open("wb") as file:
            np.savez(file, **results)  # type: ignore[arg-type]  # names of outputs


def run_all(
    session: Session,
    arrays: Mapping[str, NDArray[Any]],
    *,
    batch: int = _BATCH,
    progress: Optional[Counted] = None,
) -> Dict[str, NDArray[Any]]:
    """Runs any number of samples in batches of the model's size, and returns all outputs in order."""
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ModelError(
            f"The inputs have {sorted(counts)} samples.", "Give all of them the same number, 1 or more."
        )
    fixed = {spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)}
    size = int(max(fixed)) if fixed else batch
    count = counts.pop()
    outputs: Dict[str, List[NDArray[Any]]] = {}
    for start in range(0, count, size):
        length = min(size, count - start)
        feeds = {name: array[start : start + length] for name, array in arrays.items()}
        if fixed and length < size:
            feeds = {
                name: np.concatenate([array, np.repeat(array[-1:], size - length, axis=0)])
                for name, array in feeds.items()
            }
        for name, answer in session.run(feeds).items():
            outputs.setdefault(name, []).append(np.atleast_1d(answer)[:length])
        if progress is not None:
            progress(start + length, count)
    return {name: np.concatenate(answers) for name, answers in outputs.items()}


def load_arrays(path: Path) -> Dict[str, NDArray[Any]]:
    """The arrays of an NPZ file, without pickle, which runs code; an ArtifactError if it is no such file."""
    try:
        # Opened here: numpy does not close a file that is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy does not wrap the errors of zipfile, zlib and its parser
        raise ArtifactError(
            f"{path.name} is not a file of named arrays: {str(error).rstrip('.') or type(error).__name__}.",
            "Write it with numpy.savez, plain arrays only.",
        ) from error
