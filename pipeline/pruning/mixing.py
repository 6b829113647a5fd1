"""Rules for operators that mix units: linear maps, attention, recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase, digits

import torch
from torch import Tensor

from .calls import Call, Result, Tracked, along_channels, fixed, meet, unknown


def linear(call: Call) -> Result:
    """y = x W^T + b."""
    x, weight = call["input"], call["weight"]
    call.contract(x, -1, weight, 1)
    call.produce(weight.axes[0], "linear")
    shape = call.shapes[0]
    return meet(call, [Tracked(shape, (*x.axes[:-1], weight.axes[0])), call["bias"]], shape)


def convolution(call: Call) -> Result:
    """Input channels are the weight's columns, output channels its rows; grouped, depthwise, transposed."""
    x, weight, groups = call["input"], call["weight"], call["groups"] or 1
    shape = call.shapes[0]
    kernel = len(weight.shape) - 2
    channels = len(x.shape) - kernel - 1
    call.freeze_all((*x.axes[channels + 1 :], *weight.axes[2:]), "a convolution slides over this axis")
    transposed = call["transposed"] or "transpose" in call.name
    kind = "depthwise" if 1 < groups == x.shape[channels] else "conv"
    if groups == 1:
        call.contract(x, channels, weight, 0 if transposed else 1)
        out = weight.axes[1 if transposed else 0]
    elif transposed:
        call.contract(x, channels, weight, 0)
        blocks, _ = call.split(x.axes[channels], groups)
        out = _outer(call, blocks, weight.axes[1], (groups, weight.shape[1]))
        call.produce(weight.axes[1], kind)  # each produces one channel in every group
    else:
        call.read(x)
        blocks_in, ranks_in = call.split(x.axes[channels], groups)
        blocks_out, _ = call.split(weight.axes[0], groups)
        call.agree(blocks_in, blocks_out)
        if weight.shape[1] > 1:
            call.agree(ranks_in, weight.axes[1])
            call.consume(weight.axes[1])
        out = weight.axes[0]
    call.produce(out, kind)
    y = Tracked(shape, (*x.axes[:channels], out, *(None,) * kernel))
    return meet(call, [y, along_channels(call["bias"], kernel + 2)], shape)


def _outer(call: Call, blocks: Tensor | None, ranks: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """groups x members as one vector."""
    spread = [blocks.reshape(-1, 1).expand(shape)] if blocks is not None else []
    spread += [ranks.reshape(1, -1).expand(shape)] if ranks is not None else []
    return call.notes.identities.fuse([part.reshape(-1) for part in spread]) if spread else None


def deformable(call: Call) -> Result:
    """A convolution that reads at positions from the data, one for each group of input channels."""
    positions = [vector for x in (call["offset"], call["mask"]) for vector in x.axes[1:]]
    groups, _ = call.split(call["input"].axes[1], call["offset_groups"])
    call.freeze_all((*positions, groups), "positions along this axis are chosen by the data")
    return convolution(call)


def bilinear(call: Call) -> Result:
    """y_o = a W_o b."""
    a, b, weight, shape = call["input1"], call["input2"], call["weight"], call.shapes[0]
    lead = digits[: len(shape) - 1]
    y = _products(call, [f"{lead}i", "oij", f"{lead}j"], [a, weight, b], f"{lead}o")
    return meet(call, [y, call["bias"]], shape)


def matmul(call: Call) -> Result:
    """Leading axes are broadcast; a's last axis is contracted with b's last but one."""
    a, b = call.operands()[-2:]
    product = _matmul(call, a, b, call.shapes[0], max(len(b.shape) - 2, 0))
    added = call.name in ("addmm", "baddbmm")
    return meet(call, [product, call["self"]], product.shape) if added else product


def experts(call: Call) -> Result:
    """A grouped product: each row meets the matrix of its expert."""
    a, b = call.operands()[:2]
    if (len(a.shape), len(b.shape)) != (2, 3):
        return unknown(call)
    call.freeze_all((a.axes[0], b.axes[0]), "rows and experts are matched by the data")
    return _matmul(call, a, b, call.shapes[0], 1)


def distances(call: Call) -> Result:
    """cdist, between rows of a and rows of b: a sum over units, to which a removed one adds zero."""
    return _matmul(call, call["x1"], call["x2"], call.shapes[0], len(call["x2"].shape) - 1)


def _matmul(call: Call, a: Tracked, b: Tracked, shape: tuple[int, ...], inner: int) -> Tracked:
    """a's last axis is contracted with b's axis `inner`."""
    call.read(a)
    call.read(b)
    if a.shape[-1] > 1:
        call.agree(a.axes[-1], b.axes[inner])
    rows, columns = a.axes[-2:-1], (*b.axes[:inner], *b.axes[inner + 1 :])[-1:]
    if not b.activation:
        call.consume(b.axes[inner])
        call.produce(columns[0] if columns else None, "linear")
    lead = shape[: len(shape) - len(rows) - len(columns)]
    batch = meet(call, map(_leading, (a, b)), lead)
    return Tracked(shape, (*batch.axes, *rows, *columns))


def _leading(x: Tracked) -> Tracked:
    """A value without its last two axes."""
    return Tracked(x.shape[:-2], x.axes[:-2])


def attention(call: Call) -> Result:
    """softmax(q k^T) v. Heads are the third axis from the end; several of q may share one of k and v."""
    q, k, v = call["query"], call["key"], call["value"]
    mask = [call["attn_mask"]] if call["attn_mask"] else []
    for x in (q, k, v):
        call.read(x)
    tokens = (*(x.axes[-2] for x in (q, k, v)), *(vector for x in mask for vector in x.axes[-2:]))
    call.freeze_all(tokens, "attention runs over this axis")
    if q.shape[-1] > 1:
        call.agree(q.axes[-1], k.axes[-1])
    alike = (q, _shared_heads(k, q), _shared_heads(v, q), *mask)
    batch = meet(call, map(_leading, alike), q.shape[:-2])
    out = Tracked(call.shapes[0], (*batch.axes, None, v.axes[-1]))
    return [out, *(fixed(shape) for shape in call.shapes[1:])]


def _shared_heads(x: Tracked, q: Tracked) -> Tracked:
    if len(x.shape) < 3 or x.shape[-3] in (1, q.shape[-3]):
        return x
    heads = x.axes[-3]
    shared = None if heads is None else heads.repeat_interleave(q.shape[-3] // x.shape[-3])
    return x.at(-3, q.shape[-3], shared)


def embedding(call: Call) -> Result:
    """Rows are selected by the data and stay; columns are units."""
    weight = call["weight"]
    call.freeze(weight.axes[0], "rows of an embedding are chosen by the data")
    call.freeze_all((vector for x in call.operands()[1:] for vector in x.axes), "it is an index of values")
    call.produce(weight.axes[1], "embedding")
    shape, *others = call.shapes
    return [Tracked(shape, (*(None,) * (len(shape) - 1), weight.axes[1])), *map(fixed, others)]


def renormed(call: Call) -> Result:
    """Long rows of an embedding are scaled in place, by a norm to which a removed unit adds zero."""
    x = call["self"]
    call.mask(x)
    return Tracked(x.shape, x.axes)


def einsum(call: Call) -> Result:
    """Each letter is one axis of every operand that has it."""
    operands = call["tensors"]
    terms, out = _spelt_out(call["equation"].replace(" ", ""), operands)
    if any(len(set(term)) < len(x.shape) for term, x in zip(terms, operands, strict=True)):
        return unknown(call)  # a diagonal
    return _products(call, terms, operands, out)


def _products(call: Call, terms: Sequence[Sequence[str]], operands: list[Tracked], out: str) -> Tracked:
    """The sums of products of the operands' elements, whose axes have these letters."""
    shared: dict[str, Tensor | None] = {}
    for term, x in zip(terms, operands, strict=True):
        call.read(x)
        for letter, vector, size in zip(term, x.axes, x.shape, strict=True):
            if size > 1:
                shared[letter] = call.agree(shared[letter], vector) if letter in shared else vector
            if not x.activation:
                call.produce(vector, "linear") if letter in out else call.consume(vector)
    return Tracked(call.shapes[0], tuple(shared.get(letter) for letter in out))


def tensordot(call: Call) -> Result:
    """Products over pairs of axes, as the einsum that they are; an outer product has no such pair."""
    a, b = call.operands()
    first, second = list(ascii_lowercase[: len(a.shape)]), list(ascii_uppercase[: len(b.shape)])
    last = [] if call.name == "outer" else [-1]
    for one, other in zip(call["dims_self"] or last, call["dims_other"] or last, strict=True):
        second[other] = first[one]
    out = [letter for letter in (*first, *second) if (letter in first) != (letter in second)]
    return _products(call, [first, second], [a, b], "".join(out))


def _spelt_out(equation: str, operands: list[Tracked]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; the axes of an ellipsis are digits, from the right."""
    inputs, arrow, out = equation.partition("->")
    terms, longest = [], ""
    for term, x in zip(inputs.split(","), operands, strict=True):
        hidden = digits[10 - len(x.shape) + len(term.replace("...", "")) :]
        terms.append(term.replace("...", hidden))
        longest = max(longest, hidden, key=len)
    once = sorted(letter for letter in inputs if letter.isalpha() and inputs.count(letter) == 1)
    return terms, out.replace("...", longest) if arrow else longest + "".join(once)


def recurrent(call: Call) -> Result:
    """LSTM, GRU, RNN: a unit is one row of every gate, one column of the recurrent weight, in every layer."""
    x, weights = call["input"], call["params"]
    states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    ways = 1 + call["bidirectional"]
    step = len(weights) // (ways * call["num_layers"])
    shared = [weights[1].axes[1], _hidden(weights[:step]).axes[1]]
    for number, state in enumerate(states):
        call.mask(state)
        call.freeze_all(state.axes[:2], "layers and samples of a state stay")
        shared[number] = call.agree(shared[number], state.axes[2])
    inputs = x
    for layer in range(call["num_layers"]):
        first = layer * ways * step
        cells = [weights[first + way * step : first + (way + 1) * step] for way in range(ways)]
        made = [_one_cell(call, inputs, of_cell, *shared) for of_cell in cells]
        outputs = [vector for vector in made if vector is not None]
        joined = torch.cat(outputs) if outputs else None
        inputs = Tracked((*x.shape[:-1], call.shapes[0][-1]), (*x.axes[:-1], joined))
    last = zip(call.shapes[1:], shared, strict=False)
    return [inputs, *(Tracked(shape, (None, None, vector)) for shape, vector in last)]


def cell(call: Call) -> Result:
    """One step of an LSTM, a GRU or an RNN."""
    states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    unit = weights[1].axes[1]
    for state in states:
        call.read(state)
        unit = call.agree(unit, state.axes[-1])
    _one_cell(call, call["input"], weights, unit, unit)
    return [Tracked(shape, (*(None,) * (len(shape) - 1), unit)) for shape in call.shapes]


def _one_cell(
    call: Call, x: Tracked, weights: list[Tracked], made: Tensor | None, unit: Tensor | None
) -> Tensor | None:
    """What a cell returns; its units are a row in every gate of every weight, and a column of one weight.

    Args:
        made, unit: what each cell of this layer returns, and its units; they differ with a projection.
    """
    inward, recur, *_ = weights
    last = _hidden(weights)
    own = last.axes[1]
    call.agree(unit, own)
    call.agree(made, recur.axes[1])
    call.contract(x, -1, inward, 1)
    call.consume(own)
    call.consume(recur.axes[1])
    for weight in weights:
        call.mask(weight)
        rows = None if weight is last is not recur else weight.axes[0]
        for gate in () if rows is None else rows.chunk(weight.shape[0] // last.shape[1]):
            call.agree(gate, own)
    call.produce(inward.axes[0], "recurrent")
    call.produce(recur.axes[0], "recurrent")
    if last is not recur:
        call.produce(call.agree(last.axes[0], recur.axes[1]), "linear")
    return recur.axes[1]


def _hidden(weights: list[Tracked]) -> Tracked:
    """The weight whose columns are the units: the projection, an odd one at the end, or the recurrent one."""
    return weights[-1] if len(weights) % 2 else weights[1]
