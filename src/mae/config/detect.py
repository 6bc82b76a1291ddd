"""Configuration of the detection of objects."""

from __future__ import annotations

from dataclasses import dataclass, field

from mae.config.dense import DenseConfig
from mae.config.model import require, require_numbers
from mae.config.run import AugmentConfig, TransferConfig, require_train_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig(TransferConfig):
    """Boxes and masks of objects on a pre-trained encoder; `model.image_size` is the crop.

    Images are scored resized to just fit into a crop.
    """

    num_classes: int = 80
    """Number of classes; follows from the data."""
    masks: bool | None = None
    """Learn masks too (Mask R-CNN), or boxes alone (Faster R-CNN); none: where the data have
    masks."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """How the encoder sees a large image."""
    pyramid_channels: int = 256
    """Channels of the maps of the pyramid, and of the convolutions of the heads."""
    sampled_boxes: int = 512
    """Boxes of an image, a quarter of them on objects, that the losses of classes, boxes and masks
    are computed of."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor of the size before a training crop; at 1 an image just fits."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(crop_scale=(1.0, 1.0)))
    """Flip; the other fields have no effect."""

    def __post_init__(self) -> None:
        # slots=True makes a new class, which the bare form of super() does not find.
        super(DetectConfig, self).__post_init__()  # noqa: UP008
        require_numbers(self, "at least 1", "num_classes", "pyramid_channels", "sampled_boxes")
        low, high = self.scale_range
        require(0 < low <= high, "scale_range", self.scale_range, "0 < low <= high")
        crops = AugmentConfig(crop_scale=(1.0, 1.0), flip=self.augment.flip)
        require(self.augment == crops, "augment", self.augment, "flip alone; use scale_range")
        require_train_blocks(self, 0)  # 0: a frozen encoder
        blocks, most = self.dense.global_blocks, self.model.depth
        fits = self.follow_weights or all(number < most for number in blocks)
        require(fits, "dense.global_blocks", blocks, f"0 to {most - 1}")
