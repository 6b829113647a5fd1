"""One row of the zoo for the peer in structured pruning, Torch-Pruning 1.6.1, on the same networks.

    python benchmarks/zoo/row_torch_pruning.py NAME       prints the row as JSON

It is used as its README and examples use it: half of each group by group L2 magnitude, output layers ignored,
attention declared, and what the examples set by hand after pruning is set. Whether the result is right is
judged from values alone (value_judge.py). Costs are CPU time on one thread, over one sample's forward pass.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp  # pyright: ignore[reportMissingImports]
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.zoo.further_networks import EVERY
from benchmarks.zoo.measure import batch_error, floats, forward_pass_s, lively, size_of
from benchmarks.zoo.networks import Network
from benchmarks.zoo.row_ours import RATIO, Row, trains
from benchmarks.zoo.value_judge import UnjudgedError, WrongValuesError, judge, make_distinct

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
# What attention classes of timm and transformers call the number of heads, their projections (and how many of
# query, key and value are rows of the first), the width of one head, and of all heads together.
COUNTS = ("num_heads", "num_attention_heads", "n_heads")
PROJECTIONS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("qkv",), 3),
    (("qkv_proj",), 3),
    (("query_key_value",), 3),
    (("query", "key", "value"), 1),
    (("q_proj", "k_proj", "v_proj"), 1),
    (("q_lin", "k_lin", "v_lin"), 1),
    (("q", "k", "v"), 1),
    (("q", "kv"), 1),
    (("qk", "v"), 2),
)
ONE_HEAD = ("head_dim", "attention_head_size", "key_value_proj_dim")
ALL_HEADS = ("attn_dim", "all_head_dim", "all_head_size", "inner_dim")


def row(network: Network) -> Row:
    """All columns of a network; "refused" where pruning raised, "failed" where something broke after it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    original = lively(network)
    make_distinct(original)
    model = copy.deepcopy(original)
    found: Row = {"parameters": size_of(model), "forward_s": forward_pass_s(model, network)}
    heads, decoder, ignored = _heads(model), _is_decoder(model), _output_layers(model, network)
    found["ignored"] = [name for name, module in model.named_modules() if module in ignored]
    found["attention_layers"] = len(heads)
    started = time.process_time()
    try:
        _prune(model, network, ignored, heads, decoder)
    except Exception as error:
        return found | {"refused": f"{type(error).__name__}: {error}"[:600]}
    found["first_s"] = time.process_time() - started
    found["cost"] = found["first_s"] / found["forward_s"]
    found["set_by_hand"] = _fix_up(model, heads, decoder)
    found["kept"] = size_of(model) / found["parameters"]
    found |= {
        "runs": False,
        "silent": False,
        "other_batch": None,
        "correct": None,
        "error": None,
        "trains": None,
    }
    checks: dict[str, Callable[[], Any]] = {
        "runs": lambda: _runs(original, model, network, found),
        "other_batch": lambda: _other_batch(original, model, network),
        "correct": lambda: _judged(original, model, network, found),
        "trains": lambda: trains(original, model, network),
    }
    for name, check in checks.items():
        started = time.process_time()
        try:
            found[name] = check()
        except Exception as error:  # a row says what broke and goes on
            found.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"[:600]
        found.setdefault("seconds", {})[name] = round(time.process_time() - started, 1)
        if not found["runs"]:
            break
    return found


def _prune(
    model: nn.Module, network: Network, ignored: list[nn.Module], heads: dict[nn.Module, int], decoder: bool
) -> None:
    """Prunes in place; the numbers of heads are kept up to date.

    Its example for language models takes whole heads and leaves their width, for the sake of the rotary
    embedding; all others narrow the heads.
    """
    pruner = tp.pruner.MagnitudePruner(
        model,
        tuple(network.example(1).values()),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        num_heads=heads,
        out_channel_groups={
            one: one.num_heads for one in model.modules() if isinstance(one, nn.MultiheadAttention)
        },
        prune_head_dims=not decoder,
        prune_num_heads=decoder,
        head_pruning_ratio=RATIO if decoder else 0.0,
        output_transform=floats,
    )
    pruner.step()


def _output_layers(model: nn.Module, network: Network) -> list[nn.Module]:
    """The layers whose output, or a norm or sum of it, is the network's: classifiers and other heads."""
    owner: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, LAYERS):
            owner.setdefault(id(module.weight), module)
        if isinstance(module, nn.MultiheadAttention):
            owner[id(module.out_proj.weight)] = module
    with torch.enable_grad():
        outputs = floats(model(*network.example(1).values()))
    pending = [one.grad_fn for one in outputs if one.grad_fn is not None]
    seen, found = set(pending), dict[nn.Module, None]()
    while pending:
        near: list[Any] = [one for one, _ in pending.pop().next_functions if one is not None]
        # A linear layer's weight may be one transpose away.
        after = [two for one in near if len(one.next_functions) == 1 for two, _ in one.next_functions]
        leaves = [one.variable for one in (*near, *after) if hasattr(one, "variable")]
        layers = [owner[id(leaf)] for leaf in leaves if id(leaf) in owner]
        found |= dict.fromkeys(layers)
        pending += [one for one in near if not layers and one not in seen]
        seen.update(near)
    return list(found)


def _projections(module: nn.Module) -> tuple[list[Any], int]:
    """The layers that make queries, keys and values of an attention module, and PROJECTIONS' number."""
    for names, parts in PROJECTIONS:
        layers = [getattr(module, name, None) for name in names]
        if all(isinstance(one, LAYERS) for one in layers):
            return layers, parts
    return [], 0


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """How many heads each layer makes that makes queries, keys or values."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        named = [getattr(module, name, None) for name in COUNTS]
        count = next((one for one in named if isinstance(one, int)), None)
        count = count or getattr(config, "num_attention_heads", None)
        layers, _ = _projections(module)
        if count and layers:
            grouped = getattr(config, "num_key_value_heads", None) or count
            found |= dict.fromkeys(layers, grouped) | {layers[0]: count}
    return found


def _is_decoder(model: nn.Module) -> bool:
    """Whether its example for language models takes it."""
    return hasattr(model, "lm_head") and any(
        name.endswith("self_attn") and hasattr(module, "q_proj") for name, module in model.named_modules()
    )


def _fix_up(model: nn.Module, heads: dict[nn.Module, int], decoder: bool) -> list[str]:
    """Sets what its examples set by hand after pruning; returns the names of what changed by it."""
    found = set()

    def put(module: nn.Module, name: str, value: int) -> None:
        if isinstance(getattr(module, name, None), int) and getattr(module, name) != value:
            setattr(module, name, value)
            found.add(f"{type(module).__name__}.{name}")

    for module in model.modules():
        layers, parts = _projections(module)
        if layers and layers[0] in heads:
            width, count = layers[0].weight.shape[0] // parts, heads[layers[0]]
            for name in COUNTS:
                put(module, name, count)
            put(module, "num_key_value_groups", count // heads[layers[-1]])
            for name in ONE_HEAD:
                put(module, name, width // count)
            for name in ALL_HEADS:
                put(module, name, width)
        if isinstance(entry := getattr(module, "conv_proj", None), nn.Conv2d):  # torchvision's ViT
            put(module, "hidden_dim", entry.out_channels)
    return sorted(found)


def _runs(original: nn.Module, small: nn.Module, network: Network, found: Row) -> bool:
    inputs = network.example().values()
    with torch.no_grad():
        expected, got = floats(original(*inputs)), floats(small(*inputs))
    found["same_shapes"] = [one.shape for one in expected] == [one.shape for one in got]
    return True


def _other_batch(original: nn.Module, small: nn.Module, network: Network) -> float:
    three = network.example(3, seed=4)
    with torch.no_grad():
        expected, together = floats(original(*three.values())), floats(small(*three.values()))
    if [one.shape for one in expected] != [one.shape for one in together]:
        raise ValueError(f"shapes {[tuple(one.shape) for one in together]}, not those of the original")
    return batch_error(small, network)


def _judged(original: nn.Module, small: nn.Module, network: Network, found: Row) -> str:
    try:
        judged = judge(original, small, network)
        verdict, error = judged.verdict, judged.error
        found["error"] = error if math.isfinite(error) else None
    except WrongValuesError as reason:
        found.setdefault("failed", {})["correct"] = str(reason)[:600]
        verdict = "wrong"
    except UnjudgedError as reason:
        verdict = f"unjudged: {reason}"[:600]
    found["silent"] = verdict == "wrong" and found["same_shapes"]
    return verdict


def main() -> None:
    """Prints the row of the network that is named."""
    network = next(one for one in EVERY if one.name == sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        found = row(network)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
