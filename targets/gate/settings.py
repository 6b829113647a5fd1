"""The settings of the gate, from deadweight.toml: `[budgets]` as in a recipe, `[gate]` for the rest.

[gate]
model = "model.onnx"
baseline = "baseline.json"

[budgets]
slowdown = 0.02
p99_s = 0.004
"""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional, Tuple

import numpy as np

from ..board_file import read_toml
from ..budgets import Budgets
from ..errors import ArtifactError, RecipeError
from ..machine.child import child, patience_s
from ..plain import from_plain
from ..progress import Counted
from ..runtimes.infer import load_arrays, run_all
from ..runtimes.open import open_session, runtime_of
from ..runtimes.runtime import Runtime
from ..target import load_target

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

CONFIG = Path("deadweight.toml")
"""The settings that are read where no others are named."""
_GATED = ("slowdown", "latency_s", "p99_s", "memory_bytes", "file_bytes", "score_drop", "energy_j")


@dataclass(frozen=True)
class GateSettings:
    """`[gate]` of deadweight.toml; paths are relative to that file.

    Attributes:
        model, baseline: as `--model` and `--baseline`.
        inputs: as `--inputs`: an .npz file for timing.
        data: an .npz with the model's inputs by name and `label`, for the budget on the score (accuracy).
        history: the JSONL file to which every check is appended.
        cap_s: time limit in seconds.
        target: as `--target`; the path of a .toml is relative to this file too.
    """

    model: Optional[str] = None
    baseline: Optional[str] = None
    inputs: Optional[str] = None
    data: Optional[str] = None
    history: Optional[str] = None
    cap_s: float = 60.0
    target: Optional[str] = None


@dataclass(frozen=True)
class _File:
    gate: GateSettings = field(default_factory=GateSettings)
    budgets: Budgets = field(default_factory=Budgets)


def read_settings(path: Path) -> Tuple[GateSettings, Budgets]:
    """Reads deadweight.toml; the defaults if there is none."""
    path = Path(path)
    if not path.is_file():
        return GateSettings(), Budgets()
    content = read_toml(path, RecipeError)
    read = from_plain(_File, content, str(path), error=RecipeError, cure="Correct it there.")
    budgets = {name: value for name, value in asdict(read.budgets).items() if value is not None}
    useless = [name for name in budgets if name not in _GATED]
    if useless:
        raise RecipeError(
            f"{path} sets budgets that only a run can check: {', '.join(useless)}.",
            f"The gate checks {', '.join(_GATED)}.",
        )
    for name, value in budgets.items():
        if not 0 <= value < math.inf:
            raise RecipeError(f"{path}: budgets.{name} is {value!r}.", "Give a number, 0 or more.")
    return read.gate, read.budgets


@dataclass(frozen=True)
class GateFiles:
    """The settings with every path: from the caller, else from `[gate]`, relative to that file.

    `board` is the runtime of the caller's or the file's target.
    """

    settings: GateSettings
    budgets: Budgets
    model: Optional[Path]
    baseline: Optional[Path]
    inputs: Optional[Path]
    data: Optional[Path]
    history: Optional[Path]
    board: Optional[Runtime]

    def required(self, name: str) -> Path:
        """The path of `model` or `baseline`."""
        path: Optional[Path] = getattr(self, name)
        if path is None:
            more = " --record makes it." if name == "baseline" else ""
            raise RecipeError(
                f"The gate has no {name}.",
                f"Give --{name} FILE, or write it under [gate] in deadweight.toml.{more}",
            )
        return path


def gate_files(
    config: Path,
    *,
    model: Optional[Path] = None,
    baseline: Optional[Path] = None,
    inputs: Optional[Path] = None,
    history: Optional[Path] = None,
    limit: Optional[float] = None,
    target: Optional[str] = None,
) -> GateFiles:
    """Reads the settings, overridden by the caller's paths, target and limit (the budget `slowdown`)."""
    if config != CONFIG and not config.is_file():
        raise RecipeError(f"There are no settings at {config}.", "Check the path given to --config.")
    settings, budgets = read_settings(config)
    if limit is not None:
        if not 0 <= limit < math.inf:
            raise RecipeError(f"The --limit is {limit:g}.", "Give a share of 0 or more: 0.02 is 2 %.")
        budgets = replace(budgets, slowdown=limit)

    def place(given: Optional[Path], name: str) -> Optional[Path]:
        text = getattr(settings, name)
        return given if given is not None or text is None else config.parent / text

    board = target or settings.target
    if board is not None and not target and board.endswith(".toml"):
        board = str(config.parent / board)
    return GateFiles(
        settings,
        budgets,
        model=place(model, "model"),
        baseline=place(baseline, "baseline"),
        inputs=place(inputs, "inputs"),
        data=place(None, "data"),
        history=place(history, "history"),
        board=None if board is None else load_target(board).runtime,
    )


def accuracy_apart(model: Path, data: Path, *, board: Optional[Runtime], cap_s: float) -> float:
    """`accuracy` in a child process, with `cap_s` as the least time limit of a batch."""
    job = functools.partial(accuracy, model, data, board=board)
    cure = "It may never end. If it is only slow, give it more time: --cap-s 600."
    with child() as process:
        time_s = max(cap_s, patience_s(model))
        return process.run(job, what=model.name, within_s=time_s, cure=cure, progress=lambda *step: None)


def accuracy(
    model: Path,
    data: Path,
    *,
    board: Optional[Runtime] = None,
    predict: Optional[Callable[[Arrays], Arrays]] = None,
    progress: Optional[Counted] = None,
) -> float:
    """The share of samples whose largest output is their label.

    `predict` runs the model elsewhere, on a board: all samples at once.
    """
    try:
        arrays = load_arrays(Path(data))
    except ArtifactError as error:
        raise RecipeError(f"The data {data} cannot be read: {error.what}", error.cure) from error
    names = [name for name in arrays if name != "label"]
    with contextlib.ExitStack() as stack:
        if predict is None:
            opened = contextlib.closing(open_session(model, runtime=runtime_of(model, board)))
            session = stack.enter_context(opened)
            names = [spec.name for spec in session.inputs]
            predict = functools.partial(run_all, session, progress=progress)
        missing = [name for name in (*names, "label") if name not in arrays]
        if missing:
            raise RecipeError(
                f"{data} has no {', '.join(missing)}; it has {', '.join(sorted(arrays))}.",
                "Save the inputs by name and `label`: numpy.savez(path, x=..., label=...).",
            )
        label = arrays["label"].ravel()
        sizes = {name: arrays[name].shape[0] if arrays[name].ndim else 0 for name in names}
        if label.dtype.kind not in "biuf" or any(size != label.size for size in sizes.values()):
            counts = ", ".join(f"{size} of {name}" for name, size in sizes.items())
            raise RecipeError(
                f"{data} has {label.size} values of label ({label.dtype}) for {counts}.",
                "Give one class number for each sample: labels.argmax(1) where they are one-hot.",
            )
        if not label.size:
            raise RecipeError(f"{data} has no samples.", "Save some hundreds, with their labels.")
        outputs = predict({name: arrays[name] for name in names})
    output = next(iter(outputs.values()))
    if output.ndim < 2 or len(output) != label.size:
        raise RecipeError(
            f"The first output of {model} has the shape {list(output.shape)} for {label.size} samples: no "
            "class can be read from it.",
            "The gate scores classifiers: one row of outputs for each sample, as the first output.",
        )
    if not np.isfinite(output).all():
        raise RecipeError(
            f"{model} has outputs on {data} that are not finite.", "Check the model and the data."
        )
    return float((output.reshape(len(output), -1).argmax(1) == label).mean())
