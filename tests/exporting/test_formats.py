"""`mop export`: a file computes what the network computes, at sizes and batches new to it, or is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from monai.data import load_net_with_metadata
from torch import Tensor, nn

from bundle.cli import main
from bundle.exporting import formats
from bundle.exporting.graphs import example, exportable, smallest_side
from bundle.loading import CONFIG, build_network, load_tile_restorer
from bundle.p_diffusion.noise import noise_at
from bundle.p_former.experts import ExpertFeedForward
from bundle.restoration import TileRestorer

# The shipped classes at the smallest sizes: an export's time follows the number of operations.
SMALL = {
    "estimator_widths": [8, 8, 8, 16], "encoder_width": 16, "prompt_depth": 1, "prompt_heads": 2, "p_former_dim": 8,
    "p_former_blocks": [1, 0, 0, 1], "p_former_refinement": 0, "denoiser_channels": [8, 16],
    "denoiser_attention": [False, True], "denoiser_groups": 4, "diffusion_steps": 2,
}


class Small(NamedTuple):
    """A small network on disk and in memory."""

    options: list[str]
    network: TileRestorer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    config = {**json.loads(CONFIG.read_text(encoding="utf-8")), **SMALL}
    config["encoder"]["depth"] = 1
    config["encoder"]["heads"] = 2
    config["denoiser"]["head_channels"] = 8
    (folder / "inference.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = build_network(folder / "inference.json", "cpu")
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():  # an untrained stage returns its input
            nn.init.normal_(parameter, std=0.05)
    torch.save(network.state_dict(), folder / "model.pt")
    options = ["--config", str(folder / "inference.json"), "--weights", str(folder / "model.pt")]
    return Small(options, load_tile_restorer(folder / "inference.json", folder / "model.pt"))


def tiles(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def test_a_torchscript_chain_restores_any_size_as_the_network_does(small: Small, tmp_path: Path) -> None:
    """MONAI Deploy and C++ programs feed whatever tile they have; a baked-in size or batch would fail or blur."""
    file = tmp_path / "model.ts"
    assert main(["export", *small.options, "--seed", "3", "--output", str(file)]) == 0
    graph = torch.jit.load(file)
    small.network.seed = 3
    for size in ((1, 45, 70), (3, 96, 41)):
        image = tiles(*size)
        restored = graph(image)
        assert restored.shape == image.shape
        assert (restored - small.network(image)).abs().max() <= formats.TOLERANCE
    small.network.seed = 0
    assert (graph(image) - small.network(image)).abs().max() > 1e-3


def test_a_torchscript_file_carries_metadata_and_configs(small: Small, tmp_path: Path) -> None:
    """MONAI's tools read from the file itself what goes in and out."""
    file = tmp_path / "model.ts"
    assert main(["export", *small.options, "--part", "p_former", "--output", str(file)]) == 0
    graph, metadata, extra = load_net_with_metadata(str(file), more_extra_files=("inference.json",))
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert metadata["exported_part"] == "p_former"
    assert json.loads(extra["inference.json"])["p_former_dim"] == SMALL["p_former_dim"]
    image = tiles(2, 70, 45)
    with torch.no_grad():
        assert (graph(image) - small.network.restore(image).coarse).abs().max() <= formats.TOLERANCE


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("part", ["chain", "p_former"])
def test_an_onnx_graph_computes_what_the_network_computes(small: Small, tmp_path: Path, part: str) -> None:
    """The noise of the network's own field must give the network's own pixels, in any batch."""
    import onnxruntime

    file = tmp_path / "graph.onnx"
    assert main(["export", *small.options, "--format", "onnx", "--part", part, "--output", str(file)]) == 0
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert "metadata.json" in session.get_modelmeta().custom_metadata_map
    for batch, height, width in ((1, 64, 128), (3, 96, 64)):
        image = tiles(batch, height, width)
        inputs = {"image": image.numpy(), "noise": field(batch, height, width).numpy()}
        if part == "p_former":
            del inputs["noise"]
        (restored,) = session.run(None, inputs)
        expected = small.network.restore(image)
        wanted = expected.restored if part == "chain" else expected.coarse
        assert (torch.from_numpy(restored) - wanted).abs().max() <= formats.TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_a_torch_export_program_computes_what_the_network_computes(small: Small, tmp_path: Path) -> None:
    """Another size, another batch, read back from the disk."""
    file = tmp_path / "graph.pt2"
    assert main(["export", *small.options, "--format", "torch_export", "--output", str(file)]) == 0
    extra = {"metadata.json": ""}
    graph = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["task"]
    for batch, height, width in ((1, 64, 128), (3, 96, 64)):
        image = tiles(batch, height, width)
        restored = graph(image, field(batch, height, width))
        assert (restored - small.network(image)).abs().max() <= formats.TOLERANCE


def field(batch: int, height: int, width: int) -> Tensor:
    """The network's own noise at (0, 0), seed 0, as the input of a graph: (B, T, 3, H, W)."""
    place, steps = torch.zeros(batch, 2, dtype=torch.int64), SMALL["diffusion_steps"]
    assert isinstance(steps, int)
    return torch.stack([noise_at(place, height, width, 0, draw) for draw in range(steps, 0, -1)], 1)


@torch.no_grad()
def test_separate_experts_are_the_merged_experts(small: Small) -> None:
    """Exported graphs run the experts one by one; the sum must be the one that was trained."""
    copy = exportable(small.network, "chain")
    pairs = [(one, other) for one, other in zip(small.network.modules(), copy.modules(), strict=True)
             if isinstance(one, ExpertFeedForward) and isinstance(other, ExpertFeedForward)]
    assert pairs
    for merged, separate in pairs:
        x = torch.randn(3, 2 * merged.hidden, 5, 7)
        gates = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.4, 0.6], [0.1, 0.1, 0.8]])
        assert torch.allclose(separate.mixed_experts(x, gates), merged.mixed_experts(x, gates), atol=1e-5)


@torch.no_grad()
def test_given_noise_is_the_drawn_noise(small: Small) -> None:
    """A graph whose noise is an input must be the chain when it gets the chain's noise."""
    image = tiles(2, 64, 96)
    given = small.network.restore_given(image, field(2, 64, 96).unbind(1))
    together = small.network.restore_together(image, torch.zeros(2, 2, dtype=torch.int64))
    assert torch.equal(given, together.restored)
    one = small.network.restore_given(image[:1], field(1, 64, 96).unbind(1))
    assert torch.equal(one, small.network(image)[:1])
    assert not torch.allclose(given, small.network.restore(image).coarse, atol=1e-3)


def test_the_smallest_side_can_be_mirrored(small: Small) -> None:
    """Below it the colours' Gaussian reaches past the image, and a graph would fail where the network does not."""
    assert smallest_side(small.network) == 64
    inputs = example(small.network, 2, 70, 101, noise=True)
    assert [tuple(x.shape) for x in inputs.inputs] == [(2, 3, 70, 101), (2, 2, 3, 70, 101)]


def test_a_graph_that_differs_from_the_network_is_not_kept(small: Small, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that restores otherwise than the figures say must never lie on a disk."""
    for wrong in (0.001, float("nan")):
        monkeypatch.setattr(formats, "_torchscript", lambda ready, part, embedded, wrong=wrong: formats.Written(
            b"graph", lambda image: ready(image) + wrong))
        with pytest.raises(ValueError, match=r"must be within 0\.0001 of the network"):
            formats.export(small.network, "chain", "torchscript", tmp_path / "model.ts", [])
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--format", "tflite"], 2,
     "--format must be one of torchscript, onnx, torch_export, tensorrt, mlflow, got tflite"),
    (["--part", "denoiser"], 2, "--part must be one of chain, p_former, got denoiser"),
    (["--preset", "paper"], 2, "--preset paper needs --weights FILE"),
    (["stray.png"], 2, "export takes the options of --help only, got stray.png"),
    (["--weights", "nowhere.pt"], 1, "the weights file must exist, nowhere.pt does not"),
])
def test_a_wrong_command_is_one_sentence_and_leaves_nothing(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes of export that end in a traceback, or in the wrong format, are lost."""
    assert main(["export", "--output", str(tmp_path / "out" / "graph"), *arguments]) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the sentence is for machines without a GPU")
def test_tensorrt_without_a_gpu_is_one_sentence(small: Small, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    """TensorRT builds on the GPU that will run it; elsewhere the reader needs to know what to do instead."""
    assert main(["export", *small.options, "--format", "tensorrt", "--output", str(tmp_path / "graph.ep")]) == 1
    assert "needs an NVIDIA GPU and --device cuda" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of another seed must not vanish unasked."""
    (tmp_path / "model.ts").write_bytes(b"earlier")
    assert main(["export", "--output", str(tmp_path / "model.ts")]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "model.ts").read_bytes() == b"earlier"


def test_a_config_that_skips_what_is_in_focus_is_refused(small: Small) -> None:
    """A graph that restored what the config says to leave alone would change evidence."""
    small.network.skip_in_focus = True
    try:
        with pytest.raises(ValueError, match="skip_in_focus must be false"):
            exportable(small.network, "chain")
    finally:
        small.network.skip_in_focus = False
