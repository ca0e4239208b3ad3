"""Loggers that a run is given without further words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger


def mlflow_logger(
    folder: str, *, experiment_name: str = "lightning_xai", tracking_uri: str | None = None, **arguments: Any
) -> MLFlowLogger:
    """Make a logger of MLflow over a database in the run's folder, or a server that is named.

    MLflow refuses the folders of files that Lightning would make.

    Args:
        folder: Of the run.
        experiment_name: The experiment that the run is part of.
        tracking_uri: The server; that of ``MLFLOW_TRACKING_URI`` in the environment unless given.
        **arguments: Further ones of the logger.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        place = Path(folder).resolve()
        place.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{place / 'mlflow.db'}"
        arguments.setdefault("artifact_location", (place / "mlflow").as_uri())
    return MLFlowLogger(experiment_name, tracking_uri=uri, **arguments)
