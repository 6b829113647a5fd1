"""What a report says of lottery tickets: the names of their controls, and which side the seeds took.

Two papers disagree. "The Lottery Ticket Hypothesis" (Frankle and Carbin 2019): a ticket needs the initial
values it was found with. "Rethinking the Value of Network Pruning" (Liu et al. 2019): a small network learns
as much from values drawn anew. One run decides nothing; differences within each seed may.
"""

from __future__ import annotations

from .paired import Paired

LABELS = {
    "ticket": "Ticket",
    "sparse": "Single weights dropped",
    "ticket_reinitialised": "Ticket, initial weights drawn anew",
    "ticket_random": "Random ticket",
    "ticket_tuned_on": "Tuned on, not rewound",
}

CONTROLS = {
    "ticket_reinitialised": (
        "The ticket with its initial weights drawn anew",
        "This run gives no evidence that the initial values matter.",
    ),
    "ticket_random": (
        "A random ticket of the same size",
        "This run gives no evidence that it matters which weights are kept.",
    ),
    "ticket_tuned_on": (
        "The same cut, tuned on from the trained weights instead of rewound",
        "This run gives no evidence that rewinding helps.",
    ),
}


def side(ticket_less_reinitialised: Paired, *, margin: float = 0.5, unit: str = "points") -> str:
    """Which side of the argument these seeds took: from ticket minus re-initialised, seed by seed.

    Args:
        margin: a difference that does not matter. A 95 % interval within it on both sides is "as well"; one
            that leaves out zero takes a side; any other leaves the matter open.
    """
    found = ticket_less_reinitialised
    change = f"{found.mean:+.2f} {unit} ({found.low:+.2f} to {found.high:+.2f}, {found.n} seeds)"
    if found.low > 0:
        return f"For tickets: its own initial values took the ticket further than new ones, by {change}."
    if found.high < 0:
        return f"Against tickets: new initial values took the same cut further; own less new: {change}."
    if found.low >= -margin and found.high <= margin:
        as_well = f"new initial values did as well within {margin:g} {unit}"
        return f'For "rethinking": {as_well}; own less new: {change}.'
    return f"Undecided: {found.n} seeds cannot tell own initial values from new ones; own less new: {change}."
