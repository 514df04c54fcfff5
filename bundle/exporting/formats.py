"""The formats of an exported graph: written, read back, held against the network, and only then put on the disk.

    torchscript    traced; any size; the seed's noise inside; metadata and configs embedded as MONAI's ckpt_export does
    onnx           any batch, sides in multiples of the stride; P-diffusion's noise is an input
    torch_export   likewise, as a torch.export program with metadata and configs embedded
    tensorrt       likewise, compiled for the GPU of this machine
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bundle import __version__
from bundle.exporting.graphs import ChainGraph, CoarseGraph, TileGraph, example, exportable, smallest_side
from bundle.restoration import TileRestorer
from bundle.slides.whole_files import replace_when_done

FORMATS = ("torchscript", "onnx", "torch_export", "tensorrt")
TOLERANCE = 1e-4  # of [0, 1]: an eight-bit step is 4e-3
MOST_SIDE = 4096  # px; an upper bound that torch.export wants to know
MOST_BATCH = 256

Run = Callable[..., Tensor]


class Exported(NamedTuple):
    """A file that was written."""

    size_mb: float
    difference: float  # largest of any pixel to the network, [0, 1]


class Written(NamedTuple):
    """A graph as a file's content, and the way to run that content."""

    content: bytes
    run: Run


@torch.no_grad()
def export(restorer: TileRestorer, part: str, form: str, path: Path, configs: list[Path],
           overwrite: bool = False) -> Exported:
    """Write a graph; it is kept only if it computes what the network computes, at other sizes than it was made with.

    Args:
        restorer: the chain, in evaluation mode, on the device that the graph is for.
        part: "chain" or "p_former".
        form: one of `FORMATS`.
        path: the file.
        configs: what to embed beside metadata.json, under their names.
        overwrite: replace a file of that name.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        ValueError: no such part or format, no GPU for TensorRT, or the graph differs from the network.
    """
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form}.")
    if form == "tensorrt":
        check_tensorrt(restorer)
    ready = exportable(restorer, part)
    embedded = {file.name: json.dumps(json.loads(file.read_text(encoding="utf-8"))).encode() for file in configs}
    write = {"torchscript": _torchscript, "onnx": _onnx, "torch_export": _torch_export, "tensorrt": _tensorrt}[form]
    with replace_when_done(path, overwrite) as file:
        with _quiet():
            written = write(ready, part, embedded)
        difference = _difference(restorer, ready, written.run, form != "torchscript")
        if not difference <= TOLERANCE:
            raise ValueError(f"a graph must be within {TOLERANCE} of the network, it is {difference:.2g} off.")
        file.write(written.content)
    return Exported(len(written.content) / 1e6, difference)


def check_tensorrt(restorer: TileRestorer) -> None:
    """Refuse TensorRT where it cannot be built.

    Raises:
        ValueError: no GPU, the network is not on it, or torch_tensorrt is not installed.
    """
    if not torch.cuda.is_available() or next(restorer.parameters()).device.type != "cuda":
        raise ValueError("format tensorrt needs an NVIDIA GPU and --device cuda, this run has none: "
                         "export onnx here and build on the GPU's machine, as docs/exports.md shows.")
    try:
        import torch_tensorrt  # noqa: F401 (only asked whether it is there)
    except ImportError as error:
        raise ValueError("format tensorrt needs the package torch-tensorrt, it is not installed.") from error


def _torchscript(restorer: TileRestorer, part: str, embedded: dict[str, bytes]) -> Written:
    from monai.data.torchscript_utils import save_net_with_metadata

    side = smallest_side(restorer)
    inputs = example(restorer, 2, side + 6, side + 37, noise=False).inputs
    graph = torch.jit.trace(TileGraph(restorer).eval(), inputs, check_trace=False)
    metadata = json.loads(embedded["metadata.json"]) if "metadata.json" in embedded else {}
    others = {name: content for name, content in embedded.items() if name != "metadata.json"}
    # torch names the folder inside the archive after the file; MONAI Deploy looks for model.ts's configs in model/.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.ts"
        save_net_with_metadata(graph, str(file), include_config_vals=False,
                               meta_values={**metadata, "exported_part": part}, more_extra_files=others)
        content = file.read_bytes()
    return Written(content, torch.jit.load(io.BytesIO(content)))


def _program(restorer: TileRestorer, part: str) -> torch.export.ExportedProgram:
    """The graph with free batch and sides."""
    least = smallest_side(restorer) // restorer.stride
    batch = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    height, width = (restorer.stride * torch.export.Dim(name, min=least, max=MOST_SIDE // restorer.stride)
                     for name in ("rows", "columns"))
    graph: nn.Module = ChainGraph(restorer) if part == "chain" else CoarseGraph(restorer)
    shapes: dict[str, Any] = {"image": {0: batch, 2: height, 3: width}}
    if part == "chain":
        shapes["noise"] = {0: batch, 3: height, 4: width}
    side = smallest_side(restorer)
    # Twice the smallest side: at a single window of the local spectra a free size would become the constant 1.
    inputs = example(restorer, 2, 2 * side, 2 * side + restorer.stride, noise=part == "chain").inputs
    return torch.export.export(graph.eval(), inputs, dynamic_shapes=shapes)


def _torch_export(restorer: TileRestorer, part: str, embedded: dict[str, bytes]) -> Written:
    file = io.BytesIO()
    extra = {name: content.decode() for name, content in embedded.items()}
    torch.export.save(_program(restorer, part), file, extra_files=extra)
    return Written(file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module())


def _onnx(restorer: TileRestorer, part: str, embedded: dict[str, bytes]) -> Written:
    import onnxruntime

    program = torch.onnx.export(_program(restorer, part), dynamo=True, optimize=True, verbose=False,
                                output_names=["restored" if part == "chain" else "coarse"])
    assert program is not None
    proto = program.model_proto
    for name, content in {"mop_version": __version__.encode(), **embedded}.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, content.decode()
    written = proto.SerializeToString()
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return Written(written, run)


def _tensorrt(restorer: TileRestorer, part: str, embedded: dict[str, bytes]) -> Written:
    """Engines for batches 1 to 8 of tiles up to 512 px, best at one tile of 256 px."""
    import torch_tensorrt

    del embedded  # a compiled program holds no further files
    side, steps = smallest_side(restorer), restorer.scheduler.num_train_timesteps
    sizes = {"min_shape": (1, side), "opt_shape": (1, 256), "max_shape": (8, 512)}
    inputs = [torch_tensorrt.Input(**{name: (batch, 3, px, px) for name, (batch, px) in sizes.items()})]
    if part == "chain":
        shapes = {name: (batch, steps, 3, px, px) for name, (batch, px) in sizes.items()}
        inputs.append(torch_tensorrt.Input(**shapes))
    program = _program(restorer, part)
    compiled = torch_tensorrt.dynamo.compile(program, inputs=inputs, enabled_precisions={torch.float32})
    file = io.BytesIO()
    torch.export.save(torch_tensorrt.dynamo.export(compiled, arg_inputs=inputs), file)
    return Written(file.getvalue(), compiled)


def _difference(restorer: TileRestorer, ready: TileRestorer, run: Run, given: bool) -> float:
    """Largest difference of a pixel between graph and network, at two sizes and batches that the graph has not seen.

    Args:
        restorer: the network as it runs everywhere else.
        ready: its exportable copy, whose `stop_after` says which part was exported.
        run: the graph.
        given: noise and padding are the caller's.
    """
    side, stride = smallest_side(ready), ready.stride
    noise = given and ready.stop_after == "p_diffusion"
    stop_after, worst = restorer.stop_after, 0.0
    restorer.stop_after = ready.stop_after
    try:
        for number, (batch, height, width) in enumerate([(1, side + 2 * stride, side), (3, side, side + stride)], 1):
            odd = 0 if given else 11
            inputs = example(ready, batch, height - odd, width - odd, noise, seed=number).inputs
            drawn = inputs[1].unbind(1) if noise else ()
            expected = restorer.restore_given(inputs[0], drawn) if given else restorer(inputs[0])
            difference = (run(*inputs).cpu() - expected.cpu()).abs().max()
            worst = max(worst, float(difference.nan_to_num(nan=torch.inf)))
    finally:
        restorer.stop_after = stop_after
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence of the exporters: their advice is for the author of a graph, and what counts is checked afterwards."""
    names = ("torch.onnx", "onnxscript", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
