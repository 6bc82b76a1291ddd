import json
import math

import numpy as np
import pytest
import torch

from mae.config.model import ModelConfig, PixelConfig
from mae.config.objective import ObjectiveConfig
from mae.evaluation.reconstruction import fill_in, hidden_psnr
from mae.model.create import create

CONFIG = ModelConfig(
    image_size=(12, 20), patch_size=4, channels=3, width=24, depth=2, num_heads=3,
    decoder_width=16, decoder_depth=1, decoder_heads=2,
    pixels=PixelConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
)  # fmt: skip


@pytest.fixture
def batch(rng):
    images = rng.integers(0, 256, (5, 3, 12, 20), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(rng.random((5, 15), dtype=np.float32))


def by_name(result):
    return result.psnr


def patch_of(image, place):
    row, column = divmod(place, 5)
    return image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]


def test_psnr_is_that_of_all_hidden_values_together(batch):
    images, noise = batch
    model = create(CONFIG, objective=ObjectiveConfig(normalize_target=False))
    rebuilt = model.reconstruct(model.normalize(images), noise=noise)

    squares, baseline = [], []
    for image, drawn, mask in zip(images, rebuilt.images, rebuilt.mask, strict=True):
        seen = [patch_of(image / 255, k) for k in range(15) if not mask[k]]
        colour = torch.stack(seen).mean(dim=(0, 2, 3))
        for k in torch.nonzero(mask)[:, 0].tolist():
            for c, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)):
                truth = patch_of(image / 255, k)[c]
                shown = (patch_of(drawn, k)[c] * std + mean).clamp(0, 1)
                squares.append((shown - truth).square())
                baseline.append((colour[c] - truth).square())

    found = by_name(hidden_psnr(model, [(images, noise)]))

    expected = -10 * math.log10(torch.stack(squares).double().mean())
    assert found["model"] == pytest.approx(expected, abs=1e-4)
    expected = -10 * math.log10(torch.stack(baseline).double().mean())
    assert found["mean colour"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("normalize_target", [False, True])
def test_batches_do_not_change_the_psnr(batch, normalize_target):
    images, noise = batch
    model = create(CONFIG, objective=ObjectiveConfig(normalize_target=normalize_target))

    whole = by_name(hidden_psnr(model, [(images, noise)]))
    parts = by_name(hidden_psnr(model, [(images[:2], noise[:2]), (images[2:], noise[2:])]))

    assert parts == pytest.approx(whole, abs=1e-4)


def test_a_known_error_gives_a_known_psnr():
    half = torch.full((1, 3, 12, 20), 0, dtype=torch.uint8)
    half[..., 10:] = 51  # 0.2 of the range; the middle patches are half dark, half bright
    noise = torch.ones(1, 15)
    noise[0, [0, 5, 10, 4, 9, 14]] = 0  # the outer columns are seen
    objective = ObjectiveConfig(normalize_target=False, mask_ratio=0.6)

    found = by_name(hidden_psnr(create(CONFIG, objective=objective), [(half, noise)]))

    assert found["mean colour"] == pytest.approx(20, abs=1e-3)  # off by 0.1 everywhere


def test_with_normalised_targets_every_way_is_given_the_patch_statistics(batch):
    images, noise = batch

    result = hidden_psnr(create(CONFIG), [(images, noise)])

    hidden = torch.zeros(5, 15, dtype=torch.bool).scatter(1, noise.argsort()[:, 3:], 1)
    patches = [
        patch_of(image / 255, k)
        for image, mask in zip(images, hidden, strict=True)
        for k in torch.nonzero(mask)[:, 0].tolist()
    ]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    flat = [(((p - mean) / std).mean() * std + mean).clamp(0, 1) - p for p in patches]
    expected = -10 * math.log10(torch.stack(flat).square().mean())
    assert by_name(result)["mean colour"] == pytest.approx(expected, abs=1e-4)
    assert "mean and std of each hidden patch are given to all" in result.about
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_without_normalised_targets_nothing_is_given(batch):
    result = hidden_psnr(create(CONFIG, objective=ObjectiveConfig(normalize_target=False)), [batch])

    assert "given" not in result.about
    assert "2,880 hidden" in result.about  # 5 images, 12 of 15 patches, 48 values each


def test_blank_images_give_a_finite_psnr():
    blank = torch.full((2, 3, 12, 20), 255, dtype=torch.uint8)
    noise = torch.rand(2, 15, generator=torch.Generator().manual_seed(0))

    found = by_name(hidden_psnr(create(CONFIG), [(blank, noise)]))

    assert found["bilinear in-fill"] > 60
    assert all(map(math.isfinite, found.values()))


@pytest.mark.parametrize(("H", "W"), [(12, 20), (13, 7), (1, 9)])
def test_in_fill_keeps_the_visible_and_never_looks_at_the_hidden(rng, H, W):
    images = torch.from_numpy(rng.random((2, 3, H, W)))
    hidden = torch.from_numpy(rng.random((2, 1, H, W)) < 0.7)

    filled = fill_in(images, hidden)

    assert filled.dtype == torch.float64
    assert torch.equal(filled.masked_fill(hidden, 0), images.masked_fill(hidden, 0))
    assert torch.equal(fill_in(images.masked_fill(hidden, torch.nan), hidden), filled)
    assert bool((filled >= 0).all() and (filled <= 1).all())


def test_in_fill_of_one_colour_is_that_colour():
    images = torch.full((1, 2, 13, 7), 0.3, dtype=torch.float64)
    hidden = torch.ones(1, 1, 13, 7, dtype=torch.bool)
    hidden[..., 12, 6] = False

    torch.testing.assert_close(fill_in(images, hidden), images)


def test_in_fill_follows_a_ramp(rng):
    ramp = torch.linspace(0, 1, 40, dtype=torch.float64).expand(1, 1, 24, 40)
    hidden = torch.zeros(1, 1, 24, 40, dtype=torch.bool)
    hidden[..., 8:16, 12:20] = True
    hidden[..., 4:12, 24:28] = True

    assert float((fill_in(ramp, hidden) - ramp).abs().max()) < 0.02


def test_images_are_filled_one_by_one(rng):
    images = torch.from_numpy(rng.random((2, 1, 12, 20)))
    hidden = torch.from_numpy(rng.random((2, 1, 12, 20)) < 0.5)
    hidden[1] = False

    together = fill_in(images, hidden)

    torch.testing.assert_close(together[:1], fill_in(images[:1], hidden[:1]))
