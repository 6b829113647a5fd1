"""The user's inputs for a timing, in place of random ones.

Random numbers suit a convolution. An embedding needs token ids, a network whose time depends on its input
needs typical data, and a dynamic dimension besides the batch (a sequence length) needs a size.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

import numpy as np

from ..errors import ArtifactError, ModelError
from ..runtimes.infer import load_arrays
from ..runtimes.session import random_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..runtimes.session import Arrays, Session
    from .measurement import Protocol


def given_inputs(path: Optional[Path]) -> Optional[Dict[str, NDArray[Any]]]:
    """Reads an NPZ file of arrays by the names of a model's inputs; None without a file."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise ArtifactError(f"There is no inputs file at {path}.", "Check the path.")
    arrays = load_arrays(Path(path))
    if not arrays:
        raise ArtifactError(
            f"{path} contains no arrays.",
            "Save them under the names of the model's inputs: numpy.savez('inputs.npz', x=x).",
        )
    return arrays


def inputs_mark(inputs: Optional[Arrays]) -> str:
    """The protocol's field `inputs`: `random`, or `given:` and the start of their SHA-256."""
    if inputs is None:
        return "random"
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return f"given:{digest.hexdigest()[:12]}"


def with_inputs(protocol: Protocol, inputs: Optional[Arrays]) -> Protocol:
    """The protocol with these inputs, whose number of samples is the batch."""
    if inputs is None:
        return protocol
    counts = {np.shape(array)[0] for array in inputs.values() if np.ndim(array)}
    samples = counts.pop() if len(counts) == 1 else protocol.batch
    if protocol.batch not in (1, samples):
        raise ModelError(
            f"A batch of {protocol.batch} was requested, but the inputs have {samples} samples.",
            "Omit the batch: all samples of the inputs run at once.",
        )
    return replace(protocol, inputs=inputs_mark(inputs), batch=samples)


def fed(
    session: Session, inputs: Optional[Arrays], *, batch: int, seed: int = 0
) -> Mapping[str, NDArray[Any]]:
    """The inputs to time a session with: the user's, or random ones."""
    return random_inputs(session.inputs, batch=batch, seed=seed) if inputs is None else inputs


def check_batch(path: Path, arrays: Mapping[str, NDArray[Any]], batch: int) -> None:
    """Checks that random inputs have the requested batch."""
    if batch > 1 and arrays and not any(array.shape[:1] == (batch,) for array in arrays.values()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ModelError(
            f"{path.name} cannot be timed with batch {batch}: its inputs have the fixed shapes {shapes}.",
            "Export it with a dynamic batch dimension, or omit --batch.",
        )
