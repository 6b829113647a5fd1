"""Lets tests import what they share (`import nets`) and the benchmarks, wherever pytest is started."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]
