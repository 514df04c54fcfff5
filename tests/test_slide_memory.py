"""A slide of 100,000 x 100,000 px goes through 2 GB of memory: read, planned, restored, written with all levels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In a process of its own: the system keeps the peak of a whole process.
PROGRAM = '''
import json, resource, sys
from pathlib import Path
import imagecodecs, numpy as np, tifffile, torch
from torch import nn
from bundle.slide_job import Engine, restore_image
from bundle.wishes import Wishes
from bundle.slide_plan import SlidePlanner
from bundle.slide_restoration import SlideRestorer
from bundle.slides.files import Job
from bundle.slides.pyramid import level_shapes
from bundle.slides.reader import open_image
from typing import NamedTuple

torch.set_num_threads(1)
TILE, TISSUE = 512, 3072  # px; the tissue lies in the middle

class Result(NamedTuple):
    restored: torch.Tensor
    defocus_um: torch.Tensor

class Darker(nn.Module):
    def __init__(self):
        super().__init__()
        self.prompter = nn.Module()
        self.prompter.estimator = nn.Identity()
        self.stop_after, self.seed, self.skip_in_focus = "p_diffusion", 0, False

    @property
    def options(self):
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def restore(self, image, location, binning=1):
        return Result(image * 0.75, image.mean(dim=(1, 2, 3)))

def encoded(pixels):
    return bytes(imagecodecs.jpeg8_encode(pixels, level=80, colorspace="RGB", outcolorspace="YCBCR", subsampling="422"))

def sparse(path, shape):
    """Glass of one tile that is stored again and again, and tissue."""
    noise = np.clip(np.random.default_rng(3).normal((190, 90, 140), 20, (TILE, TILE, 3)), 0, 255).astype(np.uint8)
    empty = np.full((TILE, TILE, 3), 243, np.uint8)
    glass, shapes = encoded(empty), level_shapes(shape)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, (height, width) in enumerate(shapes):
            half = TISSUE // 2**level // 2
            def tiles():
                for row in range(0, height, TILE):
                    for col in range(0, width, TILE):
                        inside = [slice(max(0, side // 2 - half - start), max(0, side // 2 + half - start))
                                  for side, start in ((height, row), (width, col))]
                        pixels = empty.copy()
                        pixels[*inside] = noise[*inside]
                        yield glass if (pixels == empty).all() else encoded(pixels)
            tiff.write(tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE), compression="jpeg",
                       photometric="ycbcr", subsampling=(2, 1), subifds=len(shapes) - 1 if level == 0 else None,
                       subfiletype=int(level > 0), metadata=None, resolutionunit="CENTIMETER",
                       resolution=(4e4 / 2**level, 4e4 / 2**level))

def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

folder, shape = Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
source, result = folder / "sparse.tif", folder / "result.ome.tiff"
sparse(source, shape)
for name in ("inference.json", "model.pt"):
    (folder / name).write_text("{}")
engine = Engine(SlideRestorer(Darker()), SlidePlanner(), folder / "inference.json", folder / "model.pt")
before = peak_gb()
report = restore_image(engine, Job(source, [result]), Wishes(mode="coarse", compression="jpeg"))
with open_image(result) as reader:
    middle = reader.read(shape[0] // 2 - 100, shape[1] // 2 - 100, 200, 200).mean()
    levels = len(reader.levels)
print(json.dumps({"before_gb": before, "peak_gb": peak_gb(), "levels": levels, "tiles": report.tiles,
                  "restored": sum(n for kind, n in report.kinds.items() if kind > 1), "middle": float(middle),
                  "kept": report.kept}))
'''


@pytest.mark.parametrize("height", [600, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_a_slide_of_100_000_px_needs_less_than_2_gb(tmp_path: Path, height: int) -> None:
    """Slides are larger than the memory of the machines that pathologists have; strips of full width are held."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), str(height), "100000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["peak_gb"] - told["before_gb"] < 2, told
    assert told["levels"] == 8 and 30 < told["restored"] < 600, told
    assert told["middle"] == pytest.approx(140 * 0.75, abs=4), told  # and every pixel was not just copied
