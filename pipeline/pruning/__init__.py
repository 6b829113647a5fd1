"""The pruning core: which units of a network belong together, and the network without some of them.

    groups = trace(model, example)          capture, trace, rules, identities, assemble
    plan = choose(groups, scores, ...)      groups, plan
    small = apply(model, plan, groups)      surgery, trial, narrow, resize, graphnet
    verify(model, small, plan, groups)      verify, survivors, compare

**Identities.** The network is captured as a graph of ATen operators (`torch.export`). Every index of every
axis of every parameter gets an integer of its own, an identity: "this can be removed". A tensor of the
graph carries, for each of its axes, the vector of the identities that its indices stand for. An axis
without one is fixed.

**Three kinds of operators.** Those that only move elements (view, permute, cat, split, roll ...)
are run on the identities themselves, so they need no rule. Where tensors meet element by
element, identities that meet are made one. Operators that mix (linear, convolution, attention, recurrent
cells ...) have a rule each: what is summed over is one with the weight's columns, what comes out are the
weight's rows. What has no rule freezes what goes in: less is removed, never anything wrong.

**Wholes and parts.** Rows of an attention projection are heads x features, channels of a grouped
convolution are groups x ranks. If any subset of the products could go, tensors would be ragged; so an
identity that a view splits lives exactly if all its parts live, and only the parts can be removed: a head,
or a feature in all heads. Solving the facts (`identities.Solution`) leaves the units; those that live in
the same places are a group.

**Two forms, one truth.** The reference is the captured graph with every size in it derived anew from what
lives. The user's own module, with narrowed parameters and attributes, is handed out only when it computes
the same; if its code holds a width, what it cannot follow is left whole, and if that is too much, the user
gets the graph as a module that trains, under the same parameter names. Which it was, and why, is in the
plan.

**Proof.** What the smaller network must compute is known without any surgery: it is the original with the
removed units at zero wherever they are read, and norms and means taken over those that live (`survivors`).
Every cut is compared with that, to rounding; where a norm over units makes it another function than the
original with zeros, the report says so.
"""
