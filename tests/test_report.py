"""The report shows what was computed, in the right place, and opens without a server or a network."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from bundle import report


@pytest.fixture
def pictures() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {title: draw.integers(0, 256, (40, 56, 3), dtype=np.uint8) for title in ("input", "restored", "truth")}


@pytest.fixture
def panels(pictures: dict[str, np.ndarray]) -> list[report.Panel]:
    return [report.Panel(title, picture, "1 < 2") for title, picture in pictures.items()]


@pytest.fixture
def focus_um() -> np.ndarray:
    return np.linspace(-1.7, 3.2, 40 * 56, dtype=np.float32).reshape(40, 56)


def test_an_inlined_picture_is_the_picture_bit_by_bit(pictures: dict[str, np.ndarray]) -> None:
    """A lossy copy in the report would hide or invent the very differences that it is there to show."""
    address = report.inline_png(pictures["input"])
    decoded = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(decoded), pictures["input"])


def test_both_signs_of_defocus_have_one_colour(focus_um: np.ndarray) -> None:
    """A plane 2 µm too high is as blurred as one 2 µm too low: a map that shows one of them sharp misleads."""
    assert np.array_equal(report.focus_picture(focus_um, 3.5), report.focus_picture(-focus_um, 3.5))


def test_the_focus_map_grows_brighter_away_from_focus() -> None:
    """Printed in grey or seen by a colour-blind reader, the map still has to tell near from far."""
    ramp = np.linspace(0, 3, 200, dtype=np.float32)[None]
    lightness = report.focus_picture(ramp, 3.0)[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -1.0).all()
    assert lightness[0] < 5
    assert lightness[-1] > 230


def test_the_scale_ends_at_or_beyond_the_largest_distance(focus_um: np.ndarray) -> None:
    """A scale that ends below the largest value would show 3.2 µm as if it were less."""
    assert report.focus_limit_um(focus_um) == 3.5
    assert report.focus_limit_um(focus_um * 0) == 1.0


def test_the_page_needs_nothing_but_itself(panels: list[report.Panel], focus_um: np.ndarray) -> None:
    """A report that is mailed or opened from a memory stick must not have holes where its pictures were."""
    table = report.Table(("", "PSNR, dB"), [("input", "24.10")])
    page = report.html_page("Title", "Opening", panels, focus_um, {"Figures": table}, ("input", "restored"))
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) >= 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_text_of_the_page_is_escaped(panels: list[report.Panel], focus_um: np.ndarray) -> None:
    """A file name with a < in it must be shown, not run."""
    table = report.Table(("<script>",), [("a & b",)])
    page = report.html_page("<b>", "x", panels, focus_um, {"<i>": table}, ("input", "restored"))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "1 &lt; 2" in page
    assert "a &amp; b" in page


def test_the_comparison_shows_the_named_detail(panels: list[report.Panel], focus_um: np.ndarray) -> None:
    """An enlargement of another place than the frame marks would compare two different things."""
    figure = report.comparison_figure(panels, focus_um, (8, 20, 16))
    enlarged = [axes.get_images()[0].get_array() for axes in figure.axes[4:8]]
    assert np.array_equal(enlarged[0], panels[0].picture[8:24, 20:36])
    assert np.array_equal(enlarged[3], panels[2].picture[8:24, 20:36])
    assert [axes.get_title().split("\n")[0] for axes in figure.axes[:4]] == [
        "input", "focus map, µm from best focus", "restored", "truth"]


@pytest.mark.parametrize("detail", [(-1, 0, 8), (0, 50, 8), (33, 0, 8), (0, 0, 0)])
def test_a_detail_outside_the_picture_is_refused(
    panels: list[report.Panel], focus_um: np.ndarray, detail: tuple[int, int, int]
) -> None:
    """Numpy would cut a smaller or empty piece without a word."""
    with pytest.raises(ValueError, match="must lie inside 40 x 56 px"):
        report.comparison_figure(panels, focus_um, detail)


def test_pictures_of_different_size_are_refused(panels: list[report.Panel], focus_um: np.ndarray) -> None:
    """Side by side they would suggest a registration that is not there."""
    with pytest.raises(ValueError, match="one size"):
        report.comparison_figure(panels, focus_um[:20], (0, 0, 8))


def test_a_focus_map_with_holes_is_refused() -> None:
    """NaN would be drawn as perfectly in focus."""
    with pytest.raises(ValueError, match="finite"):
        report.focus_picture(np.full((4, 4), np.nan, dtype=np.float32), 1.0)


def test_the_figure_is_written_as_png(panels: list[report.Panel], focus_um: np.ndarray, tmp_path) -> None:
    """The README's picture is this file."""
    report.save_figure(report.comparison_figure(panels, focus_um, (0, 0, 8)), tmp_path / "c.png", dpi=40)
    assert Image.open(tmp_path / "c.png").size[0] > 300
