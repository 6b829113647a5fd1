"""Saves and loads a pruned network, without pickle: a plan, the weights, and an example to check them.

    plan.json             the plan, the hashes of the other two files, and its own hash
    model.safetensors     parameters and buffers under the user's own names
    example.safetensors   inputs, and the network's outputs when it was saved

`load_pruned` starts from the user's constructor, cuts its network, loads the weights and runs the example: it
returns a network that computes the saved outputs, or raises. Equal networks give equal bytes.
"""

from __future__ import annotations

import copyreg
import hashlib
import io
import itertools
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...export.opened import opened, tensors_of, unwrapped
from ...targets.artifact import json_of, writing
from ...targets.errors import MISFITS, ArtifactError, ModelError, reported
from .compare import relative_error, run, tolerance
from .groups import Groups
from .inputs import Example, Inputs, inputs_of
from .narrow import named_tensors, without
from .plan import Plan, fingerprint, plan_of
from .surgery import replay

PLAN, WEIGHTS, EXAMPLE = "plan.json", "model.safetensors", "example.safetensors"


def save_pruned(directory: Path | str, small: nn.Module, plan: Plan, example: Example) -> None:
    """Writes a pruned network; each file is written atomically, the plan last.

    Args:
        plan: the plan by which it was pruned; one that `apply` recorded in `small` has priority.
        example: inputs of any batch size, on which a loaded network is checked.

    Raises:
        ArtifactError: the directory cannot be written.
    """
    directory, small = Path(directory), unwrapped(small)
    given = inputs_of(small, example)
    inputs = tensors_of(given)
    weights = _tensors(small.state_dict())
    outputs = [value for value in run(small, example) if isinstance(value, Tensor)]
    named = {f"input.{number}": value for number, value in enumerate(inputs)}
    named |= {f"output.{number}": value for number, value in enumerate(outputs)}
    checked = _tensors(named)
    value = _described(small, plan, given)
    value |= {"weights": hashlib.sha256(weights).hexdigest(), "example": hashlib.sha256(checked).hexdigest()}
    _write(directory / WEIGHTS, weights)
    _write(directory / EXAMPLE, checked)
    _write(directory / PLAN, _sealed(value))


def load_pruned(build_model: Callable[[], nn.Module], directory: Path | str) -> nn.Module:
    """The network that was saved in `directory`, rebuilt with the constructor of its original.

    Raises:
        ArtifactError: a file is missing, damaged or altered.
        ModelError: build_model() returns a different network from the one that was pruned, or with another
            state outside its state dict.
    """
    directory = Path(directory)
    value = _unsealed(directory / PLAN)
    plan = Plan.from_json(value)
    weights = _read(directory / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != value.get("weights"):
        raise _altered(directory / WEIGHTS, "its hash is not the one in plan.json")
    checked = _read(directory / EXAMPLE)
    example = _loaded(directory / EXAMPLE, checked)
    with torch.random.fork_rng(devices=[]):
        model = build_model()
    device = next((one.device for _, one in named_tensors(model)), torch.device("cpu"))
    example = {name: value.to(device) for name, value in example.items()}
    what, cure = (
        f"{directory} has files that do not fit each other",
        "Give the directory that save_pruned wrote.",
    )
    with reported(ArtifactError, what, cure, *MISFITS):
        count = sum(name.startswith("input.") for name in example)
        tensors = [example[f"input.{number}"] for number in range(count)]
        inputs = _restored(value["inputs"], tensors) if "inputs" in value else Inputs(tuple(tensors), {})
        outputs = [example[f"output.{number}"] for number in range(len(example) - count)]
    if any(map(nn.parameter.is_lazy, model.parameters())):
        with torch.no_grad():
            model(*inputs.args, **inputs.named)  # lazy layers get their shapes
    original = (*plan.earlier, plan)[0].original
    if fingerprint(model) != original:
        model = unwrapped(model)
    if fingerprint(model) != original:
        raise ModelError(
            "build_model() does not return the network that was pruned: names, shapes or types differ.",
            "Give the constructor and settings of the network that the plan was made for.",
        )
    with reported(ArtifactError, what, cure, *MISFITS, RuntimeError):
        small = replay(model, plan, inputs)
    try:
        values = OrderedDict(_loaded(directory / WEIGHTS, weights))
        # Metadata of modules (a version) is not in the file; the current one is kept.
        vars(values)["_metadata"] = vars(small.state_dict()).get("_metadata")
        small.load_state_dict(values)
    except RuntimeError as error:
        why = f"the plan does not fit it: {str(error).splitlines()[-1].strip()}"
        raise _altered(directory / WEIGHTS, why) from error
    found = [one for one in run(small, inputs) if isinstance(one, Tensor)]
    # Ten times what one comparison allows: other layouts in memory round otherwise in each of many layers.
    if (wrong := relative_error(outputs, found)) > 10 * tolerance([*outputs, *found]):
        why = f"the network's outputs differ from the saved ones by {wrong:.1e}"
        if hashlib.sha256(checked).hexdigest() == value.get("example"):
            raise ModelError(
                f"{why[0].upper()}{why[1:]}, and no file was altered: some state is not in its state dict.",
                "Set attributes and non-persistent buffers in build_model() to their values at saving.",
            )
        raise _altered(directory / EXAMPLE, why)
    return small


def reloaded(original: nn.Module, small: nn.Module, plan: Plan, groups: Groups) -> nn.Module:
    """What `load_pruned` makes of what `save_pruned` writes, but in memory; `original` is what was built.

    Raises:
        ModelError: it cannot be written, or not be loaded.
    """
    value = json.loads(json.dumps(_described(small, plan, inputs_of(small, groups.example))))
    again = replay(original, Plan.from_json(value), groups)
    try:
        again.load_state_dict(small.state_dict())
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise ModelError(f"The plan does not fit: {why}", "Give the original that was pruned.") from error
    return again


class _Pickler(pickle.Pickler):
    """Leaves tensors out, as `torch.save` does with their contents, which takes most of its time."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)  # that of torch.save
        self.tensors: dict[int, Tensor] = {}
        self.dispatch_table = copyreg.dispatch_table | dict.fromkeys((Tensor, nn.Parameter), self._left_out)

    def _left_out(self, tensor: Tensor) -> tuple[Any, ...]:
        self.tensors[id(tensor)] = tensor
        return _put_in, (id(tensor),)


def _put_in(key: int) -> Tensor:
    """The name in the pickle of what puts a tensor in."""
    raise NotImplementedError


class _Unpickler(pickle.Unpickler):
    """Puts copies of the tensors in."""

    def __init__(self, file: io.BytesIO, tensors: dict[int, Tensor]) -> None:
        super().__init__(file)
        self.copies = {key: without(tensor, {}) for key, tensor in tensors.items()}

    def find_class(self, module: str, name: str) -> Any:
        own = module == __name__ and name == _put_in.__name__
        return self.copies.__getitem__ if own else super().find_class(module, name)


def repickled(model: nn.Module) -> Any:
    """What comes back from pickle."""
    file = io.BytesIO()
    written = _Pickler(file)
    written.dump(model)
    file.seek(0)
    return _Unpickler(file, written.tensors).load()


def _described(small: nn.Module, plan: Plan, given: Inputs) -> dict[str, Any]:
    """What plan.json says, but for the hashes."""
    value = (plan_of(small) or plan).to_json()
    if given.named or not all(isinstance(one, Tensor) for one in given.args):
        value["inputs"] = _structure(given)
    return value


def _structure(inputs: Inputs) -> dict[str, Any]:
    """What is not in the list of an example's tensors: names, nesting, and other values."""
    leaves, spec = pytree.tree_flatten(opened(tuple(inputs)))
    numbers = itertools.count()
    plain = [{"tensor": next(numbers)} if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    try:
        return {"structure": pytree.treespec_dumps(spec), "values": json.loads(json.dumps(plain))}
    except (NotImplementedError, TypeError) as error:
        raise ModelError(
            f"The example inputs cannot be written without code: {error}",
            "Give tensors, numbers and text, in tuples, lists, dictionaries and dataclasses of a module.",
        ) from error


def _restored(written: dict[str, Any], tensors: Sequence[Tensor]) -> Inputs:
    values = [tensors[one["tensor"]] if isinstance(one, dict) else one for one in written["values"]]
    try:
        spec = pytree.treespec_loads(written["structure"])
    except TypeError as error:
        cure = "Import the module of the dataclass before load_pruned()."
        raise ModelError(f"The example inputs cannot be made again: {error}.", cure) from error
    return Inputs(*pytree.tree_unflatten(values, spec))


def _tensors(tensors: dict[str, Tensor]) -> bytes:
    # The format refuses tied weights, which share memory: each name gets its own copy.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    return save(plain)


def _loaded(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise _altered(path, str(error)) from error


def _sealed(value: dict[str, Any]) -> bytes:
    """JSON in canonical form, with its own hash in it."""
    value = {name: item for name, item in value.items() if name != "sha256"}
    value["sha256"] = hashlib.sha256(_json(value)).hexdigest()
    return _json(value)


def _unsealed(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        value = json_of(data)
    except ValueError as error:
        raise _altered(path, str(error)) from error
    if not isinstance(value, dict) or _sealed(value) != data:
        raise _altered(path, "its content does not match its hash")
    return value


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        cure = "Give the complete directory that save_pruned wrote."
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.", cure) from error


def _write(path: Path, data: bytes) -> None:
    with writing(path) as beside:
        beside.write_bytes(data)


def _altered(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged or was altered: {why}.", "Run the stage that made it again, or copy it again."
    )
