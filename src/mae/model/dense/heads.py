"""Heads of semantic segmentation: UPerNet, its auxiliary head, and a linear one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.model.dense.pyramid import ConvNorm, Norm

POOL_SIZES = (1, 2, 3, 6)
"""Cells along each side to which the coarsest map is pooled."""


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, top-down fusion, and one convolution over all scales.

    Source: Xiao et al. 2018 (UPerNet); layers of mmsegmentation's UPerHead, `align_corners` off.
    """

    def __init__(
        self, width: int, *, channels: int, num_classes: int, norm: Norm, dropout: float
    ) -> None:
        super().__init__()

        def conv(found: int, kernel: int) -> ConvNorm:
            return ConvNorm(found, channels, kernel=kernel, norm=norm, relu=True)

        self.pooled = nn.ModuleList(conv(width, 1) for _ in POOL_SIZES)
        self.bottleneck = conv(width + len(POOL_SIZES) * channels, 3)
        self.lateral = nn.ModuleList(conv(width, 1) for _ in range(3))
        self.fpn = nn.ModuleList(conv(channels, 3) for _ in range(3))
        self.fusion = conv(4 * channels, 3)
        self.classify = DroppedClassifier(channels, num_classes=num_classes, dropout=dropout)

    def forward(self, maps: Sequence[Tensor], *, draws: Tensor | None = None) -> Tensor:
        """Return logits at the size of the finest map: B K h w.

        Args:
            maps: four B D h w, the finest first.
            draws: B channels, see `DroppedClassifier`.
        """
        coarse = maps[-1]
        pooled = [
            _resized(conv(F.adaptive_avg_pool2d(coarse, size)), coarse)
            for size, conv in zip(POOL_SIZES, self.pooled, strict=True)
        ]
        found = [self.bottleneck(torch.cat([coarse, *pooled], dim=1))]
        for conv, each in zip(reversed(self.lateral), reversed(maps[:-1]), strict=True):
            lateral = conv(each)
            found.insert(0, lateral + _resized(found[0], lateral))
        fused = [conv(each) for conv, each in zip(self.fpn, found[:-1], strict=True)]
        fused = [_resized(each, fused[0]) for each in (*fused, found[-1])]
        return self.classify(self.fusion(torch.cat(fused, dim=1)), draws=draws)  # type: ignore[no-any-return]


class FcnHead(nn.Module):
    """One 3 x 3 convolution and a classifier: the auxiliary head of UPerNet.

    Source: mmsegmentation's FCNHead with one convolution.
    """

    def __init__(
        self, width: int, *, channels: int, num_classes: int, norm: Norm, dropout: float
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(width, channels, kernel=3, norm=norm, relu=True)
        self.classify = DroppedClassifier(channels, num_classes=num_classes, dropout=dropout)

    def forward(self, maps: Tensor, *, draws: Tensor | None = None) -> Tensor:
        """Return the logits of a map: B D h w to B K h w; `draws` as for `DroppedClassifier`."""
        return self.classify(self.conv(maps), draws=draws)  # type: ignore[no-any-return]


class LinearHead(nn.Module):
    """A norm and a 1 x 1 convolution over the channels of all maps.

    Source: the linear segmentation of Oquab et al. 2024 (DINOv2), section 7.4.
    """

    def __init__(self, width: int, *, num_classes: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm = norm(width)
        self.classify = DroppedClassifier(width, num_classes=num_classes, dropout=dropout)

    def forward(self, maps: Sequence[Tensor], *, draws: Tensor | None = None) -> Tensor:
        """Return the logits of maps of one size, B D h w each: B K h w; `draws` as above."""
        return self.classify(self.norm(torch.cat([*maps], dim=1)), draws=draws)  # type: ignore[no-any-return]


class DroppedClassifier(nn.Module):
    """A 1 x 1 convolution on channels of which some are dropped, by given draws."""

    def __init__(self, channels: int, *, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    @property
    def channels(self) -> int:
        """Channels of its input: the draws of an image."""
        return self.conv.in_channels

    def forward(self, maps: Tensor, *, draws: Tensor | None) -> Tensor:
        """Return logits.

        Args:
            maps: B C h w.
            draws: B C uniform in [0, 1): a channel of an image is dropped where its draw is below
                `dropout`, the others are scaled up; None: nothing is dropped.
        """
        if draws is not None:
            maps = maps * ((draws >= self.dropout) / (1 - self.dropout))[:, :, None, None]
        return self.conv(maps)  # type: ignore[no-any-return]


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear")
