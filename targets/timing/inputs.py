"""Inputs that a user gives to be timed with, in place of random ones.

Random numbers are what a convolution wants. An embedding wants words, a network whose time depends on its
input wants the usual one, and a free dimension besides the batch (a sequence's length) has no size otherwise.
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
    """The arrays of an NPZ file, by the names of a model's inputs; None where no file was given.

    Raises:
        ArtifactError: it is missing, holds nothing, or is no NPZ file of plain arrays.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise ArtifactError(f"There is no file of inputs at {path}.", "Check the path.")
    arrays = load_arrays(Path(path))
    if not arrays:
        raise ArtifactError(
            f"{path} holds no arrays.",
            "Save them by the names of the inputs: numpy.savez('inputs.npz', x=x).",
        )
    return arrays


def inputs_mark(inputs: Optional[Arrays]) -> str:
    """What a protocol says of its inputs: `random`, or `given:` and the start of their hash."""
    if inputs is None:
        return "random"
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return f"given:{digest.hexdigest()[:12]}"


def with_inputs(protocol: Protocol, inputs: Optional[Arrays]) -> Protocol:
    """The protocol of a timing with these inputs: they say how many samples are taken at once.

    Raises:
        ModelError: another number was asked for.
    """
    if inputs is None:
        return protocol
    counts = {np.shape(array)[0] for array in inputs.values() if np.ndim(array)}
    samples = counts.pop() if len(counts) == 1 else protocol.batch
    if protocol.batch not in (1, samples):
        raise ModelError(
            f"A batch of {protocol.batch} was asked for, and the inputs hold {samples} samples.",
            "Leave the batch away: as many are taken at once as the inputs hold.",
        )
    return replace(protocol, inputs=inputs_mark(inputs), batch=samples)


def fed(
    session: Session, inputs: Optional[Arrays], *, batch: int, seed: int = 0
) -> Mapping[str, NDArray[Any]]:
    """What a session is timed with: the given inputs, or random ones."""
    return random_inputs(session.inputs, batch=batch, seed=seed) if inputs is None else inputs
