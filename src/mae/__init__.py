"""Public API of mae: masked autoencoders for images.

Each public name is imported on first use, so that `import mae` is fast.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("mae needs Linux or macOS; on Windows, install it in WSL (wsl --install)")

if TYPE_CHECKING:
    from mae.config.run import AugmentConfig as AugmentConfig
    from mae.config.run import FinetuneConfig as FinetuneConfig
    from mae.config.run import MixConfig as MixConfig
    from mae.config.run import ModelConfig as ModelConfig
    from mae.config.run import ObjectiveConfig as ObjectiveConfig
    from mae.config.run import OptimConfig as OptimConfig
    from mae.config.run import PixelConfig as PixelConfig
    from mae.config.run import PretrainConfig as PretrainConfig
    from mae.errors import CheckpointError as CheckpointError
    from mae.errors import ConfigError as ConfigError
    from mae.errors import DataError as DataError
    from mae.errors import MaeError as MaeError
    from mae.errors import ShapeError as ShapeError
    from mae.errors import Stopped as Stopped
    from mae.errors import TrainingError as TrainingError
    from mae.errors import WeightsError as WeightsError
    from mae.jobs.detect_evaluate import detect_evaluate as detect_evaluate
    from mae.jobs.detect_predict import detect_predict as detect_predict
    from mae.jobs.detect_train import detect_train as detect_train
    from mae.jobs.embed import embed as embed
    from mae.jobs.embed import features as features
    from mae.jobs.evaluate import evaluate as evaluate
    from mae.jobs.finetune import Tuned as Tuned
    from mae.jobs.finetune import finetune as finetune
    from mae.jobs.predict import Predicted as Predicted
    from mae.jobs.predict import predict as predict
    from mae.jobs.pretrain import Run as Run
    from mae.jobs.pretrain import pretrain as pretrain
    from mae.jobs.probe import probe as probe
    from mae.jobs.reconstruct import reconstruct as reconstruct
    from mae.jobs.segment_evaluate import segment_evaluate as segment_evaluate
    from mae.jobs.segment_predict import segment_predict as segment_predict
    from mae.jobs.segment_train import segment_train as segment_train
    from mae.jobs.worth import worth as worth
    from mae.model.autoencoder import MaskedAutoencoder as MaskedAutoencoder
    from mae.model.autoencoder import Output as Output
    from mae.model.autoencoder import Reconstruction as Reconstruction
    from mae.model.create import create as create
    from mae.model.encoder import Encoder as Encoder
    from mae.weights.formats.native import save as save
    from mae.weights.load import load as load
    from mae.weights.load import load_encoder as load_encoder
    from mae.weights.load_backbone import load_backbone as load_backbone
    from mae.weights.tools.convert import convert as convert

_NAMES = {
    "mae.config.run": "AugmentConfig FinetuneConfig MixConfig ModelConfig "
    "ObjectiveConfig OptimConfig PixelConfig PretrainConfig",
    "mae.errors": "CheckpointError ConfigError DataError "
    "MaeError ShapeError Stopped TrainingError WeightsError",
    "mae.jobs.detect_evaluate": "detect_evaluate",
    "mae.jobs.detect_predict": "detect_predict",
    "mae.jobs.detect_train": "detect_train",
    "mae.jobs.embed": "embed features",
    "mae.jobs.evaluate": "evaluate",
    "mae.jobs.finetune": "Tuned finetune",
    "mae.jobs.predict": "Predicted predict",
    "mae.jobs.pretrain": "Run pretrain",
    "mae.jobs.probe": "probe",
    "mae.jobs.reconstruct": "reconstruct",
    "mae.jobs.segment_evaluate": "segment_evaluate",
    "mae.jobs.segment_predict": "segment_predict",
    "mae.jobs.segment_train": "segment_train",
    "mae.jobs.worth": "worth",
    "mae.model.autoencoder": "MaskedAutoencoder Output Reconstruction",
    "mae.model.create": "create",
    "mae.model.encoder": "Encoder",
    "mae.weights.formats.native": "save",
    "mae.weights.load": "load load_encoder",
    "mae.weights.load_backbone": "load_backbone",
    "mae.weights.tools.convert": "convert",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mae' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
