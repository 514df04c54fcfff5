"""The reader: the pixels that other libraries read, wherever they are asked for, and one sentence where it refuses."""

import random
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from bundle.slides import reader as reader_module
from bundle.slides import tiff_reader
from bundle.slides.load_transform import LoadImageRGBd
from bundle.slides.reader import ImageError, open_image

SLIDES = Path(__file__).parents[2].parent / "shared" / "data" / "slides"


def tissue(height: int = 150, width: int = 110, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise: compressible, and different everywhere."""
    rows, cols = np.mgrid[:height, :width]
    base = np.stack([rows % 256, cols % 256, (rows + cols) // 2 % 256], axis=-1)
    return ((base + np.random.default_rng(seed).integers(0, 20, base.shape)) % 256).astype(np.uint8)


TIFF_LAYOUTS: list[dict] = [
    {},
    {"rowsperstrip": 7},
    {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
    {"tile": (32, 48)},
    {"tile": (32, 48), "compression": "lzw", "predictor": True},
    {"tile": (32, 48), "compression": "zstd"},
    {"tile": (32, 48), "planarconfig": "separate", "compression": "zlib"},
    {"rowsperstrip": 13, "planarconfig": "separate"},
    {"tile": (16, 16), "byteorder": ">"},
    {"bigtiff": True, "tile": (32, 32)},
]


def write_tiff(path: Path, pixels: np.ndarray, **layout: object) -> Path:
    if layout.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(path, pixels, photometric="rgb", **layout)
    return path


def test_png_and_jpeg_give_pillows_pixels(tmp_path: Path) -> None:
    """A reader with an own idea of colours or axes ruins every result."""
    Image.fromarray(tissue()).save(tmp_path / "a.png")
    Image.fromarray(tissue()).save(tmp_path / "a.JPG", "JPEG")
    for name in ("a.png", "a.JPG"):
        with open_image(tmp_path / name) as reader, Image.open(tmp_path / name) as oracle:
            assert reader.shape == (150, 110) and reader.mpp is None
            np.testing.assert_array_equal(reader.read(0, 0, 150, 110), np.asarray(oracle))
            np.testing.assert_array_equal(reader.read(17, 5, 40, 50), np.asarray(oracle)[17:57, 5:55])


@pytest.mark.parametrize("layout", TIFF_LAYOUTS, ids=str)
def test_every_tiff_layout_gives_the_written_pixels_in_any_region(tmp_path: Path, layout: dict) -> None:
    """Strips, tiles, planes, edges: an index off by one shows as shifted squares of tissue."""
    pixels = tissue()
    draw = random.Random(5)
    with open_image(write_tiff(tmp_path / "a.tif", pixels, **layout)) as reader:
        assert reader.shape == (150, 110)
        np.testing.assert_array_equal(reader.read(0, 0, 150, 110), pixels)
        for _ in range(25):
            row, col = draw.randrange(150), draw.randrange(110)
            height, width = draw.randint(1, 150 - row), draw.randint(1, 110 - col)
            region = reader.read(row, col, height, width)
            np.testing.assert_array_equal(region, pixels[row : row + height, col : col + width])


@pytest.mark.parametrize("layout", [{"tile": (32, 48)}, {"rowsperstrip": 16}], ids=str)
@pytest.mark.parametrize("sampling", [(1, 1), (2, 2)])
def test_jpeg_in_tiff_gives_tifffiles_pixels(tmp_path: Path, layout: dict, sampling: tuple[int, int]) -> None:
    """Most slides are JPEG in TIFF: YCbCr shown as RGB is green tissue."""
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, tissue(), photometric="rgb", compression="jpeg", subsampling=sampling, **layout)
    with open_image(path) as reader:
        region = reader.read(10, 20, 100, 60)
    np.testing.assert_array_equal(region, tifffile.imread(path)[10:110, 20:80])
    assert np.abs(region.astype(int) - tissue()[10:110, 20:80]).mean() < 25


@pytest.mark.skipif(not SLIDES.exists(), reason="needs the shared slides")
@pytest.mark.parametrize(("name", "mpp"), [("boxes.tiff", 0.353), ("OS-1-detail.ome.tif", 0.2271)])
def test_real_files_agree_with_tifffile(name: str, mpp: float) -> None:
    """Files of scanners differ from what a test writes."""
    with open_image(SLIDES / name) as reader:
        np.testing.assert_array_equal(reader.read(3, 70, 200, 150), tifffile.imread(SLIDES / name)[3:203, 70:220])
        assert reader.mpp is None or reader.mpp == pytest.approx(mpp, rel=1e-2)


def test_a_pyramid_is_read_at_full_resolution(tmp_path: Path) -> None:
    """A level taken for the image would be restored at the wrong scale."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        tiff.write(tissue(), subifds=1, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS"})
        tiff.write(tissue()[::2, ::2], subfiletype=1, photometric="rgb", tile=(64, 64))
    with open_image(tmp_path / "a.ome.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, *reader.shape), tissue())


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "um"}}, 0.25),
        ({}, None),
        ({"ome": True, "metadata": {"axes": "YXS", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}}, 0.3),
        (
            {
                "ome": True,
                "metadata": {
                    "PhysicalSizeX": 260,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 2.6e-4,
                    "PhysicalSizeYUnit": "mm",
                },
            },
            0.26,
        ),
    ],
)
def test_the_pixel_size_comes_from_ome_or_the_resolution_tags(tmp_path: Path, options: dict, mpp: float | None) -> None:
    """A wrong scale feeds the network tissue of a size it never saw; 72 dpi is no microscope's statement."""
    tifffile.imwrite(tmp_path / "a.tif", tissue(), photometric="rgb", **options)
    with open_image(tmp_path / "a.tif") as reader:
        assert reader.mpp == (None if mpp is None else pytest.approx(mpp))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """The user restores what the viewer shows."""
    exif = Image.Exif()
    exif[274] = 6  # stored on its side
    Image.fromarray(tissue()).save(tmp_path / "a.png", exif=exif)
    with open_image(tmp_path / "a.png") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, *reader.shape), np.rot90(tissue(), -1))


def test_a_palette_png_is_read_as_rgb(tmp_path: Path) -> None:
    """Many figures are saved with a palette; their colours are RGB."""
    image = Image.fromarray(tissue()).quantize(64)
    image.save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 150, 110), np.asarray(image.convert("RGB")))


def test_the_colour_profile_is_kept(tmp_path: Path) -> None:
    """Without it a calibrated viewer shows other colours than the input's."""
    Image.fromarray(tissue()).save(tmp_path / "a.png", icc_profile=b"profile")
    tifffile.imwrite(tmp_path / "a.tif", tissue(), photometric="rgb", iccprofile=b"profile")
    for name in ("a.png", "a.tif"):
        with open_image(tmp_path / name) as reader:
            assert reader.icc_profile == b"profile"


def png_16_bit(path: Path) -> None:
    """Pillow cannot write one: a 16-bit RGB PNG by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(64 * 6) for _ in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_bad(path: Path, kind: str) -> None:
    """One bad file per kind."""
    pixels = tissue()
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    transparent = Image.fromarray(pixels).quantize(16)
    makers = {
        "text": lambda: path.write_text("not an image"),
        "empty": lambda: path.write_bytes(b""),
        "grey": lambda: Image.fromarray(pixels[..., 0]).save(path),
        "rgba": lambda: Image.fromarray(alpha).save(path),
        "transparent palette": lambda: transparent.save(path, transparency=3),
        "cmyk": lambda: Image.fromarray(pixels).convert("CMYK").save(path),
        "16-bit": lambda: png_16_bit(path),
        "1 x 1": lambda: Image.fromarray(pixels[:1, :1]).save(path),
        "animation": lambda: Image.fromarray(pixels).save(
            path, save_all=True, append_images=[Image.fromarray(255 - pixels)]
        ),
        "tiff grey": lambda: tifffile.imwrite(path, pixels[..., 0]),
        "tiff 1 x 1": lambda: tifffile.imwrite(path, pixels[:1, :1], photometric="rgb"),
        "tiff rgba": lambda: tifffile.imwrite(path, alpha, photometric="rgb", extrasamples=["unassalpha"]),
        "tiff 16-bit": lambda: tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb"),
        "tiff nan": lambda: tifffile.imwrite(path, np.full(pixels.shape, np.nan, np.float32), photometric="rgb"),
        "tiff stack": lambda: tifffile.imwrite(
            path, np.stack([pixels] * 3), photometric="rgb", ome=True, metadata={"axes": "ZYXS"}
        ),
        "tiff pages": lambda: tifffile.imwrite(path, np.stack([pixels] * 3), photometric="rgb"),
        "tiff cmyk": lambda: tifffile.imwrite(path, alpha, photometric="separated"),
        "tiff sideways": lambda: tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
        "tiff oblong": lambda: tifffile.imwrite(
            path, pixels, photometric="rgb", resolution=(4e4, 2e4), resolutionunit=3
        ),
    }
    makers[kind]()


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("a.png", "text", "a.png cannot be decoded as PNG or JPEG: its content is something else."),
        ("a.tif", "text", "a.tif cannot be opened as TIFF: not a TIFF file"),
        ("a.png", "empty", "a.png is empty (0 bytes)."),
        ("a.tif", "empty", "a.tif is empty (0 bytes)."),
        ("a.png", "grey", "must be 8-bit RGB brightfield, a.png has mode L"),
        ("a.jpg", "grey", "must be 8-bit RGB brightfield, a.jpg has mode L"),
        ("a.png", "rgba", "without alpha, a.png has an alpha channel"),
        ("a.png", "transparent palette", "without alpha, a.png has an alpha channel"),
        ("a.jpg", "cmyk", "a.jpg has mode CMYK"),
        ("a.png", "16-bit", "a.png has 16 bits per channel"),
        ("a.png", "1 x 1", "at least 32 x 32 px, a.png has 1 x 1."),
        ("a.png", "animation", "a single one, a.png is an animation of 2."),
        ("a.tif", "tiff grey", "a.tif has 1 channel(s) (grey or palette)"),
        ("a.tif", "tiff 1 x 1", "at least 32 x 32 px, a.tif has 1 x 1."),
        ("a.tif", "tiff rgba", "without alpha, a.tif has 4 channels"),
        ("a.tif", "tiff 16-bit", "8-bit RGB brightfield, a.tif has 16-bit uint16 pixels"),
        ("a.tif", "tiff nan", "8-bit RGB brightfield, a.tif has 32-bit float32 pixels"),
        ("a.tif", "tiff stack", "a single RGB plane, a.tif holds axes ZYXS of (3, 150, 110, 3)"),
        ("a.tif", "tiff pages", "a single RGB plane, a.tif holds axes"),
        ("a.tif", "tiff cmyk", "4 channels"),
        ("a.tif", "tiff sideways", "stored upright (orientation 1), a.tif has 6"),
        ("a.tif", "tiff oblong", "pixels must be square, a.tif has 0.5 x 0.25 µm"),
        ("a.svs", "text", "a.svs cannot be opened as a slide: no format of a scanner that OpenSlide knows."),
        ("a.dcm", "text", "a.dcm cannot be opened as a DICOM slide"),
        ("a.bmp", "text", "an image must be .png, .jpg, .jpeg, .tif, .tiff, .svs"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path: Path, name: str, kind: str, sentence: str) -> None:
    """A user must learn what to change, and a grey image silently copied to three channels is not tissue."""
    write_bad(tmp_path / name, kind)
    with pytest.raises(ValueError) as caught:
        open_image(tmp_path / name)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """The most common mistake of all."""
    with pytest.raises(FileNotFoundError, match=r"none.png is missing\."):
        open_image(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder.png is not a file\."):
        open_image(tmp_path / "folder.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.ome.tif", "b.tif"])
def test_a_file_cut_anywhere_never_gives_pixels(tmp_path: Path, name: str) -> None:
    """An interrupted copy: half of the tissue restored and half invented, or a traceback."""
    path = tmp_path / name
    if name.endswith("tif"):
        layout = {"compression": "zlib"} if name.startswith("b") else {}
        tifffile.imwrite(path, tissue(), photometric="rgb", tile=(32, 32), metadata={"axes": "YXS"}, **layout)
    else:
        Image.fromarray(tissue()).save(path)
    whole = path.read_bytes()
    for share in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        with pytest.raises(ValueError, match=r"cannot be|truncated|empty") as caught:
            open_image(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_tile_is_named_when_it_is_read(tmp_path: Path) -> None:
    """A disk error in the middle of a slide must not end in a codec's traceback."""
    path = write_tiff(tmp_path / "a.tif", tissue(), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[6], tiff.pages[0].databytecounts[6]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_image(path) as reader:
        with pytest.raises(ValueError, match=r"segment 6 of a.tif cannot be decoded"):
            reader.read(0, 0, 150, 110)
        np.testing.assert_array_equal(reader.read(0, 0, 32, 32), tissue()[:32, :32])


def test_a_decompression_bomb_is_refused_and_pillows_guard_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes may not claim the machine's memory; other users of Pillow keep their own limit."""
    Image.fromarray(tissue()).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    for limit in (16_000, 1_000):  # Pillow only warns up to twice the limit
        monkeypatch.setattr(reader_module, "MAX_PIXELS", limit)
        with pytest.raises(ValueError, match=f"up to {limit} px, a.png has more"):
            open_image(tmp_path / "a.png")
    monkeypatch.setattr(tiff_reader, "MAX_PIXELS", 1_000)
    with pytest.raises(ValueError, match="a tile or strip of a TIFF may have up to 1000 px"):
        open_image(write_tiff(tmp_path / "a.tif", tissue(), tile=(64, 64)))
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_huge_tiled_tiff_is_not_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide of 30 GB must open on a laptop: memory follows the region and the cache, not the image."""
    monkeypatch.setattr(tiff_reader, "CACHE_BYTES", 2**20)
    tile = np.tile(tissue(256, 256), (1, 1, 1))
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter([tile] * 256),
        shape=(4096, 4096, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
    )
    tracemalloc.start()
    with open_image(path) as reader:
        for row in range(0, 4096, 512):
            np.testing.assert_array_equal(reader.read(row, 1024, 256, 256), tile)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20, peak  # the image has 48 MiB


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 151, 4), (0, 0, 0, 4)])
def test_a_region_outside_the_image_is_refused(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    """NumPy would return fewer pixels and say nothing."""
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        Image.fromarray(tissue()).save(path)
        with open_image(path) as reader, pytest.raises(ValueError, match="inside the 150 x 110 px image"):
            reader.read(*box)


def test_an_only_image_may_be_named_like_a_label(tmp_path: Path) -> None:
    """OME names an image after its file: macrophages.ome.tiff is no macro image, and there is no other one."""
    pixels = np.random.default_rng(2).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    for name in ("macrophages", "label", "overview"):
        path = tmp_path / f"{name}.ome.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", ome=True, metadata={"axes": "YXS", "Name": f"{name}.ome.tif"})
        with open_image(path) as image:
            np.testing.assert_array_equal(image.read(0, 0, 64, 80), pixels)


@pytest.mark.parametrize(("name", "package"), [("a.tif", "openslide"), ("a.dcm", "wsidicom")])
def test_a_package_that_is_not_there_is_named(tmp_path: Path, name: str, package: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI Label's environment has no wsidicom: its users get a sentence, not a traceback."""
    for module in ("dicom_reader", "openslide_reader"):
        monkeypatch.delitem(sys.modules, f"bundle.slides.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"II*\0 something")
    with pytest.raises(ImageError, match=f"{name} needs the package {package}, which is not installed here"):
        open_image(tmp_path / name)


def test_the_transform_of_the_configs_reads_and_refuses_as_the_reader_does(tmp_path: Path) -> None:
    """Pillow's own conversion makes a 16-bit field white and drops alpha, without a word."""
    pixels = tissue()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = LoadImageRGBd("image")({"image": str(tmp_path / "a.png"), "path": "a"})
    assert loaded["path"] == "a" and loaded["image"].is_contiguous()
    np.testing.assert_array_equal(loaded["image"].permute(1, 2, 0).numpy(), pixels)
    tifffile.imwrite(tmp_path / "b.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "c.png")
    for name in ("b.tif", "c.png"):
        with pytest.raises(ImageError, match="an image must be 8-bit RGB brightfield"):
            LoadImageRGBd("image")({"image": str(tmp_path / name)})


def test_monai_deploy_knows_the_loading_by_its_name() -> None:
    """Its bundle operator has pixels in memory and leaves out whatever has LoadImage in its name."""
    assert "LoadImage" in LoadImageRGBd.__name__
