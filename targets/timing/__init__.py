"""Timing: how long a model takes, and how sure that is. Clock, measurement, judge, layers, memory."""
