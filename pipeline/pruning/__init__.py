"""The pruning core: which units of a network belong together, and the network without some of them.

groups = trace(model, example)          trace, rules, identities: what hangs together
plan = choose(groups, scores, ...)      groups, plan: what goes
small = apply(model, plan, groups)      surgery, resize, narrow: the smaller network
verify(model, small, plan, groups)      verify, survivors: proof that it is the same function
"""
