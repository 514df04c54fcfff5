"""Which images a command finds, and which of them lie beside each other."""

from __future__ import annotations

from pathlib import Path

from bundle.slides.files import plan_jobs


def test_images_of_one_folder_and_format_lie_beside_each_other(tmp_path: Path) -> None:
    """One camera wrote them. What is finished counts as before: a run that goes on must judge as the first one did."""
    names = "a/1.png a/2.PNG a/3.jpg a/4.JPEG b/1.png c/1.tif c/2.tiff c/3.ome.tiff out/1.png"
    for name in names.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = [str(tmp_path / name) for name in ("a", "b/1.png")]
    first = plan_jobs(images[:1], lambda image: [tmp_path / "new" / image.name], overwrite=False)
    pngs = (tmp_path / "a" / "1.png", tmp_path / "a" / "2.PNG")
    jpegs = (tmp_path / "a" / "3.jpg", tmp_path / "a" / "4.JPEG")
    assert [job.beside for job in first.allowed] == [pngs, pngs, jpegs, jpegs]
    later = plan_jobs(images[:1], lambda image: [tmp_path / "out" / image.name], overwrite=False, skip_existing=True)
    assert [job.beside for job in later.finished + later.allowed] == [pngs, pngs, jpegs, jpegs]
    again = plan_jobs(images[:1], lambda image: [tmp_path / "out" / image.name], overwrite=False)
    assert len(again.problems) == 1 and [job.beside for job in again.allowed] == [pngs, jpegs, jpegs]
    other = plan_jobs(images[1:], lambda image: [tmp_path / "new" / image.name], overwrite=False)
    assert [job.beside for job in other.allowed] == [(tmp_path / "b" / "1.png",)]
    tiffs = plan_jobs([str(tmp_path / "c")], lambda image: [tmp_path / "new" / image.name], overwrite=False)
    assert [len(job.beside) for job in tiffs.allowed] == [3, 3, 3]
