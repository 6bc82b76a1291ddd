"""Configuration of semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mae.config.dense import DenseConfig, HeadConfig
from mae.config.model import require, require_numbers
from mae.config.run import AugmentConfig, TransferConfig, require_train_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentConfig(TransferConfig):
    """Semantic segmentation on a pre-trained encoder; `model.image_size` is the training crop."""

    num_classes: int = 150
    """Number of classes; follows from the data."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Head and its norms."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """How the encoder sees a large image."""
    auxiliary_weight: float = 0.4
    """Weight of the auxiliary head in the loss."""
    short_side: int | None = None
    """Short side that images are resized to, in training times a draw of scale_range; none: as
    stored."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor of the size before a training crop."""
    most_of_class: float = 0.75
    """Fraction of a crop that one class may fill before the crop is drawn again; 1: any."""
    distort: bool = False
    """Draw brightness, contrast, saturation and hue (colour images)."""
    inference: Literal["whole", "slide"] = "whole"
    """Whole images, or overlapping windows of the size of the training crop, averaged."""
    stride: tuple[int, int] | None = None
    """Height and width between the windows of slide, in pixels; none: half a window."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(crop_scale=(1.0, 1.0)))
    """Flip; the other fields have no effect."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(SegmentConfig, self).__post_init__()  # noqa: UP008
        require_numbers(self, "at least 2", "num_classes")
        require_numbers(self, "at least 0", "auxiliary_weight")
        require_numbers(self, "at least 1", "short_side", "stride")
        require_numbers(self, "above 0, at most 1", "most_of_class")
        low, high = self.scale_range
        require(0 < low <= high, "scale_range", self.scale_range, "0 < low <= high")
        crops = AugmentConfig(crop_scale=(1.0, 1.0), flip=self.augment.flip)
        require(self.augment == crops, "augment", self.augment, "flip alone; use scale_range")
        fits = self.stride is None or self.inference == "slide"
        require(fits, "stride", self.stride, "none without inference slide")
        whole = self.head.norm == "group" or self.micro_batch is None
        allowed = "none with head.norm batch, whose statistics are of a whole batch"
        require(whole, "micro_batch", self.micro_batch, allowed)
        require_train_blocks(self, 0)  # 0: a frozen encoder
        if not self.follow_weights:
            self.head.blocks_of(self.model.depth)
