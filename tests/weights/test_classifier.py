from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from mae.errors import ConfigError, WeightsError
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.formats.native import save
from mae.weights.load import load_classifier, load_encoder
from mae.weights.tools.inspect import inspect
from tests.model.tiny import batch, scrambled, tiny_config
from tests.weights import published

NAMES = ("shoe", "été", "bag", "7")
LAYERS = {"head.weight": (5, 192), "head.bias": (5,)}
FC_NORM = {"fc_norm.weight": (192,), "fc_norm.bias": (192,)}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def published_file(path: Path, *, pool: str, **changes: Tensor | None) -> Path:
    """Write a fine-tuned file of the published layout; None leaves a tensor out."""
    tensors = published.encoder_only() | published.filled(LAYERS)
    if pool == "mean":
        tensors = {n: t for n, t in tensors.items() if not n.startswith("norm.")}
        tensors |= published.filled(FC_NORM)
    tensors |= {name: t for name, t in changes.items() if t is not None}
    return published.checkpoint(path, {n: t for n, t in tensors.items() if changes.get(n, t) is t})


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_saved_classifier_comes_back_bit_for_bit(pool, generator, tmp_path) -> None:
    made = scrambled(Classifier(Encoder(tiny_config()), num_classes=4, pool=pool), generator)

    found = load_classifier(save(made, tmp_path / "w", class_names=NAMES))

    images, _ = batch(generator, tiny_config())
    assert found.class_names == NAMES
    assert found.model.encoder.config == made.encoder.config
    assert torch.equal(found.model(images), made(images))


@pytest.mark.parametrize(("pool", "theirs"), [("mean", "avg"), ("cls", "token")])
def test_a_published_file_scores_as_timm_does(pool, theirs, generator, tmp_path) -> None:
    path = published_file(tmp_path / "tuned.pth", pool=pool)
    other = timm.models.VisionTransformer(
        img_size=12, patch_size=4, embed_dim=192, depth=2, num_heads=3, num_classes=5,
        global_pool=theirs,
    )  # fmt: skip
    other.load_state_dict(torch.load(path, weights_only=False)["model"])
    images = torch.randn(3, 3, 12, 12, generator=generator)

    found = load_classifier(path)

    with torch.inference_mode():
        torch.testing.assert_close(found.model(images), other.eval()(images), rtol=1e-5, atol=1e-5)
    assert found.class_names == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("pool", "changes", "message"),
    [
        ("mean", {"fc_norm.bias": None}, r"1 missing \(fc_norm.bias\)"),
        ("mean", {"head.bias": None}, r"1 missing \(head.bias\)"),
        ("mean", {"norm.weight": torch.ones(192)}, r"1 unexpected \(norm.weight\)"),
        ("cls", {"norm.bias": None}, r"1 missing \(norm.bias\)"),
        ("cls", {"mask_token": torch.ones(1, 1, 8)}, r"unexpected \(mask_token\)"),
        ("mean", {"head.weight": torch.full((5, 192), torch.nan)}, "not finite .*head.weight"),
        ("mean", {"head.weight": torch.ones(5, 191)}, r"head.weight \[5, 191\], expected \[5, 192"),
        ("mean", {"head.weight": None}, "no classifier's head .*fine-tune them first"),
    ],
)
def test_what_is_missing_or_left_over_is_named(pool, changes, message, tmp_path) -> None:
    path = published_file(tmp_path / "tuned.pth", pool=pool, **changes)

    with pytest.raises(WeightsError, match=message) as raised:
        load_classifier(path)

    assert "\n" not in str(raised.value)


def test_an_autoencoder_is_no_classifier(tmp_path) -> None:
    path = published.checkpoint(tmp_path / "full.pth", published.full())

    with pytest.raises(WeightsError, match="no classifier's head"):
        load_classifier(path)


def test_a_head_of_other_classes_than_named_is_refused(tmp_path) -> None:
    made = Classifier(Encoder(tiny_config()), num_classes=4)
    config = save(made, tmp_path / "w", class_names=NAMES) / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"class_names": ["a", "b"]}))

    with pytest.raises(WeightsError, match="has 4 classes, its description names 2"):
        load_classifier(tmp_path / "w")


def test_a_folder_says_what_it_is_to_people_and_machines(tmp_path) -> None:
    made = Classifier(Encoder(tiny_config()), num_classes=4)

    folder = save(made, tmp_path / "w", class_names=NAMES, facts={"recipe": "mine"})

    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "of 4 classes" in card
    assert "- recipe: mine" in card and "mae evaluate FOLDER" in card
    assert inspect(folder).model["width"] == 24


def test_the_encoder_of_a_cls_classifier_can_be_used_alone(generator, tmp_path) -> None:
    made = scrambled(Classifier(Encoder(tiny_config()), num_classes=4, pool="cls"), generator)
    save(made, tmp_path / "w", class_names=NAMES)
    images, _ = batch(generator, tiny_config())

    assert torch.equal(load_encoder(tmp_path / "w")(images), made.encoder(images))


def test_class_names_are_those_of_a_classifier(tmp_path) -> None:
    made = Classifier(Encoder(tiny_config()), num_classes=4)

    with pytest.raises(ConfigError, match="class_names: expected for a classifier"):
        save(made, tmp_path / "w")
    with pytest.raises(ConfigError, match="class_names: expected for a classifier"):
        save(made.encoder, tmp_path / "w", class_names=NAMES)

    assert not (tmp_path / "w").exists()
