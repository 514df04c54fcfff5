"""Recorded stacks through the protocol: their own planes and target, slides as wholes, images of other methods."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from PIL import Image

from bundle.evaluation.fields import list_fields
from bundle.evaluation.protocol import Evaluation
from bundle.evaluation.recorded import RecordedField, RecordedStack, list_recorded, shared_positions_um
from bundle.evaluation.restored_images import write_inputs
from bundle.evaluation.slide_figures import slide_summary
from tests.data.dataset_files import changed, write_dataset

SECTIONS = {"A1": "training", "B2": "validation", "C3": "testing", "D4": "testing"}


def identity(image: torch.Tensor) -> torch.Tensor:
    return image


@pytest.fixture(autouse=True)
def _no_lpips_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("recorded") / "dataset", slides=SECTIONS)


@pytest.fixture
def measure(dataset: Path, returns: Any, tmp_path: Path) -> Callable[..., Evaluation]:
    """An evaluation of the testing slides with a restorer that does nothing."""

    def build(**options: Any) -> Evaluation:
        settings: dict[str, Any] = {"output_dir": tmp_path / "evaluation", "crop_px": 90}
        return Evaluation(list_fields(dataset), returns(identity, identity), {}, **settings | options)

    return build


def test_recorded_planes_cannot_be_seen_at_20x(dataset: Path) -> None:
    """Their optics are what they are; to average pixels would be another sampling, not another objective."""
    with pytest.raises(ValueError, match=r"at_20x is for sharp fields, but .* holds recorded planes"):
        list_fields(dataset, "testing", at_20x=True)


def test_planes_target_and_depth_are_those_of_the_dataset(dataset: Path) -> None:
    """A simulated plane, or another field's target, in the place of the recorded one would be a false figure."""
    field = list_recorded(dataset, "test")[1]
    assert (field.name, field.slide, list(field.planes)) == ("D4_1", "D4", [-0.8, 0.0, 0.8])
    stack = RecordedStack(field, 50, torch.device("cpu"))
    whole = tifffile.imread(dataset / "fields" / "D4_1" / "plane_02.tif")
    assert stack.plane(0.8).shape == (3, 50, 50)
    assert torch.equal(stack.plane(0.8), torch.from_numpy(whole[111:161, 125:175]).permute(2, 0, 1) / 255)
    depth = tifffile.imread(dataset / "fields" / "D4_1" / "depth_um.tif")
    assert torch.equal(stack.defocus_um(0.8), 0.8 - torch.from_numpy(depth[111:161, 125:175]))
    assert stack.plane_name(-0.8) == "plane_00"
    with pytest.raises(ValueError, match=r"positions_um must be planes of every field, D4_1 has .* none at 1\.600"):
        stack.plane(1.6)


def test_every_plane_of_every_testing_slide_is_scored(measure: Callable[..., Evaluation]) -> None:
    """`make evaluate` on a scanner's own stacks is what tells a laboratory whether to trust the method."""
    summary = measure().run()
    assert [plane["defocus_um"] for plane in summary["planes"]] == [-0.8, 0, 0.8]
    assert [field["name"] for field in summary["fields"]] == ["C3_1", "D4_1"]
    psnrs = [plane["input"]["psnr"] for plane in summary["planes"]]
    assert psnrs[1] == pytest.approx(100) and psnrs[2] < psnrs[0] < 45  # sharp in the middle, 2.2 px of blur above
    assert summary["planes"][0]["restored"] == summary["planes"][0]["input"]
    assert summary["defocus_estimator"]["tiles"] == 6


def test_a_train_val_leak_is_refused_before_anything_is_scored(dataset: Path, tmp_path: Path) -> None:
    """The figures of a slide that trained the network are worth nothing."""
    (tmp_path / "fields").symlink_to(dataset / "fields")
    (tmp_path / "datalist.json").write_bytes((dataset / "datalist.json").read_bytes())
    changed(tmp_path, lambda held: held["training"][0].update(slide="D4"))
    with pytest.raises(ValueError, match="a slide may be in one section only, but D4 is in 'testing'"):
        list_fields(tmp_path)
    with pytest.raises(ValueError, match=r"split must be all or one of \['test', 'train', 'val'\], got testing"):
        list_fields(dataset, "testing")


def test_fields_with_other_planes_are_not_averaged() -> None:
    """A mean over 13 planes here and 9 there is the mean of nothing."""
    path = Path("label.tif")
    one, other = (RecordedField(name, path, name, 0.25, path, dict.fromkeys(positions, path))
                  for name, positions in (("a", (-0.8, 0.0, 0.8)), ("b", (-1.0, 0.0, 1.0))))
    assert shared_positions_um([one, one]) == [-0.8, 0.0, 0.8]
    with pytest.raises(ValueError, match=r"must have the same planes to be averaged, a has .* and b"):
        shared_positions_um([one, other])


def record(slide: str, height: int, psnr: float, ssim: float) -> dict[str, Any]:
    figures = {"psnr": psnr, "ssim": ssim, "ssim_uniform": ssim, "lpips": None}
    return {"slide": slide, "height": height, "width": 10, "planes": [{"defocus_um": 0.8, "methods": {"x": figures}}]}


def test_fields_of_a_slide_are_scored_as_one_picture() -> None:
    """The paper's figures are of slides: PSNR follows from all squared errors, not from a mean of decibels."""
    summary = slide_summary([record("A", 30, 20.0, 0.5), record("A", 10, 40.0, 0.9), record("B", 7, 30.0, 0.8)])
    assert [(slide["slide"], slide["fields"]) for slide in summary["slides"]] == [("A", 2), ("B", 1)]
    error = (3 * 1e-2 + 1e-4) / 4
    a, b = (slide["planes"][0]["x"] for slide in summary["slides"])
    assert a["psnr"] == pytest.approx(-10 * math.log10(error)) and a["ssim"] == pytest.approx(0.6)
    assert (b["psnr"], b["lpips"]) == (pytest.approx(30), None)
    over = summary["over_slides"]["x"]
    assert over["ssim"] == {"mean": pytest.approx(0.7), "deviation": pytest.approx(0.2 / math.sqrt(2))}
    assert over["lpips"] == {"mean": None, "deviation": None}


def test_tables_and_pictures_of_slides_are_written(measure: Callable[..., Evaluation], tmp_path: Path) -> None:
    """What a laboratory looks at first: which slide fails, and how it looks."""
    summary = measure(pictures=3).run()
    folder = tmp_path / "evaluation"
    over = summary["over_slides"]["input"]["ssim"]
    markdown = (folder / "table.md").read_text(encoding="utf-8")
    assert f"{over['mean']:.4f} ± {over['deviation']:.4f}" in markdown
    assert "over slides and planes (slides: 2, planes: 3)" in markdown
    means = [sum(plane["input"]["ssim"] for plane in slide["planes"]) / 3 for slide in summary["slides"]]
    assert all(f"| {slide} | 1 | {mean:.4f} |" in markdown for slide, mean in zip(("C3", "D4"), means, strict=True))
    with (folder / "slides.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 3 and rows[0]["slide"] == "C3"
    shown = sorted(path.name for path in (folder / "pictures").iterdir())
    assert shown == ["best_1.png", "worst_1.png"]  # of two fields none is both
    assert Image.open(folder / "pictures" / "best_1.png").width > 800


def test_images_of_any_other_method_are_scored_by_the_same_protocol(
        measure: Callable[..., Evaluation], dataset: Path, tmp_path: Path) -> None:
    """A method whose code nobody has can be compared by the images that it left."""
    evaluation = measure()
    for field in evaluation.fields:
        write_inputs(evaluation.open(field), evaluation.positions_um, tmp_path / "inputs")
    assert (tmp_path / "inputs" / "C3_1" / "plane_01.png").is_file()
    given = measure(restored={"another": tmp_path / "inputs"})
    summary = given.run()
    for plane in summary["planes"]:
        assert plane["another"] == plane["input"]
    assert list(summary["mean"]) == ["input", "another", "coarse", "restored"]
    # Another image is another figure, also after an evaluation that was finished.
    sharp = evaluation.open(evaluation.fields[0]).sharp
    Image.fromarray((sharp * 255).round().byte().permute(1, 2, 0).numpy()).save(
        tmp_path / "inputs" / "C3_1" / "plane_00.png")
    again = measure(restored={"another": tmp_path / "inputs"}).run()
    assert again["slides"][0]["planes"][0]["another"]["psnr"] == pytest.approx(100)


def test_a_restored_image_that_is_missing_or_of_another_size_is_told(
        measure: Callable[..., Evaluation], tmp_path: Path) -> None:
    """A mean over the images that happened to be there flatters the method that failed on the others."""
    with pytest.raises(FileNotFoundError, match="restored images must be in a folder, not found"):
        measure(restored={"x": tmp_path / "absent"})
    evaluation = measure()
    write_inputs(evaluation.open(evaluation.fields[0]), evaluation.positions_um[:1], tmp_path / "some")
    with pytest.raises(FileNotFoundError, match=r"must have restored every plane, .*C3_1 lacks plane_01"):
        measure(restored={"x": tmp_path / "some"}).run()
    Image.new("RGB", (80, 90)).save(tmp_path / "some" / "C3_1" / "plane_00.png")
    with pytest.raises(ValueError, match=r"must have the size of its plane, \(90, 90\), .* has \(90, 80\)"):
        measure(restored={"x": tmp_path / "some"}).run()


def test_a_damaged_dataset_ends_an_evaluation_with_the_file_that_is_wrong(tmp_path: Path) -> None:
    """A plane of another field, or half a plane, must not be scored."""
    field = list_recorded(write_dataset(tmp_path, slides=SECTIONS), "test")[0]
    stack = RecordedStack(field, 0, torch.device("cpu"))
    tifffile.imwrite(field.planes[-0.8], tifffile.imread(field.planes[-0.8])[:200], photometric="rgb")
    with pytest.raises(ValueError, match=r"size of its target, \(272, 300\), .*plane_00\.tif has \(200, 300\)"):
        stack.plane(-0.8)
    half = field.planes[0.8].read_bytes()
    field.planes[0.8].write_bytes(half[:len(half) // 2])
    with pytest.raises(ValueError, match=r"plane_02\.tif (is truncated|cannot be)"):
        stack.plane(0.8)
    field.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"label\.tif is empty"):
        RecordedStack(field, 0, torch.device("cpu"))
