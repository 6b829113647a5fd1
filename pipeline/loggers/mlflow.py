"""The log "mlflow:URI": one run in MLflow, with settings as parameters, words as tags and the report's files.

The experiment is MLFLOW_EXPERIMENT_NAME, or "deadweight". Without a URI, MLFLOW_TRACKING_URI is used.
"""

# The package is the user's own install.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import TypeVar

from .log import Entry, Log

_Value = TypeVar("_Value", str, float)
# MLflow's own values wait for a server that does not answer for half an hour.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def log(place: str, first: Entry) -> Log:
    """Opens a new run on the server, or in the store, of this URI."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(place or None)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "deadweight")
    found = client.get_experiment_by_name(experiment)
    where = found.experiment_id if found else client.create_experiment(experiment)
    run: str = client.create_run(where, run_name=first.run).info.run_id

    def write(entry: Entry) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(
            run,
            [Metric(name, value, now_ms, entry.step) for name, value in _named(entry.figures).items()],
            [Param(name, value) for name, value in _named(entry.settings).items()],
            [RunTag(name, value) for name, value in _named(entry.words).items()],
        )
        for path in entry.files:
            client.log_artifact(run, str(path))
        if entry.status != "running":
            client.set_terminated(run, entry.status.upper())

    return write


def _named(values: Mapping[str, _Value]) -> dict[str, _Value]:
    """The values with names that MLflow takes."""
    return {re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items()}
