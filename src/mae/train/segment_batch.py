"""What a training step of semantic segmentation is made of: crops, draws and loss."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from mae.config.model import PixelConfig
from mae.config.segment import SegmentConfig
from mae.data.batching.batch import Batch
from mae.data.decoding.decode import FULL_RANGE
from mae.data.segmentation.crop import CropRule
from mae.data.segmentation.source import IGNORE
from mae.errors import ConfigError
from mae.model.dense.segmenter import segmentation_loss
from mae.train.step import Loss


def crop_rule(config: SegmentConfig) -> CropRule:
    """Return how the images and masks of a run are cropped; the fill is the mean colour.

    Raises:
        ConfigError: for colours drawn of images that are not of 8-bit colour.
    """
    pixels = config.model.pixels
    if config.distort and (pixels.dtype, config.model.channels) != ("uint8", 3):
        raise ConfigError(
            f"distort: expected 8-bit colour images, got {config.model.channels} channels of "
            f"{pixels.dtype}; use --distort no"
        )
    return CropRule(
        short_side=config.short_side,
        scale=config.scale_range,
        fill=mean_color(pixels),
        most_of_class=config.most_of_class,
        distort=config.distort,
    )


def mean_color(pixels: PixelConfig) -> tuple[float, ...]:
    """Return the stored value of each channel that is 0, or nearly, once normalised."""
    scale = FULL_RANGE[pixels.dtype]
    rounded = (lambda value: value) if pixels.dtype == "float32" else round
    return tuple(float(rounded(mean * scale)) for mean in pixels.mean)


def num_draws(config: SegmentConfig) -> int:
    """Return the uniform numbers of an image that `Segmenter.forward` takes; 0: none are dropped.

    They are those of its branches, of the channels of its head, and of the auxiliary head.
    """
    head, model = config.head, config.model
    if not (head.dropout or config.drop_path):
        return 0
    blocks = head.blocks_of(model.depth)
    own = head.channels if head.kind == "upernet" else len(blocks) * model.width
    return 2 * model.depth + own + (head.auxiliary_channels if head.has_auxiliary else 0)


def segment_loss(config: SegmentConfig) -> Loss:
    """Return the loss of a batch of stored pixels and masks."""
    return partial(_loss, auxiliary_weight=config.auxiliary_weight)


def _loss(model: nn.Module, batch: Batch, *, auxiliary_weight: float) -> Tensor:
    assert batch.masks is not None
    images = model.encoder.normalize(batch.images)  # type: ignore[operator, union-attr]
    output = model(images, drops=batch.drops)
    return segmentation_loss(
        output, batch.masks, ignore_index=IGNORE, auxiliary_weight=auxiliary_weight
    )
