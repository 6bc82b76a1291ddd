"""Backbone of detectors: the dense backbone with the simple pyramid on its last map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.dense import DenseConfig
from mae.model.dense.backbone import DenseBackbone
from mae.model.dense.pyramid import SimplePyramid
from mae.model.encoder import Encoder


class PyramidBackbone(nn.Module):
    """Images to maps of five strides: 1/4, 1/2, 1, 2 and 4 patches (4 to 64 pixels of ViT/16).

    Source: Li et al. 2022 (ViTDet): windows, relative positions and the simple pyramid; the last
    map is every second place of the one before it (`LastLevelMaxPool` of the published code).
    """

    def __init__(
        self, encoder: Encoder, dense: DenseConfig, *, channels: int = 256, drop_path: float = 0.0
    ) -> None:
        """Create a new pyramid on an encoder, whose modules are shared.

        Args:
            encoder: a plain encoder; see `DenseBackbone`.
            dense: windows and relative positions.
            channels: channels of each map.
            drop_path: drop probability of the last block.
        """
        super().__init__()
        config = encoder.config
        last = config.depth - 1
        self.encoder = DenseBackbone(encoder, dense, blocks=(last,), drop_path=drop_path)
        self.pyramid = SimplePyramid(config.width, channels=channels)
        self.out_channels = channels

    @property
    def largest_stride(self) -> int:
        """Pixels between two places of the last map; images are padded to multiples of it."""
        return 4 * self.encoder.config.patch_size

    def forward(self, images: Tensor, *, drops: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the five maps, the finest first: B C h w each, C = `out_channels`.

        Args:
            images: B C H W float, normalised; padded with zeros at the bottom and the right to
                multiples of `largest_stride`.
            drops: B 2*depth uniform in [0, 1), see `DenseBackbone`; None: nothing is dropped.
        """
        H, W, most = *images.shape[-2:], self.largest_stride
        images = F.pad(images, (0, -W % most, 0, -H % most))
        (last,) = self.encoder(images, drops=drops)
        maps = self.pyramid(last)
        return (*maps, F.max_pool2d(maps[-1], kernel_size=1, stride=2))
