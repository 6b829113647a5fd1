"""The report's sentences on lottery tickets: the names of their controls, and which claim the seeds support.

Two papers disagree. "The Lottery Ticket Hypothesis" (Frankle and Carbin 2019): a ticket needs its own initial
values. "Rethinking the Value of Network Pruning" (Liu et al. 2019): a small network learns as well from new
random values. One run decides nothing; differences within each seed may.
"""

from __future__ import annotations

from .paired import Paired

LABELS = {
    "ticket": "Ticket",
    "sparse": "Single weights dropped",
    "ticket_reinitialised": "Ticket, new initial weights",
    "ticket_random": "Random ticket",
    "ticket_tuned_on": "Tuned on, not rewound",
}

CONTROLS = {
    "ticket_reinitialised": ("The ticket with new initial weights", "the initial values matter"),
    "ticket_random": ("A random ticket of the same size", "it matters which weights are kept"),
    "ticket_tuned_on": (
        "The same cut, fine-tuned from the trained weights instead of rewound",
        "rewinding helps",
    ),
}


def side(ticket_less_reinitialised: Paired, *, margin: float = 0.5, unit: str = "points") -> str:
    """A sentence with the claim that the seeds support: from ticket minus re-initialised, seed by seed.

    Args:
        margin: a difference that does not matter. A 95 % interval within it on both sides is "as well"; one
            that excludes zero supports a claim; any other is undecided.
    """
    found = ticket_less_reinitialised
    change = f"{found.mean:+.2f} {unit} ({found.low:+.2f} to {found.high:+.2f}, {found.n} seeds)"
    if found.low > 0:
        return f"For tickets: its own initial values are better for the ticket than new ones, by {change}."
    if found.high < 0:
        return f"Against tickets: new initial values are better for the same cut; own minus new: {change}."
    if found.low >= -margin and found.high <= margin:
        as_well = f"new initial values did as well within {margin:g} {unit}"
        return f'For "rethinking": {as_well}; own minus new: {change}.'
    return f"Undecided: {found.n} seeds cannot separate own from new initial values; own minus new: {change}."
