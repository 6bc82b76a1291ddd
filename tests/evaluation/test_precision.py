"""bf16 of evaluation and embedding: near float32, asked for, and only in the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mae
from mae.config.model import ModelConfig
from mae.errors import ConfigError
from mae.evaluation import precision as module
from mae.evaluation.classify import open_for_evaluation
from mae.evaluation.features import encoder_features
from mae.evaluation.inputs import FeatureSettings
from mae.evaluation.precision import set_precision
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.weights.formats.native import save
from tests.images import photo

SMALL = ModelConfig(
    image_size=(32, 32), patch_size=4, width=192, depth=3, num_heads=3,
    decoder_width=96, decoder_depth=1, decoder_heads=2, crop_pct=1.0,
)  # fmt: skip
PHOTOS = np.stack([photo(32, 32, seed=seed) for seed in range(6)])
IMAGES = torch.from_numpy(PHOTOS).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(create(SMALL), tmp_path_factory.mktemp("made") / "w")


def test_float32_is_the_default_and_the_encoders_own_bits(weights: Path) -> None:
    expected = encoder_features(create(SMALL).encoder, [IMAGES], pools=["mean"])["mean"]

    assert np.array_equal(mae.embed(weights, PHOTOS), expected)
    assert np.array_equal(mae.embed(weights, PHOTOS, precision="float32"), expected)


@pytest.mark.parametrize("pool", ["mean", "cls", "grid"])
def test_features_in_bf16_are_near_those_in_float32(pool: str, weights: Path) -> None:
    exact = mae.embed(weights, PHOTOS, pool=pool)  # type: ignore[arg-type]
    half = mae.embed(weights, PHOTOS, pool=pool, precision="bf16")  # type: ignore[arg-type]

    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(half, axis=1)
    assert half.dtype == np.float32 and ((exact * half).sum(axis=1) / lengths).min() > 0.9999
    assert 0 < np.abs(exact - half).max() < 0.03  # as docs/images.md says of a ViT-B/16


@pytest.mark.parametrize("native", [False, True])
def test_auto_is_bf16_only_where_the_device_has_it_and_says_so(
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    native: bool,
) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda device: native)
    monkeypatch.setattr(module, "emulates_bf16", lambda: not native)

    found = mae.embed(weights, PHOTOS, precision="auto")

    assert ("precision: bf16, chosen" in capsys.readouterr().err) == native
    chosen = mae.embed(weights, PHOTOS, precision="bf16" if native else "float32")
    assert np.array_equal(found, chosen)
    assert "emulates" not in capsys.readouterr().err


def test_a_processor_that_emulates_bf16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "emulates_bf16", lambda: True)

    set_precision(create(SMALL).encoder, "bf16", log=said.append)

    assert said == [
        "precision: this device emulates bf16, slower than float32; use --precision float32"
    ]


def test_fp16_is_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="precision: got fp16, expected float32, bf16 or auto"):
        mae.embed(weights, PHOTOS, precision="fp16")


def test_the_head_of_a_classifier_stays_in_float32(tmp_path: Path) -> None:
    model = Classifier(create(SMALL).encoder, num_classes=3)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    save(model, tmp_path / "w", class_names=list("abc"))
    settings = FeatureSettings(precision="bf16", device="cpu")

    found, _ = open_for_evaluation(tmp_path / "w", settings, log=lambda line: None)

    with torch.inference_mode():
        images = found.encoder.normalize(IMAGES)
        scores, exact = found(images), model.eval()(images)
    assert scores.dtype == torch.float32 and not torch.equal(scores, scores.bfloat16().float())
    torch.testing.assert_close(scores, exact, atol=0.1, rtol=0)
    assert not torch.equal(scores, exact)
