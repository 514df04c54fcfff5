"""From file to file: killed at any moment, the same command ends with the same bytes; what it says is true."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]

# Run in a process of its own: it forks a child for every kill. The child kills itself with -9 at its n-th event of
# the file system (opening, renaming, removing), so that a kill falls between any two of them.
PROGRAM = '''
import json, os, random, shutil, signal, sys
from pathlib import Path
import imagecodecs, numpy as np, scipy.ndimage, skimage.filters, tifffile, torch, zarr
from torch import nn
import pydicom, wsidicomizer
import bundle.slide_job as slide_job
from bundle.p_diffusion.noise import noise_at
from bundle.slide_job import Engine, restore_image
from bundle.wishes import Wishes
from bundle.slide_plan import SlidePlanner
from bundle.slide_restoration import SlideRestorer
from bundle.slides.files import Job
from typing import NamedTuple

torch.set_num_threads(1)

class Result(NamedTuple):
    restored: torch.Tensor
    defocus_um: torch.Tensor

class Estimator(nn.Module):
    def focus_map(self, image):
        return 6 * image.mean(dim=1, keepdim=True) - 3

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.prompter = nn.Module()
        self.prompter.estimator = Estimator()
        self.stop_after, self.seed, self.skip_in_focus = "p_diffusion", 5, False

    @property
    def options(self):
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def binning_of(self, tiles, camera=None):
        return 1

    def restore(self, image, location, binning=1):
        ramp = torch.linspace(0, 0.2, image.shape[-1])
        noise = noise_at(location, *image.shape[-2:], seed=self.seed, draw=1)
        return Result(image * 0.7 + ramp + 0.05 * noise, image.mean(dim=(1, 2, 3)))

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
files = folder / "inference.json", folder / "model.pt"
source = folder / "field.png"

def restore(result, overwrite=False):
    engine = Engine(SlideRestorer(Network(), 64, 16, block_px=96, batch=3), SlidePlanner(), *files)
    wishes = Wishes(mode="adaptive", mpp=0.25, overwrite=overwrite)
    restore_image(engine, Job(source, [result]), wishes)

def in_child(result, kill_at):
    """(signal or 0, events seen) of a restoration in a child."""
    report = folder / "events"
    pid = os.fork()
    if pid == 0:
        seen = [0]
        def watch(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                seen[0] += 1
                if seen[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        code = 1
        try:
            restore(result)
            code = 0
        finally:
            count = seen[0]
            kill_at = None
            report.write_text(str(count))
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)), status

def content(path):
    """The bytes of a result, of all its files where it is a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.read_bytes()) for file in files]

def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()

name = sys.argv[4]
whole = folder / "whole" / name
assert in_child(whole, 0)[0] == 0
events = int((folder / "events").read_text())
expected = content(whole)
draw = random.Random(int(sys.argv[3]))
result = folder / "killed" / name
killed = finished = resumed = 0
while killed < kills:
    before = (result.parent / f"{name}.partial" / "job.json").is_file()
    number, _ = in_child(result, draw.randint(1, events))
    if number == signal.SIGKILL:
        killed += 1
        # Under the final name there is nothing, or all of it.
        assert not result.exists() or content(result) == expected
        if result.exists():
            remove(result)
    else:
        assert number == 0, number
        assert content(result) == expected
        finished += 1
        resumed += before
        remove(result)
assert in_child(result, 0)[0] == 0 and content(result) == expected
left = sorted(path.name for path in result.parent.iterdir())
print(json.dumps({"events": events, "killed": killed, "finished": finished, "resumed": resumed, "left": left}))
'''


def tissue(path: Path) -> Path:
    """Stained tissue that gets brighter to the right, on glass: every kind of tile."""
    cols = np.arange(330)
    texture = np.random.default_rng(4).normal(0, 12, (230, 330))
    red = np.clip(60 + cols * 0.55 + texture, 0, 255)
    pixels = np.stack([red, red * 0.5, red * 0.8], axis=-1)
    pixels[:, 280:] = 243
    pixels[170:, :80] = 243
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source and what stands for config and weights."""
    tissue(tmp_path / "field.png")
    (tmp_path / "inference.json").write_text("{}")
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize("name", ["a.ome.tiff", "a.dicom"])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(folder: Path, name: str) -> None:
    """A night's work, a power cut, and a result that differs in one pixel from the undisturbed one."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(folder / "program.py"), str(folder), "24", "11", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == 24 and told["left"] == [name] and told["events"] > 60
    assert told["resumed"] > 0, told
