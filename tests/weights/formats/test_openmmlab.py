"""OpenMMLab does not install beside today's torch: its tables of names and shapes hold exactly.

They are written out here from its configs and modules, from nothing of ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae.config.sizes import model_config
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.weights.infer_config import infer_config
from mae.weights.load import load, load_classifier, load_encoder, open_encoder, open_model
from mae.weights.read import name_tensors
from tests.weights import published

Shapes = dict[str, tuple[int, ...]]


def block(before: str, width: int) -> Shapes:
    return {
        f"{before}.ln1.weight": (width,),
        f"{before}.ln1.bias": (width,),
        f"{before}.attn.qkv.weight": (3 * width, width),
        f"{before}.attn.qkv.bias": (3 * width,),
        f"{before}.attn.proj.weight": (width, width),
        f"{before}.attn.proj.bias": (width,),
        f"{before}.ln2.weight": (width,),
        f"{before}.ln2.bias": (width,),
        f"{before}.ffn.layers.0.0.weight": (4 * width, width),
        f"{before}.ffn.layers.0.0.bias": (4 * width,),
        f"{before}.ffn.layers.1.weight": (width, 4 * width),
        f"{before}.ffn.layers.1.bias": (width,),
    }


def backbone(width: int, depth: int, *, patch: int, patches: int) -> Shapes:
    shapes: Shapes = {
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, patches + 1, width),
        "backbone.patch_embed.projection.weight": (width, 3, patch, patch),
        "backbone.patch_embed.projection.bias": (width,),
    }
    for i in range(depth):
        shapes |= block(f"backbone.layers.{i}", width)
    return shapes


def last_norm(width: int, name: str = "backbone.ln1") -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def neck(width: int, depth: int, *, encoder: int, patch: int, patches: int) -> Shapes:
    shapes: Shapes = {
        "neck.mask_token": (1, 1, width),
        "neck.decoder_pos_embed": (1, patches + 1, width),
        "neck.decoder_embed.weight": (width, encoder),
        "neck.decoder_embed.bias": (width,),
        "neck.ln1.weight": (width,),
        "neck.ln1.bias": (width,),
        "neck.decoder_pred.weight": (3 * patch * patch, width),
        "neck.decoder_pred.bias": (3 * patch * patch,),
    }
    for j in range(depth):
        shapes |= block(f"neck.decoder_blocks.{j}", width)
    return shapes


PUBLISHED = [
    ("vit-b/16", 768, 12, 16, 196, 254),
    ("vit-l/16", 1024, 24, 16, 196, 398),
    ("vit-h/14", 1280, 32, 14, 256, 494),
]


@pytest.mark.parametrize(("size", "width", "depth", "patch", "patches", "count"), PUBLISHED)
def test_the_published_sizes_have_these_names_and_shapes(
    size: str, width: int, depth: int, patch: int, patches: int, count: int
) -> None:
    shapes = backbone(width, depth, patch=patch, patches=patches) | last_norm(width)
    shapes |= neck(512, 8, encoder=width, patch=patch, patches=patches)
    assert len(shapes) == count
    with torch.device("meta"):
        model = MaskedAutoencoder(model_config(size))
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}

    raw = name_tensors(Path("x"), tensors, {})

    assert raw.format == "openmmlab"
    found = {name: tuple(tensor.shape) for name, tensor in raw.tensors.items()}
    assert found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {raw.rename(name) for name in found} == shapes.keys()
    assert infer_config(raw)[0] == model_config(size)


# Theirs to the published names, each written out: two independent ways into one model.
def as_published(name: str) -> str:
    for theirs, other in (
        ("backbone.ln1", "norm"),
        ("neck.ln1", "decoder_norm"),
        ("backbone.layers", "blocks"),
        ("neck.", ""),
        ("backbone.", ""),
        ("patch_embed.projection", "patch_embed.proj"),
        ("ffn.layers.0.0", "mlp.fc1"),
        ("ffn.layers.1", "mlp.fc2"),
        (".ln", ".norm"),
    ):
        name = name.replace(theirs, other)
    return name


def small() -> dict[str, Tensor]:
    """3 x 3 patches of 4 x 4 pixels, every value drawn, the position tables too."""
    shapes = backbone(192, 2, patch=4, patches=9) | last_norm(192)
    return published.filled(shapes | neck(192, 1, encoder=192, patch=4, patches=9))


def write(path: Path, tensors: dict[str, Tensor], **meta: object) -> Path:
    torch.save({"meta": meta, "state_dict": tensors}, path)
    return path


def test_a_file_gives_the_model_of_the_published_names_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = small()
    write(tmp_path / "epoch_400.pth", tensors, mmselfsup_version="0.7.0")
    torch.save({as_published(name): t for name, t in tensors.items()}, tmp_path / "same.pth")

    ours, same = load(tmp_path / "epoch_400.pth"), load(tmp_path / "same.pth")

    expected = same.state_dict()
    assert len(expected) == len(tensors) == 50
    assert all(torch.equal(t, expected[name]) for name, t in ours.state_dict().items())
    assert torch.equal(ours.encoder.pos_embed, tensors["backbone.pos_embed"])
    assert torch.equal(ours.decoder.pos_embed, tensors["neck.decoder_pos_embed"])


@pytest.mark.parametrize(("key", "value"), [("config", True), ("cfg", False)])
def test_the_target_is_read_from_the_config_that_lies_beside(
    tmp_path: Path, key: str, *, value: bool
) -> None:
    text = f"model = dict(head=dict(type='MAEPretrainHead', norm_pix={value}, patch_size=4))"
    path = write(tmp_path / "epoch_400.pth", small(), **{key: text})

    model, notes = open_model(path)

    assert model.objective.normalize_target is value
    assert "--normalize-target" not in notes[0] and "took the encoder and decoder" in notes[1]


@pytest.mark.parametrize(("norm", "head"), [("fc_norm", "head.head"), ("ln2", "head.fc")])
def test_fine_tuned_files_of_both_generations_are_classifiers(
    tmp_path: Path, norm: str, head: str
) -> None:
    own = {f"{head}.weight": (5, 192), f"{head}.bias": (5,)}
    shapes = backbone(192, 2, patch=4, patches=9) | last_norm(192, f"backbone.{norm}") | own
    tensors = published.filled(shapes)
    path = write(tmp_path / "tuned.pth", tensors)

    model, names = load_classifier(path)

    assert model.pool == "mean" and names == ("0", "1", "2", "3", "4")
    assert torch.equal(model.fc_norm.weight, tensors[f"backbone.{norm}.weight"])
    assert torch.equal(model.head.weight, tensors[f"{head}.weight"])
    assert isinstance(load_encoder(path).norm, torch.nn.Identity)


@pytest.mark.parametrize(
    ("batch_norm", "head"), [("head.bn", "head.head"), ("neck.bn", "head.layers.head")]
)
def test_linear_probes_of_both_generations_score_as_norm_and_layer(
    tmp_path: Path, batch_norm: str, head: str
) -> None:
    own = {f"{head}.weight": (5, 192), f"{head}.bias": (5,), f"{batch_norm}.running_mean": (192,)}
    shapes = backbone(192, 2, patch=4, patches=9) | last_norm(192) | own
    tensors = published.filled(shapes)
    tensors[f"{batch_norm}.running_var"] = torch.rand(192)
    tensors[f"{batch_norm}.num_batches_tracked"] = torch.tensor(7)
    path = write(tmp_path / "probe.pth", tensors)
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    model, *_ = load_classifier(path)

    with torch.inference_mode():
        cls = load_encoder(path)(images)[:, 0]
        scaled = torch.nn.functional.batch_norm(
            cls, tensors[f"{batch_norm}.running_mean"], tensors[f"{batch_norm}.running_var"],
            eps=1e-6,
        )  # fmt: skip
        expected = scaled @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"]
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_relative_positions_of_a_detector_are_named_as_the_cause(tmp_path: Path) -> None:
    tensors = small() | {"backbone.layers.0.attn.rel_pos_h": torch.zeros(27, 64)}
    path = write(tmp_path / "odd.pth", tensors)

    with pytest.raises(
        WeightsError, match=r"1 unexpected \(backbone.*rel_pos_h\); it has relative"
    ):
        load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("", 8),
        ("model = dict(backbone=dict(type='VisionTransformer', arch='small'))", 8),
        ("arch=dict(embed_dims=768, num_layers=8, num_heads=6, feedforward_channels=2304)", 6),
        ("arch={'embed_dims': 768, 'num_heads': 16}", 16),
    ],
)
def test_heads_are_those_of_the_config_or_of_their_own_small_network(
    text: str, heads: int, tmp_path: Path
) -> None:
    shapes = backbone(768, 8, patch=16, patches=4) | last_norm(768)
    shapes = {
        name: tuple(2304 if edge == 3072 else edge for edge in shape)
        for name, shape in shapes.items()
    }
    path = write(tmp_path / "small.pth", {n: torch.zeros(s) for n, s in shapes.items()}, cfg=text)

    encoder, notes = open_encoder(path)

    assert encoder.config.num_heads == heads
    assert ("8 heads (--heads)" in notes[0]) == (not text)


def test_pixels_and_decoder_are_read_from_the_config(tmp_path: Path) -> None:
    text = """
data_preprocessor = dict(mean=[127.5, 63.75, 51], std=[51.0, 102, 25.5], bgr_to_rgb=True)
model = dict(backbone=dict(type='MAEViT', arch='deit-tiny'),
             neck=dict(type='MAEPretrainDecoder', decoder_num_heads=4, magnitude_std=0.5),
             head=dict(norm_pix=False))
"""
    path = write(tmp_path / "epoch_400.pth", small(), cfg=text)

    model, notes = open_model(path)

    assert model.config.pixels.mean == (0.5, 0.25, 0.2)
    assert model.config.pixels.std == (0.2, 0.4, 0.1)
    assert (model.config.num_heads, model.config.decoder_heads) == (3, 4)
    options = ("--heads", "--decoder-heads", "--mean", "--std", "--normalize-target")
    assert not [option for option in options if option in notes[0]]
