"""The fraction of an image that evaluation keeps: settled in training, kept by weights, overridden.

Source of the order: `resolve_crop_pct`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mae
from mae.cli.main import main
from mae.config.run import (
    AugmentConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    resolve_crop_pct,
)
from mae.errors import ConfigError
from mae.evaluation.inputs import FeatureSettings
from mae.evaluation.linear_probe import paper_config
from mae.evaluation.method import choose_method
from mae.jobs.embed import embed_to_file
from mae.jobs.evaluate import evaluate
from mae.jobs.finetune import finetune
from mae.jobs.pretrain import pretrain
from mae.jobs.probe import feature_probe, paper_probe
from mae.jobs.reconstruct import reconstruct
from mae.model.create import create
from mae.weights.formats.native import save
from mae.weights.load import load_classifier
from tests.data.augment.test_view import resized_and_cut
from tests.jobs.conftest import TINY, write_classes
from tests.jobs.kill_storm import CONFIG, images
from tests.jobs.test_finetune import PLAIN

WHOLE, CROPS = AugmentConfig(crop_scale=(1.0, 1.0)), AugmentConfig(crop_scale=(0.2, 1.0))
SHORT = replace(CONFIG, steps=2)
NOT_SAID = "crop_pct: not in the weights; assumed 0.875, as published"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give train/ and val/ of three classes."""
    write_classes(tmp_path / "pics" / "train", "a", "b", "c", count=4)
    write_classes(tmp_path / "pics" / "val", "a", "b", "c", count=2, seed=50)
    return tmp_path / "pics"


def config_json(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())["model"]
    return values


def age(file: Path, *names: str) -> None:
    """Take fields out of a JSON file, as an older version wrote it."""
    values = json.loads(file.read_text())
    for name in names:
        *groups, last = name.split(".")
        inner = values
        for group in groups:
            inner = inner[group]
        del inner[last]
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("model", "augment", "of_weights", "expected"),
    [
        (ModelConfig(), CROPS, None, 0.875),
        (ModelConfig(image_size=(384, 384)), CROPS, None, 1.0),
        (ModelConfig(image_size=(224, 448)), CROPS, None, 0.875),
        (ModelConfig(), WHOLE, None, 1.0),
        (ModelConfig(crop_pct=0.9), WHOLE, None, 0.9),
        (ModelConfig(), CROPS, ModelConfig(crop_pct=0.95), 0.95),
        (ModelConfig(), CROPS, ModelConfig(), 0.875),
        (ModelConfig(), WHOLE, ModelConfig(crop_pct=0.95), 1.0),
        (ModelConfig(crop_pct=0.9), CROPS, ModelConfig(crop_pct=0.95), 0.9),
        (ModelConfig(image_size=(448, 448)), CROPS, ModelConfig(crop_pct=0.875), 1.0),
    ],
)
def test_what_is_asked_for_wins_then_whole_images_then_the_weights_then_what_was_published(
    model: ModelConfig, augment: AugmentConfig, of_weights: ModelConfig | None, expected: float
) -> None:
    assert resolve_crop_pct(model, augment, of_weights=of_weights).crop_pct == expected


@pytest.mark.parametrize(("augment", "expected"), [(WHOLE, 1.0), (CROPS, 0.875)])
def test_a_run_settles_it_and_its_record_and_weights_say_it(
    augment: AugmentConfig, expected: float, tmp_path: Path
) -> None:
    run = pretrain(replace(SHORT, augment=augment), data=images(), out=tmp_path, quiet=True)

    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["model"]["crop_pct"] == expected
    assert config_json(tmp_path / "weights")["crop_pct"] == expected
    assert mae.load(tmp_path).config == run.config.model


def test_the_drawings_of_a_run_show_its_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(
        "mae.jobs.pretrain.save_progress_image",
        lambda model, images, noise, path: drawn.append(images),
    )
    data = images()

    pretrain(replace(SHORT, augment=WHOLE), data=data, out=tmp_path / "whole", quiet=True)
    pretrain(replace(SHORT, augment=CROPS), data=data, out=tmp_path / "crops", quiet=True)

    first = Image.fromarray(data[0])  # 16 x 24, shown at 12 x 20
    for views, resized in ((drawn[0], (13, 20)), (drawn[-1], (14, 22))):
        expected = resized_and_cut(first, resized, (12, 20))
        assert np.abs(views[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("given", "resize", "expected"),
    [(None, None, 0.95), (0.8, None, 0.8), (None, (32, 32), 0.875)],
)
def test_fine_tuning_follows_the_weights_unless_told_or_resized(
    given: float | None, resize: tuple[int, int] | None, expected: float, folder: Path
) -> None:
    save(create(replace(TINY, crop_pct=0.95)), folder / "w")
    config = replace(
        PLAIN, steps=1, augment=CROPS, resize=resize, model=ModelConfig(crop_pct=given)
    )

    tuned = finetune(config, data=folder, weights=folder / "w", out=folder / "run", quiet=True)

    assert tuned.config.model.crop_pct == expected
    assert config_json(folder / "run" / "weights")["crop_pct"] == expected
    assert load_classifier(folder / "run").model.encoder.config.crop_pct == expected


def test_continuing_follows_the_weights(tmp_path: Path) -> None:
    save(create(replace(CONFIG.model, crop_pct=0.95)), tmp_path / "w")
    config = replace(SHORT, model=ModelConfig(), follow_weights=True)

    run = pretrain(config, data=images(), out=tmp_path / "r", init=tmp_path / "w", quiet=True)

    assert run.config.model.crop_pct == 0.95


def test_another_network_is_refused_beside_weights_that_are_followed() -> None:
    for kind in (PretrainConfig, FinetuneConfig):
        kind(follow_weights=True, model=ModelConfig(crop_pct=0.9))
        with pytest.raises(ConfigError, match="model: has no effect with follow_weights"):
            kind(follow_weights=True, model=ModelConfig(crop_pct=0.9, depth=3))


# Weights and runs of before the field


@pytest.mark.parametrize(("augment", "expected"), [(WHOLE, 1.0), (CROPS, None)])
def test_older_weights_of_a_run_on_whole_images_are_shown_whole_and_it_is_said(
    augment: AugmentConfig, expected: float | None, tmp_path: Path, capsys: Any
) -> None:
    pretrain(replace(SHORT, augment=augment), data=images(), out=tmp_path / "r", quiet=True)
    weights = tmp_path / "r" / "weights"
    age(weights / "config.json", "model.crop_pct")

    assert mae.load_encoder(tmp_path / "r").config.crop_pct == expected
    assert mae.load(weights).config.crop_pct == expected
    capsys.readouterr()
    mae.embed(weights, images())

    said = capsys.readouterr().err
    whole = "does not say its crop_pct; assumed 1, as its run trained on whole images"
    assert (whole in said, NOT_SAID in said) == (expected == 1, expected is None)
    # Elsewhere nothing tells how they were trained.
    (weights / "config.json").rename(tmp_path / "config.json")
    (weights / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert mae.load(tmp_path / "model.safetensors").config.crop_pct is None


def test_an_older_checkpoint_of_a_run_on_whole_images_is_shown_whole(tmp_path: Path) -> None:
    pretrain(replace(SHORT, augment=WHOLE), data=images(), out=tmp_path, quiet=True)
    age(tmp_path / "run.json", "config.model.crop_pct")
    checkpoint = sorted((tmp_path / "checkpoints").iterdir())[-1]

    assert mae.load(checkpoint).config.crop_pct == 1


def test_an_older_run_goes_on_and_its_weights_say_it(tmp_path: Path) -> None:
    save_and_stop = replace(SHORT, steps=4, augment=WHOLE)
    pretrain(save_and_stop, data=images(), out=tmp_path, quiet=True)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "finished": False}))
    age(tmp_path / "run.json", "config.model.crop_pct", "config.augment.crop_clip")

    with pytest.raises(ConfigError, match="augment.crop_clip: run has False, asked True"):
        clipped = replace(save_and_stop, augment=replace(WHOLE, crop_clip=True))
        pretrain(clipped, data=images(), out=tmp_path, quiet=True)
    run = pretrain(save_and_stop, data=images(), out=tmp_path, quiet=True)

    assert run.resumed and config_json(tmp_path / "weights")["crop_pct"] == 1.0
    assert (
        json.loads((tmp_path / "run.json").read_text())["config"]["augment"]["crop_clip"] is False
    )


# Wherever weights are used


def test_weights_that_say_it_need_no_note(tmp_path: Path, capsys: Any) -> None:
    save(create(replace(TINY, crop_pct=1.0)), tmp_path / "w")

    mae.embed(tmp_path / "w", np.zeros((1, 24, 40, 3), np.uint8))

    assert "crop_pct" not in capsys.readouterr().err


def test_features_are_of_the_fraction_that_weights_or_option_say(tmp_path: Path) -> None:
    array = images()[:3]  # 16 x 24
    shown = {
        pct: np.stack([resized_and_cut(Image.fromarray(a), sides, (24, 40)) for a in array])
        for pct, sides in ((1.0, (26, 40)), (0.5, (53, 80)))
    }
    encoder = create(TINY).encoder.eval()
    weights = save(create(replace(TINY, crop_pct=1.0)), tmp_path / "w")
    settings = FeatureSettings(crop_pct=0.5)

    found = {1.0: mae.embed(weights, array), 0.5: mae.embed(weights, array, crop_pct=0.5)}
    np.save(tmp_path / "a.npy", array)
    embed_to_file(
        weights, tmp_path / "a.npy", out=tmp_path / "f.npy", settings=settings, quiet=True
    )

    for pct, views in shown.items():
        expected = encoder.encode(torch.from_numpy(views).permute(0, 3, 1, 2))
        np.testing.assert_allclose(found[pct], expected, atol=0.02)
    assert np.array_equal(np.load(tmp_path / "f.npy"), found[0.5])
    assert np.abs(found[1.0] - found[0.5]).max() > 0.1


def test_an_option_gives_every_job_another_view(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []

    def view(image: np.ndarray, *, size: tuple[int, int], crop_pct: float | None) -> np.ndarray:
        asked.append(crop_pct)
        return np.ascontiguousarray(np.resize(image, (*size, 3)))

    monkeypatch.setattr("mae.evaluation.inputs.evaluation_view", view)
    finetune(replace(PLAIN, steps=1), data=folder, weights=weights, out=folder / "r", quiet=True)
    settings, knn = FeatureSettings(crop_pct=0.7), choose_method("knn", k=1, seed=0)
    jobs = {
        "probe": lambda: feature_probe(weights, folder, knn, settings=settings, quiet=True),
        "paper": lambda: paper_probe(
            weights,
            folder,
            config=paper_config(epochs=4, batch=6, lr=1.0, seed=0, device="cpu"),
            crop_pct=0.7,
            quiet=True,
        ),
        "evaluate": lambda: evaluate(folder / "r", folder, crop_pct=0.7, quiet=True),
        "reconstruct": lambda: reconstruct(
            weights, [folder / "val" / "a"], out=folder / "o.png", crop_pct=0.7, quiet=True
        ),
        "embed": lambda: mae.embed(weights, folder / "val", crop_pct=0.7),
    }

    for name, job in jobs.items():
        asked.clear()
        job()
        assert set(asked) == {0.7}, name


def test_the_commands_take_the_option(folder: Path, weights: Path, capsys: Any) -> None:
    val = str(folder / "val")
    quiet = ["--device", "cpu", "--quiet"]

    embedded = ["embed", str(weights), "--data", val, "--out", str(folder / "f.npy")]
    assert main([*embedded, "--crop-pct", "0.7", *quiet]) == 0
    assert main(["probe", "knn", str(weights), "--data", val, "--crop-pct", "2", *quiet]) == 2
    assert "crop_pct: expected above 0, at most 1, got 2.0" in capsys.readouterr().err
    partial = ["probe", "partial", str(weights), "--data", val, "--blocks", "1", "--epochs", "1"]
    assert main([*partial, "--out", str(folder / "p"), "--crop-pct", "0.7", *quiet]) == 0
    assert config_json(folder / "p" / "weights")["crop_pct"] == 0.7
    evaluated = ["evaluate", str(folder / "p"), "--data", val, "--set", "imagenet-c"]
    assert main([*evaluated, "--crop-pct", "0.7", *quiet]) == 2
    assert "crop_pct: has no effect on imagenet-c" in capsys.readouterr().err


def test_the_fraction_survives_every_layout(tmp_path: Path) -> None:
    square = replace(TINY, image_size=(24, 24), crop_pct=0.95)
    save(create(square).encoder, tmp_path / "w")

    for to, name in (("facebook", "f.pth"), ("timm", "t.safetensors"), ("huggingface", "h")):
        mae.convert(tmp_path / "w", tmp_path / name, to=to)
        assert mae.load_encoder(tmp_path / name).config.crop_pct == 0.95
