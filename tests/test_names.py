"""The public names are pinned: what other people build on."""

from __future__ import annotations

import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import mae
from mae.cli.verbs.every import VERBS


def test_public_names() -> None:
    assert mae.__all__ == [
        "AugmentConfig",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "Encoder",
        "FinetuneConfig",
        "MaeError",
        "MaskedAutoencoder",
        "MixConfig",
        "ModelConfig",
        "ObjectiveConfig",
        "OptimConfig",
        "Output",
        "PixelConfig",
        "Predicted",
        "PretrainConfig",
        "Reconstruction",
        "Run",
        "ShapeError",
        "Stopped",
        "TrainingError",
        "Tuned",
        "WeightsError",
        "convert",
        "create",
        "detect_evaluate",
        "detect_predict",
        "detect_train",
        "embed",
        "evaluate",
        "features",
        "finetune",
        "load",
        "load_backbone",
        "load_encoder",
        "predict",
        "pretrain",
        "probe",
        "reconstruct",
        "save",
        "segment_evaluate",
        "segment_predict",
        "segment_train",
        "worth",
    ]


def test_every_public_name_resolves() -> None:
    for name in mae.__all__:
        assert getattr(mae, name).__doc__, name


# Parameters of the command alone: the parser's, and those that name a configuration.
OF_COMMANDS = {"given", "config", "print_config", "fields"}
# Parameters of Python alone: the record of the command line, and what `given` and `fields` name.
OF_PYTHON = {"command", "based_on", "kept", "finished_too", "given", "fields", "count"}


@pytest.mark.parametrize(
    "name",
    "pretrain finetune probe evaluate predict reconstruct segment_train segment_evaluate "
    "segment_predict detect_train detect_evaluate detect_predict".split(),
)
def test_a_function_has_the_parameters_and_defaults_of_its_command(name: str) -> None:
    verb = next(verb.run for verb in VERBS if verb.name == name.replace("_", " "))
    asked = {n: p for n, p in signature(verb).parameters.items() if n not in OF_COMMANDS}
    taken = {
        n: p for n, p in signature(getattr(mae, name)).parameters.items() if n not in OF_PYTHON
    }

    differing = (
        {"data"} if name.endswith(("train", "finetune")) else set()
    )  # optional with a recipe file
    if name == "finetune":
        asked.pop("seeds")  # several runs: a loop in Python

    assert [*asked] == [*taken]
    for n in asked.keys() - differing:
        default = taken[n].default
        assert (Path(default) if isinstance(asked[n].default, Path) else default) == asked[
            n
        ].default


def test_importing_mae_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "PIL", "rich", "torchvision", "timm", "transformers"]
    code = f"import sys, mae; print([m for m in {heavy} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
