"""Restore a real field that was put out of focus on purpose, and show what came of it.

    make demo                                  # or: .venv/bin/python scripts/demo.py --output demo --seed 3

Reads   scikit-image's colon section (512 x 512, in its wheel; never used in training), models/model.pt
Writes  demo/input.png truth.png coarse.png restored.png focus.png comparison.png, demo/result.json, demo/report.html

The section lies on simulated uneven tissue: part of it stays sharp, the rest falls away to 3.2 µm from focus. The
restoration is the bundle's own command, `python -m monai.bundle run --config_file configs/inference.json`, in a process
of its own. It never sees the truth, which is used for PSNR and SSIM only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table as RichTable
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bundle import report
from bundle.conventions import from_uint8, to_uint8
from bundle.optics.camera import Camera, record
from bundle.optics.focal_stack import GainTable, random_relief_um, simulate_plane
from bundle.optics.pupil import OPTICS_40X

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/inference.json"
PLANE_UM = 1.6  # stage position of the demo's plane; the highest tissue is sharp there
FALL_UM = 3.2  # the lowest tissue lies this far below
DETAIL_PX = 128  # side of the enlarged part
STAGES = ("prompts", "p_former", "p_diffusion")

Picture = NDArray[np.uint8]


class Scene(NamedTuple):
    """The demo's question and its answer."""

    truth: Picture  # (H, W, 3)
    blurred: Picture  # (H, W, 3)
    defocus_um: NDArray[np.float32]  # (H, W), signed


class Answer(NamedTuple):
    """What the bundle's command wrote."""

    coarse: Picture
    restored: Picture
    focus_um: NDArray[np.float32]  # (H, W), signed
    seconds: dict[str, float]


def make_scene(seed: int) -> Scene:
    """Defocus the colon section over uneven tissue and record it with a scanner's camera."""
    truth = np.ascontiguousarray(data.immunohistochemistry())
    generator = torch.Generator().manual_seed(seed)
    sharp = from_uint8(torch.from_numpy(truth).permute(2, 0, 1))  # (3, H, W)
    relief_um = uneven_tissue_um(truth.shape[0], truth.shape[1], generator)
    plane = simulate_plane(sharp, PLANE_UM, relief_um, GainTable(OPTICS_40X, reach_um=4.0))
    recorded = to_uint8(record(plane, Camera(), generator))
    return Scene(truth, recorded.permute(1, 2, 0).numpy(), (PLANE_UM - relief_um).numpy())


def uneven_tissue_um(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Relief of the demo's tissue, (H, W), µm: level with the plane at its top, falling away with growing slope."""
    field = random_relief_um(height, width, 1.0, generator)
    depth = (field.max() - field) / (field.max() - field.min())  # 0 at the top, 1 at the bottom
    return PLANE_UM - FALL_UM * depth.square()


def restore(blurred: Picture) -> Answer:
    """Run the bundle's inference config on one picture.

    Raises:
        RuntimeError: the command failed; the message ends with its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset, output = Path(folder) / "fields", Path(folder) / "restored"
        dataset.mkdir()
        report.save_picture(blurred, dataset / "input.png")
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", CONFIG,
                   "--dataset_dir", str(dataset), "--output_dir", str(output)]
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{CONFIG} must run without an error, it ended with {ended.returncode}:\n"
                               + "\n".join((ended.stdout + ended.stderr).splitlines()[-15:]))
        seconds = json.loads((output / "input_timings.json").read_text())
        return Answer(
            coarse=np.asarray(Image.open(output / "input_coarse.png").convert("RGB")),
            restored=np.asarray(Image.open(output / "input_restored.png").convert("RGB")),
            focus_um=np.asarray(tifffile.imread(output / "input_focus_um.tiff"), dtype=np.float32),
            seconds={**{stage: float(seconds[stage]) for stage in STAGES if stage in seconds},
                     "command": time.perf_counter() - start},
        )


def fidelity(picture: Picture, truth: Picture) -> dict[str, float]:
    """PSNR in dB and SSIM (Gaussian 11 px, σ 1.5) of [0, 1] RGB against the truth."""
    image, label = picture / 255.0, truth / 255.0
    return {
        "psnr": float(peak_signal_noise_ratio(label, image, data_range=1.0)),
        "ssim": float(structural_similarity(label, image, data_range=1.0, channel_axis=2, gaussian_weights=True,
                                            sigma=1.5, use_sample_covariance=False)),
    }


def typical_part(defocus_um: NDArray[np.float32], truth: Picture, side: int) -> tuple[int, int, int]:
    """(row, col, side) of the richest part among those as far out of focus as half of the field, within 0.4 µm."""
    distance, grey = np.abs(defocus_um), truth.mean(axis=2)
    middle = float(np.median(distance))
    windows = [(row, col) for row in range(0, grey.shape[0] - side + 1, side // 4)
               for col in range(0, grey.shape[1] - side + 1, side // 4)]
    means = {(row, col): float(distance[row : row + side, col : col + side].mean()) for row, col in windows}
    near = [place for place in windows if abs(means[place] - middle) < 0.4] or windows
    row, col = max(near, key=lambda place: float(grey[place[0] : place[0] + side, place[1] : place[1] + side].std()))
    return row, col, side


def write_report(scene: Scene, answer: Answer, result: dict[str, dict[str, float]], output: Path) -> None:
    """Write the pictures, the comparison figure and the HTML page."""
    pictures = {"input": scene.blurred, "coarse": answer.coarse, "restored": answer.restored, "truth": scene.truth}
    panels = []
    for title, picture in pictures.items():
        report.save_picture(picture, output / f"{title}.png")
        score = result.get(title)
        caption = f"{score['psnr']:.2f} dB, SSIM {score['ssim']:.3f}" if score else ""
        panels.append(report.Panel(title, picture, caption))
    limit_um = report.focus_limit_um(answer.focus_um)
    report.save_picture(report.focus_picture(answer.focus_um, limit_um), output / "focus.png")
    detail = typical_part(scene.defocus_um, scene.truth, DETAIL_PX)
    report.save_figure(report.comparison_figure(panels, answer.focus_um, detail), output / "comparison.png")
    page = report.html_page(
        "A defocused field, restored",
        "A real colon section (immunohistochemistry, scikit-image), put out of focus by "
        f"{scene.defocus_um.min():.1f} to {scene.defocus_um.max():.1f} µm over simulated uneven tissue, then restored "
        "by the bundle without sight of the truth. The focus map is off by "
        f"{focus_error_um(scene, answer):.2f} µm on average.",
        panels, answer.focus_um,
        {"Against the truth": report.Table(("", "PSNR, dB", "SSIM"), quality_rows(result)),
         "Seconds": report.Table(("stage", "s"), seconds_rows(result["seconds"]))},
        ("input", "restored"),
    )
    (output / "report.html").write_text(page, encoding="utf-8")


def focus_error_um(scene: Scene, answer: Answer) -> float:
    """Mean error of the distance to best focus, µm, sign left aside."""
    return float(np.abs(np.abs(answer.focus_um) - np.abs(scene.defocus_um)).mean())


def quality_rows(result: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    """Rows of the quality table."""
    return [(name, f"{result[name]['psnr']:.2f}", f"{result[name]['ssim']:.4f}")
            for name in ("input", "coarse", "restored")]


def seconds_rows(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """Rows of the table of seconds."""
    return [(name, f"{value:.2f}") for name, value in seconds.items()]


def print_table(result: dict[str, dict[str, float]], console: Console) -> None:
    """Print both tables."""
    quality = RichTable("against the truth", "PSNR, dB", "SSIM")
    for row in quality_rows(result):
        quality.add_row(*row)
    timing = RichTable("stage", "seconds")
    for name, value in seconds_rows(result["seconds"]):
        timing.add_row(name, value)
    console.print(quality, timing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write, default demo")
    parser.add_argument("--seed", type=int, default=3, help="of the tissue's relief and the camera's noise")
    options = parser.parse_args(arguments)
    console = Console()
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    scene = make_scene(options.seed)
    simulated_s = time.perf_counter() - start
    try:
        answer = restore(scene.blurred)
    except RuntimeError as failure:
        print(failure, file=sys.stderr)
        return 1
    result = {
        "input": fidelity(scene.blurred, scene.truth),
        "coarse": fidelity(answer.coarse, scene.truth),
        "restored": fidelity(answer.restored, scene.truth),
        "seconds": {"simulate": simulated_s, **answer.seconds},
    }
    write_report(scene, answer, result, options.output)
    (options.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print_table(result, console)
    console.print(f"open {options.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
