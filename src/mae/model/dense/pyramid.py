"""Feature pyramids from the single scale of a ViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes a norm of maps with a number of channels."""


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of maps B C H W.

    Source: published code of ViTDet, where it is `LN` of maps; eps 1e-6.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise the channels of each place."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """A convolution without bias that keeps the size of the map, and its norm."""

    def __init__(self, channels: int, to: int, *, kernel: int, norm: Norm, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, to, kernel, padding=kernel // 2, bias=False)
        self.norm = norm(to)
        self.relu = relu
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """Transform B C H W."""
        maps = self.norm(self.conv(maps))
        return F.relu(maps) if self.relu else maps


class SimplePyramid(nn.Module):
    """Maps of strides 1/4, 1/2, 1 and 2 patches from the last map alone: 4, 8, 16, 32 pixels.

    Source: Li et al. 2022 (ViTDet), section 3; layers and norms of its published code
    (`simfp_2` to `simfp_5`). The coarsest map of a detector, stride 64, is a subsampling of the
    last and no part of this.
    """

    def __init__(self, width: int, *, channels: int = 256) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        four = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2), MapNorm(half), nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )  # fmt: skip
        scales = (
            (four, quarter),
            (nn.ConvTranspose2d(width, half, 2, 2), half),
            (nn.Identity(), width),
            (nn.MaxPool2d(2, 2), width),
        )
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                ConvNorm(found, channels, kernel=1, norm=MapNorm, relu=False),
                ConvNorm(channels, channels, kernel=3, norm=MapNorm, relu=False),
            )
            for scale, found in scales
        )

    def forward(self, last: Tensor) -> tuple[Tensor, ...]:
        """Turn the last map, B D h w, into four B C h' w', the finest first."""
        return tuple(level(last) for level in self.levels)


class Feature2Pyramid(nn.Module):
    """Four maps of one scale, resized by 4, 2, 1 and 1/2.

    Source: Bao et al. 2022 (BEiT), published code of its segmentation.
    """

    def __init__(self, width: int, *, norm: Norm) -> None:
        super().__init__()
        self.levels = nn.ModuleList([
            nn.Sequential(
                nn.ConvTranspose2d(width, width, 2, 2), norm(width), nn.GELU(),
                nn.ConvTranspose2d(width, width, 2, 2),
            ),
            nn.ConvTranspose2d(width, width, 2, 2),
            nn.Identity(),
            # Rounded up, so that a map of one row or column does not vanish.
            nn.MaxPool2d(2, 2, ceil_mode=True),
        ])  # fmt: skip

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Resize four maps B D h w, from the first block to the last."""
        return tuple(level(each) for level, each in zip(self.levels, maps, strict=True))
