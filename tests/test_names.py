"""The public names are pinned: what other people build on."""

from __future__ import annotations

import subprocess
import sys

import mae


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
        "embed",
        "finetune",
        "load",
        "load_encoder",
        "pretrain",
        "save",
    ]


def test_every_public_name_resolves() -> None:
    for name in mae.__all__:
        assert getattr(mae, name).__doc__, name


def test_importing_mae_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "PIL", "rich", "torchvision", "timm", "transformers"]
    code = f"import sys, mae; print([m for m in {heavy} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
