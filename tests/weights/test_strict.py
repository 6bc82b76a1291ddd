"""Loading says what was taken, left and missing; what is unexplained is an error with a guess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae.errors import WeightsError
from mae.model.create import create
from mae.weights.formats.name_table import Table, fuse_qkv, inverse, split_qkv, translate
from mae.weights.formats.native import save
from mae.weights.load import load, load_encoder, open_encoder, open_model
from mae.weights.read import LAYOUTS, name_tensors
from mae.weights.tools.convert import convert
from tests.weights import published
from tests.weights.formats.test_native import CONFIG, same

TABLES = [(layout.name, table) for layout in LAYOUTS for table in layout.tables]


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_every_table_translates_there_and_back(name: str, table: Table) -> None:
    back = inverse(table)
    assert len(back) == len(table)
    for ours in table:
        for kind in ("weight", "bias"):
            tensor = f"{ours.replace('*', '31')}.{kind}"
            assert (theirs := translate(table, tensor)), name
            assert translate(back, theirs) == tensor


def test_queries_keys_and_values_are_stacked_in_this_order() -> None:
    q, k, v = (torch.full((2, 3), value) for value in (1.0, 2.0, 3.0))
    parts = {f"encoder.blocks.0.attn.{n}.weight": t for n, t in zip("qkv", (q, k, v), strict=True)}

    fused = fuse_qkv(parts, rename=str, where="x")

    assert fused.keys() == {"encoder.blocks.0.attn.qkv.weight"}
    assert fused["encoder.blocks.0.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    split = split_qkv(fused)
    assert split.keys() == parts.keys()
    assert all(torch.equal(split[name], tensor) for name, tensor in parts.items())


def test_parts_of_unequal_shape_are_refused() -> None:
    parts = {f"encoder.blocks.0.attn.{n}.bias": torch.zeros(3 + (n == "v")) for n in "qkv"}

    with pytest.raises(WeightsError, match=r"have shapes \[\[3\], \[3\], \[4\]\], expected equal"):
        fuse_qkv(parts, rename=str, where="x")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model."])
def test_what_wraps_all_names_is_looked_through(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in published.full().items()}
    path = published.checkpoint(tmp_path / "ddp.pth", state)

    model = load(path)

    assert torch.equal(model.encoder.cls_token, state[f"{prefix}cls_token"])
    del state[f"{prefix}norm.bias"]
    with pytest.raises(WeightsError, match=rf"1 missing \({prefix}norm.bias\)"):
        load(published.checkpoint(path, state))


@pytest.mark.parametrize("loader", [load, load_encoder])
def test_a_name_that_stands_in_no_table_is_never_left_silently(
    tmp_path: Path, loader: Callable[[Path], object]
) -> None:
    state = published.full() | {"classifier.weight": torch.zeros(3)}
    path = published.checkpoint(tmp_path / "more.pth", state)

    with pytest.raises(WeightsError, match=r"1 unexpected \(classifier.weight\)"):
        loader(path)


def test_names_of_nobody_are_shown() -> None:
    tensors = {"layer1.0.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}

    with pytest.raises(WeightsError, match=r"x: holds 2 tensors of unknown names \['fc.bias'"):
        name_tensors(Path("x"), tensors, {})


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.mark.parametrize(
    ("change", "guess"),
    [
        ({"decoder_pos_embed": torch.zeros(1, 17, 192)}, "of another image size or patch size"),
        ({"blocks.0.attn.rel_pos_h": torch.zeros(3)}, "relative positions, of a detector or BEiT"),
        ({"reg_token": torch.zeros(1, 4, 192)}, "it has register tokens"),
        ({"blocks.1.gamma_1": torch.zeros(192)}, "it has layer scale"),
        ({"decoder_pred.bias": torch.zeros(47)}, "is it whole, and of a masked autoencoder"),
    ],
)
def test_the_cause_is_guessed(tmp_path: Path, change: dict[str, Tensor], guess: str) -> None:
    path = published.checkpoint(tmp_path / "odd.pth", published.full() | change)

    with pytest.raises(WeightsError, match=guess) as raised:
        load(path)

    assert "\n" not in str(raised.value)


def test_other_channels_than_described_are_named_as_the_cause(tmp_path: Path) -> None:
    save(create(CONFIG), tmp_path / "ours")
    config = tmp_path / "ours" / "config.json"
    text = config.read_text().replace('"channels": 2', '"channels": 1')
    config.write_text(text.replace("0.1,", "").replace("0.3,", ""))

    with pytest.raises(WeightsError, match="of another patch size or other channels|channels"):
        load(tmp_path / "ours")


def test_what_is_missing_starts_fresh_only_where_allowed_and_is_named(tmp_path: Path) -> None:
    state = published.full()
    del state["decoder_norm.weight"], state["decoder_norm.bias"]
    path = published.checkpoint(tmp_path / "short.pth", state)

    with pytest.raises(WeightsError, match="decoder_norm.weight"):
        load(path)
    model, notes = open_model(path, allow_missing=["decoder.norm.*"])
    again, _ = open_model(path, allow_missing=["decoder_norm.*"])

    assert notes[2:] == ["2 start fresh, as allowed: decoder_norm.weight; decoder_norm.bias"]
    assert torch.equal(model.decoder.norm.weight, torch.ones(192))
    assert torch.equal(model.decoder.pred.weight, state["decoder_pred.weight"])
    assert same(model, again)


def test_an_allowance_that_nothing_needs_is_an_error(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "full.pth", published.full())

    with pytest.raises(WeightsError, match="nothing that is missing matches 'decoder.*'; .* none"):
        load(path, allow_missing=["decoder.*"])


def test_a_whole_decoder_can_be_allowed_to_be_missing(tmp_path: Path) -> None:
    state = published.encoder_only()
    path = published.checkpoint(tmp_path / "encoder.pth", state)

    converted = convert(path, tmp_path / "ours", to="mae", encoder_only=True)
    model, notes = open_model(path, allow_missing=["decoder.*"])

    assert converted.tensors == 30
    assert torch.equal(model.encoder.cls_token, state["cls_token"])
    assert "104 start fresh, as allowed: mask_token; decoder_pos_embed" in notes[-1]


def test_an_encoder_says_what_it_took_left_and_misses(tmp_path: Path) -> None:
    full = published.checkpoint(tmp_path / "full.pth", published.full())
    alone = published.checkpoint(tmp_path / "alone.pth", published.encoder_only())

    assert [note.partition(": ")[2] for note in open_encoder(full).notes[1:]] == [
        "took the encoder, ViT of width 192, 2 blocks, patch 4, 30 tensors",
        "left decoder, 20 tensors: only reconstruction needs it",
    ]
    assert open_encoder(alone).notes[2:] == [
        "decoder: not in this file; reconstruction is not possible, features are"
    ]
