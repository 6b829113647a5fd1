"""`deadweight check`: a recipe or a workload, tried in seconds on the first samples of each split.

The recipe's own stages run, each training for one short epoch; only what takes long by its nature (timing, a
search) is left out. Before that the workload is compared with what `Workload` promises. Every mistake is said
with its place and its cure; what does not depend on it is checked all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...export.opened import outputs_of
from ...targets.board_file import read_toml
from ...targets.errors import DeadweightError, RecipeError, WorkloadError, users_code
from ..pruning.groups import Groups
from ..recipe import Recipe, check_order, parse_recipe, read_recipe, stage_of
from ..stage import Stage, run_stage
from ..training.loop import check_order as check_repeats
from ..training.networks import NetworkFiles
from ..training.predict import score_of, torch_predict
from ..work import Facts, Variant, Work
from ..workload import Batch, Workload, built_model, example_batch, split_batches
from ..workloads.named import load_workload, named_object
from .few import few, sample_time, with_few_to_hash, within
from .prune_command import as_built
from .run import refuse_out_of_reach

_ALONE = (
    {"stage": "statistics"},
    {"stage": "prune", "ratio": 0.5},
    {"stage": "export"},
    {"stage": "quantize"},
)
"""The stages for a workload without a recipe."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        step: what was checked.
        where: file and line of a mistake; "" where it has none.
        cure: of a mistake.
    """

    kind: Literal["ok", "note", "mistake"]
    step: str
    what: str
    where: str = ""
    cure: str = ""


@dataclass
class _Check:
    """The findings so far; `place` is where a mistake of no line of its own belongs."""

    place: str
    found: list[Finding] = field(default_factory=list)
    seen: Callable[[Finding], None] = lambda finding: None

    def add(self, finding: Finding) -> None:
        self.found.append(finding)
        self.seen(finding)

    def tried(self, step: str, function: Callable[[], Any], *, place: str = "") -> Any:
        """The result, or None after a mistake."""
        try:
            with users_code(f"{step} was checked"):
                return function()
        except DeadweightError as error:
            what, where = _without_place(error.what)
            self.add(Finding("mistake", step, what, where or place or self.place, error.cure))
            return None

    @property
    def mistakes(self) -> bool:
        return any(one.kind == "mistake" for one in self.found)


def check(
    what: str, settings: Iterable[str] = (), seen: Callable[[Finding], None] = lambda one: None
) -> list[Finding]:
    """Tries a recipe, or a workload by its name.

    Args:
        seen: called with each finding as it is made.
    """
    done = _Check(what, seen=seen)
    path = Path(what)
    if path.suffix == ".toml":
        recipe = _recipe(done, path, list(settings))
    else:
        values = {"workload": what, "stages": [*_ALONE]}
        recipe = parse_recipe(values, Path("deadweight check")).set(settings)
        done.place = _home(what, Path())
    if recipe is None:
        return done.found
    if path.suffix == ".toml":
        done.place = (
            _home(recipe.workload, path.parent) or f"{path}:{_line(path.read_text('utf-8'), 'workload')}"
        )
    workload = done.tried("workload", lambda: load_workload(recipe.workload, recipe.path.parent))
    some = None if workload is None else _as_promised(done, workload)
    if some is not None:
        _dry_run(done, recipe, some, path)
    return done.found


def _recipe(done: _Check, path: Path, settings: list[str]) -> Recipe | None:
    """The recipe; after a mistake in it one without stages, so that the workload is checked."""
    text = path.read_text("utf-8") if path.is_file() else ""
    try:
        recipe = read_recipe(path, settings)
        check_order(recipe)
        done.add(Finding("ok", "recipe", f"{len(recipe.stages)} stages for {recipe.target.title}"))
        return recipe
    except DeadweightError as error:
        first = error
    values: dict[str, Any] = {}
    with contextlib.suppress(DeadweightError):
        values = read_toml(path, RecipeError)
    others = (one for one in _of_each_stage(values.get("stages"), path) if one.what != first.what)
    for one in (first, *others):
        what, where = _without_place(one.what)
        done.add(Finding("mistake", "recipe", what, where or f"{path}:{_line_of(text, what)}", one.cure))
    with contextlib.suppress(DeadweightError):
        kept: dict[str, Any] = {n: values[n] for n in ("workload", "data", "task") if n in values}
        return parse_recipe({**kept, "stages": [{"stage": "statistics"}]}, path)
    return None


def _of_each_stage(tables: object, path: Path) -> Iterator[DeadweightError]:
    """The mistakes in the settings of each stage alone; a recipe's reader ends at the first."""
    for index, table in enumerate(tables if isinstance(tables, list) else ()):
        try:
            if isinstance(table, dict):
                stage_of(table, index, path)
        except DeadweightError as error:
            yield error


def _without_place(what: str) -> tuple[str, str]:
    """A message without "at file:line" at its end, and that place."""
    found = re.search(r" at (\S+\.(?:py|toml):\d+)\.?$", what)
    return (f"{what[: found.start()]}.", found.group(1)) if found else (what, "")


def _line_of(text: str, message: str) -> int:
    """The line that a message is about: of the key or value that it names, else of the stage or table."""
    if parsed := re.search(r"at line (\d+)", message):
        return int(parsed.group(1))
    lines = text.splitlines()
    begins = [at for at, line in enumerate(lines) if re.match(r"\s*\[", line)] + [len(lines)]
    start, place = 0, message.partition(": ")[0]
    if stage := re.search(r"stages\[(\d+)\]", message):
        headers = [at for at in begins[:-1] if re.match(r"\s*\[\[\s*stages\s*\]\]", lines[at])]
        start = [*headers, 0][min(int(stage.group(1)), len(headers))]
    elif table := re.search(r"\.toml, (\w+)$", place):
        start = next((at for at in begins[:-1] if table.group(1) in lines[at]), 0)
    end = next((at for at in begins if at > start), len(lines))
    said, first = message.removeprefix(place), start
    for at in range(start, end):
        key = re.match(r"\s*(\w+)\s*=\s*(\"[^\"]+\")?", lines[at])
        named = key and (
            re.search(rf"\b{key.group(1)}\b(?!\s+before)", said) or str(key.group(2)).strip('"') in said
        )
        if key and key.group(1) == "stage":
            first = at
        elif named:
            return at + 1
    return first + 1


def _line(text: str, key: str) -> int:
    lines = enumerate(text.splitlines(), start=1)
    return next((at for at, line in lines if re.match(rf"\s*{key}\s*=", line)), 1)


def _home(spec: str, folder: Path) -> str:
    """File and line of the object that a workload's name stands for; "" for a factory or a mistake."""
    with contextlib.suppress(DeadweightError):
        return _where(named_object(spec.partition("?")[0], folder))
    return ""


def _where(thing: Any) -> str:
    """File and line of a class or function of the user's; "" for anything else."""
    thing = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    try:
        file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (TypeError, OSError):
        return ""
    ours = Path(__file__).resolve().parents[1] in Path(str(file)).resolve().parents
    return "" if ours or "site-packages" in str(file) else f"{file}:{line}"


def _as_promised(done: _Check, workload: Workload) -> Workload | None:
    """Checks a workload against `Workload`; few of its samples, or None after a mistake."""

    def at(member: str) -> str:
        return _where(getattr(type(workload), member, None))

    model = done.tried("build_model()", lambda: _module(workload), place=at("build_model"))
    example = done.tried("example_inputs()", lambda: example_batch(workload), place=at("example_inputs"))
    if model is None or example is None:
        return None
    outputs = done.tried("forward", lambda: _forward(model, example), place=_where(type(model)))
    known = {}
    for split in ("train", "validation", "calibration", "test"):
        known[split] = done.tried(
            f'batches("{split}")', partial(_first, workload, split, example), place=at("batches")
        )
    if known["validation"]:
        done.tried('batches("validation")', lambda: check_repeats(workload), place=at("batches"))
    if known["train"]:
        done.tried("splits", lambda: _apart(workload, known["train"]), place=at("batches"))
    done.tried("fingerprint()", lambda: _repeats(workload), place=at("fingerprint"))
    if outputs is None or not all(known.values()):
        return None
    done.add(Finding("ok", "workload", _described(model, example, outputs)))
    some = few(workload, sample_time(model, example))
    batch = next(iter(some.batches("train")))
    learnt = done.tried("loss()", lambda: _learnt(workload, model, example, batch), place=at("loss"))
    if learnt:
        done.tried("optimizer()", lambda: _optimized(workload, model), place=at("optimizer"))
    predict = torch_predict(model, example)
    score = done.tried("score()", lambda: score_of(some, predict, "validation"), place=at("score"))
    if score is not None:
        name = workload.score_name
        count = sum(len(next(iter(batch.values()))) for batch in some.batches("validation"))
        done.add(Finding("ok", "score", f"{name} {score:.4f} of the network as it is, on {count} samples"))
    return None if done.mistakes else some


def _module(workload: Workload) -> nn.Module:
    model: Any = built_model(workload, seed=0)
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"build_model() returned {type(model).__name__}.", "Return a torch.nn.Module.")
    if not any(one.requires_grad for one in model.parameters()):
        raise WorkloadError("The network has no parameter to train.", "Set requires_grad of its parameters.")
    return model


def _forward(model: nn.Module, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode(), users_code("the network ran on example_inputs()"):
        outputs = outputs_of(model.eval()(*example.values()))
    size = len(next(iter(example.values())))
    for name, value in outputs.items():
        if not bool(torch.isfinite(value.float()).all()):
            raise WorkloadError(
                f'The output "{name}" has NaN or infinity.', "Look at the inputs and weights."
            )
        if not value.dim() or len(value) != size:
            raise WorkloadError(
                f'The output "{name}" has the shape {tuple(value.shape)} for a batch of {size}.',
                "Let forward return a row for each sample.",
            )
    return outputs


def _described(model: nn.Module, example: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> str:
    count = sum(one.numel() for one in model.parameters())
    shapes = [
        ", ".join(f"{name} {[*one.shape[1:]]}" for name, one in each.items()) for each in (example, outputs)
    ]
    return f"{type(model).__name__}, {count:,} parameters: {' -> '.join(shapes)}"


def _first(workload: Workload, split: str, example: Mapping[str, Tensor]) -> Batch:
    """The first batch of a split, its inputs like the example's."""
    first = next(split_batches(workload, split))
    for name, value in example.items():
        if not isinstance(first[name], Tensor):
            kind = type(first[name]).__name__
            raise WorkloadError(f'"{name}" in a batch of "{split}" is a {kind}.', "Give a torch tensor.")
        if first[name].dtype != value.dtype or first[name].dim() != value.dim():
            raise WorkloadError(
                f'"{name}" in a batch of "{split}" is {first[name].dtype} {tuple(first[name].shape)}; '
                f"example_inputs() has {value.dtype} {tuple(value.shape)}.",
                "Prepare all splits, and the example, in the same way.",
            )
    return first


def _rows(batch: Batch, names: Iterable[str]) -> list[bytes]:
    columns = [batch[name].flatten(1).numpy() for name in names]
    return [b"".join(column[at].tobytes() for column in columns) for at in range(len(columns[0]))]


def _apart(workload: Workload, first: Batch) -> None:
    """The first samples of validation and test are not among the first ones of "train"."""
    names = [*example_batch(workload)]
    others = {
        split: {row for one in within(workload.batches(split), count, 1.0) for row in _rows(one, names)}
        for split, count in (("validation", 8), ("test", 8), ("train", 32))
    }
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        shared, count = len(others[one] & others[other]), len(others[one])
        if shared > 0.02 * count:
            raise WorkloadError(
                f'{shared} of {count} samples of "{one}" are in "{other}" too.',
                "Divide the data so that no sample is in two splits: the scores would be too good.",
            )


def _repeats(workload: Workload) -> str:
    part = with_few_to_hash(workload)
    first, again = (str(part.fingerprint()) for _ in range(2))
    if first != again:
        own = "Hash the data alone, e.g. with hashlib; Python's own hash() changes with the process."
        given = (
            'The loaders draw differently each time: give deadweight.workload(fingerprint="1"), a text that '
        )
        raise WorkloadError(
            "fingerprint() returned two values for the same data: nothing could come from the cache.",
            own if part is workload else f"{given}you change with the data.",
        )
    return first


def _learnt(workload: Workload, model: nn.Module, example: Mapping[str, Tensor], batch: Batch) -> bool:
    """Whether a loss leads back to the parameters."""
    model.train()
    with users_code("the network ran on a training batch"):
        outputs = model(*(batch[name] for name in example))
    with users_code("loss() was called"):
        loss: Any = workload.loss(outputs, batch)
    if not isinstance(loss, Tensor) or loss.dim():
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise WorkloadError(f"loss() returned {shape}, not a scalar.", "Return its mean, e.g. loss.mean().")
    if not loss.requires_grad:
        raise WorkloadError(
            "loss() returned a value that does not depend on the network's parameters.",
            "Compute it from the outputs with torch alone, without detach(), numpy or no_grad().",
        )
    if not math.isfinite(loss.item()):
        raise WorkloadError(f"loss() returned {loss.item()}.", "Look for a division by zero or log(0).")
    loss.backward()  # type: ignore[no-untyped-call]
    return True


def _optimized(workload: Workload, model: nn.Module) -> None:
    with users_code("optimizer() was called"):
        optimizer: Any = workload.optimizer(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise WorkloadError(f"optimizer() returned {kind}.", "Return a torch.optim optimizer.")
    known = {id(one) for group in optimizer.param_groups for one in group["params"]}
    left = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in known]
    if left:
        raise WorkloadError(
            f"The optimizer lacks {len(left)} of the network's parameters, e.g. {left[0]}.",
            "Make it of the model that it is given: optimizer(model) is called for each network.",
        )


def _dry_run(done: _Check, recipe: Recipe, workload: Workload, path: Path) -> None:
    """Runs the stages on few batches; the chain ends at the first that fails."""
    text = path.read_text("utf-8") if path.suffix == ".toml" else ""
    left, traced = [], False
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            workload,
            recipe.target,
            Path(folder),
            recipe.seed,
            folder=recipe.path.parent,
            networks=NetworkFiles(),
        )
        if not any(Facts.of(one.stage).trains for one in recipe.stages) and not text:
            work = as_built(work)
        for index, named in enumerate(recipe.stages):
            where = f'{recipe.path.name}, stages[{index}] "{named.name}"'
            place = f"{path}:{_line_of(text, where)}" if text else ""
            facts = Facts.of(named.stage)
            if facts.long:
                left.append(named.name)
                continue
            started = time.monotonic()
            some = _ends(work) if facts.writes_onnx and not facts.reads_onnx else work.variants
            part = dataclasses.replace(work, directory=Path(folder) / str(index), variants=some)
            part.directory.mkdir()
            made = done.tried(
                named.name, partial(run_stage, named.name, _short(named.stage), part), place=place
            )
            if made is None:
                return
            words = "; ".join(made.log[-1].words) if len(made.log) > len(work.log) else ""
            done.add(Finding("ok", named.name, f"{words} ({time.monotonic() - started:.1f} s)".lstrip()))
            work = made
            done.tried(
                "budgets", partial(refuse_out_of_reach, recipe, index, work), place=_budget(path, text)
            )
            if work.variants and not traced:
                traced = True
                _groups(done, work)
    if left:
        done.add(Finding("note", "not tried", f"{', '.join(left)}: only their settings were checked"))


def _ends(work: Work) -> tuple[Variant, ...]:
    """The newest network, and the first too if they differ in more than widths: an export takes longest."""
    *others, last = work.variants
    plan = work.plan(last)
    return (*(() if plan and plan.form == "module" else others[:1]), last)


def _budget(path: Path, text: str) -> str:
    return f"{path}:{_line(text, 'parameters_removed')}" if text else ""


def _short(stage: Stage) -> Stage:
    """The stage with one epoch at most."""
    fields = {one.name for one in dataclasses.fields(stage)}  # type: ignore[arg-type]
    short: dict[str, Any] = {"epochs": 1} if "epochs" in fields and getattr(stage, "epochs", None) else {}
    short |= {"rewind_step": 0} if "rewind_step" in fields else {}
    return dataclasses.replace(stage, **short)  # type: ignore[type-var]


def _groups(done: _Check, work: Work) -> None:
    groups: Groups | None = done.tried("trace", lambda: work.networks.groups(work.model(), work.workload))
    if groups is None:
        return
    units = sum(group.size for group in groups)
    frozen = [f"{one.parameter}: {one.reason} {one.line}".strip() for one in groups.frozen]
    done.add(Finding("ok", "trace", f"{units} units in {len(groups)} groups can be pruned"))
    for reason in frozen[:5]:
        done.add(Finding("note", "stays whole", reason))
    if len(frozen) > 5:
        done.add(Finding("note", "stays whole", f"and {len(frozen) - 5} more"))
