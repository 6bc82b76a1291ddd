"""Vision transformers of timm with unusual arguments: right, refused, or with a printed guess.

Each is saved as timm's Hub folder, with its config.json, and as a bare state dict. What is loaded
computes the same to 1e-5, unless a printed guess says in what it may be another function.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.layers import SwiGLU
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from mae.errors import MaeError, WeightsError
from mae.weights.load import load_classifier, load_encoder, open_classifier, open_encoder
from mae.weights.tools.inspect import inspect
from tests.model.tiny import scrambled

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3,
         "num_classes": 5}  # fmt: skip
GUESSED = "assumed, since it does not say: "
# What becomes of weights, besides the text of an error.
RIGHT, GUESS, UNSAVED = "right", "guess", "cannot be saved by timm"
NO_SQUARE = "make no square"


class Variant(NamedTuple):
    """Arguments of a network, and what becomes of it: a text is that of the error."""

    name: str
    arguments: dict[str, Any]
    hub: str = RIGHT
    """Its encoder, from the Hub folder."""
    hub_head: str = RIGHT
    """Its classifier, from the Hub folder."""
    bare: str = GUESS
    """Its encoder, from the state dict, of which the heads are given where they are no width's."""
    bare_head: str = GUESS
    override: dict[str, Any] | None = {}
    """With what the bare classifier is right; None: it never is."""


def refused(name: str, arguments: dict[str, Any], why: str, bare: str) -> Variant:
    return Variant(name, arguments, why, why, bare, bare, None)


VARIANTS = (
    Variant("plain", {}),
    Variant("num_heads", {"embed_dim": 192, "num_heads": 4}, override={"heads": 4}),
    Variant("avg", {"global_pool": "avg"}),
    Variant("avg without fc_norm", {"global_pool": "avg", "fc_norm": False},
            hub_head="takes global_pool 'avg' without fc_norm", override=None),
    Variant("token with fc_norm", {"fc_norm": True}, override={"pool": "cls"}),
    Variant("max", {"global_pool": "max"}, hub_head="takes global_pool 'max'", override=None),
    Variant("avgmax", {"global_pool": "avgmax"}, hub_head="takes global_pool 'avgmax'",
            override=None),
    refused("map", {"global_pool": "map"}, "global_pool map", "attn_pool.latent.*attention pool"),
    Variant("norm_layer eps", {"norm_layer": partial(nn.LayerNorm, eps=1e-3)}, UNSAVED, UNSAVED,
            override={"norm_eps": 1e-3}),
    refused("norm_layer rmsnorm", {"norm_layer": "rmsnorm"}, "norm_layer RmsNorm", "RMS norm"),
    Variant("act_layer relu", {"act_layer": "relu"}, "act_layer ReLU", "act_layer ReLU",
            override=None),
    Variant("act_layer gelu_tanh", {"act_layer": "gelu_tanh"}, "act_layer GELUTanh",
            "act_layer GELUTanh", override=None),
    Variant("quickgelu by its name", {"architecture": "vit_base_patch16_clip_quickgelu_224",
            "pre_norm": False}, "act_layer QuickGELU", "act_layer QuickGELU", override=None),
    refused("class_token", {"class_token": False, "global_pool": "avg"}, "class_token False",
            "cls_token.*no cls token"),
    refused("reg_tokens", {"reg_tokens": 4}, "reg_tokens 4", "reg_token.*register tokens"),
    refused("init_values", {"init_values": 1e-5}, "init_values", "ls1.gamma.*layer scale"),
    refused("qk_norm", {"qk_norm": True}, "qk_norm", "q_norm.weight.*norms of queries and keys"),
    refused("scale_mlp_norm", {"scale_mlp_norm": True}, "scale_mlp_norm", "norms in the MLP"),
    refused("qkv_bias", {"qkv_bias": False}, "qkv_bias False", "no biases of queries"),
    refused("proj_bias", {"proj_bias": False}, "proj_bias False", "proj.bias.*no biases"),
    refused("pre_norm", {"pre_norm": True}, "pre_norm", "norm_pre.*norm before the blocks"),
    refused("final_norm", {"final_norm": False}, "final_norm False", "2 missing .norm.weight"),
    refused("no_embed_class", {"no_embed_class": True}, "no_embed_class True", "no position for"),
    refused("pos_embed", {"pos_embed": "none"}, "pos_embed", "pos_embed is missing"),
    refused("swiglu", {"mlp_layer": SwiGLU}, UNSAVED, "fc1_g.*SwiGLU"),
    Variant("block_fn", {"block_fn": ResPostBlock}, UNSAVED, UNSAVED, override=None),
    refused("deit distilled", {"architecture": "deit_tiny_distilled_patch16_224"},
            "VisionTransformerDistilled", "dist_token.*distillation"),
    refused("patch 8 x 4", {"patch_size": (8, 4)}, "patches of 8 x 4", "patches of 8 x 4"),
    Variant("sizes", {"embed_dim": 40, "depth": 3, "num_heads": 5, "mlp_ratio": 2.7,
            "patch_size": 4, "img_size": 20}),
    Variant("hidden width 488", {"embed_dim": 448, "num_heads": 7, "mlp_ratio": 1.09, "depth": 1}),
    Variant("img_size 24 x 40", {"img_size": (24, 40)}, bare=NO_SQUARE, bare_head=NO_SQUARE,
            override={"grid": (3, 5)}),
    Variant("img_size 16 x 64", {"img_size": (16, 64)}, override={"grid": (2, 8)}),
    Variant("dynamic_img_size", {"dynamic_img_size": True}),
    Variant("num_classes 0", {"num_classes": 0}),
    Variant("in_chans 1", {"in_chans": 1}),
    Variant("in_chans 5", {"in_chans": 5}),
    Variant("the tag mae", {"architecture": "vit_base_patch16_224.mae"}),
)  # fmt: skip


def made(variant: Variant) -> Any:
    own = SMALL | variant.arguments
    name = own.pop("architecture", "vit_tiny_patch16_224")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some layers keep the values that timm draws
        model = scrambled(timm.create_model(name, **own), torch.Generator().manual_seed(0))
    return model.eval()


def outcome(path: Path, model: Any, *, head: bool, given: dict[str, Any]) -> str:
    """Say what becomes of weights: right, a guess, wrong without a word, or the error."""
    shape = (2, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    try:
        if head:
            (ours, _), notes = open_classifier(path, **given)
        else:
            ours, notes = open_encoder(path, **given)  # type: ignore[assignment]
    except MaeError as error:
        assert "\n" not in str(error)
        return str(error)
    with torch.inference_mode():
        expected = model(images) if head else model.forward_features(images)
        found = ours.eval()(images)
    if any(GUESSED in note for note in notes):
        return GUESS
    assert found.shape == expected.shape
    # Of the largest value: what sums of float32 in another order differ by.
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    return RIGHT


def expect(found: str, expected: str) -> None:
    if expected in (RIGHT, GUESS):
        assert found == expected
    else:
        assert found not in (RIGHT, GUESS) and re.search(expected, found)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_hub_folder_is_right_or_refused_by_its_argument(variant: Variant, tmp_path: Path) -> None:
    model = made(variant)
    if variant.hub == UNSAVED:
        with pytest.raises(ValueError, match="not serializable"):
            save_for_hf(model, tmp_path, safe_serialization=True)
        return
    save_for_hf(model, tmp_path, safe_serialization=True)

    expect(outcome(tmp_path, model, head=False, given={}), variant.hub)
    if model.num_classes:
        expect(outcome(tmp_path, model, head=True, given={}), variant.hub_head)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_bare_state_dict_is_refused_or_loaded_with_a_guess_and_right_if_told(
    variant: Variant, tmp_path: Path
) -> None:
    model = made(variant)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    odd = model.embed_dim not in (192, 384, 768)
    given = {"heads": model.blocks[0].attn.num_heads} if odd else {}

    expect(outcome(tmp_path / "bare.pth", model, head=False, given=given), variant.bare)
    if not model.num_classes:
        return
    expect(outcome(tmp_path / "bare.pth", model, head=True, given=given), variant.bare_head)
    if variant.override is not None:
        (told, _), _ = open_classifier(tmp_path / "bare.pth", **(given | variant.override))
        shape = (2, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            torch.testing.assert_close(told.eval()(images), model(images), rtol=1e-5, atol=1e-5)


def test_pixels_classes_and_their_names_are_those_of_the_folder(tmp_path: Path) -> None:
    model = timm.create_model("vit_base_patch16_224.augreg_in21k_ft_in1k", **SMALL)
    names = ["ant", "bee", "cat", "dog", "eel"]
    save_for_hf(model, tmp_path, safe_serialization=True, model_config={"label_names": names})

    encoder, notes = open_encoder(tmp_path)

    assert encoder.config.pixels.mean == encoder.config.pixels.std == (0.5, 0.5, 0.5)
    assert encoder.config.crop_pct == timm.data.resolve_data_config(model=model)["crop_pct"] == 0.9
    assert not [note for note in notes if GUESSED in note]
    assert load_classifier(tmp_path).class_names == tuple(names)
    told = inspect(tmp_path).told
    assert {told[n] for n in ("num_heads", "norm_eps", "pixels", "activation", "pool")} == {
        "by config.json"
    }


def test_a_configuration_is_not_that_of_a_file_of_another_name(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    save_for_hf(model, tmp_path, safe_serialization=True)
    torch.save(model.state_dict(), tmp_path / "mine.pth")

    _, notes = open_encoder(tmp_path / "mine.pth", heads=4)

    assert GUESSED + "norm eps 1e-06 (--norm-eps), square images" in notes[0]


def test_an_architecture_that_timm_does_not_know_is_a_guess(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **(SMALL | {"num_heads": 4}))
    save_for_hf(model, tmp_path, safe_serialization=True)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("vit_tiny_patch16_224", "vit_mine"))

    encoder, notes = open_encoder(tmp_path)

    assert encoder.config.num_heads == 4
    assert "names the architecture vit_mine, which timm" in notes[0]
    assert GUESSED + "norm eps 1e-06 (--norm-eps), exact GELU" in notes[1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('"num_heads": 3', '"num_heads": 3, "checkpoint_path": "/etc/passwd"'),
        ('"num_heads": 3', '"num_heads": 3, "reg_tokens": 999999999'),
        ('"num_heads": 3', '"num_heads": 7'),
        ('"num_heads": 3', '"num_heads": "three"'),
        ('"architecture": "vit_tiny_patch16_224"', '"architecture": "resnet18"'),
        ('"model_args": {', '"model_args": {"norm_layer": "nothing",'),
    ],
)
def test_a_config_that_timm_would_not_build_is_one_line(
    change: str, why: str, tmp_path: Path
) -> None:
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **SMALL), tmp_path,
                safe_serialization=True)  # fmt: skip
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(change, why))

    with pytest.raises(WeightsError, match="config.json: ") as caught:
        load_encoder(tmp_path)

    assert "\n" not in str(caught.value)


def test_reading_a_config_uses_up_no_random_numbers(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **SMALL), tmp_path,
                safe_serialization=True)  # fmt: skip
    before = torch.random.get_rng_state()

    load_encoder(tmp_path)

    assert torch.equal(torch.random.get_rng_state(), before)
