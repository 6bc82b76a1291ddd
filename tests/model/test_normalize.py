from __future__ import annotations

import pytest
import torch

from mae.config.model import PixelConfig
from mae.model.normalize import denormalize_pixels, normalize_pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.mark.parametrize(("dtype", "largest"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_the_full_range_becomes_zero_to_one_before_mean_and_deviation(dtype, largest):
    pixels = PixelConfig(dtype=dtype, mean=MEAN, std=STD)
    stored = (
        torch.tensor([0, largest]).view(2, 1, 1, 1).expand(2, 3, 4, 4).to(getattr(torch, dtype))
    )

    images = normalize_pixels(stored, pixels)

    assert images.dtype == torch.float32
    black, white = images[:, :, 1, 2].tolist()
    assert black == pytest.approx([-0.4 / 0.2, -0.5 / 0.25, -0.6 / 0.3], rel=1e-6)
    assert white == pytest.approx([0.6 / 0.2, 0.5 / 0.25, 0.4 / 0.3], rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_channels_last_give_the_same_bits_in_their_own_layout(generator, channels):
    pixels = PixelConfig(dtype="uint8", mean=MEAN[:channels], std=STD[:channels])
    shape = (2, channels, 12, 20)
    stored = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    images = normalize_pixels(stored.to(memory_format=torch.channels_last), pixels)

    assert torch.equal(images, normalize_pixels(stored, pixels))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_denormalizing_undoes_mean_and_deviation(generator):
    pixels = PixelConfig(dtype="uint8", mean=MEAN, std=STD)
    stored = torch.randint(0, 256, (2, 3, 12, 20), generator=generator, dtype=torch.uint8)

    shares = denormalize_pixels(normalize_pixels(stored, pixels), pixels)

    torch.testing.assert_close(shares, stored / 255, rtol=0, atol=1e-6)
