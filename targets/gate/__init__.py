"""Around the gate: what was accepted, what a model is held to, what is told and kept, and how sure it is."""
