"""DICOM results: two other readers see the same pixels, sizes and warnings, and nothing of the patient."""

from datetime import datetime, tzinfo
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
from pydicom.dataset import FileDataset
from wsidicom import WsiDicom

from bundle.slides.dicom_reader import series_of
from bundle.slides.files import plan_jobs, result_of
from bundle.slides.grid import TileGrid
from bundle.slides.pyramid import Encoding, Record, level_shapes
from bundle.slides.reader import ImageError, open_image
from bundle.slides.writer import open_sink

SHAPE = (611, 1405)  # levels of 611 x 1405, 305 x 702 and 152 x 351 px
NOTES = {"warning": "restored: not for primary diagnosis", "source name": "Zoë.svs", "software": "MoP 1.2",
         "source sha256": "ab" * 32, "objective": "20"}  # fmt: skip
RECORD = Record("a.dicom", 0.499, None, NOTES, (), 1.7e9)


@pytest.fixture(autouse=True)
def three_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.slides.pyramid.LAST_LEVEL_PX", 400)


def tissue() -> np.ndarray:
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = [150 + 80 * np.sin(rows / 31 + k) * np.cos(cols / 47 - k) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def write(path: Path, record: Record = RECORD, encoding: Encoding | None = None, **options: object) -> Path:
    pixels = tissue()
    with open_sink(path, SHAPE, record, encoding=encoding, block_px=300, **options) as sink:
        for block in TileGrid(*SHAPE).blocks(300):
            sink.write(block.row, block.col, pixels[block.row : block.bottom, block.col : block.right])
    return path


def headers(folder: Path) -> list[FileDataset]:
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())]


def test_openslide_wsidicom_and_our_reader_see_every_level(tmp_path: Path) -> None:
    """An archive that shows another level shifted, or in false colours, shows another slide."""
    path = write(tmp_path / "a.dicom")
    write(tmp_path / "a.ome.tiff", encoding=Encoding("jpeg"))  # the same encoder: the same pixels
    shapes = level_shapes(SHAPE)
    with (
        openslide.OpenSlide(path / "level_1.dcm") as other,
        WsiDicom.open(sorted(path.iterdir())) as third,
        open_image(path) as ours,
        open_image(tmp_path / "a.ome.tiff") as tiff,
    ):
        assert list(other.level_dimensions) == [(width, height) for height, width in shapes]
        assert [level[:2] for level in ours.levels] == shapes and len(third.levels) == 3
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(0.499)
        assert ours.mpp == pytest.approx(0.499) and ours.objective == 20 and ours.is_slide
        assert third.levels[2].mpp.width == pytest.approx(0.499 * 1405 / 351)
        for k, (height, width) in enumerate(shapes):
            expected = tiff.read(0, 0, height, width, k).astype(int)
            seen = np.asarray(other.read_region((0, 0), k, (width, height)))[..., :3]
            read = np.asarray(third.read_region((0, 0), k, (width, height)).convert("RGB"))
            for found in (seen, read, ours.read(0, 0, height, width, k)):
                assert np.abs(found - expected).max() <= 3
        assert np.abs(ours.read(0, 0, *SHAPE).astype(int) - tissue()).mean() < 2


def test_every_level_says_that_it_was_computed_and_how(tmp_path: Path) -> None:
    """A restored slide among originals, and nobody sees that it is none."""
    found = headers(write(tmp_path / "a.dicom", RECORD._replace(icc_profile=b"profile of the scanner")))
    assert [list(level.ImageType) for level in found] == [
        ["DERIVED", "PRIMARY", "VOLUME", flavour] for flavour in ("NONE", "RESAMPLED", "RESAMPLED")
    ]
    assert len({level.SeriesInstanceUID for level in found}) == 1
    assert len({level.SOPInstanceUID for level in found}) == 3
    for level in found:
        shared = level.SharedFunctionalGroupsSequence[0]
        assert shared.WholeSlideMicroscopyImageFrameTypeSequence[0].FrameType == level.ImageType
        for word in ("not for primary diagnosis", "MoP 1.2", "Zoë.svs", "ab" * 32):
            assert word in level.DerivationDescription
        assert level.LossyImageCompression == "01" and level.LossyImageCompressionMethod == "ISO_10918_1"
        assert level.OpticalPathSequence[0].ICCProfile.rstrip(b"\0") == b"profile of the scanner"
        assert level.ContentDate == "20231114" and level.AcquisitionDateTime == "20231114221320"
        assert not level.get("SourceImageSequence")


def test_a_dicom_source_is_named_by_its_instance_and_not_by_its_patient(tmp_path: Path) -> None:
    """What is derived must be traceable; a name that was taken out of the archive must not come back by this way."""
    source = write(tmp_path / "source.dicom") / "level_0.dcm"
    held = pydicom.dcmread(source)
    held.PatientName, held.PatientID, held.AccessionNumber = "Doe^Jane", "4711", "A-17"
    held.save_as(source)
    found = headers(write(tmp_path / "b.dicom", RECORD._replace(sources=tuple(series_of(source)[:1]))))
    for level in found:
        assert level.SourceImageSequence[0].ReferencedSOPInstanceUID == held.SOPInstanceUID
        assert not level.PatientName and not level.PatientID and level.AccessionNumber == ""
        assert not any(secret in str(level) for secret in ("Doe", "4711", "A-17"))


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run must end as an undisturbed one, on another day too; another source must get other UIDs."""
    first = write(tmp_path / "one" / "a.dicom")

    class LaterClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "LaterClock":
            return cls(2031, 5, 17, 3, 4, 5, 678)

    monkeypatch.setattr("wsidicom.file.io.wsidicom_writer.datetime", LaterClock)
    second = write(tmp_path / "two" / "a.dicom")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    other = write(tmp_path / "three" / "a.dicom", RECORD._replace(notes=NOTES | {"source sha256": "cd" * 32}))
    assert not {level.SOPInstanceUID for level in headers(other)} & {level.SOPInstanceUID for level in headers(first)}


def test_nothing_half_written_stays_and_no_strangers_folder_is_replaced(tmp_path: Path, monkeypatch) -> None:
    """The result is a folder: an older one, or somebody else's, must survive whatever happens."""
    path = tmp_path / "a.dicom"
    with monkeypatch.context() as patch:
        patch.setattr("bundle.slides.dicom_writer._date", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            write(path)
    assert list(tmp_path.iterdir()) == []
    write(path)
    with pytest.raises(FileExistsError, match="exists: --overwrite replaces it"):
        write(path)
    write(path, overwrite=True)
    (path / "level_0.dcm").unlink()
    with pytest.raises(FileExistsError, match=r"has no level_0\.dcm, so it is not replaced"):
        write(path, overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == ["a.dicom"]


def test_what_dicom_cannot_hold_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Refused before an hour of restoring, not after it."""
    with pytest.raises(ValueError, match="a DICOM result is JPEG, got --compression lzw"):
        write(tmp_path / "a.dicom", encoding=Encoding("lzw"))
    with pytest.raises(ValueError, match=r"must say its µm per pixel, a\.dicom would not: give --mpp"):
        write(tmp_path / "a.dicom", RECORD._replace(mpp=None))
    with pytest.raises(ValueError, match=r"a DICOM result is a folder, NAME\.dicom, got a\.dcm"):
        result_of(Path("a.svs"), tmp_path / "a.dcm")
    assert list(tmp_path.iterdir()) == []


def test_a_dicom_result_is_one_image_again(tmp_path: Path) -> None:
    """`mop view`, `mop focus` and `mop restore` take what `mop restore` gave."""
    path = write(tmp_path / "a.dicom")
    assert result_of(Path("a.svs"), path) == path
    jobs, _, problems = plan_jobs([str(path)], lambda image: [tmp_path / "out" / image.name], overwrite=False)
    assert len(jobs) == 1 and not problems
    with open_image(path) as folder, open_image(jobs[0].image) as file:
        assert folder.shape == file.shape == SHAPE and len(file.files) == 3


def test_a_dicom_file_cut_anywhere_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """An interrupted copy is the usual fault of large files; a traceback tells nobody so."""
    whole = (write(tmp_path / "a.dicom") / "level_0.dcm").read_bytes()
    for number, share in enumerate((0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)):
        cut = tmp_path / f"cut{number}" / "a.dcm"
        cut.parent.mkdir()
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=r"a\.dcm cannot be (opened|decoded)") as caught, open_image(cut):
            pass
        assert "\n" not in str(caught.value)


def test_writing_leaves_pydicom_as_lenient_as_it_was(tmp_path: Path) -> None:
    """wsidicomizer makes it strict for the whole process: the next slide with a sloppy header would be refused."""
    before = pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode
    write(tmp_path / "a.dicom")
    after = pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode
    assert before == after != (pydicom.config.RAISE, pydicom.config.RAISE)


def test_a_tile_of_a_level_decodes_to_the_pixels_of_its_place(tmp_path: Path) -> None:
    """The tile beside the wanted one would come if places were counted by columns."""
    from wsidicom.codec import Encoder, JpegSettings
    from wsidicom.geometry import Point, SizeMm

    from bundle.slides.dicom_source import LevelData, Tiles

    tiles = [imagecodecs.jpeg_encode(np.full((16, 16, 3), grey, np.uint8)) for grey in (10, 60, 110, 160, 210, 250)]
    counts = tuple(len(tile) for tile in tiles)
    offsets = tuple(int(offset) for offset in np.cumsum((0, *counts[:-1])))
    (tmp_path / "level").write_bytes(b"".join(tiles))
    with (tmp_path / "level").open("rb") as file:
        encoder = Encoder.create_for_settings(JpegSettings())
        level = LevelData(file.fileno(), Tiles((32, 40), 16, offsets, counts), SizeMm(1, 1), encoder)
        decoded = np.asarray(level.get_decoded_tile(Point(1, 1), 0, "0"))
    assert decoded.shape == (16, 16, 3) and np.abs(decoded.astype(int) - 210).max() <= 2
