"""The configs are a valid MONAI bundle: metadata, network data format, required properties."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

import bundle
from bundle.messages import errors_as_sentences

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
STAGES = ["train_defocus", "train_prompt", "train_p_former", "train_p_diffusion"]
TRAINING = ["train_encoder", *STAGES, "train"]
REQUIRED = [*TRAINING, "inference", "evaluate", "compact", "smoke", "focal_stacks", "multi_gpu", "mlflow", "metadata"]
METADATA = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))

# What the schema of 2024-07-25 asks for, in our own words: the file itself is MONAI's and is fetched by its address.
TEXT, MAPPING = {"type": "string", "minLength": 1}, {"type": "object"}
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "type": TEXT, "format": TEXT, "dtype": TEXT, "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"}, "channel_def": MAPPING,
    },
}
TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
RULES = {
    "type": "object",
    "required": ["schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
                 "task", "description", "authors", "copyright", "network_data_format"],
    "properties": {
        **dict.fromkeys(["schema", "version", "monai_version", "pytorch_version", "numpy_version", "task",
                         "description", "authors", "copyright", "data_source", "data_type", "image_classes",
                         "label_classes", "pred_classes", "intended_use"], TEXT),
        **dict.fromkeys(["changelog", "required_packages_version", "eval_metrics", "supported_apps"], MAPPING),
        "references": {"type": "array", "items": TEXT},
    },
    "patternProperties": {"_data_format$": {"type": "object", "required": ["inputs", "outputs"],
                                            "properties": {"inputs": TENSORS, "outputs": TENSORS}}},
}


def config(name: str) -> dict[str, Any]:
    """A config file as a dictionary."""
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is run from its root: bundle_root is "."."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """A folder with one small field, for configs that read images."""
    from PIL import Image

    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(tmp_path / "field.png")
    return tmp_path


@pytest.mark.parametrize("name", REQUIRED)
def test_a_config_that_the_documents_name_is_there_and_is_json(name: str) -> None:
    """A command of the README that ends in "file not found" is the first thing a newcomer sees."""
    assert isinstance(config(name), dict)


def test_verify_metadata_accepts_the_metadata(tmp_path: Path) -> None:
    """The zoo, MONAI Label and Deploy refuse a bundle whose metadata does not validate."""
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(RULES))  # a schema that is already there is not downloaded
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(rules))


@pytest.mark.parametrize("key", RULES["required"])
def test_verify_metadata_refuses_metadata_without_a_required_key(key: str, tmp_path: Path) -> None:
    """A check that accepts anything would not have noticed a missing field."""
    rules, metadata = tmp_path / "rules.json", tmp_path / "metadata.json"
    rules.write_text(json.dumps(RULES))
    metadata.write_text(json.dumps({name: value for name, value in METADATA.items() if name != key}))
    with pytest.raises(ValueError, match=r"schema|validating"):
        verify_metadata(meta_file=str(metadata), filepath=str(rules))


def test_the_metadata_tells_the_version_of_the_package_and_logs_it() -> None:
    """A bug report names a version; it must be the one that ran."""
    assert METADATA["version"] == bundle.__version__
    assert METADATA["version"] in METADATA["changelog"]


def test_the_metadata_names_the_pinned_packages() -> None:
    """A user who installs by the metadata must get what the tests ran with."""
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))
    named = {"monai": METADATA["monai_version"], "torch": METADATA["pytorch_version"],
             "numpy": METADATA["numpy_version"], **METADATA["required_packages_version"]}
    assert {name: pins.get(name) for name in named} == named


def test_what_is_installed_is_what_is_pinned() -> None:
    """A pin that nobody runs with is a guess."""
    text = (ROOT / "requirements.txt").read_text()
    for name, pin in re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, flags=re.MULTILINE):
        assert version(name).split("+")[0] == pin, name


@pytest.mark.usefixtures("at_root")
def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    """MONAI's tools feed the network by this description alone; the size is one that no stage divides."""
    verify_net_in_out(net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json",
                      device="cpu", any=37)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("name", ["inference", "evaluate"])
def test_an_inference_config_has_every_required_property(name: str, fields: Path, tmp_path: Path) -> None:
    """MONAI Label and Deploy look these names up, and fail far from the cause when one is missing."""
    workflow = ConfigWorkflow(workflow_type="inference", config_file=f"configs/{name}.json",
                              meta_file="configs/metadata.json", logging_file="configs/logging.conf",
                              dataset_dir=str(fields), output_dir=str(tmp_path / "out"))
    workflow.initialize()
    assert not workflow.check_properties()


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("name", TRAINING)
def test_a_training_config_has_every_required_property(name: str, tmp_path: Path) -> None:
    """`--tracking`, MONAI Label and the bundle tools reach into these names."""
    workflow = ConfigWorkflow(workflow_type="train", config_file=[f"configs/{name}.json", "configs/smoke.json"],
                              meta_file="configs/metadata.json", logging_file="configs/logging.conf",
                              runs_dir=str(tmp_path))
    workflow.initialize()
    assert not workflow.check_properties()


@pytest.mark.parametrize("name", [*TRAINING, "inference", "evaluate"])
def test_a_config_opens_with_what_it_is(name: str) -> None:
    """A reader of a folder of configs needs one line to choose."""
    assert len(config(name).get("_desc_", "")) > 20


@pytest.mark.parametrize("name", TRAINING)
def test_handlers_of_a_trainer_are_a_literal_list(name: str) -> None:
    """A reference or an expression there breaks check_properties and `--tracking`."""
    handlers = config(name)["train"]["handlers"]
    assert isinstance(handlers, list)
    assert all(isinstance(handler, dict) for handler in handlers)


@pytest.mark.parametrize("name", STAGES)
def test_all_stages_share_the_numbers_of_the_config_that_runs_them_in_order(name: str) -> None:
    """A stage trained alone must be the stage that `train.json` trains, or their weights do not fit together."""
    whole, stage = config("train"), config(name)
    shared = {key for key in whole.keys() & stage.keys() if isinstance(stage[key], int | float | list)}
    shared -= {"imports", "initialize", "training"}
    assert len(shared) > 10
    assert {key: stage[key] for key in shared} == {key: whole[key] for key in shared}


@pytest.mark.parametrize("name", TRAINING)
def test_an_overlay_sets_what_the_training_reads(name: str) -> None:
    """A key that nothing reads leaves every process on the first GPU, silently."""
    assert set(config("multi_gpu")) - {"_desc_", "finalize"} <= set(config(name))
    assert "@rank" in json.dumps(config(name)["train"]["loader"])


def test_tracking_reaches_the_trainer_of_every_stage() -> None:
    """MONAI skips a trainer that it does not find, and the night's curve is missing in the morning."""
    tracking, whole = config("mlflow"), config("train")
    trainers = {name for name, block in whole.items() if isinstance(block, dict) and "trainer" in block}
    assert {ids["id"].split("::")[0] for ids in tracking["handlers_id"].values()} == trainers
    for name in tracking["handlers_id"]:
        parser = ConfigParser({**whole, **tracking["configs"]})
        folder = parser.get_parsed_content(f"{name}::folder")
        block = tracking["handlers_id"][name]["handlers"].split("::")[0]
        saver = whole[block]["handlers"][-1]
        assert saver["_target_"].endswith("StageCheckpoint") and ConfigParser(whole).get_parsed_content(
            f"{block}::handlers::{len(whole[block]['handlers']) - 1}::folder") == folder


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(("stage", "network", "place"), [
    ("encoder", "compact_encoder", "prompter.encoder"), ("defocus", "estimator", "prompter.estimator"),
    ("prompt", "restorer", "prompter.restorer"), ("p_former", "p_former", "p_former"),
    ("p_diffusion", "denoiser", "denoiser")])
def test_a_stage_starts_from_the_shipped_weights(stage: str, network: str, place: str) -> None:
    """Fine-tuning from what we ship is the first thing that a laboratory tries."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"train_{stage}.json"), str(CONFIGS / "compact.json")])
    parser.update({"start_weights": "models/model.pt"})
    started = parser.get_parsed_content(network).state_dict()
    shipped = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, shipped[f"{place}.{name}"].to(value.dtype)) for name, value in started.items())


@pytest.mark.parametrize("part", ["estimator", "restorer", "p_former", "denoiser", "network_def"])
def test_every_network_of_the_chain_is_declared_by_its_full_path(part: str) -> None:
    """A key used twice in one file silently keeps only the later meaning."""
    assert config("train")[part]["_target_"].startswith("bundle.")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.json")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_no_config_holds_a_path_of_one_machine(path: Path) -> None:
    """An absolute path works for its author alone."""
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8"))
    assert not [string for string in strings if string.startswith(("/", "~"))]


@pytest.mark.parametrize(("config_name", "run_id", "dataset", "told", "stack"), [
    ("train_p_former", "training", "nowhere", "nowhere", False),
    ("evaluate", "evaluating", "nowhere", "nowhere", False),
    ("evaluate", "evaluating", "$1 // 0", "by zero", True),
])
def test_a_run_ends_with_what_is_wrong_as_one_sentence(config_name: str, run_id: str, dataset: str, told: str,
                                                       stack: bool, tmp_path: Path) -> None:  # fmt: skip
    """MONAI's own last line names no file: "Failed to instantiate component … set '_mode_=debug'". Bugs keep theirs."""
    call = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", f"configs/{config_name}.json",
            "--dataset_dir", dataset, "--runs_dir", str(tmp_path), "--output_dir", str(tmp_path / "measured")]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and ("Traceback" in ended.stderr) == stack
    assert last.startswith("mop: ") and last.endswith(".") and told in last


def test_in_a_host_program_errors_stay_as_they_are() -> None:
    """MONAI Label and Deploy initialize the config inside their own process: its errors are theirs to tell."""
    errors_as_sentences()
    assert sys.excepthook.__module__ != "bundle.messages"
