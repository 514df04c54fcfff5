"""`mop export`: parse, call, report; nothing else."""

from __future__ import annotations

from pathlib import Path

from fire.decorators import SetParseFn, SetParseFns

from bundle.arguments import PARSERS, UsageError
from bundle.messages import say


@SetParseFns(**PARSERS)
@SetParseFn(str)
def export(
    *images: str,
    format: str = "torchscript",
    part: str = "chain",
    output: str = "",
    preset: str = "compact",
    config: str = "",
    weights: str = "",
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    **unknown: str,
) -> None:
    """Usage: mop export --output FILE [options]

    Writes the network as one file that runs without this package, after checking that it computes the same; or as an
    MLflow model, a folder that `mlflow models serve` answers pictures with.

        --output FILE      the file, such as models/model.ts; of mlflow the folder
        --format NAME      torchscript (default), onnx, torch_export, tensorrt (needs a GPU) or mlflow
        --part NAME        chain (default) or p_former (the coarse stage with the prompts that it needs)
        --preset NAME      compact (default) or paper; paper needs --weights
        --config FILE      another configs/inference.json
        --weights FILE     another models/model.pt
        --seed N           of the noise inside a torchscript chain (default 0), or where a request to the MLflow model
                           gives none; elsewhere noise is an input
        --device NAME      cpu (default) or cuda; a torchscript file stays on its device
        --overwrite        replace an earlier file

    Inputs, outputs and examples of each format: docs/exports.md.

    Example:
        mop export --format onnx --output chain.onnx
    """
    if images or unknown:
        stray = images[0] if images else "--" + next(iter(unknown)).replace("_", "-")
        raise UsageError(f"export takes the options of --help only, got {stray}.")
    if not output:
        raise UsageError("--output FILE is needed, none was given.")
    for option, value, known in (("--format", format, ("torchscript", "onnx", "torch_export", "tensorrt", "mlflow")),
                                 ("--part", part, ("chain", "p_former")), ("--preset", preset, ("compact", "paper"))):
        if value not in known:
            raise UsageError(f"{option} must be one of {', '.join(known)}, got {value}.")
    if preset == "paper" and not weights:
        raise UsageError("--preset paper needs --weights FILE: its weights are not shipped.")
    if Path(output).exists() and not overwrite:
        raise FileExistsError(f"{output} exists: --overwrite replaces it.")

    from bundle.exporting import formats
    from bundle.loading import CONFIG, WEIGHTS, load_tile_restorer

    base = Path(config or CONFIG)
    overlay = None if preset == "compact" else CONFIG.parent / "paper.json"
    if format == "mlflow":
        from bundle.exporting.mlflow_model import model_parts, save_model

        stop_after = "p_diffusion" if part == "chain" else "p_former"
        parts = model_parts(base, Path(weights or WEIGHTS), overlay, device, seed, stop_after)
        size_mb = save_model(Path(output), parts, overwrite)
        say(f"{output}: {part} as an MLflow model, {size_mb:.1f} MB")
        return
    restorer = load_tile_restorer(base, Path(weights or WEIGHTS), device, overlay)
    restorer.seed = seed
    configs = [base, *([overlay] if overlay else []), CONFIG.parent / "metadata.json"]
    result = formats.export(restorer, part, format, Path(output), configs, overwrite)
    say(f"{output}: {part} as {format}, {result.size_mb:.1f} MB, within {result.difference:.1e} of the network")
