"""How does a recipe run? Start, cache, sweep, and the summary of what was measured."""
