"""The command line on a stand-in network: results under their names, one sentence for every mistake, nothing left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from bundle.cli import main
from bundle.slide_plan import SlidePlanner

ROOT = Path(__file__).parents[1]

NETWORK = '''
import os, time
from pathlib import Path
from typing import NamedTuple
import torch
from torch import nn


class Result(NamedTuple):
    restored: torch.Tensor
    defocus_um: torch.Tensor


class Estimator(nn.Module):
    def focus_map(self, image):
        return 4 * image.mean(dim=1, keepdim=True) - 2


class Prompter(nn.Module):
    def __init__(self):
        super().__init__()
        self.estimator = Estimator()


class Invert(nn.Module):
    """gain * (1 - image): stop_after, seed and skip_in_focus show in the pixels."""

    def __init__(self, channels=3):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.prompter = Prompter()
        self.stop_after, self.seed, self.skip_in_focus = "p_diffusion", 0, False

    @property
    def options(self):
        return {"stop_after": self.stop_after, "seed": self.seed, "skip_in_focus": self.skip_in_focus}

    def binning_of(self, tiles, camera=None):
        return 1 if camera is None or camera() < 0.99 else 2

    def log2_oversampling_of(self, tiles):
        return max((float(tile.mean()) for tile in tiles), default=0.0)

    def restore(self, image, location, binning=1):
        seconds = float(os.environ.get("FAKE_SECONDS_A_TILE", "0"))
        if seconds:
            Path(__file__).with_name("began").touch()
        time.sleep(seconds)
        restored = self.gain * (1 - image) + self.seed / 255
        if self.stop_after == "p_former":
            restored = restored * 0
        if self.skip_in_focus:
            restored = torch.where(image < 0.5, image, restored)
        return Result(restored, torch.full((len(image),), -1.5))
'''


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a config and weights of the stand-in."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "stand_in_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(code))
    (code / "inference.json").write_text(
        json.dumps(
            {
                "device": "cuda:9",
                "channels": 3,
                "network_def": {"_target_": "stand_in_network.Invert", "channels": "@channels"},
            }
        )
    )
    state = {"gain": torch.ones(1, 3, 1, 1)}
    torch.save(state, code / "model.pt")
    return ["--config", str(code / "inference.json"), "--weights", str(code / "model.pt")]


def field(height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray | None = None) -> Path:
    pixels = field() if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels, photometric="rgb", resolution=(4e4, 4e4), resolutionunit=3)
    else:
        Image.fromarray(pixels).save(path, quality=95) if path.suffix == ".jpg" else Image.fromarray(pixels).save(path)
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def sentences(text: str) -> list[str]:
    lines = text.strip().splitlines()
    assert all(line.startswith("mop: ") and line.endswith(".") for line in lines), text
    assert "Traceback" not in text
    return lines


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ome.tiff"])
def test_a_restored_image_keeps_its_name_and_its_size(tmp_path: Path, network: list[str], capsys, name: str) -> None:
    """The first thing a user does. The stand-in inverts: every pixel can be foretold."""
    save(tmp_path / "in" / name)
    assert main(["restore", str(tmp_path / "in" / name), "--output", str(tmp_path / "out" / "new"), *network]) == 0
    assert left_in(tmp_path / "out" / "new") == [name]
    with Image.open(tmp_path / "out" / "new" / name) as result:
        np.testing.assert_array_equal(np.asarray(result), 255 - field())
    out, err = capsys.readouterr()
    assert out.startswith(f"{name}: 120 x 90 px, ") and "mean |defocus| 1.50 µm" in out and out.count("\n") == 1
    assert "untouched" not in out
    assert len(sentences(err)) == (1 if name == "a.png" else 0)  # a PNG does not say its pixel size


@pytest.mark.parametrize("binning", ["1", "2"])
def test_a_binned_image_says_so(tmp_path: Path, network: list[str], capsys, binning: str) -> None:
    """Detail that one size alone shows is doubted: nobody should have to guess it from the pixels."""
    image, out = save(tmp_path / "a.tif"), tmp_path / "out"
    assert main(["restore", str(image), "--output", str(out), "--binning", binning, *network]) == 0
    said = "restored at several sizes of pixels as of a camera that oversamples (--binning 1: at one)"
    assert (said in capsys.readouterr().out) == (binning == "2")


@pytest.mark.parametrize("command", ["restore", "focus"])
def test_images_of_a_folder_say_together_in_which_pixels_they_are_read(tmp_path: Path, network: list[str], capsys,
                                                                       command: str) -> None:
    """The white one says of the stand-in's camera that it oversamples; alone nobody says it of the other."""
    images = tmp_path / "in"
    one = save(images / "a.tif")
    results = ["--output", str(tmp_path / "alone")]
    assert main([command, str(one), *results, *network]) == 0
    alone = capsys.readouterr().out
    tifffile.imwrite(images / "b.tif", np.full((90, 120, 3), 255, np.uint8), photometric="rgb")
    assert main([command, str(images), "--output", str(tmp_path / "both"), *network]) == 0
    both = capsys.readouterr().out
    assert "oversamples" not in alone and both.count("oversamples") == (2 if command == "restore" else 0)
    if command == "focus":
        maps = [tifffile.imread(tmp_path / name / "a_focus.tif") for name in ("alone", "both")]
        assert not np.array_equal(*maps)  # as binned pixels show it


def test_the_good_images_are_restored_and_the_bad_ones_reported(tmp_path: Path, network: list[str], capsys) -> None:
    """One broken file among a hundred must not cost the night."""
    images = [save(tmp_path / "in" / name) for name in ("a.tif", "b.tif")]
    images.insert(1, tmp_path / "in" / "missing.tif")
    (tmp_path / "in" / "text.tif").write_text("text")
    damaged = tmp_path / "in" / "damaged.tif"
    tifffile.imwrite(
        damaged,
        field(400, 400),
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
        resolution=(4e4, 4e4),
        resolutionunit=3,
    )
    with tifffile.TiffFile(damaged) as tiff:
        offset, count = tiff.pages[0].dataoffsets[30], tiff.pages[0].databytecounts[30]
    data = bytearray(damaged.read_bytes())
    data[offset : offset + count] = bytes(count)
    damaged.write_bytes(data)
    inputs = [*images, tmp_path / "in" / "text.tif", damaged]
    command = ["restore", *map(str, inputs), "--output", str(tmp_path / "out"), *network]
    assert main([*command, "--strict"]) == 1
    assert left_in(tmp_path / "out") == ["a.tif", "b.tif"]
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["a.tif", "b.tif"]
    told = sentences(err)
    assert len(told) == 3 and "missing.tif is missing" in told[0] and "not a TIFF" in told[1]
    assert "segment 30 of damaged.tif cannot be decoded" in told[2]
    assert main(["restore", str(damaged), "--output", str(tmp_path / "lenient"), *network]) == 0
    assert "tiles of damaged.tif hold parts that cannot be decoded" in sentences(capsys.readouterr().err)[-1]


def write_bad(folder: Path, kind: str) -> Path:
    pixels = field()
    alpha = np.dstack([pixels, pixels[..., :1]])
    path = folder / ("a.tif" if kind in ("float with NaN", "16-bit", "stack") else "a.png")
    folder.mkdir()
    whole = save(folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    makers: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "text": lambda: path.write_text("text"),
        "empty file": lambda: path.write_bytes(b""),
        "truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "grey": lambda: Image.fromarray(pixels[..., 0]).save(path),
        "RGBA": lambda: Image.fromarray(alpha).save(path),
        "16-bit": lambda: tifffile.imwrite(path, pixels.astype(np.uint16), photometric="rgb"),
        "float with NaN": lambda: tifffile.imwrite(path, np.full((64, 64, 3), np.nan, np.float32), photometric="rgb"),
        "stack": lambda: tifffile.imwrite(path, np.stack([pixels] * 2), photometric="rgb"),
        "1 x 1": lambda: Image.fromarray(pixels[:1, :1]).save(path),
        "empty folder": lambda: None,
    }
    makers[kind]()
    return folder if kind == "empty folder" else path


@pytest.mark.parametrize("command", ["restore", "focus", "simulate"])
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("missing", "a.png is missing"),
        ("text", "cannot be decoded as PNG or JPEG"),
        ("empty file", "is empty (0 bytes)"),
        ("truncated", "cannot be decoded"),
        ("grey", "must be 8-bit RGB brightfield"),
        ("RGBA", "without alpha"),
        ("16-bit", "16-bit uint16"),
        ("float with NaN", "32-bit float32"),
        ("stack", "a single RGB plane"),
        ("1 x 1", "at least 32 x 32 px, a.png has 1 x 1"),
        ("empty folder", "a folder must hold images"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_no_file(tmp_path: Path, capsys, command: str, kind: str, rule: str) -> None:
    """Even without a network at hand: the input is judged first."""
    path = write_bad(tmp_path / "in", kind)
    assert main([command, str(path), "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(sentences(err)) == 1 and rule in err
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["restore", "a.png"], "--output DIR is needed"),
        (["restore", "--output", "out"], "IMAGE is needed"),
        (["restore", "a.png", "--otput", "out"], "restore has no option --otput"),
        (["restore", "a.png", "--output", "out", "--report", "--no-report"], "--report and --no-report exclude"),
        (["restore", "a.png", "-o", "out"], "restore has no option -o"),
        (["restore", "a.png", "--unknown", "1", "--output", "out"], "restore has no option --unknown"),
        (["focus", "a.png", "--output", "out", "--seed", "1"], "focus has no option --seed"),
        (["restore", "a.png", "--output"], "--output needs a value"),
        (["restore", "a.png", "--output="], "--output needs a value"),
        (["restore", "a.png", "--output", "--overwrite"], "--output needs a value"),
        (["restore", "a.png", "--output", "out", "--overwrite=no"], "--overwrite takes no value, got no"),
        (["restore", "a.png", "--output", "out", "--seed", "1_2"], "--seed must be a whole number from 0 on, got 1_2"),
        (["restore", "a.png", "--output", "out", "--seed", "-1"], "--seed must be a whole number from 0 on, got -1"),
        (
            ["restore", "a.png", "--output", "out", "--mpp", "0,25"],
            "--mpp must be a positive number such as 0.25, got 0,25",
        ),
        (["restore", "a.png", "--output", "out", "--mpp", "0"], "--mpp must be a positive number such as 0.25, got 0"),
        (["restore", "a.png", "--output", "out", "--binning", "3"], "--binning must be 1 or 2, got 3"),
        (["restore", "a.png", "--output", "out", "--batch", "0"], "--batch must be a whole number from 1 on, got 0"),
        (
            ["restore", "a.png", "--output", "out", "--tile-px", "8"],
            "--tile-px must be a whole number from 32 on, got 8",
        ),
        (
            ["restore", "a.png", "--output", "out", "--stop-after", "x"],
            "--stop-after must be p_former or p_diffusion, got x",
        ),
        (
            ["restroe", "a.png"],
            "must be one of restore, focus, view, simulate, prepare, experiments, export, doctor, got restroe",
        ),
    ],
)
def test_a_wrong_command_line_fails_at_once(
    tmp_path: Path, monkeypatch, capsys, arguments: list[str], rule: str
) -> None:
    """Fire alone runs the function first and complains afterwards."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(sentences(err)) == 1 and rule in err
    assert left_in(tmp_path) == ["a.png"]


def test_help_shows_an_example_of_every_command(capsys) -> None:
    """The first thing a newcomer types."""
    from bundle.cli import COMMANDS

    commands = [[name, "--help"] for name in COMMANDS]
    for arguments in ([], ["--help"], ["focus", "-h"], ["simulate", "a.png", "--help"], *commands):
        assert main(arguments) == 0
        assert re.search(r"Examples?:?\n    mop ", capsys.readouterr().out), arguments
    assert main(["--version"]) == 0


def test_every_option_of_a_command_is_in_its_help(capsys) -> None:
    """An option that the help does not name does not exist for its user."""
    import inspect

    from bundle.cli import COMMANDS

    positional = {"images", "sources", "runs"}
    for name, command in COMMANDS.items():
        main([name, "--help"])
        out = capsys.readouterr().out
        for option in set(inspect.signature(command).parameters) - positional - {"unknown"}:
            assert f"--{option.replace('_', '-')} " in out, (name, option)


def write_weights(kind: str, path: Path) -> str:
    gain = torch.ones(1, 3, 1, 1)
    good = {"gain": gain}
    makers: dict[str, tuple[Callable[[], object], str]] = {
        "missing": (path.unlink, "the weights file must exist"),
        "text": (lambda: path.write_text("text"), "must be a state dict written by torch.save, model.pt is not"),
        "empty": (lambda: path.write_bytes(b""), "must be a state dict written by torch.save"),
        "truncated": (lambda: path.write_bytes(path.read_bytes()[:300]), "must be a state dict written by torch.save"),
        "a tensor": (lambda: torch.save(gain, path), "must be a state dict, model.pt holds Tensor"),
        "code": (lambda: torch.save({"gain": Path("a")}, path), "must be a state dict written by torch.save"),
        "other names": (lambda: torch.save({"weight": gain}, path), "1 missing (first gain), 1 unknown (first weight)"),
        "other size": (lambda: torch.save({"gain": gain[:, :1]}, path), "1 of another size (first gain)"),
        "one more": (lambda: torch.save(good | {"more": gain}, path), "1 unknown (first more)"),
    }
    makers[kind][0]()
    return makers[kind][1]


KINDS = ["missing", "text", "empty", "truncated", "a tensor", "code", "other names", "other size", "one more"]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_weights_end_in_one_sentence(tmp_path: Path, network: list[str], capsys, kind: str) -> None:
    """Weights loaded in part restore something, and nobody sees that it is wrong."""
    rule = write_weights(kind, Path(network[3]))
    image = save(tmp_path / "in" / "a.tif")
    assert main(["restore", str(image), "--output", str(tmp_path / "out"), *network]) == 1
    err = capsys.readouterr().err
    assert len(sentences(err)) == 1 and rule in err
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (None, "the config file must exist"),
        ("text", "a config must be JSON"),
        ("{}", "must declare network_def"),
        ('{"network_def": {"_target_": "no_such_module.Network"}}', "network_def of inference.json cannot be built"),
        ('{"network_def": 5}', "must be a torch module, got int"),
    ],
)
def test_a_wrong_config_ends_in_one_sentence(
    tmp_path: Path, network: list[str], capsys, config: str | None, rule: str
) -> None:
    """MONAI answers with pages of its own frames."""
    path = Path(network[1])
    path.unlink() if config is None else path.write_text(config)
    image = save(tmp_path / "in" / "a.tif")
    assert main(["restore", str(image), "--output", str(tmp_path / "out"), *network]) == 1
    err = capsys.readouterr().err
    assert len(sentences(err)) == 1 and rule in err


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, network: list[str], capsys, monkeypatch) -> None:
    """Falling back to the CPU silently costs hours."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    image = save(tmp_path / "in" / "a.tif")
    for device, rule in (("cuda", "device cuda needs"), ("tpu", "device must be cpu or cuda, got tpu")):
        assert main(["restore", str(image), "--output", str(tmp_path / "out"), "--device", device, *network]) == 1
        assert rule in sentences(capsys.readouterr().err)[0]


def test_an_existing_result_is_replaced_only_with_overwrite(tmp_path: Path, network: list[str], capsys) -> None:
    """A second call must not cost a night's work; with --overwrite first, the image after it is still an image."""
    image = save(tmp_path / "in" / "a.tif")
    command = ["restore", str(image), "--output", str(tmp_path / "out"), *network]
    assert main(command) == 0
    before = (tmp_path / "out" / "a.tif").read_bytes()
    capsys.readouterr()
    assert main([*command, "--seed", "9"]) == 1
    assert "--overwrite" in sentences(capsys.readouterr().err)[0]
    assert (tmp_path / "out" / "a.tif").read_bytes() == before
    assert main(["restore", "--overwrite", *command[1:], "--seed", "9"]) == 0
    assert (tmp_path / "out" / "a.tif").read_bytes() != before


def test_a_repeated_command_skips_what_is_finished_where_it_is_asked_to(
    tmp_path: Path, network: list[str], capsys
) -> None:
    """A night of slides that stopped half-way goes on by the same command, and ends with 0."""
    images = [save(tmp_path / "in" / name) for name in ("a.tif", "b.png")]
    out = tmp_path / "out"
    assert main(["restore", str(images[0]), "--output", str(out), "--skip-existing", *network]) == 0
    before = (out / "a.tif").read_bytes()
    capsys.readouterr()
    command = ["restore", *map(str, images), "--output", str(out), "--skip-existing", *network]
    assert main(command) == 0
    assert f"a.tif: {out / 'a.tif'} is there, left as it is" in capsys.readouterr().out
    assert left_in(out) == ["a.tif", "b.png"] and (out / "a.tif").read_bytes() == before
    assert main(command) == 0
    assert main([*command, "--overwrite"]) == 2
    # Killed between the renaming of the result and the end of its ledger: the rest of the ledger is no work.
    (out / "a.tif.partial" / "pixels").mkdir(parents=True)
    assert main(command) == 0 and (out / "a.tif.partial").is_dir()  # a run may just have begun it
    os.utime(out / "a.tif.partial", (0, 0))
    assert main([*command, "--dry-run"]) == 0 and (out / "a.tif.partial").is_dir()
    assert main(command) == 0 and left_in(out) == ["a.tif", "b.png"]
    (out / "a.tif.partial").mkdir()
    (out / "a.tif.partial" / "notes.txt").touch()
    os.utime(out / "a.tif.partial", (0, 0))
    assert main(command) == 0 and (out / "a.tif.partial" / "notes.txt").is_file()  # nothing of ours
    shutil.rmtree(out / "a.tif.partial")
    (out / "a.tif.partial").mkdir()
    (out / "a.tif.partial" / "job.json").write_text("{}")
    assert main(command) == 0 and (out / "a.tif.partial" / "job.json").is_file()  # work of a run with --overwrite


def test_results_never_collide_nor_replace_their_input(tmp_path: Path, network: list[str], capsys) -> None:
    """The scan is the only original."""
    images = [save(tmp_path / "one" / "a.tif"), save(tmp_path / "two" / "a.tif"), save(tmp_path / "one" / "b.tif")]
    assert main(["restore", *map(str, images), "--output", str(tmp_path / "out"), *network]) == 1
    told = sentences(capsys.readouterr().err)
    assert len(told) == 2 and all("2 inputs would become" in line for line in told)
    assert left_in(tmp_path / "out") == ["b.tif"]
    before = images[0].read_bytes()
    assert (
        main(["restore", str(images[0]), "--output", str(tmp_path / "two" / ".." / "one"), "--overwrite", *network])
        == 1
    )
    assert "must not replace its own input" in sentences(capsys.readouterr().err)[0]
    assert images[0].read_bytes() == before
    (tmp_path / "file").write_text("")
    assert main(["restore", str(images[0]), "--output", str(tmp_path / "file"), *network]) == 1
    assert "the output must be a folder" in sentences(capsys.readouterr().err)[0]


def test_a_folder_gives_its_images(tmp_path: Path, network: list[str], capsys) -> None:
    """Also an image named twice is one image."""
    for name in ("b.png", "a.jpg", "c.tif", "sub/d.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("text")
    images = [str(tmp_path / "in"), str(tmp_path / "in" / "a.jpg")]
    assert main(["restore", *images, "--output", str(tmp_path / "out"), *network]) == 0
    assert left_in(tmp_path / "out") == ["a.jpg", "b.png", "c.tif"]
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("mpp", "arguments", "warning"),
    [
        (0.25, [], None),
        (0.5, [], None),
        (1.0, [], "has 1 µm/px, the network was trained at 0.25 and 0.5"),
        (1.0, ["--mpp", "0.5"], None),
        (None, [], "does not say its µm per pixel"),
        (None, ["--mpp", "0.3"], None),
        (0.25, ["--mpp", "0.1"], "has 0.1 µm/px"),
    ],
)
def test_a_pixel_size_that_was_not_trained_is_told(
    tmp_path: Path, network: list[str], capsys, mpp: float | None, arguments: list[str], warning: str | None
) -> None:
    """Tissue at an unknown scale is restored badly, and the picture does not show it."""
    path = tmp_path / "a.tif"
    density = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
    tifffile.imwrite(path, field(), photometric="rgb", **density)
    assert main(["restore", str(path), "--output", str(tmp_path / "out"), *arguments, *network]) == 0
    err = capsys.readouterr().err
    assert (warning is None and err == "") or (warning is not None and len(sentences(err)) == 1 and warning in err)
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as tiff:
        kept = float(arguments[1]) if arguments else mpp
        tag = tiff.pages[0].tags["XResolution"].value
        assert kept is None or 1e4 * tag[1] / tag[0] == pytest.approx(kept, rel=1e-4)


def test_the_options_reach_the_network(tmp_path: Path, network: list[str], capsys) -> None:
    """An option that is read and forgotten is worse than none."""
    image = save(tmp_path / "in" / "a.tif")

    def run(name: str, *options: str) -> np.ndarray:
        assert main(["restore", str(image), "--output", str(tmp_path / name), *options, *network]) == 0
        return tifffile.imread(tmp_path / name / "a.tif")

    inverted = 255 - field().astype(int)
    np.testing.assert_array_equal(run("seed", "--seed", "12"), np.minimum(inverted + 12, 255))
    assert not run("stage", "--stop-after", "p_former").any()
    capsys.readouterr()
    np.testing.assert_array_equal(run("skip", "--skip-in-focus"), np.where(field() < 128, field(), inverted))
    untouched = (field() < 128).all(axis=2).mean()
    assert f"{untouched:.0%} untouched" in capsys.readouterr().out
    np.testing.assert_array_equal(run("tiles", "--tile-px", "64", "--batch", "3"), inverted)


def tissue_slide(path: Path, pictures: bool = False) -> Path:
    """An Aperio slide: glass, then tissue that the stand-in's estimator finds 1.29 µm out of focus."""
    pixels = np.full((300, 900, 3), 240, np.uint8)
    pixels[:, 500:] = (90, 5, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    words = "Aperio Image Library v10.0.51\r\n900x300 [0,0 900x300] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990"
    options = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(64, 64), description=words, **options)
        for name, kind in (("thumbnail", 0), ("label", 1), ("macro", 9)) if pictures else ():
            picture = np.full((64, 96, 3), {"thumbnail": 90, "label": 150, "macro": 210}[name], np.uint8)
            words = f"Aperio Image Library v10.0.51\r\n{name} 96x64"
            tiff.write(picture, description=words, subfiletype=kind, **options)
    return path


def test_a_slide_becomes_an_ome_tiff_that_says_where_it_comes_from(
    tmp_path: Path, network: list[str], capsys
) -> None:
    """The glass is copied, the tissue restored, and nobody can take the result for a scan."""
    image = tissue_slide(tmp_path / "in" / "a.svs")
    assert main(["restore", str(image), "--output", str(tmp_path / "out"), "--tile-px", "64", *network]) == 0
    told = capsys.readouterr().out
    assert left_in(tmp_path / "out") == ["a.ome.tiff", "a_report.html"]
    assert "0 hopeless tiles" in told and "untouched" in told
    with tifffile.TiffFile(tmp_path / "out" / "a.ome.tiff") as tiff:
        result, xml = tiff.pages[0].asarray().astype(int), tiff.ome_metadata
        assert tiff.pages[0].compression == tifffile.COMPRESSION.JPEG
    assert np.abs(result[:, :380] - 240).max() <= 3
    # The padding of the source's last JPEG tiles rings 4 px into the image.
    assert np.abs(result[:280, 600:880] - (165, 250, 215)).max() <= 16
    assert "not for primary diagnosis" in xml and '<M K="source name">a.svs</M>' in xml
    assert xml.count("sha256") == 3 and '<M K="mode">adaptive</M>' in xml and '<M K="objective">20</M>' in xml
    one = tmp_path / "one" / "restored.ome.tif"
    options = ["--compression", "lzw", "--mode", "coarse", "--no-report", *network]
    assert main(["restore", str(image), "--output", str(one), *options]) == 0
    assert left_in(tmp_path / "one") == ["restored.ome.tif"]


def test_the_pictures_of_the_glass_come_only_when_asked_for(tmp_path: Path, network: list[str], capsys) -> None:
    """They may show a patient's name. A slide without them is restored all the same, and says so."""
    image, out = tissue_slide(tmp_path / "in" / "a.svs", pictures=True), tmp_path / "out"
    command = ["restore", str(image), "--no-report", "--mode", "coarse", *network]
    assert main([*command, "--output", str(out)]) == 0 and left_in(out) == ["a.ome.tiff"]
    assert main([*command, "--output", str(out), "--associated", "--overwrite"]) == 0
    assert left_in(out) == ["a.ome.tiff", "a_label.png", "a_macro.png"]
    capsys.readouterr()
    for name, level in (("label", 150), ("macro", 210)):
        assert np.abs(np.asarray(Image.open(out / f"a_{name}.png")).astype(int) - level).max() <= 2
    # Another slide under the same name: no picture of the one before may stay beside it.
    tissue_slide(tmp_path / "in" / "a.svs")
    assert main([*command, "--output", str(out), "--associated"]) == 1
    assert main([*command, "--output", str(out), "--associated", "--overwrite"]) == 0
    told = capsys.readouterr()
    assert "a.svs has no label picture" in told.err and "a_label.png" not in told.out
    assert left_in(out) == ["a.ome.tiff"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path, network: list[str], capsys) -> None:
    """Hours and gigabytes should be known before they are spent."""
    image = tissue_slide(tmp_path / "in" / "a.svs")
    assert main(["restore", str(image), "--dry-run", "--tile-px", "64", *network]) == 0
    tiles, cost = capsys.readouterr().out.splitlines()
    assert re.match(r"a\.svs: [1-9]\d* background, \d+ in focus, \d+ mild, \d+ strong, 0 hopeless tiles$", tiles)
    assert re.search(r"about \d+\.\d min on cpu, up to .* GB of work .* GB of result, .* GB free", cost)
    assert left_in(tmp_path / "in") == ["a.svs"]


def test_a_slide_of_unknown_pixel_size_needs_mpp(tmp_path: Path, network: list[str], capsys) -> None:
    """At a scale that nobody knows the whole night would be guesswork."""
    image = tissue_slide(tmp_path / "in" / "a.svs")
    image.write_bytes(image.read_bytes().replace(b"MPP = 0.4990", b"XYZ = 0.4990"))
    assert main(["restore", str(image), "--output", str(tmp_path / "out"), *network]) == 1
    assert "a slide must say its µm per pixel, a.svs does not: give --mpp." in sentences(capsys.readouterr().err)[0]


def test_the_doctor_names_each_gap_and_what_to_do(tmp_path: Path, network: list[str], capsys) -> None:
    """The first question of every bug report."""
    assert main(["doctor", *network]) == 0
    out = capsys.readouterr().out
    assert "openslide-python: " in out and "not the shipped weights" in out and "takes these weights" in out
    Path(network[3]).write_text("text")
    assert main(["doctor", *network]) == 1
    assert "FAIL  network: weights must be a state dict" in capsys.readouterr().out
    Path(network[3]).unlink()
    assert main(["doctor", *network]) == 1
    assert "model.pt is missing -> take it from the repository" in capsys.readouterr().out
    assert main(["doctor", "a.png"]) == 2


def test_focus_of_a_slide_is_a_picture_outlines_and_a_table(
    tmp_path: Path, network: list[str], capsys, monkeypatch
) -> None:
    """Who plans a night of scanning again reads the table, and QuPath shows the outlines at their places."""
    probes = SlidePlanner._probes
    image = tissue_slide(tmp_path / "in" / "a.svs")
    command = ["focus", str(image), "--output", str(tmp_path / "out"), "--tile-px", "64", *network]
    assert main(command) == 0
    assert "strong, 0 hopeless tiles" in capsys.readouterr().out
    assert left_in(tmp_path / "out") == ["a_focus.csv", "a_focus.geojson", "a_focus.png"]
    header, *lines = (tmp_path / "out" / "a_focus.csv").read_text().splitlines()
    assert header == "row_px,col_px,height_px,width_px,kind,defocus_um" and len(lines) > 20
    inner = next(line for line in lines if line.startswith("96,624,64,64,strong,"))
    assert float(inner.split(",")[-1]) == pytest.approx(-1.29, abs=0.06)
    features = json.loads((tmp_path / "out" / "a_focus.geojson").read_text())["features"]
    (tissue,) = (one["geometry"] for one in features if one["properties"]["classification"]["name"] == "Tissue")
    cols = [col for col, _ in tissue["coordinates"][0]]
    assert 480 <= min(cols) <= 500 and max(cols) == 900
    strong = [one for one in features if one["properties"]["classification"]["name"] == "Strong"]
    assert sum(one["properties"]["measurements"]["tiles"] for one in strong) == sum("strong" in x for x in lines)
    assert main(command) == 1
    calls: list[int] = []
    monkeypatch.setattr(SlidePlanner, "_probes", lambda *given: calls.append(given[2]) or probes(*given))
    assert main([*command, "--overwrite", "--probes", "7"]) == 0 and calls == [7]


def test_focus_writes_a_picture_and_signed_numbers(tmp_path: Path, network: list[str], capsys) -> None:
    """The numbers must be µm with their sign, at the place where they belong."""
    image = save(tmp_path / "in" / "a.ome.tiff")
    command = ["focus", str(image), "--output", str(tmp_path / "out"), *network]
    assert main(command) == 0
    assert left_in(tmp_path / "out") == ["a_focus.png", "a_focus.tif"]
    np.testing.assert_allclose(
        tifffile.imread(tmp_path / "out" / "a_focus.tif"), 4 * field().mean(axis=2) / 255 - 2, atol=1e-5
    )
    with Image.open(tmp_path / "out" / "a_focus.png") as picture:
        assert picture.width > 500 and len(picture.convert("RGB").getcolors(2**24)) > 50
    assert "mean |defocus|" in capsys.readouterr().out
    assert main(command) == 1


def test_simulate_writes_a_stack_and_what_was_drawn(tmp_path: Path, capsys) -> None:
    """A stack whose depth and optics are not written down tests nothing."""
    rows, cols = np.mgrid[:96, :80]
    sharp = np.stack([128 + 100 * np.sin(rows) * np.sin(cols)] * 3, axis=-1).astype(np.uint8)
    image = save(tmp_path / "in" / "a.png", sharp)
    options = ["--planes", "3", "--spacing-um", "2", "--depth-um", "0.5", "--seed", "4"]
    command = ["simulate", str(image), *options, "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert main([*command, str(tmp_path / "again")]) == 0
    names = ["drawn.json", "plane_00.png", "plane_01.png", "plane_02.png", "relief_um.tif"]
    assert left_in(tmp_path / "out") == ["a", *(f"a/{name}" for name in names)]
    planes = [np.asarray(Image.open(tmp_path / "out" / "a" / f"plane_{k:02d}.png")).astype(float) for k in range(3)]
    assert planes[1].std() > 1.5 * planes[0].std() and planes[1].std() > 1.5 * planes[2].std()
    drawn = json.loads((tmp_path / "out" / "a" / "drawn.json").read_text())
    assert drawn["positions_um"] == [-2, 0, 2] and drawn["plan"]["seed"] == 4 and drawn["optics"]["na"] == 0.75
    relief = tifffile.imread(tmp_path / "out" / "a" / "relief_um.tif")
    assert relief.shape == (96, 80) and np.abs(relief).max() == pytest.approx(0.5)
    for name in names:
        assert (tmp_path / "out" / "a" / name).read_bytes() == (tmp_path / "again" / "a" / name).read_bytes()
    assert main([*command, str(tmp_path / "out")]) == 1
    assert main([*command, str(tmp_path / "out"), "--overwrite"]) == 0
    assert left_in(tmp_path / "out") == ["a", *(f"a/{name}" for name in names)]
    (tmp_path / "out" / "a" / "drawn.json").unlink()
    capsys.readouterr()
    assert main([*command, str(tmp_path / "out"), "--overwrite"]) == 1  # not a folder of ours: left alone
    assert "has no drawn.json, so it is not replaced" in sentences(capsys.readouterr().err)[0]


def environment(network: list[str], **more: str) -> dict[str, str]:
    code = str(Path(network[1]).parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), code]), "PYTHONWARNINGS": "ignore"} | more


def test_the_process_itself_prints_no_traceback(tmp_path: Path, network: list[str]) -> None:
    """What a user sees: exit code, one line per image, one sentence per problem, and no library's log."""
    image = save(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "cut.tif").write_bytes(image.read_bytes()[:200])
    command = [sys.executable, "-m", "bundle.cli", "restore", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, *network], capture_output=True, text=True, env=environment(network), check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith("a.tif: 120 x 90 px")
    told = sentences(done.stderr)
    assert len(told) == 1 and "cut.tif" in told[0]
    assert left_in(tmp_path / "out") == ["a.tif"]


def stopped(command: list[str], number: int, seconds_a_tile: str, until: Path, network: list[str]
            ) -> tuple[int, str]:  # fmt: skip
    """Exit code and complaints of a command that gets a signal once `until` is there."""
    slow = environment(network, FAKE_SECONDS_A_TILE=seconds_a_tile)
    # A shell lets its background jobs ignore Ctrl-C, and children inherit that: here it must arrive.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slow,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    started = time.monotonic()
    while not until.exists() and process.poll() is None and time.monotonic() - started < 120:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err


@pytest.mark.parametrize(("name", "number", "code"), [("a.png", signal.SIGINT, 130), ("a.tif", signal.SIGTERM, 143)])
def test_a_stopped_process_leaves_no_half_result(
    tmp_path: Path, network: list[str], name: str, number: int, code: int
) -> None:
    """Stopped before the first block is done: neither a result nor a temporary may stay."""
    image = save(tmp_path / "in" / name, field(300, 600))
    command = [sys.executable, "-m", "bundle.cli", "restore", str(image), "--output", str(tmp_path / "out"), *network]
    began = Path(network[1]).parent / "began"
    ended, err = stopped(command, number, "3", began, network)
    assert ended == code, err
    assert left_in(tmp_path / "out") == []


def test_ctrl_c_keeps_the_blocks_of_a_tiff_and_the_same_command_goes_on(
    tmp_path: Path, network: list[str], capsys
) -> None:
    """A slide takes a night: stopping in the evening must not cost the afternoon."""
    image = save(tmp_path / "in" / "a.tif", field(70, 4100))
    command = ["restore", str(image), "--output", str(tmp_path / "out"), *network]
    partial = tmp_path / "out" / "a.tif.partial"
    ended, err = stopped([sys.executable, "-m", "bundle.cli", *command], signal.SIGINT, "0.1",
                         partial / "pixels" / "c" / "0" / "0" / "0", network)
    assert ended == 130 and len(sentences(err)) == 2 and "the same command goes on" in err
    assert left_in(tmp_path / "out")[0] == "a.tif.partial" and not (tmp_path / "out" / "a.tif").exists()
    assert main([*command, "--seed", "4"]) == 1
    assert "unfinished work with another seed" in sentences(capsys.readouterr().err)[0]
    before = image.read_bytes()
    image.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(command) == 1
    assert "unfinished work with another source" in sentences(capsys.readouterr().err)[0]
    image.write_bytes(before)
    assert main(command) == 0
    assert left_in(tmp_path / "out") == ["a.tif"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "a.tif"), 255 - field(70, 4100))


def test_help_comes_at_once() -> None:
    """`mop --help` that loads torch and MONAI first takes ten seconds."""
    code = "import sys; from bundle.cli import main; main(['restore', '--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for heavy in ("torch", "monai", "numpy", "matplotlib", "tifffile", "PIL"):
        assert f"'{heavy}'" not in done.stdout


def test_missing_foundation_weights_end_in_a_sentence_that_says_so(tmp_path: Path, capsys) -> None:
    """The paper's encoder is gated: everybody meets this first, and must read what is missing, not half a licence."""
    save(tmp_path / "a.png")
    configs = Path(__file__).resolve().parents[1] / "configs"
    merged = json.loads((configs / "inference.json").read_text()) | json.loads((configs / "paper.json").read_text())
    (tmp_path / "paper.json").write_text(json.dumps(merged))
    command = ["restore", str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--mpp", "0.25"]
    assert main([*command, "--config", str(tmp_path / "paper.json")]) == 1
    told = sentences(capsys.readouterr().err)
    assert len(told) == 1 and ("no weights were given" in told[0] or "timm" in told[0]), told
    assert not (tmp_path / "out").exists()
