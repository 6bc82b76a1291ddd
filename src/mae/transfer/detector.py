"""ViTDet's detector: torchvision's proposal network and heads on the pyramid backbone.

torchvision is imported when a detector is created; it is part of the extra `detect`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.errors import ConfigError, ShapeError
from mae.model.dense.backbone import DenseBackbone
from mae.model.dense.pyramid import MapNorm
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.transfer.box_sampler import BoxSampler, drawing_by

ASPECT_RATIOS = (0.5, 1.0, 2.0)
BOX_POOL, MASK_POOL = 7, 14
"""Places along each side of the features of a box, for its class and for its mask."""
BOX_CONVS, MASK_CONVS, RPN_CONVS, FC = 4, 4, 2, 1024
"""Convolutions of the heads, and width of the linear layer of the box head."""


class Target(NamedTuple):
    """The objects of an image that a detector learns."""

    boxes: Tensor
    """N 4 float: left, top, right, bottom in pixels, with right > left and bottom > top."""
    classes: Tensor
    """N int64, from 0."""
    masks: Tensor | None = None
    """N H W, 1 within an object, of the size of the image in the batch; for masks only."""


class Losses(NamedTuple):
    """Losses of a batch, scalars; their sum is trained on."""

    objectness: Tensor
    """Of the proposals: object or background."""
    proposals: Tensor
    """Of the proposals: boxes."""
    classes: Tensor
    boxes: Tensor
    masks: Tensor | None
    """None: a detector without masks."""

    @property
    def total(self) -> Tensor:
        """The sum, each with weight 1, as published."""
        return sum((loss for loss in self if loss is not None), torch.zeros(()))


class Detections(NamedTuple):
    """What a detector finds in an image, the most confident first."""

    boxes: Tensor
    """N 4: left, top, right, bottom in pixels, within the image."""
    classes: Tensor
    """N int64, from 0."""
    scores: Tensor
    """N in (0, 1]."""
    masks: Tensor | None
    """N m m: probability of the object at m x m places of its box; None: a detector without
    masks."""

    def above(self, score: float) -> Detections:
        """Return those of at least a score."""
        count = int((self.scores >= score).sum())
        masks = None if self.masks is None else self.masks[:count]
        return Detections(self.boxes[:count], self.classes[:count], self.scores[:count], masks)

    def resized(self, size: tuple[int, int], *, to: tuple[int, int]) -> Detections:
        """Return them in the pixels of the image at another height and width."""
        (h, w), (H, W) = size, to
        boxes = self.boxes * self.boxes.new_tensor([W / w, H / h] * 2)
        return self._replace(boxes=boxes.clamp(boxes.new_zeros(4), boxes.new_tensor([W, H] * 2)))

    def mask(self, place: int, *, size: tuple[int, int]) -> Tensor:
        """Draw the mask H W bool of an object on an image of a height and width.

        Source: detectron2's `paste_masks_in_image`: bilinear between the places, at the centre of
        each pixel, 0 outside of the box, cut at 0.5.
        """
        assert self.masks is not None
        (H, W), box = size, self.boxes[place].tolist()
        left, top, right, bottom = box
        columns, rows = (
            slice(max(0, math.floor(low)), min(length, math.ceil(high)))
            for low, high, length in ((left, right, W), (top, bottom, H))
        )
        x, y = (
            ((torch.arange(part.start, part.stop) + 0.5 - low) / (high - low) * 2 - 1)
            for part, low, high in ((columns, left, right), (rows, top, bottom))
        )
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).to(self.masks)
        drawn = F.grid_sample(self.masks[place][None, None], grid[None], align_corners=False)
        mask = torch.zeros(size, dtype=torch.bool, device=self.masks.device)
        mask[rows, columns] = drawn[0, 0] >= 0.5
        return mask


class Detector(nn.Module):
    """Boxes, classes and masks of the objects of images: Mask R-CNN on ViTDet's backbone.

    Settings are those of ViTDet: anchors of one size and three aspect ratios on each of five
    levels (2, 4, 8, 16 and 32 patches: 32 to 512 pixels of ViT/16), two convolutions in the
    proposal network, four with layer norm and a linear layer of 1,024 for boxes, four with layer
    norm for masks. torchvision's transform of images is not used: they are neither resized nor
    normalised here. Other than detectron2's are the rounded anchors, the pooling without the shift
    of half a pixel, and the smooth L1 loss of the proposals (beta 1/9, theirs 0).

    Source: Li et al. 2022 (ViTDet) and its published configs; Ren et al. 2015 (Faster R-CNN), He
    et al. 2017 (Mask R-CNN); torchvision's RegionProposalNetwork and RoIHeads.
    """

    class_names: tuple[str, ...] = ()
    """In the order of the classes; empty if unknown. Not part of the state."""

    def __init__(
        self,
        backbone: PyramidBackbone,
        *,
        num_classes: int,
        masks: bool = True,
        sampled_boxes: int = 512,
    ) -> None:
        """Create new heads on a backbone, which is shared.

        Args:
            backbone: see `mae.load_backbone`, or a new one on an encoder.
            num_classes: K, without the background.
            masks: whether to learn masks too (Mask R-CNN); else boxes alone (Faster R-CNN).
            sampled_boxes: boxes of an image that the losses of the heads are computed of.

        Raises:
            ConfigError: if torchvision is not installed.
        """
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes: got {num_classes}, expected at least 1")
        self.backbone, self.num_classes = backbone, num_classes
        p, channels = backbone.encoder.config.patch_size, backbone.out_channels
        require_torchvision()
        self.rpn = _proposal_network(channels, patch_size=p)
        self.roi_heads = _heads(channels, patch_size=p, num_classes=num_classes, masks=masks)
        self.roi_heads.fg_bg_sampler = BoxSampler(sampled_boxes, 0.25)

    @property
    def encoder(self) -> DenseBackbone:
        """The encoder of the backbone."""
        return self.backbone.encoder

    @property
    def has_masks(self) -> bool:
        """Whether it learns masks."""
        return bool(self.roi_heads.has_mask())

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target] | None = None,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        drops: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Losses | list[Detections]:
        """Return losses in training mode, else the objects found in each image.

        Each loss is the mean over the images of that of an image alone, as where each GPU has one
        image (ViTDet); torchvision's would weigh images by the boxes that are drawn of them, so
        that micro-batches and ranks changed it. Under autocast the backbone runs in half precision
        and the heads in float32.

        Args:
            images: B C H W float, normalised (`backbone.encoder.normalize`); smaller ones are
                padded with zeros at the bottom and the right.
            targets: the objects of each image, in training mode only; an image may have none.
            sizes: height and width of each image without its pad; None: H and W.
            drops: B 2*depth uniform in [0, 1), see `DenseBackbone`; None: nothing is dropped.
            generators: B; each draws the boxes of an image that its losses are computed of, on
                the CPU. None: torch's global generator.

        Raises:
            ShapeError: for targets in evaluation mode, or for other numbers or shapes of targets.
        """
        B, _, H, W = images.shape
        given = [(H, W)] * B if sizes is None else [(int(h), int(w)) for h, w in sizes]
        draws = [None] * B if generators is None else [*generators]
        if not len(given) == len(draws) == B:
            raise ShapeError(
                f"sizes, generators: got {len(given)}, {len(draws)}, expected {B}, one for each "
                "image"
            )
        asked = self._targets(targets, size=(H, W), count=B)
        features = self.backbone(images, drops=drops)
        with torch.autocast(images.device.type, enabled=False):
            maps = [each.float() for each in features]
            most = self.backbone.largest_stride
            # Its shape alone is used: anchors lie on the padded image.
            padded = F.pad(images, (0, -W % most, 0, -H % most))
            if asked is None:
                whole = _by_level(maps)
                proposals, _ = self.rpn(_image_list(padded, given), whole)
                return [_detections(each) for each in self.roi_heads(whole, proposals, given)[0]]
            found = [
                self._losses(padded[i : i + 1], [each[i : i + 1] for each in maps], *rest)
                for i, rest in enumerate(zip(given, asked, draws, strict=True))
            ]
        means = (
            None if None in each else torch.stack(each).mean() for each in zip(*found, strict=True)
        )
        return Losses(*means)  # type: ignore[arg-type]

    def _losses(
        self,
        padded: Tensor,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        target: dict[str, Tensor],
        generator: torch.Generator | None,
    ) -> Losses:
        """Return the losses of one image."""
        levels = _by_level(maps)
        rpn, heads = (drawing_by(generator, part) for part in (self.rpn, self.roi_heads))
        proposals, of_proposals = rpn(_image_list(padded, [size]), levels, [target])
        _, of_boxes = heads(levels, proposals, [size], [target])
        return Losses(
            of_proposals["loss_objectness"],
            of_proposals["loss_rpn_box_reg"],
            of_boxes["loss_classifier"],
            of_boxes["loss_box_reg"],
            of_boxes.get("loss_mask"),
        )

    def _targets(
        self, targets: Sequence[Target] | None, *, size: tuple[int, int], count: int
    ) -> list[dict[str, Tensor]] | None:
        """Return targets as torchvision takes them: the background is class 0."""
        if (targets is not None) != self.training:
            raise ShapeError("targets: expected in training mode, and in no other")
        if targets is None:
            return None
        if len(targets) != count:
            raise ShapeError(f"targets: got {len(targets)}, expected {count}, one for each image")
        found = list[dict[str, Tensor]]()
        for number, (boxes, classes, masks) in enumerate(targets):
            N = len(boxes)
            self._require(boxes, classes, where=f"targets {number}")
            own = {"boxes": boxes.float(), "labels": classes.long() + 1}
            if self.has_masks:
                if masks is None or masks.shape != (N, *size):
                    got = None if masks is None else [*masks.shape]
                    raise ShapeError(
                        f"targets {number}: got masks {got}, expected {[N, *size]}; a detector "
                        "without masks needs none"
                    )
                own["masks"] = masks.to(torch.uint8)
            found.append(own)
        return found

    def _require(self, boxes: Tensor, classes: Tensor, *, where: str) -> None:
        """Reject boxes and classes that would make losses infinite or wrong."""
        if boxes.ndim != 2 or boxes.shape[1] != 4 or classes.shape != boxes.shape[:1]:
            raise ShapeError(
                f"{where}: got boxes {[*boxes.shape]} and classes {[*classes.shape]}, expected N 4 "
                "and N"
            )
        if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            raise ShapeError(f"{where}: holds a box without an area; leave it out")
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise ShapeError(
                f"{where}: holds classes {int(classes.min())} to {int(classes.max())}, expected 0 "
                f"to {self.num_classes - 1}"
            )


def _by_level(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return {str(number): each for number, each in enumerate(maps)}


def require_torchvision() -> None:
    """Import torchvision.

    Raises:
        ConfigError: if it is not installed; see the extra `detect`.
    """
    try:
        import torchvision.models.detection  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "detector: requires torchvision; pip install 'mae-vision[detect]'"
        ) from error


def _proposal_network(channels: int, *, patch_size: int) -> Any:
    """Create the proposal network of five levels, with detectron2's numbers of proposals."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

    sizes = tuple((patch_size * 2**level,) for level in range(1, 6))
    with torch.device("cpu"):  # values and no weights, for a detector on the meta device as well
        anchors = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, len(ASPECT_RATIOS), conv_depth=RPN_CONVS),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 1000, "testing": 1000},
        nms_thresh=0.7,
    )
    rpn.fg_bg_sampler = BoxSampler(256, 0.5)
    return rpn


def _heads(channels: int, *, patch_size: int, num_classes: int, masks: bool) -> Any:
    """Create the heads of boxes and masks; torchvision counts the background as a class."""
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.roi_heads import RoIHeads

    size = (channels, BOX_POOL, BOX_POOL)
    heads = RoIHeads(
        _pooling(BOX_POOL, patch_size=patch_size),
        FastRCNNConvFCHead(size, [channels] * BOX_CONVS, [FC], norm_layer=MapNorm),
        FastRCNNPredictor(FC, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=512,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
    )
    if masks:
        heads.mask_roi_pool = _pooling(MASK_POOL, patch_size=patch_size)
        heads.mask_head = MaskRCNNHeads(channels, [channels] * MASK_CONVS, 1, norm_layer=MapNorm)
        heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
    # As detectron2: torchvision's default is a uniform draw, whose first scores are less even.
    for layer, std in (
        (heads.box_predictor.cls_score, 0.01),
        (heads.box_predictor.bbox_pred, 1e-3),
    ):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return heads


def _pooling(size: int, *, patch_size: int) -> Any:
    """Create the pooling of boxes from the four finest levels."""
    from torchvision.ops.poolers import MultiScaleRoIAlign, initLevelMapper

    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], size, sampling_ratio=0)
    # torchvision guesses the strides from the first batch, wrongly for images with a large pad.
    pool.scales = [4 / patch_size, 2 / patch_size, 1 / patch_size, 0.5 / patch_size]
    finest, coarsest = (round(-math.log2(scale)) for scale in (pool.scales[0], pool.scales[-1]))
    pool.map_levels = initLevelMapper(finest, coarsest)
    return pool


def _image_list(padded: Tensor, sizes: list[tuple[int, int]]) -> Any:
    from torchvision.models.detection.image_list import ImageList

    return ImageList(padded, sizes)


def _detections(found: dict[str, Tensor]) -> Detections:
    """Return what torchvision found; classes from 0."""
    masks = found["masks"][:, 0] if "masks" in found else None
    return Detections(found["boxes"], found["labels"] - 1, found["scores"], masks)
