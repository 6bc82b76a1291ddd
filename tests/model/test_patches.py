from __future__ import annotations

import pytest
import torch

from mae.errors import ShapeError
from mae.model.patches import patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_unpatchify_is_the_inverse_of_patchify(generator, channels):
    images = torch.randn(2, channels, 12, 20, generator=generator)

    patches = patchify(images, patch_size=4)

    assert patches.shape == (2, 15, 16 * channels)
    assert torch.equal(unpatchify(patches, patch_size=4, grid=(3, 5)), images)


def test_a_patch_is_its_square_of_pixels_channel_last():
    images = torch.arange(2 * 3 * 12 * 20).view(2, 3, 12, 20)

    patches = patchify(images, patch_size=4)

    square = images[1, :, 4:8, 12:16]  # row 1, column 3 of the 3 x 5 grid
    assert torch.equal(patches[1, 1 * 5 + 3], square.permute(1, 2, 0).flatten())


@pytest.mark.parametrize(("height", "width"), [(13, 20), (12, 21), (3, 20)])
def test_a_size_the_patch_does_not_divide_is_refused(height, width):
    with pytest.raises(
        ShapeError, match=rf"got {height} x {width}.*multiples of.* 4; crop or resize"
    ):
        patchify(torch.zeros(1, 3, height, width), patch_size=4)
