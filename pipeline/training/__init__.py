"""How is a network trained? The loop, several processes, checkpoints, teachers and batch norm."""

from __future__ import annotations

import importlib

# By name, for mypy also reads this file as `pipeline.training`, the parent of tests/pipeline/training.
__getattr__ = importlib.import_module("deadweight.targets.deprecated").old_names(__name__)
