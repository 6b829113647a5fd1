"""The report's words on lottery tickets: the names of their controls, and the claim that each one tests.

Two papers disagree. "The Lottery Ticket Hypothesis" (Frankle and Carbin 2019): a ticket needs its own initial
values. "Rethinking the Value of Network Pruning" (Liu et al. 2019): a small network learns as well from new
random values. One run decides nothing; differences within each seed may.
"""

from __future__ import annotations

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
