from __future__ import annotations

import pytest
import torch

from mae.errors import ConfigError, DataError, ShapeError
from mae.model.masking import random_masking
from mae.model.patches import patchify
from tests.model.tiny import batch, tiny_model


def test_loss_ignores_visible_patches(generator):
    model = tiny_model(generator).double()
    images, noise = (part.double() for part in batch(generator, model.config))

    loss, mask = model(images, noise=noise)

    pred = model.reconstruct(images, noise=noise).pred
    target = model.target(patchify(images, patch_size=4))
    spoiled = torch.where(mask[..., None], pred, 1e6)
    per_patch = (spoiled - target).square().mean(dim=-1)  # B L
    expected = (per_patch * mask).sum() / mask.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_every_trained_parameter_gets_a_gradient(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)

    model(images, noise=noise).loss.backward()

    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is ("pos_embed" not in name), name
        assert parameter.grad is None or parameter.grad.any(), name


@pytest.mark.parametrize("normalize_target", [True, False])
def test_an_image_has_the_same_part_in_the_loss_of_any_batch(generator, normalize_target):
    model = tiny_model(generator, normalize_target=normalize_target).double()
    images, noise = (part.double() for part in batch(generator, model.config))

    together = model(images, noise=noise).loss
    alone = [model(images[i : i + 1], noise=noise[i : i + 1]).loss for i in range(2)]

    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-12, atol=0)


def test_the_target_has_mean_zero_and_unbiased_deviation_one_over_all_channels(generator):
    model = tiny_model(generator).double()
    patches = 3 + 5 * torch.randn(2, 15, 48, generator=generator, dtype=torch.float64)

    target = model.target(patches)

    torch.testing.assert_close(target.mean(dim=-1), torch.zeros(2, 15).double())
    variance = target.square().sum(dim=-1) / (48 - 1)
    torch.testing.assert_close(variance, torch.ones(2, 15).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [7.0, 2.64])
def test_a_flat_patch_has_target_zero(generator, value):
    model = tiny_model(generator)

    assert torch.equal(model.target(torch.full((1, 1, 48), value)), torch.zeros(1, 1, 48))


def test_the_target_of_a_nearly_flat_patch_is_exact_in_float32(generator):
    model = tiny_model(generator)
    patches = 0.5 + 1e-3 * torch.randn(2, 15, 48, generator=generator)

    target = model.target(patches)

    torch.testing.assert_close(target.double(), model.target(patches.double()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("grid", [(3, 5), (5, 3)])
def test_any_grid_and_channel_count_is_trained_and_rebuilt(generator, channels, grid):
    model = tiny_model(generator, channels=channels, grid=grid)
    images, noise = batch(generator, model.config)

    loss, mask = model(images, noise=noise)
    rebuilt = model.reconstruct(images, noise=noise)

    assert loss.isfinite()
    assert mask.shape == (2, 15)
    assert rebuilt.pred.shape == (2, 15, 16 * channels)
    assert rebuilt.images.shape == images.shape


def test_another_size_than_trained_is_masked_in_the_same_ratio(generator):
    model = tiny_model(generator)
    images = torch.randn(2, 3, 20, 28, generator=generator)

    loss, mask = model(images, noise=torch.rand(2, 35, generator=generator))

    assert loss.isfinite()
    assert mask.sum(dim=1).tolist() == [28, 28]  # 0.8 of 35


def test_bf16_autocast_is_close_to_float32(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)

    exact = model(images, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(images, noise=noise)
    exact.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rough.loss.backward()

    assert rough.loss.dtype == torch.float32
    assert torch.equal(rough.mask, exact.mask)
    # bf16 keeps eight bits, 0.4 %; a handful of layers adds up to a few times that.
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    for name, parameter in model.named_parameters():
        if name in gradients:
            error = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
            assert error < 0.1, name


def test_only_hidden_patches_are_filled_in(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)

    rebuilt = model.reconstruct(images, noise=noise)

    before, after = (patchify(part, patch_size=4) for part in (images, rebuilt.images))
    assert torch.equal(after[~rebuilt.mask], before[~rebuilt.mask])
    assert (after != before)[rebuilt.mask].all()


def test_raw_predictions_are_filled_in_as_they_are(generator):
    model = tiny_model(generator, normalize_target=False)
    images, noise = batch(generator, model.config)

    rebuilt = model.reconstruct(images, noise=noise)

    filled = patchify(rebuilt.images, patch_size=4)
    assert torch.equal(filled[rebuilt.mask], rebuilt.pred[rebuilt.mask])


def test_normalised_predictions_take_mean_and_deviation_of_the_patch_they_fill(generator):
    model = tiny_model(generator).double()
    images, noise = (part.double() for part in batch(generator, model.config))

    rebuilt = model.reconstruct(images, noise=noise)

    patches, filled = (patchify(part, patch_size=4) for part in (images, rebuilt.images))
    expected = rebuilt.pred * (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    expected = expected + patches.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(filled[rebuilt.mask], expected[rebuilt.mask], rtol=0, atol=1e-12)


def test_a_painted_mask_hides_exactly_its_patches(generator):
    model = tiny_model(generator)
    images, _ = batch(generator, model.config)
    painted = torch.zeros(2, 3, 5, dtype=torch.bool)
    painted[0, 1:, 2:4] = True
    painted[1, :2, :2] = True

    rebuilt = model.reconstruct(images, mask=painted)

    assert torch.equal(rebuilt.mask, painted.flatten(1))
    assert torch.equal(model.reconstruct(images, mask=painted.flatten(1)).pred, rebuilt.pred)


def test_a_mask_made_from_noise_rebuilds_the_same(generator):
    model = tiny_model(generator).double()
    images, noise = (part.double() for part in batch(generator, model.config))

    by_noise = model.reconstruct(images, noise=noise)
    by_mask = model.reconstruct(images, mask=by_noise.mask)

    torch.testing.assert_close(by_mask.pred, by_noise.pred, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_mask.images, by_noise.images, rtol=0, atol=1e-12)


def test_masks_that_hide_different_numbers_rebuild_each_image_as_if_alone(generator):
    model = tiny_model(generator).double()
    images = batch(generator, model.config)[0].double()
    painted = torch.arange(15).expand(2, 15) < torch.tensor([[3], [11]])

    rebuilt = model.reconstruct(images, mask=painted)

    assert rebuilt.mask.sum(dim=1).tolist() == [3, 11]
    for i in range(2):
        alone = model.reconstruct(images[i : i + 1], mask=painted[i : i + 1])
        torch.testing.assert_close(rebuilt.images[i : i + 1], alone.images, rtol=0, atol=1e-12)


def test_what_a_mask_hides_has_no_influence_on_the_prediction(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)
    mask = random_masking(noise, num_keep=3).mask
    hidden = mask.view(2, 1, 3, 5).repeat_interleave(4, 2).repeat_interleave(4, 3)

    other = torch.where(hidden, images + 1, images)

    pred = model.reconstruct(images, mask=mask).pred
    assert torch.equal(model.reconstruct(other, mask=mask).pred, pred)


@pytest.mark.parametrize("fill", [True, False])
def test_a_mask_that_hides_all_or_nothing_of_an_image_is_refused(generator, fill):
    model = tiny_model(generator)
    images, _ = batch(generator, model.config)
    mask = torch.arange(15).expand(2, 15) < 7
    mask = torch.where(torch.tensor([[False], [True]]), torch.tensor(fill), mask)

    with pytest.raises(ShapeError, match="expected each image to hide some patches and show some"):
        model.reconstruct(images, mask=mask)


def test_either_noise_or_a_mask_is_needed(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)

    for given in ({}, {"noise": noise, "mask": noise > 0.5}):
        with pytest.raises(ShapeError, match="expected either noise or a mask; give one"):
            model.reconstruct(images, **given)


def test_noise_of_another_length_is_refused(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)

    with pytest.raises(ShapeError, match=r"got \(2, 14\), expected \(2, 15\), one value per patch"):
        model(images, noise=noise[:, 1:])


def test_a_mask_of_the_transposed_grid_is_refused(generator):
    model = tiny_model(generator)
    images, _ = batch(generator, model.config)

    with pytest.raises(ShapeError, match=r"got a grid of \(5, 3\), expected \(3, 5\).*transpose"):
        model.reconstruct(images, mask=torch.arange(30).view(2, 5, 3) % 2 == 0)


def test_pixels_that_are_no_numbers_are_not_rebuilt(generator):
    model = tiny_model(generator)
    images, noise = batch(generator, model.config)
    images[0, 0, 0, 0] = torch.nan

    with pytest.raises(DataError, match="got NaN or infinite pixels"):
        model.reconstruct(images, noise=noise)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 12, 20), "channels: got 1, expected 3 .*convert the images"),
        (torch.zeros(2, 3, 13, 20), "got 13 x 20, expected multiples of the patch size 4; crop"),
        (torch.zeros(3, 12, 20), "expected B C H W"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line(generator, images, message):
    model = tiny_model(generator)

    with pytest.raises(ShapeError, match=message) as caught:
        model(images, noise=torch.rand(2, 15, generator=generator))

    assert "\n" not in str(caught.value)


def test_an_image_too_small_to_show_a_patch_is_refused(generator):
    model = tiny_model(generator)

    with pytest.raises(
        ConfigError, match="of 4 patches would keep 0; expected .* keeps at least one .*larger"
    ):
        model(torch.zeros(2, 3, 4, 16), noise=torch.rand(2, 4, generator=generator))
