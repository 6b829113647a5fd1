"""What `deadweight init` writes: a workload and a recipe, with comments, for a network and its data."""

from __future__ import annotations

from pathlib import Path

from ...targets.artifact import write_text
from ...targets.errors import RecipeError, meant
from . import tasks
from .data import side_of_images
from .named import network_of
from .tasks import Task

WORKLOAD, RECIPE = "workload.py", "recipe.toml"
_DROPS = {"regression": 0.05, "language": 0.05}  # in the score's unit; of a share 0.02

_WORKLOAD = '''"""What deadweight needs to know of this network: how it is built, its data, loss and score."""

from pathlib import Path

import deadweight


def workload():
    return deadweight.workload(
        {model!r},  # builds the network; weights are trained or loaded by the recipe
        {data},  # {shapes}
        folder=Path(__file__).parent,  # both are relative to it
        task={task!r},  # its score is {score}
        # loss=lambda outputs, batch: ...,  # instead of the task's, a scalar
        # score=my_score, score_name="F1",  # instead: my_score(predict, batches) -> float
        # optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        learning_rate=1e-3,  # of AdamW{size}
    )
'''

_RECIPE = """\
# Try it in seconds: deadweight check recipe.toml    Run it: deadweight run recipe.toml
workload = "workload.py:workload"
target = "{target}"  # the board; deadweight targets lists them

[budgets]  # limits on the result; each is checked and reported
score_drop = {drop}  # how much worse {score} may become, in its own unit
parameters_removed = 0.4  # the share that must go, at least; not with the stage budget, which keeps a time
speedup = 1.0  # the whole interval of the measured speed-up must be above

[[stages]]
stage = "train"
epochs = {epochs}  # 0: the network comes trained. A checkpoint: stage = "load", path = "trained.safetensors"

[[stages]]
stage = "statistics"  # activations of every neuron, on the calibration data

[[stages]]
stage = "prune"
ratio = 0.5  # of the neurons of each layer; or parameters = 0.6, or the stage budget with speedup = 2.0
criterion = "taylor"  # which go first; docs/recovery.md compares them
{align}
[[stages]]
stage = "finetune"
epochs = {tuned}

[[stages]]
stage = "controls"  # random neurons, and training from scratch: leave it out to save time

[[stages]]
stage = "export"

[[stages]]
stage = "quantize"  # INT8
score_drop = {drop}  # layers return to float while it loses more

[[stages]]
stage = "profile"  # times all networks together
"""


def write_starter(
    folder: Path,
    *,
    model: str,
    data: str,
    task: str,
    target: str = "x86-cpu",
    size: int = 0,
    epochs: int = 10,
) -> tuple[Path, Path]:
    """Writes workload.py and recipe.toml into a folder; model and data are relative to it.

    Args:
        data, task: "" for the network's own.
        size: the side of images; 0 for that of the images themselves, at most the network's own.

    Raises:
        RecipeError: one of the files exists already, there is no such task, or task or data are missing.
        WorkloadError: the network cannot be made.
    """
    known = tasks.task_names()
    network = network_of(model, folder) if task in ("", *known) else None
    task = task or (network.task if network else "")
    if network is None or task not in known:
        cure = f"The tasks are {', '.join(known)}."
        raise RecipeError(f'There is no task "{task}".', meant(task, known, cure))
    if not data and network.loaders is None:
        raise RecipeError("No data are named.", "Give file.py:function, a folder of images, or an .npz file.")
    paths = folder / WORKLOAD, folder / RECIPE
    for path in paths:
        if path.exists():
            raise RecipeError(f"{path} exists, and init never overwrites.", "Choose a folder with --out.")
    chosen: Task = getattr(tasks, task)
    own = network.picture.size
    size = size or (side_of_images(folder / data, own) if data and ":" not in data else 0)
    side = f"\n        size={size},  # pixels of a side of images; time follows its square" if size else ""
    written = _WORKLOAD.format(
        model=model,
        data=repr(data or None),
        task=task,
        shapes=chosen.shapes,
        score=chosen.score_name,
        size=side,
    )
    align = "# align = false  # small layers too; by itself widths stay multiples of what the kernels like\n"
    recipe = _RECIPE.format(
        drop=_DROPS.get(task, 0.02),
        score=chosen.score_name,
        target=target,
        epochs=epochs,
        tuned=max(epochs // 2, 3),
        align=align,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, (written, recipe), strict=True):
        write_text(path, text)
    return paths
