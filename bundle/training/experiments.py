"""Where the runs of the trainers are kept, and the command that shows them; imports nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DATABASE = "mlflow.db"  # in the folder of the runs


def store_of(runs: Path) -> str:
    """The address of a folder's own MLflow store.

    Raises:
        FileNotFoundError: nothing was tracked there.
    """
    database = runs / DATABASE
    if not database.is_file():
        raise FileNotFoundError(
            f"{runs} must hold {DATABASE}, which a training with --tracking configs/mlflow.json writes, but does not.")
    return f"sqlite:///{database.resolve().as_posix()}"


def show_command(uri: str, port: int) -> list[str]:
    """The command that opens MLflow's pages on this machine alone."""
    here = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *here]


def refuse_telemetry() -> None:
    """MLflow reports its use to its makers unless told not to."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
