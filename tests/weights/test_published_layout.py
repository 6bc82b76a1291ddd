"""Files of the published PyTorch layout load exactly, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from mae.config.sizes import model_config
from mae.errors import ConfigError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.weights.formats import facebook
from mae.weights.formats.name_table import Metadata
from mae.weights.formats.native import save
from mae.weights.infer_config import infer_config
from mae.weights.io.safe_load import read_tensors
from mae.weights.load import load, load_encoder, open_encoder, open_model
from mae.weights.read import RawWeights
from mae.weights.start_from import initial_model
from mae.weights.tools.convert import convert
from tests.weights import published


def test_full_checkpoint_with_a_namespace_loads_every_tensor_exactly(tmp_path: Path) -> None:
    state = published.full()
    path = published.checkpoint(tmp_path / "checkpoint-7.pth", state)

    model = load(path)

    own = model.state_dict()
    assert len(own) == len(state) == (4 + 2 * 12 + 2) + (2 + 2 + 12 + 2 + 2)
    for theirs, tensor in state.items():
        assert torch.equal(own[facebook.to_ours(theirs)], tensor), theirs
    assert model.config.num_heads == 3
    assert model.config.decoder_heads == 6
    assert model.config.image_size == (12, 12)
    assert model.objective.mask_ratio == 0.6
    assert model.objective.normalize_target


def test_names_correspond_one_by_one() -> None:
    state = published.full()

    ours = {facebook.to_ours(name) for name in state}

    assert {name.partition(".")[0] for name in ours} == {"encoder", "decoder"}
    assert {facebook.to_theirs(name) for name in ours} == state.keys()
    assert facebook.to_ours("mask_token") == "decoder.mask_token"
    assert facebook.to_ours("decoder_pos_embed") == "decoder.pos_embed"
    assert facebook.to_ours("pos_embed") == "encoder.pos_embed"
    assert facebook.to_ours("decoder_blocks.1.mlp.fc1.bias") == "decoder.blocks.1.mlp.fc1.bias"


@pytest.mark.parametrize("zipped", [True, False])
def test_encoder_only_file_loads_exactly_as_an_encoder(tmp_path: Path, *, zipped: bool) -> None:
    state = published.encoder_only()
    path = tmp_path / "without-an-extension"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)

    own = load_encoder(path).state_dict()

    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


def test_encoder_only_file_has_nothing_to_reconstruct_with(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "encoder.pth", published.encoder_only())

    with pytest.raises(WeightsError, match="decoder: not in this file.*reconstruction is not"):
        load(path)


def test_bare_state_dict_is_taken_too(tmp_path: Path) -> None:
    torch.save(published.encoder_only(), tmp_path / "bare.pth")

    assert len(load_encoder(tmp_path / "bare.pth").state_dict()) == 30


@pytest.mark.parametrize("name", sorted(published.full()))
def test_one_missing_tensor_is_refused_by_its_published_name(tmp_path: Path, name: str) -> None:
    state = published.full()
    del state[name]
    path = published.checkpoint(tmp_path / "short.pth", state)

    with pytest.raises(WeightsError) as caught:
        load(path)

    assert name in str(caught.value)
    assert "missing" in str(caught.value)


@pytest.fixture
def published_file(tmp_path: Path) -> Path:
    return published.checkpoint(tmp_path / "full.pth", published.full())


def test_left_over_tensors_are_listed_at_most_five(tmp_path: Path) -> None:
    state = published.full() | {f"blocks.0.extra{i}": torch.zeros(1) for i in range(7)}
    path = published.checkpoint(tmp_path / "long.pth", state)

    with pytest.raises(WeightsError, match="7 unexpected") as caught:
        load(path)

    assert str(caught.value).count("blocks.0.extra") == 5


def test_a_block_that_fell_out_is_not_closed_up(tmp_path: Path) -> None:
    state = published.full()
    gap = {name.replace("blocks.1.", "blocks.9.", 1): tensor for name, tensor in state.items()}
    path = published.checkpoint(tmp_path / "gap.pth", gap)

    with pytest.raises(WeightsError, match="12 missing.*12 unexpected"):
        load(path)


def test_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    state = published.full() | {"decoder_pred.bias": torch.zeros(47)}
    path = published.checkpoint(tmp_path / "bent.pth", state)

    with pytest.raises(
        WeightsError, match=r"1 of another shape \(decoder_pred.bias \[47\], expected \[48\]\)"
    ):
        load(path)


def test_not_a_number_is_refused_by_name(tmp_path: Path) -> None:
    state = published.full()
    state["blocks.1.norm2.bias"][5] = float("nan")
    path = published.checkpoint(tmp_path / "nan.pth", state)

    with pytest.raises(WeightsError, match=r"1 not finite numbers \(blocks.1.norm2.bias\)"):
        load(path)


def test_target_is_assumed_normalised_and_said_when_the_file_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "full.pth"
    torch.save({"model": published.full()}, path)

    model, notes = open_model(path)

    assert model.objective.normalize_target
    assert "a target of pixels normalised by their patch (--normalize-target)" in notes[0]
    assert [note.partition(": ")[2] for note in notes[1:]] == [
        "took the encoder and decoder, ViT of width 192, 2 blocks, patch 4, 50 tensors"
    ]


def test_target_is_what_the_namespace_says(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "v.pth", published.full(), norm_pix_loss=False)

    model, notes = open_model(path)

    assert not model.objective.normalize_target
    assert "--normalize-target" not in notes[0] and "took the encoder and decoder" in notes[1]


def test_unknown_widths_ask_for_heads(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "odd.pth", published.full(width=24, decoder=16))

    with pytest.raises(WeightsError, match="give heads, decoder_heads"):
        load(path)
    with pytest.raises(WeightsError, match="give heads"):
        load_encoder(path)

    assert load(path, heads=4, decoder_heads=2).config.num_heads == 4
    assert load_encoder(path, heads=4).config.num_heads == 4


def test_grid_that_is_not_square_needs_a_description(tmp_path: Path) -> None:
    shapes = published.encoder_shapes(192, 2, patch=4, patches=15)
    path = published.checkpoint(tmp_path / "wide.pth", published.filled(shapes))

    with pytest.raises(WeightsError, match="15 patches, which make no square"):
        load_encoder(path)


def test_channels_other_than_three_are_read_from_the_tensors(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "grey.pth", published.full(channels=1))

    model, notes = open_model(path)

    assert model.config.channels == 1
    assert "pixel mean 0.5 (--mean), pixel std 0.5 (--std)" in notes[0]


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in published.encoder_only().items()}
    torch.save({"model": state}, tmp_path / "half.pth")

    own = load_encoder(tmp_path / "half.pth").state_dict()

    assert all(torch.equal(own[name], tensor.float()) for name, tensor in state.items())


def test_loading_draws_no_random_numbers_and_keeps_tables_frozen(published_file: Path) -> None:
    before = torch.random.get_rng_state()

    model = load(published_file)

    assert torch.equal(torch.random.get_rng_state(), before)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.pos_embed", "decoder.pos_embed"}
    assert all(p.device.type == "cpu" and p.is_contiguous() for p in model.parameters())


def test_loaded_model_does_not_lean_on_the_file(published_file: Path) -> None:
    model = load(published_file)
    before = model.encoder.cls_token.detach().clone()

    published_file.write_bytes(bytes(published_file.stat().st_size))

    assert torch.equal(model.encoder.cls_token, before)


def test_encoder_of_a_full_file_says_what_it_took_and_left(published_file: Path) -> None:
    notes = open_encoder(published_file).notes

    assert "took the encoder, ViT of width 192, 2 blocks, patch 4, 30 tensors" in notes[1]
    assert "left decoder, 20 tensors" in notes[2]


def test_public_loaders_say_it_on_stderr(
    published_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_encoder(published_file)

    captured = capsys.readouterr()
    assert "left decoder, 20 tensors" in captured.err
    assert captured.out == ""


def test_class_token_classifier_gives_its_encoder_and_leaves_its_head(tmp_path: Path) -> None:
    head = {
        "head.0.running_mean": torch.zeros(192),
        "head.0.num_batches_tracked": torch.tensor(5),
        "head.1.weight": torch.zeros(7, 192),
    }
    path = published.checkpoint(tmp_path / "linear.pth", published.encoder_only() | head)

    notes = open_encoder(path).notes

    assert "left head, 3 tensors" in notes[2]


def test_the_encoder_of_a_mean_pooled_classifier_has_no_norm_and_is_stored_with_its_head_alone(
    tmp_path: Path,
) -> None:
    state = published.encoder_only()
    del state["norm.weight"], state["norm.bias"]
    state |= {"fc_norm.weight": torch.ones(192), "fc_norm.bias": torch.zeros(192)}
    path = published.checkpoint(tmp_path / "finetuned.pth", state | {"head.bias": torch.zeros(7)})

    encoder, notes = open_encoder(path)

    assert isinstance(encoder.norm, torch.nn.Identity)
    assert "its features are those before a norm" in " ".join(notes)
    with pytest.raises(WeightsError, match="store the classifier with its head"):
        save(encoder, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize("what", [published.full, published.encoder_only])
def test_written_out_again_it_is_the_same_tensor_by_tensor(
    tmp_path: Path, what: Callable[[], dict[str, torch.Tensor]]
) -> None:
    state = what()
    path = published.checkpoint(tmp_path / "in.pth", state)

    convert(path, tmp_path / "ours", to="mae")
    converted = convert(tmp_path / "ours", tmp_path / "out.pth", to="facebook")

    again = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert converted.tensors == len(state)


@pytest.mark.parametrize(
    ("name", "width", "depth", "patches", "patch", "encoder", "decoder"),
    [
        ("vit-b/16", 768, 12, 196, 16, 150, 104),
        ("vit-l/16", 1024, 24, 196, 16, 294, 104),
        ("vit-h/14", 1280, 32, 256, 14, 390, 104),
    ],
)
def test_published_sizes_have_the_published_names_and_shapes(
    name: str, width: int, depth: int, patches: int, patch: int, encoder: int, decoder: int
) -> None:
    expected = published.encoder_shapes(width, depth, patch=patch, patches=patches)
    assert len(expected) == encoder
    expected |= published.decoder_shapes(512, 8, encoder=width, patch=patch, patches=patches)
    assert len(expected) == encoder + decoder

    with torch.device("meta"):
        model = MaskedAutoencoder(model_config(name))

    found = {facebook.to_theirs(n): tuple(t.shape) for n, t in model.state_dict().items()}
    assert found == expected


@pytest.mark.parametrize("name", ["vit-ti/16", "vit-s/16", "vit-b/16", "vit-l/16", "vit-h/14"])
def test_configuration_of_every_size_is_read_back_from_its_shapes(name: str) -> None:
    config = model_config(name)
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    tensors = model.state_dict()
    raw = RawWeights(Path("x"), "facebook", tensors, Metadata(), rename=facebook.to_theirs)

    assert infer_config(raw)[0] == config


def test_new_run_takes_encoder_and_fresh_decoder_from_an_encoder_file(tmp_path: Path) -> None:
    state = published.encoder_only()
    path = published.checkpoint(tmp_path / "encoder.pth", state)
    config = model_config("vit-ti/4", image_size=12, depth=2)

    model, notes = initial_model(path, config, seed=3)
    again, _ = initial_model(path, config, seed=3)
    other, _ = initial_model(path, config, seed=4)

    assert torch.equal(model.encoder.cls_token, state["cls_token"])
    assert "3 heads (--model.num-heads), norm eps 1e-06 (--model.norm-eps)" in notes[0]
    assert "took the encoder" in notes[1]
    assert "starts fresh" in notes[2]
    assert torch.equal(model.decoder.embed.weight, again.decoder.embed.weight)
    assert not torch.equal(model.decoder.embed.weight, other.decoder.embed.weight)


def test_new_run_takes_encoder_and_decoder_from_a_full_file(published_file: Path) -> None:
    config = model_config("vit-ti/4", image_size=12, depth=2, decoder_depth=1)

    model, notes = initial_model(published_file, config)

    wanted = load(published_file).state_dict()
    assert len(notes) == 2 and "took the encoder and decoder" in notes[1]
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_new_run_at_another_image_size_resizes_both_tables(published_file: Path) -> None:
    config = model_config("vit-ti/4", image_size=(12, 20), depth=2, decoder_depth=1)

    model, notes = initial_model(published_file, config)

    table = load(published_file).encoder.positions((3, 5))
    assert torch.equal(model.encoder.pos_embed, table)
    assert model.decoder.pos_embed.shape == (1, 16, 192)
    assert not model.decoder.pos_embed.requires_grad
    assert "resized from (3, 3) to (3, 5)" in notes[1]


def test_new_run_of_another_size_is_refused(published_file: Path) -> None:
    with pytest.raises(WeightsError, match="width: weights have 192, asked 384"):
        initial_model(published_file, model_config("vit-s/4", image_size=12, depth=2))
    with pytest.raises(WeightsError, match="decoder_depth: weights have 1, asked 4"):
        initial_model(published_file, model_config("vit-ti/4", image_size=12, depth=2))


def test_what_a_file_says_is_not_overruled(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "in.pth", published.full())
    convert(path, tmp_path / "ours", to="mae")

    with pytest.raises(WeightsError, match="'num_heads': 4.*, but .* says .*'num_heads': 3"):
        load(tmp_path / "ours", heads=4)
    with pytest.raises(ConfigError, match="width: expected a multiple of 5 heads, got 192"):
        load(path, heads=5)


def test_safetensors_with_published_names_are_taken_by_content(tmp_path: Path) -> None:
    save_file(published.encoder_only(), tmp_path / "model.bin")

    assert read_tensors(tmp_path / "model.bin").beside == {}
    assert len(load_encoder(tmp_path / "model.bin").state_dict()) == 30


def test_a_vit_of_timm_loads_and_computes_the_same(tmp_path: Path) -> None:
    theirs = VisionTransformer(
        img_size=12, patch_size=4, embed_dim=192, depth=2, num_heads=3, num_classes=7
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    encoder, notes = open_encoder(tmp_path / "timm.pth")

    # Two orders of summation in float32; the norms of both have eps 1e-6.
    with torch.inference_mode():
        torch.testing.assert_close(
            encoder(images), theirs.forward_features(images), rtol=0, atol=1e-5
        )
    assert "left head, 2 tensors" in notes[2]
