"""The packed bundle is whole, passes what the zoo checks, and works in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import load_net_with_metadata
from PIL import Image

from bundle import load_restorer
from scripts import package_bundle

ROOT = Path(__file__).resolve().parents[2]

# Runs at the root of an unpacked bundle: what the zoo's checks and a user's first lines of Python do.
CHECKS = """
import json, sys
import monai.bundle, torch
import bundle
from monai.bundle import create_workflow, load, verify_metadata, verify_net_in_out

root, rules, fields, output = sys.argv[1:]
assert bundle.__file__.startswith(root), bundle.__file__
verify_metadata(meta_file="configs/metadata.json", filepath=rules)
verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/inference.json", device="cpu",
                  any=37)
network = load("mop_pathology_restoration", bundle_dir="..", workflow_type="inference", device="cpu")
weights = torch.load("models/model.pt", weights_only=True)
assert all(torch.equal(value, weights[name].to(value)) for name, value in network.state_dict().items())
workflow = create_workflow(config_file="configs/inference.json", workflow_type="inference", dataset_dir=fields,
                           output_dir=output, device=torch.device("cpu"), stop_after="p_former")
workflow.run()
"""

# Runs as Python starts: takes away what an editable installation has put there.
ALONE = f"""
import sys
sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the packed and unpacked bundle."""
    folder = tmp_path_factory.mktemp("packed")
    archive = package_bundle.package(ROOT, folder)
    assert archive.name == f"mop_pathology_restoration_v{version()}.zip"
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder / "unpacked")
    assert [path.name for path in (folder / "unpacked").iterdir()] == ["mop_pathology_restoration"]
    return folder / "unpacked" / "mop_pathology_restoration"


def version() -> str:
    return json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]


def test_the_bundle_holds_what_it_needs_and_nothing_of_the_workshop(unpacked: Path) -> None:
    """A user needs the package and the weights; tests, demo output and caches only make the download longer."""
    assert {path.name for path in unpacked.iterdir()} == {"LICENSE", "requirements.txt", "configs", "models", "docs",
                                                          "bundle"}
    assert (unpacked / "models" / "model.pt").read_bytes() == (ROOT / "models" / "model.pt").read_bytes()
    sources = {path.relative_to(ROOT) for path in (ROOT / "bundle").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(unpacked) for path in (unpacked / "bundle").rglob("*") if path.is_file()} == sources


def test_the_bundle_passes_the_zoo_s_checks() -> None:
    """What the zoo's own run would refuse is refused here, before anybody waits for it."""
    assert package_bundle.problems(ROOT) == []


def test_each_fault_is_found(unpacked: Path, tmp_path: Path) -> None:
    """A check that accepts everything is none."""
    root = tmp_path / "root"
    shutil.copytree(unpacked, root)
    assert package_bundle.problems(root) == []
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))

    def faults(**changed: object) -> str:
        (root / "configs" / "metadata.json").write_text(json.dumps({**metadata, **changed}))
        return " ".join(package_bundle.problems(root))

    assert "must hold its version 9.9.9" in faults(version="9.9.9")
    assert "torch must be pinned as in requirements.txt" in faults(pytorch_version="1.0.0")
    assert "einops2 must be pinned" in faults(required_packages_version={"einops2": "1"})
    assert faults() == ""
    page = root / "docs" / "README.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[out](../../elsewhere.md)\n[gone](gone.md#part)\n")
    assert "docs/README.md leads to ../../elsewhere.md" in faults() and "leads to gone.md" in faults()
    (root / "LICENSE").unlink()
    assert package_bundle.problems(root) == ["a bundle must hold LICENSE, it is missing."]
    with pytest.raises(ValueError, match="must hold LICENSE"):
        package_bundle.package(root, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_file_too_large_for_the_zoo_is_found(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo takes no file above 25 MB without an address to fetch it from."""
    monkeypatch.setattr(package_bundle, "LARGEST_MB", 1.0)
    found = package_bundle.problems(unpacked)
    assert any("a file must have at most 1 MB, models/model.pt has" in line for line in found)


def test_the_same_files_give_the_same_archive(unpacked: Path, tmp_path: Path) -> None:
    """A checksum that changes with the hour of packing vouches for nothing."""
    first = package_bundle.package(unpacked, tmp_path / "a").read_bytes()
    os.utime(unpacked / "LICENSE")
    assert package_bundle.package(unpacked, tmp_path / "b").read_bytes() == first
    with pytest.raises(FileExistsError, match="--overwrite"):
        package_bundle.package(unpacked, tmp_path / "a")


def field(folder: Path) -> Path:
    """A folder with one small field."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "field.png")
    return folder


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """This Python with nothing of the checkout in its reach, not even by an editable installation."""
    with tempfile.TemporaryDirectory() as start:
        (Path(start) / "sitecustomize.py").write_text(ALONE)
        return subprocess.run([sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": start},
                              capture_output=True, text=True, check=False)


def test_the_checkout_is_out_of_reach_of_these_tests(tmp_path: Path) -> None:
    """Else a bundle that lacks its package passes, because the installed checkout steps in."""
    ended = run(["-c", "import importlib.util; print(importlib.util.find_spec('bundle'))"], tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "None\n"), ended.stderr


@pytest.mark.slow
def test_an_unpacked_bundle_works_from_its_root(unpacked: Path, tmp_path: Path) -> None:
    """verify_metadata, verify_net_in_out, load, create_workflow and a run, with the unpacked package alone."""
    from tests.test_configs import RULES

    (tmp_path / "rules.json").write_text(json.dumps(RULES))  # a schema that is there already is not downloaded
    ended = run(["-c", CHECKS, str(unpacked), str(tmp_path / "rules.json"), str(field(tmp_path / "fields")),
                 str(tmp_path / "out")], unpacked)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert Image.open(tmp_path / "out" / "field_restored.png").size == (52, 40)


@pytest.mark.slow
def test_an_unpacked_bundle_runs_from_another_folder(unpacked: Path, tmp_path: Path) -> None:
    """MONAI Label and Deploy start anywhere and give the bundle's root."""
    fields, elsewhere = field(tmp_path / "fields"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    ended = run(["-m", "monai.bundle", "run", "--config_file", str(unpacked / "configs" / "inference.json"),
                 "--bundle_root", str(unpacked), "--dataset_dir", str(fields), "--output_dir", str(tmp_path / "out")],
                elsewhere)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert Image.open(tmp_path / "out" / "field_restored.png").size == (52, 40)
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_an_unpacked_bundle_trains_and_evaluates_from_another_folder(unpacked: Path, tmp_path: Path) -> None:
    """The zoo runs every config of a bundle; one that finds its package only from its own folder fails there."""
    fields, elsewhere = field(tmp_path / "fields"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    configs, root = unpacked / "configs", ["--bundle_root", str(unpacked)]
    ended = run(["-m", "monai.bundle", "run", "training", "--config_file",
                 f"['{configs / 'train.json'}','{configs / 'smoke.json'}']", *root, "--runs_dir",
                 str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out")], elsewhere)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert list((tmp_path / "runs").rglob("*.pt"))
    ended = run(["-m", "monai.bundle", "run", "evaluating", "--config_file", str(configs / "evaluate.json"), *root,
                 "--dataset_dir", str(fields), "--output_dir", str(tmp_path / "evaluated"), "--positions_um", "[1.5]",
                 "--stop_after", "p_former"], elsewhere)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert list((tmp_path / "evaluated").iterdir())
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_an_unpacked_bundle_is_exported_by_monai_s_own_command(unpacked: Path, tmp_path: Path) -> None:
    """The zoo makes model.ts of every bundle this way."""
    file = tmp_path / "model.ts"
    ended = run(["-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", str(file), "--ckpt_file",
                 "models/model.pt", "--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json",
                 "--use_trace", "True", "--input_shape", "[1,3,64,64]"], unpacked)
    assert ended.returncode == 0, ended.stderr[-2000:]
    network, _, others = load_net_with_metadata(str(file), more_extra_files=("inference.json",))
    assert b"network_def" in others["inference.json"]
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network(image), load_restorer().network(image), atol=1e-4)
