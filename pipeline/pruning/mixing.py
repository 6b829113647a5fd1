"""Rules for operators that mix units: linear maps, attention, recurrent cells."""

from __future__ import annotations

import torch
from torch import Tensor

from .calls import Call, Result, Tracked, along_channels, fixed, meet, unknown


def linear(call: Call) -> Result:
    """y = x W^T + b."""
    x, weight = call["input"], call["weight"]
    call.contract(x, -1, weight, 1)
    call.produce(weight.axes[0], "linear")
    shape = call.shapes[0]
    y = Tracked(shape, (*x.axes[:-1], weight.axes[0]))
    return y if call["bias"] is None else meet(call, [y, call["bias"]], shape)


def convolution(call: Call) -> Result:
    """Input channels are the weight's columns, output channels its rows; grouped, depthwise, transposed."""
    x, weight, groups = call["input"], call["weight"], call["groups"] or 1
    shape = call.shapes[0]
    kernel = len(weight.shape) - 2
    channels = len(x.shape) - kernel - 1
    for vector in (*x.axes[channels + 1 :], *weight.axes[2:]):
        call.freeze(vector, "a convolution slides over this axis")
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
    spatial = (None,) * kernel
    y = Tracked(shape, (*x.axes[:channels], out, *spatial))
    return y if call["bias"] is None else meet(call, [y, *along_channels(call["bias"], kernel + 2)], shape)


def _outer(call: Call, blocks: Tensor | None, ranks: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """groups x members as one vector."""
    spread = [blocks.reshape(-1, 1).expand(shape)] if blocks is not None else []
    spread += [ranks.reshape(1, -1).expand(shape)] if ranks is not None else []
    return call.notes.identities.fuse([part.reshape(-1) for part in spread]) if spread else None


def addmm(call: Call) -> Result:
    """bias + x W."""
    x, weight = call["mat1"], call["mat2"]
    call.contract(x, 1, weight, 0)
    call.produce(weight.axes[1], "linear")
    return meet(call, [Tracked(call.shapes[0], (x.axes[0], weight.axes[1])), call["self"]], call.shapes[0])


def matmul(call: Call) -> Result:
    """Leading axes are broadcast; a's last axis is contracted with b's last but one."""
    a, b = call.operands()[-2:]
    product = _matmul(call, a, b, call.shapes[0])
    return meet(call, [product, call["self"]], product.shape) if call.name == "baddbmm" else product


def _matmul(call: Call, a: Tracked, b: Tracked, shape: tuple[int, ...]) -> Tracked:
    inner = max(len(b.shape) - 2, 0)
    call.read(a)
    call.read(b)
    if a.shape[-1] > 1:
        call.agree(a.axes[-1], b.axes[inner])
    if not b.activation:
        call.consume(b.axes[inner])
        call.produce(b.axes[-1] if inner < len(b.axes) - 1 else None, "linear")
    rows, columns = a.axes[-2:-1], b.axes[inner + 1 :]
    lead = shape[: len(shape) - len(rows) - len(columns)]
    batch = meet(call, [Tracked(x.shape[:-2], x.axes[:-2]) for x in (a, b)], lead)
    return Tracked(shape, (*batch.axes, *rows, *columns))


def attention(call: Call) -> Result:
    """softmax(q k^T) v. Heads are the third axis from the end; several of q may share one of k and v."""
    q, k, v = call["query"], call["key"], call["value"]
    for x in (q, k, v):
        call.read(x)
    for vector in (q.axes[-2], k.axes[-2], v.axes[-2]):
        call.freeze(vector, "attention runs over this axis")
    if q.shape[-1] > 1:
        call.agree(q.axes[-1], k.axes[-1])
    for vector in call["attn_mask"].axes[-2:] if call["attn_mask"] else ():
        call.freeze(vector, "attention runs over this axis")
    lead = q.shape[:-2]
    leads = [Tracked(x.shape[:-2], x.axes[:-2]) for x in (q, _shared_heads(k, q), _shared_heads(v, q))]
    mask = [Tracked(call["attn_mask"].shape[:-2], call["attn_mask"].axes[:-2])] if call["attn_mask"] else []
    batch = meet(call, [*leads, *mask], lead)
    out = Tracked(call.shapes[0], (*batch.axes, None, v.axes[-1]))
    return [out, *(fixed(shape) for shape in call.shapes[1:])]


def _shared_heads(x: Tracked, q: Tracked) -> Tracked:
    if len(x.shape) < 3 or x.shape[-3] in (1, q.shape[-3]):
        return x
    heads = x.axes[-3]
    shared = None if heads is None else heads.repeat_interleave(q.shape[-3] // x.shape[-3])
    return Tracked((*x.shape[:-3], q.shape[-3], *x.shape[-2:]), (*x.axes[:-3], shared, *x.axes[-2:]))


def embedding(call: Call) -> Result:
    """Rows are selected by the data and stay; columns are units."""
    weight = call["weight"]
    call.freeze(weight.axes[0], "rows of an embedding are chosen by the data")
    for vector in call["indices"].axes:
        call.freeze(vector, "it is an index of values")
    call.produce(weight.axes[1], "embedding")
    shape = call.shapes[0]
    return Tracked(shape, (*(None,) * (len(shape) - 1), weight.axes[1]))


def einsum(call: Call) -> Result:
    """Each letter is one axis of every operand that has it."""
    inputs, _, out = call["equation"].replace(" ", "").partition("->")
    terms, operands = inputs.split(","), call["tensors"]
    if not out or any(len(set(term)) < len(x.shape) for term, x in zip(terms, operands, strict=True)):
        return unknown(call)  # an ellipsis, a diagonal or an implicit result
    shared: dict[str, Tensor | None] = {}
    for term, x in zip(terms, operands, strict=True):
        call.read(x)
        for letter, vector, size in zip(term, x.axes, x.shape, strict=True):
            if size > 1:
                shared[letter] = call.agree(shared[letter], vector) if letter in shared else vector
            if not x.activation:
                call.produce(vector, "linear") if letter in out else call.consume(vector)
    return Tracked(call.shapes[0], tuple(shared.get(letter) for letter in out))


def recurrent(call: Call) -> Result:
    """LSTM, GRU, RNN: a unit is one row of every gate, one column of the recurrent weight, in every layer."""
    x, weights = call["input"], call["params"]
    states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    step = 4 if call["has_biases"] else 2
    if len(weights) != step * call["num_layers"] * (1 + call["bidirectional"]):
        return unknown(call)  # a projection
    unit: Tensor | None = weights[1].axes[1]
    for state in states:
        call.mask(state)
        for vector in state.axes[:2]:
            call.freeze(vector, "layers and samples of a state stay")
        unit = call.agree(unit, state.axes[2])
    inputs = x
    for layer in range(call["num_layers"]):
        outputs: list[Tensor] = []
        for weights_of_cell in _cells(weights, layer, step, 1 + call["bidirectional"]):
            own = _one_cell(call, inputs, weights_of_cell, unit)
            outputs += [own] if own is not None else []
        joined = torch.cat(outputs) if outputs else None
        inputs = Tracked((*x.shape[:-1], call.shapes[0][-1]), (*x.axes[:-1], joined))
    last = [Tracked(shape, (*(None,) * (len(shape) - 1), unit)) for shape in call.shapes[1:]]
    return [Tracked(call.shapes[0], inputs.axes), *last]


def cell(call: Call) -> Result:
    """One step of an LSTM, a GRU or an RNN."""
    states = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    unit = weights[1].axes[1]
    for state in states:
        call.read(state)
        unit = call.agree(unit, state.axes[-1])
    _one_cell(call, call["input"], weights, unit)
    return [Tracked(shape, (*(None,) * (len(shape) - 1), unit)) for shape in call.shapes]


def _one_cell(call: Call, x: Tracked, weights: list[Tracked], unit: Tensor | None) -> Tensor | None:
    """The units of a cell: a row in every gate of every weight, and a column of the recurrent one."""
    inward, recur, *_ = weights
    own = recur.axes[1]
    call.agree(unit, own)
    call.contract(x, -1, inward, 1)
    call.consume(own)
    for weight in weights:
        call.mask(weight)
        rows = weight.axes[0]
        for gate in () if rows is None else rows.chunk(weight.shape[0] // recur.shape[1]):
            call.agree(gate, own)
    call.produce(inward.axes[0], "recurrent")
    call.produce(recur.axes[0], "recurrent")
    return own


def _cells(weights: list[Tracked], layer: int, step: int, directions: int) -> list[list[Tracked]]:
    first = layer * directions * step
    return [weights[first + way * step : first + (way + 1) * step] for way in range(directions)]
