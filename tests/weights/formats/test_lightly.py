"""Models of lightly 1.6 are the same function here, and back again."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mae.errors import WeightsError
from mae.weights.load import load, load_encoder, open_encoder, open_model
from mae.weights.read import name_tensors
from mae.weights.tools.convert import convert
from tests.model.tiny import scrambled
from tests.weights import published


def spelled() -> dict[str, Tensor]:
    """Give the names of lightly to a model of 192, 2 blocks, and its unused parts."""
    decoder = published.decoder_shapes(192, 1, encoder=192, patch=4, patches=9)
    ours = {f"decoder.{name}": t for name, t in published.filled(decoder, seed=1).items()}
    ours |= {f"backbone.vit.{name}": t for name, t in published.encoder_only().items()}
    unused = {
        "backbone.mask_token": (1, 1, 192),
        "backbone.vit.head.weight": (1000, 192),
        "backbone.vit.head.bias": (1000,),
    }
    return ours | published.filled(unused)


@pytest.mark.parametrize("prefix", ["", "model.", "module.mae."])
def test_its_names_are_read_whatever_they_are_wrapped_in(tmp_path: Path, prefix: str) -> None:
    tensors = {prefix + name: tensor for name, tensor in spelled().items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "last.ckpt")

    model, notes = open_model(tmp_path / "last.ckpt")

    own = model.state_dict()
    assert len(own) == 50
    assert torch.equal(own["encoder.norm.bias"], tensors[f"{prefix}backbone.vit.norm.bias"])
    assert torch.equal(own["decoder.pred.bias"], tensors[f"{prefix}decoder.decoder_pred.bias"])
    assert not model.objective.normalize_target
    assert "a target of plain pixels (--normalize-target)" in notes[0]
    assert "took the encoder and decoder" in notes[1]
    assert "left unused, 3 tensors: no part of a masked autoencoder" in notes[2]


def test_a_backbone_alone_is_an_encoder_and_a_decoder_alone_is_refused(tmp_path: Path) -> None:
    for part in ("backbone", "decoder"):
        own = {n.partition(".")[2]: t for n, t in spelled().items() if n.startswith(part)}
        torch.save(own, tmp_path / f"{part}.pth")

    encoder, _ = open_encoder(tmp_path / "backbone.pth")

    assert torch.equal(encoder.cls_token, spelled()["backbone.vit.cls_token"])
    with pytest.raises(WeightsError, match="patch_embed.proj.weight is missing"):
        load(tmp_path / "decoder.pth")


@pytest.mark.parametrize(("width", "depth", "count"), [(768, 12, 257), (1024, 24, 401)])
def test_the_published_sizes_have_the_numbers_of_tensors(
    width: int, depth: int, count: int
) -> None:
    encoder = published.encoder_shapes(width, depth, patch=16, patches=196)
    decoder = published.decoder_shapes(512, 8, encoder=width, patch=16, patches=196)
    names = [f"backbone.vit.{name}" for name in encoder] + [f"decoder.{name}" for name in decoder]
    names += ["backbone.mask_token", "backbone.vit.head.weight", "backbone.vit.head.bias"]
    assert len(names) == count
    tensors = {name: torch.empty(0, device="meta") for name in names}

    raw = name_tensors(Path("x"), tensors, {})

    assert raw.format == "lightly"
    assert {raw.rename(name) for name in raw.tensors} == set(names)


@pytest.fixture
def lightly() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns of what it imports
        return import_module("lightly.models.modules")


class Theirs(nn.Module):
    """The masked autoencoder of lightly's examples, with the mask as an argument."""

    def __init__(self, lightly: Any) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=12, patch_size=4, embed_dim=192, depth=2, num_heads=3, num_classes=7
        )
        self.backbone = lightly.MaskedVisionTransformerTIMM(vit=vit)
        with pytest.warns(FutureWarning, match="removed in lightly 1.7"):
            self.decoder = lightly.MAEDecoderTIMM(
                num_patches=9, patch_size=4, embed_dim=192, decoder_embed_dim=192,
                decoder_depth=1, decoder_num_heads=6,
            )  # fmt: skip

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from lightly.models import utils

        with_cls = torch.cat([noise.new_full((len(noise), 1), -1.0), noise], dim=1)
        order = with_cls.argsort(dim=1)
        idx_keep, idx_mask = order[:, :3], order[:, 3:]
        encoded = self.backbone.encode(images, idx_keep=idx_keep)
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), 10))
        embedded = self.decoder.embed(encoded)
        tokens = utils.set_at_index(tokens, idx_keep, embedded.type_as(tokens))
        pred = self.decoder.predict(self.decoder.decode(tokens))[:, 1:]
        patches = utils.patchify(images, patch_size=4)
        hidden = utils.get_at_index(pred, idx_mask - 1)
        target = utils.get_at_index(patches, idx_mask - 1)
        return nn.functional.mse_loss(hidden, target), pred, self.backbone.encode(images)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the largest value: what float32 sums in another order differ by."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_model_of_lightly_is_the_same_function_there_and_back(lightly, tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    other = scrambled(Theirs(lightly), generator).eval()
    for table in (other.backbone.vit.pos_embed, other.decoder.decoder_pos_embed):
        table.data = torch.randn(table.shape, generator=generator)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "last.ckpt")
    images = torch.randn(2, 3, 12, 12, generator=generator)
    noise = torch.rand(2, 9, generator=generator)

    ours = load(tmp_path / "last.ckpt")
    convert(tmp_path / "last.ckpt", tmp_path / "published.pth", to="facebook")

    with torch.inference_mode():
        loss, pred, tokens = other(images, noise)
        found = ours(images, noise=noise)
        again = ours.reconstruct(images, noise=noise).pred
        assert_near(found.loss, loss)
        assert_near(again, pred)
        assert_near(load_encoder(tmp_path / "last.ckpt")(images), tokens)
    tensors = torch.load(tmp_path / "published.pth", weights_only=True)["model"]
    fresh = Theirs(lightly)
    fresh.backbone.vit.reset_classifier(0)
    decodes = {n for n in tensors if n.startswith("decoder_") or n == "mask_token"}
    fresh.decoder.load_state_dict({n: tensors[n] for n in decodes}, strict=True)
    fresh.backbone.vit.load_state_dict({n: tensors[n] for n in tensors.keys() - decodes})
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(images, noise)[1], pred)
