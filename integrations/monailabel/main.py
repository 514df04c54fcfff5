"""MONAI Label's app of MoP: `POST /infer/mop?output=image` answers a picture or a slide's region, restored.

    make label STUDIES=folder          http://127.0.0.1:8000, with the folder's images as its datastore

Conf of the server: `--conf device cuda`; `--conf trained FILE` for the weights that training writes and restoring then
uses (default model/trained.pt beside this file).
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask
from mop_restore import RestoreTask
from mop_train import PairTrainTask

from bundle import __version__
from bundle.messages import sentence

MODEL = "mop"


class MopApp(MONAILabelApp):
    """One model that restores and one trainer, both called mop."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self._trained = Path(conf.get("trained") or Path(app_dir) / "model" / "trained.pt")
        self._device = conf.get("device", "cpu")
        super().__init__(app_dir, studies, conf, name="MoP", version=__version__,
                         description="Out-of-focus pathology images brought into focus")

    def init_infers(self) -> dict[str, InferTask]:
        """The restoration."""
        return {MODEL: RestoreTask(self._trained, self._device)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Fine-tuning on pairs."""
        return {MODEL: PairTrainTask(self._trained, self._device)}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As the server's own; what the caller got wrong is a 404 with its sentence, not a 500 without.

        The server's own also opens any path of its machine, and keeps an upload whose request was refused: a picture
        of a patient.
        """
        image = Path(str(request.get("image", "")))
        sent = is_upload(image)
        named = len(image.parts) == 1  # an image of the datastore, whatever lies in the folder that this runs in
        if not named and image.exists() and not sent:
            raise HTTPException(404, f"an image must be a file or be in the datastore, {image.name} is a path.")
        try:
            if named and image.exists():
                request = request | {"image": (datastore or self.datastore()).get_image_uri(image.name)}
            answer: dict[str, Any] = super().infer(request, datastore)
        except Exception as error:
            if sent:
                image.unlink(missing_ok=True)
            if isinstance(error, MONAILabelException):
                raise HTTPException(404, str(error.msg)) from error
            raise
        return answer

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """As the server's own; pairs that cannot be learned from are a 400 with its sentence."""
        try:
            told: dict[str, Any] = super().train(request)
        except (TypeError, ValueError, OSError) as error:  # TypeError: "64" where a number is due
            raise HTTPException(400, sentence(error)) from error
        return told


def is_upload(path: Path) -> bool:
    """Whether the server has written this file of what was sent: by Python's temporary names."""
    return path.parent == Path(tempfile.gettempdir()) and bool(re.match(r"tmp[a-z0-9_]{8}(\.|$)", path.name))
