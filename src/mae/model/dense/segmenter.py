"""Semantic segmentation on a pre-trained encoder."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.dense import DenseConfig, HeadConfig
from mae.model.dense.backbone import DenseBackbone
from mae.model.dense.heads import FcnHead, LinearHead, UPerHead
from mae.model.dense.pyramid import Feature2Pyramid, Norm
from mae.model.encoder import Encoder

MOST_GROUPS = 32
"""Groups of a group norm, or the most that divide its channels."""


class SegmentOutput(NamedTuple):
    """Class scores of every pixel."""

    logits: Tensor
    """B K H W at the size of the images."""
    auxiliary: Tensor | None = None
    """B K H W of the auxiliary head, in training mode only."""


class Segmenter(nn.Module):
    """Dense backbone and segmentation head.

    Source: He et al. 2021, Appendix A.4; Bao et al. 2022 (BEiT) and mmsegmentation for UPerNet.
    """

    class_names: tuple[str, ...] = ()
    """In the order of the logits; empty if unknown. Not part of the state."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_classes: int,
        dense: DenseConfig,
        head: HeadConfig,
        drop_path: float = 0.0,
    ) -> None:
        """Create new heads on an encoder, whose modules are shared.

        Args:
            encoder: a plain encoder; see `DenseBackbone`.
            num_classes: K.
            dense: how the encoder sees an image.
            head: the head.
            drop_path: drop probability of the last block.
        """
        super().__init__()
        width, blocks = encoder.config.width, head.blocks_of(encoder.config.depth)
        self.num_classes, self.config = num_classes, head
        self.encoder = DenseBackbone(encoder, dense, blocks=blocks, drop_path=drop_path)
        norm: Norm = nn.BatchNorm2d if head.norm == "batch" else _group_norm
        how: dict[str, Any] = {"num_classes": num_classes, "norm": norm, "dropout": head.dropout}
        self.auxiliary: FcnHead | None = None
        if head.kind == "linear":
            self.pyramid: nn.Module = nn.Identity()
            self.head: LinearHead | UPerHead = LinearHead(len(blocks) * width, **how)
        else:
            self.pyramid = Feature2Pyramid(width, norm=norm)
            self.head = UPerHead(width, channels=head.channels, **how)
        if head.has_auxiliary:
            self.auxiliary = FcnHead(width, channels=head.auxiliary_channels, **how)

    @property
    def num_draws(self) -> int:
        """Uniform numbers of an image that `forward` takes as `drops`."""
        auxiliary = 0 if self.auxiliary is None else self.auxiliary.classify.channels
        return 2 * len(self.encoder.blocks) + self.head.classify.channels + auxiliary

    def forward(self, images: Tensor, *, drops: Tensor | None = None) -> SegmentOutput:
        """Return the class scores of every pixel.

        Args:
            images: B C H W float, normalised; any size.
            drops: B num_draws uniform in [0, 1): draws that select the branches and channels
                dropped in training; None: none are dropped.
        """
        by_branch = by_head = by_auxiliary = None
        if drops is not None:
            branches, channels = 2 * len(self.encoder.blocks), self.head.classify.channels
            by_branch, by_head = drops[:, :branches], drops[:, branches : branches + channels]
            by_auxiliary = drops[:, branches + channels :]
        maps = self.pyramid(self.encoder(images, drops=by_branch))
        resized = partial(_at_pixels, images=images, patch_size=self.encoder.config.patch_size)
        logits = resized(self.head(maps, draws=by_head))
        if self.auxiliary is None or not self.training:
            return SegmentOutput(logits)
        return SegmentOutput(logits, resized(self.auxiliary(maps[2], draws=by_auxiliary)))


def segmentation_loss(
    output: SegmentOutput, targets: Tensor, *, ignore_index: int, auxiliary_weight: float = 0.4
) -> Tensor:
    """Return the cross-entropy of every pixel, the mean over all of them.

    Ignored pixels count as zeros, as published, so that the loss of a batch is the mean of those
    of its parts.

    Args:
        output: of the segmenter.
        targets: B H W integers, classes from 0.
        ignore_index: value of pixels without a class.
        auxiliary_weight: weight of the auxiliary head.

    Source: mmsegmentation's CrossEntropyLoss with its default `avg_non_ignore`.
    """
    targets = targets.long()

    def mean(logits: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(), targets, ignore_index=ignore_index, reduction="sum"
        ) / targets.numel()  # fmt: skip

    loss = mean(output.logits)
    return loss if output.auxiliary is None else loss + auxiliary_weight * mean(output.auxiliary)


def _at_pixels(logits: Tensor, *, images: Tensor, patch_size: int) -> Tensor:
    """Resize logits to the padded image, and cut the pads off: B K H W."""
    H, W = images.shape[-2:]
    size = math.ceil(H / patch_size) * patch_size, math.ceil(W / patch_size) * patch_size
    return F.interpolate(logits, size=size, mode="bilinear")[..., :H, :W]


def _group_norm(channels: int) -> nn.GroupNorm:
    # Four channels a group or more: a map pooled to one pixel has a single value per channel.
    return nn.GroupNorm(math.gcd(MOST_GROUPS, max(1, channels // 4)), channels)
