"""Time every stage of restoring a slide, and the same with an idle network: what reading and writing alone would take.

    python scripts/benchmark_slide.py --tiles FOLDER
        # 20,000 x 20,000 px: 15 minutes of a free core
    python scripts/benchmark_slide.py --tiles FOLDER --side 2048 --threads 1  # minutes

Reads   FOLDER, sharp fields with index.json (its split `test`); configs/inference.json; models/model.pt
Writes  --output: slide.ome.tiff, made of the fields and out of focus by a known depth map; depth_um.tif, that map;
        benchmark.json. A slide of the same size that is there already is used again. The restored slide is removed
Prints  seconds and CPU seconds of each stage, their share, tiles per second, peak memory

A stage's time is its own: reading that is asked for while planning counts as reading. Reading and writing that go on
beside the network have their own seconds, so that stages may sum to more than the whole; CPU seconds never do. zarr
compresses in threads of its own: that part of writing counts with what the network does meanwhile.
Ends with 1 where reading and writing alone take more than a tenth of the chain's CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bundle.conventions import from_uint8, to_uint8
from bundle.data.fields import field_records
from bundle.host import keep_large_allocations
from bundle.loading import CONFIG, WEIGHTS, check_device, load_slide_planner, load_tile_restorer
from bundle.messages import as_program
from bundle.optics.focal_stack import GainTable, simulate_plane
from bundle.optics.pupil import OPTICS_40X
from bundle.slide_job import RESTORING, Engine, restore_image
from bundle.slide_plan import MODES, SlidePlan, SlidePlanner
from bundle.slide_restoration import SlideRestorer
from bundle.slides import writer
from bundle.slides.blend import BlockBlend
from bundle.slides.files import Job
from bundle.slides.ledger import BlockLedger
from bundle.slides.pyramid import Encoding, Record, write_pyramid
from bundle.slides.reader import ImageReader, open_image
from bundle.slides.whole_files import replace_when_done
from bundle.wishes import Wishes

MPP = 0.25
GLASS = 243
DEPTH_UM = 2.4  # the relief reaches from minus this to this; 1 µm from the stage on average
PATTERN_PX = 2048  # the tissue repeats after this
MOST_SHARE = 0.1  # of reading and writing in the chain's CPU time


class Cost(NamedTuple):
    """What a stage took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def plus(self, seconds: float, cpu_seconds: float) -> Cost:
        return Cost(self.seconds + seconds, self.cpu_seconds + cpu_seconds)


class Stages:
    """Charges time to the innermost stage that is running, and work of other threads to its own stage."""

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self.costs: dict[str, Cost] = {}
        self._running = ["rest"]
        self._synchronise = synchronise
        self._thread, self._lock, self._beside_s = threading.current_thread(), threading.Lock(), 0.0
        self._inside = threading.local()
        self._since = time.perf_counter(), time.process_time()

    def charge(self) -> None:
        """Give the time since the last call to the stage that is running."""
        self._synchronise()
        now = time.perf_counter(), time.process_time()
        with self._lock:
            beside_s, self._beside_s = self._beside_s, 0.0
            self._add(self._running[-1], now[0] - self._since[0], now[1] - self._since[1] - beside_s)
        self._since = now

    def _add(self, name: str, seconds: float, cpu_seconds: float) -> None:
        self.costs[name] = self.costs.get(name, Cost()).plus(seconds, cpu_seconds)

    def _beside(self, name: str, call: Callable[[], Any]) -> Any:
        """A call in another thread: its CPU time is not that of the stage which runs meanwhile."""
        if getattr(self._inside, "stage", False):  # reading that reads is one reading
            return call()
        self._inside.stage = True
        began = time.perf_counter(), time.thread_time()
        try:
            return call()
        finally:
            self._inside.stage = False
            cpu_seconds = time.thread_time() - began[1]
            with self._lock:
                self._add(name, time.perf_counter() - began[0], cpu_seconds)
                self._beside_s += cpu_seconds

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` as a stage."""

        def run(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not self._thread:
                return self._beside(name, functools.partial(call, *arguments, **options))
            self.charge()
            self._running.append(name)
            try:
                return call(*arguments, **options)
            finally:
                self.charge()
                self._running.pop()

        return run

    @contextlib.contextmanager
    def watching(self, *calls: tuple[str, Any, str]) -> Iterator[None]:
        """Time calls: (stage, owner, name of the owner's function)."""
        before = [(owner, name, getattr(owner, name), name in vars(owner)) for _, owner, name in calls]
        try:
            for stage, owner, name in calls:
                setattr(owner, name, self.timed(stage, getattr(owner, name)))
            yield
        finally:
            for owner, name, call, own in reversed(before):
                if own:
                    setattr(owner, name, call)
                else:
                    delattr(owner, name)


class Unchanged(nn.Module):
    """Stands for the network: returns its input."""

    class Estimator(nn.Module):
        def focus_map(self, image: Tensor) -> Tensor:
            return image[:, :1]

    class Result(NamedTuple):
        restored: Tensor
        defocus_um: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.prompter = nn.Module()
        self.prompter.estimator = self.Estimator()
        self.stop_after, self.seed, self.skip_in_focus = "p_diffusion", 0, False

    @property
    def options(self) -> dict[str, object]:
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def binning_of(self, tiles: Iterable[Tensor], camera: object = None) -> int:
        return 1

    def restore(self, image: Tensor, location: Tensor, binning: int = 1) -> Result:
        return self.Result(image, torch.zeros(len(image)))


class KnownPlan(SlidePlanner):
    """Reads what the planner reads and gives the plan that the network's estimator made."""

    known: SlidePlan

    def plan(self, *arguments: Any, **options: Any) -> SlidePlan:
        super().plan(*arguments, **options)
        return self.known


def pattern(tiles: Path, side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Tissue out of focus, (side, side, 3), and the stage position at which each pixel is sharpest, µm."""
    draw = np.random.default_rng(seed)
    turns = torch.arange(side) * (2 * math.pi / side)  # whole waves: the pattern repeats without a step of depth
    relief_um = DEPTH_UM * turns.sin()[:, None] * turns.cos()[None, :]
    table = GainTable(OPTICS_40X._replace(mpp=MPP), reach_um=DEPTH_UM + 0.2)
    names = [record["label"] for record in field_records(tiles, "test")]
    pixels, cell = np.empty((side, side, 3), np.uint8), 512
    for row in range(0, side, cell):
        for col in range(0, side, cell):
            with open_image(names[int(draw.integers(len(names)))]) as reader:
                height, width = min(cell, side - row), min(cell, side - col)
                top, left = (int(draw.integers(length - cell + 1)) for length in reader.shape)
                sharp = torch.from_numpy(reader.read(top, left, height, width)).permute(2, 0, 1).contiguous()
            relief = relief_um[row : row + height, col : col + width]
            blurred = to_uint8(simulate_plane(from_uint8(sharp), 0.0, relief, table))
            pixels[row : row + height, col : col + width] = blurred.permute(1, 2, 0).numpy()
    return pixels, relief_um.numpy()


def make_slide(folder: Path, tiles: Path, side: int, tissue: float, seed: int) -> Path:
    """An ellipse of tissue on glass, `tissue` of the slide's area; the pattern repeats under it."""
    path = folder / "slide.ome.tiff"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with open_image(path) as reader:
            if reader.shape == (side, side):
                return path
    pixels, relief_um = pattern(tiles, min(PATTERN_PX, side), seed)
    tifffile.imwrite(folder / "depth_um.tif", relief_um, metadata=None, software="MoP")
    radius = side * np.sqrt(tissue / np.pi)
    columns = np.arange(side)

    def rows_at(first: int, rows: int) -> NDArray[np.uint8]:
        strip = np.full((rows, side, 3), GLASS, np.uint8)
        for k in range(rows):
            seen = (first + k - side / 2) ** 2 + (columns - side / 2) ** 2 < radius**2
            strip[k, seen] = pixels[(first + k) % len(pixels), columns[seen] % len(pixels)]
        return strip

    with replace_when_done(path, overwrite=True) as file:
        write_pyramid(file, (side, side), rows_at, Encoding("jpeg", 90, "422"), Record(path.name, MPP), True, folder)
    return path


def measure(engine: Engine, source: Path, result: Path, device: str, mode: str
            ) -> tuple[dict[str, Cost], dict[str, Any]]:  # fmt: skip
    """Costs of the stages and the facts of one restoration; the result is removed."""
    network: Any = engine.restorer.tile_restorer
    stages = Stages(torch.cuda.synchronize if device == "cuda" else lambda: None)
    calls: list[tuple[str, Any, str]] = [
        ("read", ImageReader, "read"), ("plan", type(engine.planner), "plan"), ("blend", BlockBlend, "add"),
        ("blend", BlockBlend, "result"), ("write", BlockLedger, "put"), ("write", BlockLedger, "read"),
        ("write", writer, "write_pyramid"),
    ]  # fmt: skip
    if hasattr(network, "inferer"):
        calls += [("prompts", network.prompter, "forward"), ("P-former", network.p_former, "forward"),
                  ("P-diffusion", network.inferer, "sample")]  # fmt: skip
    done = [0]

    def follow(phase: str) -> Callable[[int, int], None]:
        def restored(count: int, total: int) -> None:
            done[0] = count

        return restored if phase == RESTORING else lambda count, total: None

    began = time.perf_counter()
    with stages.watching(*calls):
        wishes = Wishes(mode, overwrite=True, compression="jpeg")
        report = restore_image(engine, Job(source, [result]), wishes, follow)
        stages.charge()
    seconds = time.perf_counter() - began
    size = result.stat().st_size
    result.unlink()
    cpu_seconds = sum(cost.cpu_seconds for cost in stages.costs.values())
    facts = {
        "tiles": report.tiles, "runs": done[0], "kinds": {kind.name: n for kind, n in report.kinds.items()},
        "kept": report.kept, "result_bytes": size, "seconds": seconds, "cpu_seconds": cpu_seconds,
        "runs_per_second": done[0] / seconds, "runs_per_cpu_second": done[0] / cpu_seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }  # fmt: skip
    return stages.costs, facts


@as_program
def main() -> None:
    """Parse the line above, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder of sharp fields with index.json")
    parser.add_argument("--output", type=Path, default=Path("benchmark_slide"), help="folder for slide and figures")
    parser.add_argument("--side", type=int, default=20_000, help="of the slide, px")
    parser.add_argument("--tissue", type=float, default=0.4, help="share of the slide's area, up to 0.78")
    parser.add_argument("--mode", default="adaptive", choices=MODES, help="as of mop restore")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads")
    parser.add_argument("--batch", type=int, default=1, help="tiles at once")
    parser.add_argument("--seed", type=int, default=0, help="of fields and depth map")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    if not 0 < arguments.tissue <= 0.78 or arguments.side < 1024:
        parser.error(f"--tissue must lie in 0..0.78 and --side from 1024 on, got {arguments.tissue}, {arguments.side}.")
    check_device(arguments.device)
    torch.set_num_threads(arguments.threads)
    keep_large_allocations()
    folder, device = arguments.output, arguments.device
    source = make_slide(folder, arguments.tiles, arguments.side, arguments.tissue, arguments.seed)
    files = arguments.config, arguments.weights
    network = load_tile_restorer(*files, device)
    chain = Engine(SlideRestorer(network, batch=arguments.batch), load_slide_planner(files[0]), *files)
    plain = SlideRestorer(Unchanged(), batch=arguments.batch)  # type: ignore[arg-type]
    planner = KnownPlan(stride=chain.planner.stride)
    with open_image(source) as reader:
        restorer = chain.restorer
        planner.known = chain.planner.plan(reader, restorer.grid(reader), arguments.mode, network.prompter.estimator,
                                           restorer.device)  # fmt: skip
    # First the one that needs less memory: the system keeps the peak of the whole process.
    idle, result = Engine(plain, planner, *files), folder / "restored.ome.tiff"
    measured = {
        "unchanged": measure(idle, source, result, "cpu", arguments.mode),
        "chain": measure(chain, source, result, device, arguments.mode),
    }
    share = show(arguments, measured)
    report = {
        name: {"stages": {stage: cost._asdict() for stage, cost in costs.items()}} | facts
        for name, (costs, facts) in measured.items()
    }
    with replace_when_done(folder / "benchmark.json", overwrite=True) as file:
        file.write((json.dumps({"machine": machine(arguments), **report}, indent=2) + "\n").encode())
    if share > MOST_SHARE:
        sys.exit(1)


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    return {"cpu": model, "threads": arguments.threads, "gpu": gpu, "torch": torch.__version__,
            "side": arguments.side, "mode": arguments.mode, "tissue": arguments.tissue, "batch": arguments.batch,
            "load": round(os.getloadavg()[0], 1)}  # fmt: skip


def show(arguments: argparse.Namespace, measured: dict[str, tuple[dict[str, Cost], dict[str, Any]]]) -> float:
    """One table a run; the share of reading and writing in the chain's CPU time."""
    console = Console()
    for name, (costs, facts) in measured.items():
        title = f"{name}: {arguments.side} x {arguments.side} px, {facts['runs']} tiles run of {facts['tiles']}"
        table = Table(title=title)
        for column in ("stage", "seconds", "CPU seconds", "share of CPU"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage, cost in sorted(costs.items(), key=lambda item: -item[1].cpu_seconds):
            share = f"{cost.cpu_seconds / facts['cpu_seconds']:.1%}"
            table.add_row(stage, f"{cost.seconds:.2f}", f"{cost.cpu_seconds:.2f}", share)
        table.add_row("all", f"{facts['seconds']:.2f}", f"{facts['cpu_seconds']:.2f}", "")
        console.print(table)
        kinds = ", ".join(f"{count} {kind.lower()}" for kind, count in facts["kinds"].items())
        console.print(f"{kinds}; {facts['kept']}")
        console.print(f"{facts['runs_per_second']:.2f} tiles a second, peak {facts['peak_gb']:.2f} GB")
    ratio = measured["unchanged"][1]["cpu_seconds"] / measured["chain"][1]["cpu_seconds"]
    due = f"at most {MOST_SHARE:.0%} are due"
    console.print(f"Reading and writing alone take {ratio:.1%} of the chain's CPU time, {due}.")
    return ratio


if __name__ == "__main__":
    raise SystemExit(main())
