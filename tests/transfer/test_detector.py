"""The detector: ViTDet's settings, images as they are given, draws by generators."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mae.config.dense import DenseConfig
from mae.config.model import ModelConfig
from mae.config.sizes import model_config
from mae.errors import ConfigError, ShapeError
from mae.model.create import create
from mae.model.dense.pyramid import MapNorm
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.encoder import Encoder
from mae.train.optim.parameter_groups import layer_of, parameter_groups
from mae.transfer.detector import Detections, Detector, Losses, Target

TINY = ModelConfig(
    image_size=(64, 96), patch_size=8, width=48, depth=2, num_heads=3,
    decoder_width=16, decoder_depth=1, decoder_heads=2,
)  # fmt: skip
WINDOWS = DenseConfig(window=3, global_blocks=(1,), relative_positions="decomposed")


def detector(*, masks: bool = True, num_classes: int = 2, channels: int = 24) -> Detector:
    torch.manual_seed(0)
    backbone = PyramidBackbone(create(TINY).encoder, WINDOWS, channels=channels, drop_path=0.1)
    return Detector(backbone, num_classes=num_classes, masks=masks)


def target(H: int = 64, W: int = 96) -> Target:
    """Two objects: a bright square of class 0, a dark bar of class 1."""
    boxes = torch.tensor([[8.0, 8, 32, 32], [48, 24, 88, 40]])
    masks = torch.zeros(2, H, W)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return Target(boxes, torch.tensor([0, 1]), masks)


def image(generator: torch.Generator) -> Tensor:
    """The objects of `target` on noise."""
    found = 0.2 * torch.randn(1, 3, 64, 96, generator=generator)
    masks = target().masks
    assert masks is not None
    return found + 2 * masks[0] - 2 * masks[1]


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def losses(model: Detector, *given: Any, **how: Any) -> Losses:
    found = model(*given, **how)
    assert isinstance(found, Losses)
    return found


def test_the_heads_are_those_of_vitdet() -> None:
    # detectron2, configs/common/models/mask_rcnn_vitdet.py and mask_rcnn_fpn.py.
    with torch.device("meta"):
        dense = DenseConfig(window=14, global_blocks=(2, 5, 8, 11), relative_positions="decomposed")
        encoder = Encoder(model_config("vit-b/16", image_size=1024))
        model = Detector(PyramidBackbone(encoder, dense), num_classes=80)
    anchors, heads = model.rpn.anchor_generator, model.roi_heads
    assert anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert set(anchors.aspect_ratios) == {(0.5, 1.0, 2.0)}
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}

    rpn = [shape for name, shape in shapes.items() if name.startswith("rpn.head.conv")]
    assert rpn == [(256, 256, 3, 3), (256,)] * 2
    # Convolutions without bias and a layer norm: conv_norm = "LN".
    convs = [(256, 256, 3, 3), (256,), (256,)] * 4
    box = [shape for name, shape in shapes.items() if name.startswith("roi_heads.box_head")]
    assert box == [*convs, (1024, 256 * 7 * 7), (1024,)]
    assert shapes["roi_heads.box_predictor.cls_score.weight"] == (81, 1024)
    mask = [shape for name, shape in shapes.items() if name.startswith("roi_heads.mask_head")]
    assert mask == convs
    assert sum(isinstance(part, MapNorm) for part in heads.modules()) == 8
    assert (heads.box_roi_pool.output_size, heads.mask_roi_pool.output_size) == ((7, 7), (14, 14))
    assert heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert [heads.fg_bg_sampler.count, model.rpn.fg_bg_sampler.count] == [512, 256]


def test_layers_are_numbered_for_layer_decay_as_published() -> None:
    # vit.py, get_vit_lr_decay_rate: embeddings 0, block i (its tables too) i + 1, the rest last.
    model = detector()
    found = {name: layer_of(name, depth=2) for name, _ in model.named_parameters()}

    assert (
        found["backbone.encoder.pos_embed"] == found["backbone.encoder.patch_embed.proj.bias"] == 0
    )
    assert found["backbone.encoder.blocks.0.attn.qkv.weight"] == 1
    assert found["backbone.encoder.relative.1.rel_pos_h"] == 2
    rest = {n: layer for n, layer in found.items() if not n.startswith("backbone.encoder.")}
    assert {n.partition(".")[0] for n in rest} == {"backbone", "rpn", "roi_heads"}
    assert set(rest.values()) == {3}


def test_the_learning_rates_of_vitdet_b_are_the_published_factors() -> None:
    # mask_rcnn_vitdet_b_100ep.py: 0.7 of 12 blocks; factor 0.7 ** (13 - layer).
    with torch.device("meta"):
        dense = DenseConfig(window=14, global_blocks=(2, 5, 8, 11), relative_positions="decomposed")
        backbone = PyramidBackbone(Encoder(model_config("vit-b/16", image_size=1024)), dense)
        model = Detector(backbone, num_classes=80)
    model.requires_grad_(True)  # noqa: FBT003 - positions are trained, as by `choose_trained`
    names = {id(p): name for name, p in model.named_parameters()}
    found = dict[str, float]()
    for group in parameter_groups(
        model, weight_decay=0.1, decay_tokens=False, layer_decay=0.7, depth=12
    ):
        params, scale, decay = (group[name] for name in ("params", "scale", "weight_decay"))
        assert isinstance(params, list) and isinstance(scale, float)
        for parameter in params:
            found[name := names[id(parameter)]] = scale
            # Norms and positions are not decayed; as everywhere here, biases are not either.
            assert decay == (0.1 if parameter.ndim > 1 and "pos_embed" not in name else 0), name

    assert found.keys() == set(names.values())
    factors = {
        "encoder.pos_embed": 0.009688901, "encoder.blocks.0.attn.qkv.weight": 0.013841287,
        "encoder.relative.5.rel_pos_w": 0.0823543, "encoder.blocks.11.mlp.fc2.bias": 0.7,
        "pyramid.levels.0.0.0.weight": 1.0,
    }  # fmt: skip
    for name, factor in factors.items():
        assert found[f"backbone.{name}"] == pytest.approx(factor, rel=1e-6), name
    assert found["roi_heads.box_head.5.weight"] == found["rpn.head.cls_logits.weight"] == 1


def test_an_image_is_neither_resized_nor_normalised(generator: torch.Generator) -> None:
    model = detector().eval()
    small = torch.randn(1, 3, 40, 56, generator=generator)
    canvas = torch.zeros(1, 3, 64, 64)  # what 40 x 56 is padded to: whole patches of the last map
    canvas[..., :40, :56] = small
    seen = list[Tensor]()
    model.backbone.encoder.patch_embed.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )

    with torch.no_grad():
        (alone,) = model(small)
        (padded,) = model(canvas, sizes=[(40, 56)])

    torch.testing.assert_close(seen[0], seen[1], atol=0, rtol=0)
    # Patches of 8 x 8 x 3 in the order row, column, channel: the pixels that were given.
    torch.testing.assert_close(seen[0][0, 0].reshape(8, 8, 3), small[0, :, :8, :8].permute(1, 2, 0))
    assert len(alone.boxes)
    for ours, other in zip(alone, padded, strict=True):
        torch.testing.assert_close(ours, other)
    assert alone.boxes.min() >= 0
    assert (alone.boxes.max(dim=0).values <= torch.tensor([56, 40, 56, 40])).all()


def test_masks_are_drawn_in_the_pixels_of_an_image_of_any_size() -> None:
    # 2 x 2 places: the left half of the box; between places it falls from 1 to 0 linearly.
    boxes, places = torch.tensor([[2.0, 1.0, 10.0, 5.0]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    found = Detections(boxes, torch.zeros(1, dtype=torch.int64), torch.ones(1), places)

    small, large = (
        found.mask(0, size=(6, 12)),
        found.resized((6, 12), to=(12, 36)).mask(0, size=(12, 36)),
    )

    # By hand, at the centres: 0.75 1 1 0.75 down, 0.625 0.875 0.875 0.625 0.375 ... across.
    whole, cut = [2, 3, 4, 5], [3, 4]
    assert [torch.where(row)[0].tolist() for row in small] == [[], cut, whole, whole, cut, []]
    rows, columns = torch.where(large)
    assert (rows.min(), rows.max()) == (2, 9) and (columns.min(), columns.max()) == (6, 17)


@pytest.mark.slow
def test_boxes_classes_scores_and_masks_have_their_form(generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 64, 96, generator=generator)
    with torch.no_grad():
        found = detector().eval()(images, sizes=[(64, 96), (50, 70)])
        boxes_alone = detector(masks=False).eval()(images)

    for each, size in zip(found, ((64, 96), (50, 70)), strict=True):
        assert isinstance(each, Detections)
        N = len(each.boxes)
        assert 0 < N <= 100 and each.boxes.shape == (N, 4)
        assert set(each.classes.tolist()) <= {0, 1}
        assert each.scores.tolist() == sorted(each.scores.tolist(), reverse=True)
        assert each.masks is not None and each.masks.shape == (N, 28, 28)
        assert ((each.masks >= 0) & (each.masks <= 1)).all()
        assert each.mask(0, size=size).shape == size
    assert all(each.masks is None for each in boxes_alone)


def test_losses_follow_from_the_generator_and_not_from_torchs_own() -> None:
    model, images = detector(), image(seeded(1))
    found = []
    for seed, own in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(losses(model, images, [target()], generators=[seeded(own)]))
        assert torch.equal(torch.get_rng_state(), before)

    values = [[loss.item() for loss in each if loss is not None] for each in found]
    assert len(values[0]) == 5
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_losses_of_a_batch_are_the_mean_of_those_of_each_image() -> None:
    # The second image has fewer objects, so that fewer boxes are drawn on objects.
    model, images = detector(), torch.cat([image(seeded(1)), image(seeded(2))])
    boxes, classes, masks = target()
    assert masks is not None
    targets = [target(), Target(boxes[:1], classes[:1], masks[:1])]
    drops = torch.rand(2, 4, generator=seeded(3))
    sizes = [(64, 96), (60, 80)]

    def of(part: slice) -> Losses:
        draws = [seeded(8), seeded(9)][part]
        return losses(
            model, images[part], targets[part], drops=drops[part], sizes=sizes[part],
            generators=draws,
        )  # fmt: skip

    both, first, second = of(slice(0, 2)), of(slice(0, 1)), of(slice(1, 2))

    for whole, one, other in zip(both, first, second, strict=True):
        assert whole is not None and one is not None and other is not None
        torch.testing.assert_close(whole, (one + other) / 2)
        assert one.item() != other.item()


@pytest.mark.slow
def test_an_image_without_objects_is_background(generator: torch.Generator) -> None:
    model = detector()
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 96))
    images = torch.randn(2, 3, 64, 96, generator=generator)

    for targets in ([none, target()], [none, none]):
        found = losses(model, images, targets, generators=[seeded(0), seeded(1)])
        found.total.backward()

        assert all(loss is not None and bool(loss.isfinite()) for loss in found)
    assert found.boxes.item() == found.proposals.item() == 0
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (target()._replace(boxes=torch.tensor([[8.0, 8, 8, 32]] * 2)), "a box without an area"),
        (target()._replace(classes=torch.tensor([0, 2])), "classes 0 to 2, expected 0 to 1"),
        (target()._replace(masks=torch.zeros(2, 64, 64)), r"masks \[2, 64, 64\], expected \[2, 64"),
        (target()._replace(masks=None), r"got masks None, expected \[2, 64, 96\]"),
    ],
    ids=["box", "class", "mask", "none"],
)
def test_wrong_targets_are_refused_in_one_line(wrong: Target, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        detector()(torch.zeros(1, 3, 64, 96), [wrong])
    with pytest.raises(ShapeError, match="in training mode, and in no other"):
        detector().eval()(torch.zeros(1, 3, 64, 96), [target()])


def test_without_torchvision_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[detect\]'"):
        detector()
