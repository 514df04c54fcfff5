"""`mop prepare` from the command line: the dataset, going on after a kill, one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import load_decathlon_datalist
from PIL import Image
from scipy import ndimage

from bundle.cli import main
from bundle.data.focal_stacks import StackSource
from bundle.data.phantom import tissue_phantom
from bundle.preparation.dataset import FieldJob, _choose_sections, field_boxes
from bundle.slides.grid import Box
from bundle.slides.reader import open_image
from tests.data.stack_files import Planes, write_planes

ROOT = Path(__file__).parents[2]
SCALE = ["--spacing-um", "0.8", "--mpp", "0.25"]
BLUR_PX = (2.0, 0.0, 1.6)  # the middle plane is sharp


def tissue(seed: int) -> Planes:
    """Three planes of synthetic tissue of which the middle one is in focus."""
    sharp = tissue_phantom(260, 280, torch.Generator().manual_seed(seed)).numpy()
    blurred = [ndimage.gaussian_filter(sharp, (0, sigma, sigma)) for sigma in BLUR_PX]
    return (np.stack(blurred) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides of one field each."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(4):
        write_planes(folder, tissue(seed), f"{seed}_7")
    return folder


def copied(scans: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in scans.iterdir():
        os.link(file, folder / file.name)
    return folder


def prepare(source: Path, dataset: Path, *options: str, scale: bool = True) -> int:
    command = ["prepare", str(source), "--output", str(dataset), "--workers", "1", *options]
    return main([*command, *(SCALE if scale else [])])


def content(dataset: Path) -> dict[str, bytes]:
    """All files but the ledgers, which hold times."""
    return {path.relative_to(dataset).as_posix(): path.read_bytes() for path in sorted(dataset.rglob("*"))
            if path.is_file() and path.name not in ("made_from.json", ".lock")}


@pytest.fixture(scope="module")
def dataset(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    assert prepare(scans, folder) == 0
    return folder


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("mop: ") and line.endswith(".") and "Traceback" not in line for line in lines), lines
    return lines


def test_monai_reads_the_datalist(dataset: Path) -> None:
    """The form that MONAI's tools expect; a path that leads nowhere ends a training in its first minute."""
    slides = {}
    for section, count in (("training", 2), ("validation", 1), ("testing", 1)):
        records = load_decathlon_datalist(dataset / "datalist.json", data_list_key=section)
        slides[section] = {record["slide"] for record in records}
        assert len(slides[section]) == count and len(records) == 3 * count
        for record in records:
            for key in ("image", "label", "depth"):
                assert Path(record[key]).is_file() and Path(record[key]).is_relative_to(dataset)
            assert record["mpp"] == 0.25 and record["position_um"] == pytest.approx(0.8 * (record["plane"] - 1))
            assert record["location"] and record["patient"] is None
            assert len(record["location"]) == len(record["defocus_um"]) == len(record["contrast"])
    assert not slides["training"] & slides["validation"] | slides["validation"] & slides["testing"]
    plane, sharp = (record for record in records[:2])
    assert min(sharp["contrast"]) > 0.9 > max(plane["contrast"])
    assert max(np.abs(sharp["defocus_um"])) < 0.4 and max(plane["defocus_um"]) < -0.4
    with open_image(sharp["image"]) as image, open_image(sharp["label"]) as label:
        difference = image.read(0, 0, 256, 256).astype(float) - label.read(0, 0, 256, 256)
        assert np.abs(difference).mean() < 4


def test_the_report_shows_every_slide(dataset: Path) -> None:
    """What went wrong in a scan is seen here or in the trained network."""
    page = (dataset / "report.html").read_text(encoding="utf-8")
    for slide in range(4):
        assert f"<h2>{slide}</h2>" in page and f"best field, {slide}_7" in page
    assert page.count("data:image/jpeg;base64,") == 4 and page.count("data:image/png;base64,") == 4
    for text in ("4 slides, 4 fields", "depth, µm", "largest shift", "outside of the stack", "Shifts of its planes"):
        assert text in page
    assert str(dataset) not in page


def test_finished_fields_are_kept_until_their_sources_or_settings_change(
    scans: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousand fields take a day: a second call must not cost a second day, nor keep what is out of date."""
    source, dataset = copied(scans, tmp_path / scans.name), Path(shutil.copytree(dataset, tmp_path / "dataset"))
    first, made = content(dataset), {path: path.stat().st_ino for path in dataset.glob("fields/*/field.json")}
    assert prepare(source, dataset) == 0
    assert "4 fields (4 were there)" in capsys.readouterr().out
    assert content(dataset) == first and all(path.stat().st_ino == number for path, number in made.items())
    changed = source / "2_7_00.png"
    changed.unlink()
    Image.fromarray(tissue(2)[0] // 2 + 64).save(changed)
    assert prepare(source, dataset) == 0
    out = capsys.readouterr().out
    assert "2_7: prepared again, its sources changed" in out and "4 fields (3 were there)" in out
    assert {path.parent.name for path, number in made.items() if path.stat().st_ino != number} == {"2_7"}
    for file in [file for file in source.iterdir() if not file.name.startswith("3_7")]:
        file.unlink()
    assert prepare(source, dataset, "--section", "testing", "--spacing-um", "1", "--mpp", "0.25", scale=False) == 0
    assert "3_7: prepared again, its settings changed" in capsys.readouterr().out
    held = json.loads((dataset / "datalist.json").read_text())
    assert len(held["testing"]) == 3 and "training" not in held and held["testing"][0]["position_um"] == -1


def test_a_killed_run_goes_on_and_ends_at_the_same_bytes(tmp_path: Path) -> None:
    """Power, batch queues and people kill long runs: nothing half-written, nothing done twice, no other result."""
    for seed in range(5):
        write_planes(tmp_path / "scans", tissue(seed), f"{seed}_7")
    command = [sys.executable, "-m", "bundle.cli", "prepare", str(tmp_path / "scans"), "--output",
               str(tmp_path / "killed"), "--workers", "2", *SCALE]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finished: list[Path] = []
    started = time.monotonic()
    while not finished and process.poll() is None and time.monotonic() - started < 300:
        time.sleep(0.02)
        finished = list((tmp_path / "killed" / "fields").glob("[0-9]*"))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # returns when the workers, who share its pipes, have ended too
    finished = list((tmp_path / "killed" / "fields").glob("[0-9]*"))
    assert 0 < len(finished) < 5 and not (tmp_path / "killed" / "datalist.json").exists()
    made = {folder: (folder / "made_from.json").stat().st_ino for folder in finished}
    assert prepare(tmp_path / "scans", tmp_path / "killed") == 0
    assert all((folder / "made_from.json").stat().st_ino == number for folder, number in made.items())
    assert prepare(tmp_path / "scans", tmp_path / "unbroken") == 0
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")


def test_a_list_never_speaks_of_fields_that_were_made_anew(scans: Path, dataset: Path, tmp_path: Path) -> None:
    """Killed while it prepares again with another spacing, the old list would give wrong distances to a training."""
    shutil.copytree(dataset, tmp_path / "dataset")
    lists = tmp_path / "dataset" / "datalist.json"

    def killed(*_: object) -> None:
        assert not lists.exists()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bundle.preparation.dataset.prepare_one", killed)
        assert prepare(scans, tmp_path / "dataset", "--spacing-um", "1.0", "--mpp", "0.25", scale=False) == 130
    assert not lists.exists()
    assert prepare(scans, tmp_path / "dataset") == 0 and lists.read_bytes() == (dataset / "datalist.json").read_bytes()


def test_one_slide_of_two_patients_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its fields would stand in training as one patient's and in testing as another's."""
    jobs = [FieldJob(StackSource("planes", (), "1", field, patient), Box(0, 0, 1, 1), field, patient, 0.25, 0.8,
                     tmp_path, {}) for field, patient in (("a", "P1"), ("b", "P2"))]  # fmt: skip
    with pytest.raises(ValueError, match="a slide is of one patient, 1 is of P1 and of P2"):
        _choose_sections(jobs, {}, "")


def test_where_nothing_can_be_prepared_the_reason_is_the_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with "needs at least 3 slides, got 0"."""
    for slide in range(3):
        (tmp_path / "scans").mkdir(exist_ok=True)
        for plane in range(2):
            (tmp_path / "scans" / f"{slide}_1_{plane}.png").write_bytes(b"no image")
    assert prepare(tmp_path / "scans", tmp_path / "dataset") == 1
    said = complaints(capsys)
    assert "0_1_0.png" in said[0] and "none can be prepared: the sentences above say why" in said[-1]
    assert not (tmp_path / "dataset").exists()


def test_one_bad_field_does_not_cost_the_others(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One misplaced file among ten thousand: the night's work stays, and the sentence says where to look."""
    source = copied(scans, tmp_path / "scans")
    write_planes(source, np.concatenate([tissue(8)[:2], tissue(9)[:1]]), "0_1")
    write_planes(source, tissue(8)[:, :, :270], "0_2")
    write_planes(source, tissue(8)[1:2], "0_2", first=1)
    for plane in (0, 2):
        os.link(source / f"0_7_{plane:02d}.png", source / f"0_8_{plane:02d}.png")
    assert prepare(source, tmp_path / "dataset") == 1
    said = capsys.readouterr()
    assert "4 fields, 3 failed" in said.out
    for sentence in ("0_8 has 2 and lacks plane 1.", "0_1: every plane must register, plane 2",
                     "0_2: planes of a stack must have one size, 0_2_00.png has 270 x 260 px and 0_2_01.png has 280"):
        assert sentence in said.err
        assert sentence in (tmp_path / "dataset" / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "dataset" / "fields").iterdir()) == ["0_7", "1_7", "2_7", "3_7"]


def test_an_empty_section_is_refused(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A datalist without validation would be found out by a training, later."""
    source = copied(scans, tmp_path / "scans")
    for file in source.glob("3_7_*.png"):
        file.unlink()
    write_planes(source, np.full((3, 260, 280, 3), 240, np.uint8), "3_7")
    assert prepare(source, tmp_path / "dataset") == 1
    assert "every section must hold patches, testing has none of 4 fields" in complaints(capsys)[0]
    assert not (tmp_path / "dataset" / "datalist.json").exists() and (tmp_path / "dataset" / "report.html").exists()


def test_wrong_calls_end_in_one_sentence(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown scale, one slide, a wrong folder: told at once, and nothing is left."""
    write_planes(tmp_path / "one", tissue(1), "1_7")
    touched = tmp_path / "other"
    touched.mkdir()
    (touched / "thesis.txt").touch()
    output = tmp_path / "dataset"
    for code, sentence, call in (
        (1, "between planes must be known, 0_7 does not say them: pass --spacing-um",
         lambda: prepare(scans, output, "--mpp", "0.25", scale=False)),
        (1, "µm per pixel must be known, 0_7 does not say them: pass --mpp",
         lambda: prepare(scans, output, "--spacing-um", "0.8", scale=False)),
        (1, "the µm between planes must lie between 0.05 and 50, got 800: --spacing-um sets them",
         lambda: prepare(scans, output, "--mpp", "0.25", "--spacing-um", "800", scale=False)),
        (1, "the µm per pixel must lie between 0.05 and 5, got 250: --mpp sets them",
         lambda: prepare(scans, output, "--spacing-um", "0.8", "--mpp", "250", scale=False)),
        (1, "at least 3 slides or patients, got 1 (1)", lambda: prepare(tmp_path / "one", output)),
        (1, "none is among its 1 files", lambda: prepare(touched, output)),
        (1, "nowhere is missing", lambda: prepare(tmp_path / "nowhere", output)),
        (1, "other holds other files", lambda: prepare(scans, touched)),
        (1, "must lie outside of the source", lambda: prepare(scans, scans / "dataset")),
        (2, "--section must be one of", lambda: prepare(scans, output, "--section", "train")),
        (2, "--workers must be a whole number from 1 on", lambda: prepare(scans, output, "--workers", "0")),
        (2, "one SOURCE and --output DATASET are needed", lambda: prepare(scans, output, str(scans))),
    ):
        assert call() == code, sentence
        told = complaints(capsys)
        assert len(told) == 1 and sentence in told[0]
    assert not output.exists() and list(touched.iterdir()) == [touched / "thesis.txt"]


def test_a_stack_with_an_impossible_scale_costs_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                             ) -> None:  # fmt: skip
    """A file that counts in nm or in mm must neither teach another blur nor stop a night's work on the others."""
    for seed in range(4):
        unit = 0.8 if seed else 800.0
        pixels = tissue(seed)
        tifffile.imwrite(tmp_path / f"{seed}.ome.tif", pixels, photometric="rgb", metadata={
            "axes": "ZYXS", "PhysicalSizeZ": unit, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25})
    assert prepare(tmp_path, tmp_path.parent / "odd", scale=False) == 1
    told = complaints(capsys)
    assert told == ["mop: 0: the µm between planes must lie between 0.05 and 50, got 800: --spacing-um sets them."]
    assert len(list((tmp_path.parent / "odd" / "fields").iterdir())) == 3


def test_a_slide_is_cut_into_fields_that_cover_it() -> None:
    """Memory is bounded by one field: a whole slide may not be one."""
    assert field_boxes(3072, 4096) == [(0, 0, 3072, 4096)]
    boxes = field_boxes(9000, 4097)
    assert len(boxes) == 6 and max(max(box.height, box.width) for box in boxes) <= 4096
    assert sum(box.height * box.width for box in boxes) == 9000 * 4097
    assert not any(one.overlap(two).height and one.overlap(two).width for one in boxes for two in boxes if one != two)


def test_two_fields_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of folders keep no blanks: slide "A 1" would be written over slide "A_1"."""
    for slide in ("A 1", "A_1", "B"):
        write_planes(tmp_path / "scans", tissue(1), f"{slide}_7")
    assert prepare(tmp_path / "scans", tmp_path / "dataset") == 1
    told = complaints(capsys)
    assert len(told) == 1 and "fields need names of their own" in told[0] and "both become A_1_7: rename one" in told[0]
