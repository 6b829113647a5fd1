"""The gate: may a model replace the accepted one? Baseline, settings, history, calibration, report."""
