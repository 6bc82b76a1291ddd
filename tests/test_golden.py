"""The numbers of the published code, which golden/published.json holds and describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.masking import gather, random_masking
from mae.model.patches import patchify
from mae.model.positions import resize_positions, sincos_positions
from mae.train.schedule import learning_rate
from mae.weights.formats.facebook import to_theirs

GOLDEN = json.loads((Path(__file__).parent / "golden" / "published.json").read_text())
FORWARD = GOLDEN["forward"]
CASES = {f"normalize_target={case['normalise_target']}": case for case in FORWARD["cases"]}
DIGITS = 1e-9  # the file prints ten to twelve digits


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def fill(shape: torch.Size, k: int) -> Tensor:
    return 0.05 * torch.sin(0.37 * torch.arange(shape.numel(), dtype=torch.float64) + k).view(shape)


def published_model(*, normalize_target: bool) -> MaskedAutoencoder:
    shape = FORWARD["config"]
    model = MaskedAutoencoder(
        ModelConfig(
            image_size=(shape["img_size"], shape["img_size"]),
            patch_size=shape["patch_size"],
            channels=shape["in_chans"],
            width=shape["embed_dim"],
            depth=shape["depth"],
            num_heads=shape["num_heads"],
            decoder_width=shape["decoder_embed_dim"],
            decoder_depth=shape["decoder_depth"],
            decoder_heads=shape["decoder_num_heads"],
            mlp_ratio=shape["mlp_ratio"],
        ),
        ObjectiveConfig(normalize_target=normalize_target),
    ).double()
    parameters = {to_theirs(name): p for name, p in model.named_parameters()}
    assert sorted(parameters) == FORWARD["parameter_names_sorted"]
    for k, name in enumerate(FORWARD["parameter_names_sorted"]):
        if "pos_embed" not in name:
            one = name.rpartition(".")[0].endswith(("norm", "norm1", "norm2")) and "weight" in name
            parameters[name].data = fill(parameters[name].shape, k) + one
    return model


def published_inputs() -> tuple[Tensor, Tensor]:
    i = torch.arange(2 * 3 * 24 * 24, dtype=torch.float64)
    images = torch.sin(0.1 * i + 3 * torch.cos(0.013 * i)).view(2, 3, 24, 24)
    return images, torch.tensor(FORWARD["noise_values"], dtype=torch.float64).view(2, 16)


def near(expected: object) -> Any:
    return pytest.approx(expected, rel=DIGITS, abs=DIGITS)


def test_positions_are_the_published_table():
    golden = GOLDEN["sincos"]

    table = sincos_positions(golden["dim"], (golden["grid"], golden["grid"]))

    expected = torch.tensor(golden["table"], dtype=torch.float64).view(1, 17, 16)
    assert torch.equal(table, expected.float())  # both rounded once from float64


def test_positions_are_resized_as_published():
    golden = GOLDEN["resize_positions"]

    table = resize_positions(sincos_positions(8, (3, 3)), grid_from=(3, 3), grid_to=(5, 5))

    assert table.flatten().tolist() == pytest.approx(golden["table"], abs=1e-6)  # float32


def test_patches_are_in_the_published_order():
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float64).view(2, 3, 6, 6)

    patches = patchify(images, patch_size=GOLDEN["patchify"]["patch_size"])

    assert patches.flatten().tolist() == GOLDEN["patchify"]["patches"]


def test_the_same_noise_hides_the_published_patches():
    golden = GOLDEN["masking"]
    tokens = torch.arange(24.0).view(2, 12, 1)

    masking = random_masking(torch.tensor(golden["noise"]), num_keep=3)

    assert gather(tokens, masking.ids_keep).squeeze(-1).tolist() == golden["kept_tokens_of_arange"]
    assert masking.ids_restore.tolist() == golden["ids_restore"]
    assert masking.mask.float().tolist() == golden["mask_1_is_hidden"]


def test_loss_and_mask_are_the_published_ones(case):
    model = published_model(normalize_target=case["normalise_target"])
    images, noise = published_inputs()

    loss, mask = model(images, noise=noise)

    assert loss.item() == near(case["loss"])
    assert mask.double().tolist() == case["mask"]


def test_the_gradient_of_every_parameter_has_the_published_norm(case):
    model = published_model(normalize_target=case["normalise_target"])
    images, noise = published_inputs()

    model(images, noise=noise).loss.backward()

    trained = {to_theirs(name): p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == case["gradient_norms"].keys()
    for name, p in trained.items():
        expected = pytest.approx(case["gradient_norms"][name], rel=DIGITS, abs=0)
        assert p.grad.norm().item() == expected, name


def test_predictions_are_the_published_ones(case):
    model = published_model(normalize_target=case["normalise_target"])
    images, noise = published_inputs()

    pred = model.reconstruct(images, noise=noise).pred

    assert pred[:, 0, :8].tolist() == [near(row) for row in case["pred_first_patch_of_each"]]
    assert pred.sum().item() == near(case["pred_sum"])


def test_the_latent_is_the_published_one(case):
    model = published_model(normalize_target=case["normalise_target"])
    images, noise = published_inputs()

    latent = model.encoder(images, random_masking(noise, num_keep=4).ids_keep)

    assert list(latent.shape) == case["latent_shape"]
    assert latent[0, 0, :8].tolist() == near(case["latent_cls_first8"])
    assert latent.abs().sum().item() == near(case["latent_abs_sum"])


@pytest.mark.parametrize("curve", GOLDEN["learning_rate"], ids=lambda c: f"{c['epochs']} epochs")
def test_the_learning_rate_is_the_published_curve(curve):
    rates = [
        learning_rate(
            epoch,
            epochs=curve["epochs"],
            warmup_epochs=curve["warmup_epochs"],
            peak_lr=curve["peak_lr"],
            min_lr=curve["min_lr"],
        )
        for epoch in curve["at"]
    ]

    assert rates == pytest.approx(curve["lr"], rel=1e-9, abs=1e-18)
