"""How is a network pruned? Coupled units are found in its graph, and removed in a smaller copy.

    groups = trace(model, example)          capture, trace, rules, identities, assemble
    plan = choose(groups, scores, ...)      groups, plan
    small = apply(model, plan, groups)      surgery, trial, narrow, resize, graphnet
    verify(model, small, plan, groups)      verify, survivors, compare
    groups = trace(small, groups)           follow: for the next cut, without a capture

**Identities.** The network is captured as a graph of ATen operators (`torch.export`). Every index of every
axis of every parameter gets its own integer, an identity, which means "this can be removed". A tensor of the
graph has, for each axis, the vector of identities of its indices. An axis without one is fixed.

**Three kinds of operators.** Operators that only move elements (view, permute, cat, split, roll ...) run on
the identities themselves, so they need no rule. Elementwise operators unite the identities of their operands.
Operators that mix (linear, convolution, attention, recurrent cells ...) have a rule each: the identities of
the reduced axis are united with the weight's columns, and the output has those of the weight's rows. An
operator without a rule freezes its operands: less is removed, never anything wrong.

**Products and parts.** Rows of an attention projection are heads x features, channels of a grouped
convolution are groups x ranks. If any subset of the products could be removed, tensors would be ragged; so an
identity that a view splits lives exactly if all its parts live, and only the parts can be removed: a head, or
a feature in all heads. Solving the facts (`identities.Solution`) gives the units; units that occur in the
same axes are a group.

**Two forms.** The reference is the captured graph with every size derived again from the units that live. The
user's own module, with narrowed parameters and attributes, is returned only if it computes the same. Widths
that its code contains are not pruned; if that leaves too much, the user gets the graph as a trainable module
with the same parameter names. The plan says which form it is, and why.

**Proof.** The outputs of the smaller network are known without surgery: they are those of the original with
the removed units at zero wherever they are read, and norms and means over the living units (`survivors`).
Every cut is compared with that, to rounding; if a norm over units makes it another function than the original
with zeros, the report says so. On demand gradients, training, other sizes and copies are compared too.
"""
