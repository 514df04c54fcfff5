"""The whole evaluation: every field of a folder, scored once, kept, averaged and reported.

    output_dir/fields/*.json   the record of each finished field; a killed evaluation goes on behind the last one
    output_dir/                summary.json, table.md, table.csv, slides.csv, figure.png
    output_dir/pictures/       best_1.png, worst_1.png …

A record is used again only for the same weights, settings, code and field: its key holds them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bundle.conventions import plane_positions_um
from bundle.evaluation.fields import Field, FocalField, read_field
from bundle.evaluation.origin import code_sha256, command_line, commit, hardware
from bundle.evaluation.pictures import choose, write_pictures
from bundle.evaluation.recorded import RecordedField, RecordedStack, shared_positions_um
from bundle.evaluation.restored_images import RestoredImages
from bundle.evaluation.scores import Baseline, FieldRestorer, FieldScorer, Stack
from bundle.evaluation.summary import average, summarise
from bundle.evaluation.tables import TITLES, cell, write_results, write_text
from bundle.optics.camera import Camera
from bundle.training.metrics import load_lpips


class Evaluation:
    """The protocol on sharp fields, or on recorded focal stacks, named in configs/evaluate.json."""

    def __init__(
        self,
        fields: Sequence[Field] | Sequence[RecordedField],
        restorer: FieldRestorer,
        baselines: Mapping[str, Baseline],
        output_dir: str | Path = "evaluation",
        positions_um: Sequence[float] | None = None,
        crop_px: int = 0,
        relief_um: float = 0.8,
        jpeg_quality: int = 90,
        seed: int = 0,
        lpips_folder: str | Path | None = None,
        lpips_network: str = "squeeze",
        restored: Mapping[str, str | Path] | None = None,
        pictures: int = 0,
    ) -> None:
        """Load what scores the fields.

        Args:
            fields: sharp or recorded fields, from `list_fields`.
            restorer: the method under test.
            baselines: what stands beside it, by name; a functools.partial tells its numbers.
            output_dir: where records and tables go.
            positions_um: planes to evaluate, µm; None for the 13 of the protocol, or for all that were recorded.
            crop_px: side of the centred square to keep of each field, 0 for all of it.
            relief_um: the tissue's surface spans ± this; of simulated planes, as the next two.
            jpeg_quality: 0 is lossless.
            seed: of relief and noise.
            lpips_folder: weights of LPIPS (squeeze), or None for the package `lpips`.
            lpips_network: alex, vgg or squeeze.
            restored: folders of images that other methods restored, by the method's name.
            pictures: best and worst fields to show, of each kind.
        """
        self.fields: list[Field | RecordedField] = list(fields)
        self.output_dir, self.pictures = Path(output_dir), pictures
        self.positions_um = _planes(self.fields) if positions_um is None else list(positions_um)
        if not self.positions_um:
            raise ValueError("positions_um must name at least one plane, got none.")
        self.restorer, self.lpips = restorer, load_lpips(lpips_folder, lpips_network)
        self.given = {name: RestoredImages(folder) for name, folder in (restored or {}).items()}
        self.scorer = FieldScorer(restorer, baselines, self.lpips, given=self.given)
        self.camera = Camera(jpeg_quality=jpeg_quality)
        self.crop_px, self.relief_um, self.seed = crop_px, relief_um, seed
        self.commit = commit(Path(__file__).parent)
        self.settings = {
            "weights": restorer.weights_sha256,
            "restorer": dict(restorer.settings),
            "baselines": {name: _numbers(method) for name, method in baselines.items()},
            "positions_um": [round(position, 3) for position in self.positions_um],
            "crop_px": crop_px,
            "relief_um": relief_um,
            "jpeg_quality": jpeg_quality,
            "seed": seed,
            "lpips": self.lpips.name if self.lpips.distance is not None else None,
            "code": code_sha256(Path(__file__).parents[1]),
        }

    def run(self) -> dict[str, Any]:
        """Score what is not yet scored, write the tables, return the summary."""
        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("planes"))
        progress = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
        records = []
        with progress:
            task = progress.add_task("evaluating", total=len(self.fields) * len(self.positions_um))
            for field in self.fields:
                progress.update(task, description=field.name)
                record, scored = self._record(field, advance=lambda: progress.advance(task))
                if not scored:
                    progress.advance(task, len(self.positions_um))
                records.append(record)
                progress.console.print(_line(record, scored))
        summary = summarise(records) | {
            "lpips": {"name": self.lpips.name, "missing": self.lpips.missing},
            "command": command_line(),
            "commit": self.commit,
            "hardware": hardware(self.restorer.device),
            "weights_sha256": self.restorer.weights_sha256,
            "settings": self.settings,
        }
        write_results(summary, self.output_dir)
        by_name = {field.name: field for field in self.fields}
        write_pictures(choose(records, self.pictures), self.output_dir / "pictures",
                       lambda name: self.open(by_name[name]), self.scorer.results, TITLES)
        if self.lpips.missing:
            console.print(self.lpips.missing)
        console.print(f"{len(records)} fields: {self.output_dir / 'table.md'}")
        return summary

    def open(self, field: Field | RecordedField) -> Stack:
        """The planes of a field."""
        if isinstance(field, RecordedField):
            return RecordedStack(field, self.crop_px, self.restorer.device)
        sharp = read_field(field, self.crop_px).to(self.restorer.device)
        return FocalField(field, sharp, self.relief_um, self.camera, self.seed)

    def _record(self, field: Field | RecordedField, advance: Callable[[], None]) -> tuple[dict[str, Any], bool]:
        """The record of a field, and whether it had to be scored now."""
        path = self.output_dir / "fields" / (field.name.replace("/", "__") + ".json")
        key = self._key(field)
        if path.is_file():
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if record.get("key") == key:
                return record, False
        record = {"key": key} | self.scorer.score(self.open(field), self.positions_um, advance)
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return record, True

    def _key(self, field: Field | RecordedField) -> str:
        """Changes with the weights, any setting, the code, the field's own pixels and what others made of them."""
        of_field: dict[str, Any] = {"mpp": field.mpp, "slide": field.slide}
        of_field["sha256"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in field.files]
        of_field["given"] = {name: images.sha256(field.folder) for name, images in self.given.items()}
        text = json.dumps(self.settings | {"field": of_field}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _planes(fields: list[Field | RecordedField]) -> list[float]:
    """The positions that are evaluated where none are chosen, µm."""
    recorded = [field for field in fields if isinstance(field, RecordedField)]
    return shared_positions_um(recorded) if recorded else plane_positions_um().tolist()


def _numbers(method: Baseline) -> dict[str, Any]:
    """What a baseline was set to: it belongs to the key of a record."""
    return dict(method.keywords) if isinstance(method, partial) else {}


def _line(record: dict[str, Any], scored: bool) -> str:
    """One line per field: mean PSNR of each method."""
    planes = record["planes"]
    means = {name: average(plane["methods"][name] for plane in planes) for name in planes[0]["methods"]}
    text = ", ".join(f"{name} {cell(figures, 'psnr')}" for name, figures in means.items())
    return f"{record['name']}: PSNR {text} dB" + ("" if scored else " (kept from an earlier run)")
