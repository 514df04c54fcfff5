"""Where a result comes from: hashes of source and weights, and the settings that decide its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle import __version__
from bundle.progress import Progress
from bundle.slides.reader import ImageReader

WARNING = "restored: not for primary diagnosis"


def sha256_of(*paths: Path, progress: Progress | None = None) -> str:
    """Of the contents of files, one after the other; `progress` is told MB done and MB in all."""
    digest, done, total = hashlib.sha256(), 0, sum(path.stat().st_size for path in paths)
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(2**22):
                digest.update(part)
                done += len(part)
                if progress is not None:
                    progress(done // 10**6, total // 10**6)
    return digest.hexdigest()


def job_of(reader: ImageReader, weights: Path, config: Path, settings: Mapping[str, Any],
           progress: Progress | None = None) -> dict[str, Any]:  # fmt: skip
    """All that decides the pixels of a result, JSON values: two equal jobs give equal pixels on one machine.

    Args:
        reader: the source.
        weights: of the network.
        config: that declares it.
        settings: of the run, by name.
        progress: of the source's hash, MB.
    """
    return {
        "software": f"MoP {__version__}",
        "source": sha256_of(*reader.files, progress=progress),
        "weights": sha256_of(weights),
        "config": sha256_of(config),
        **settings,
    }


def notes_of(job: Mapping[str, Any], reader: ImageReader) -> dict[str, str]:
    """The provenance annotation of a result, text by name."""
    hashes = {"source": "source sha256", "weights": "weights sha256", "config": "config sha256"}
    notes = {"warning": WARNING, "source name": reader.path.name}
    notes |= {hashes.get(name, name): str(value) for name, value in job.items()}
    if reader.objective is not None:
        notes["objective"] = f"{reader.objective:g}"
    return notes
