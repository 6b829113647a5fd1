"""Which units matter? Criteria, the statistics they use, and the allocation among layers."""

from __future__ import annotations

import importlib

# By name, for mypy also reads this file as `pipeline.importance`, the parent of tests/pipeline/importance.
__getattr__ = importlib.import_module("deadweight.targets.deprecated").old_names(__name__)
