"""May this model replace the accepted one? Baseline, settings, history, calibration, report."""
