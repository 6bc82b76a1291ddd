"""ViTDet's published weights: every name taken or named as left, and the features of transformers.

The names are those of detectron2's files, written out here; sizes are tiny and distinct.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import VitDetConfig, VitDetModel

import mae
from mae.errors import WeightsError
from mae.weights.load_backbone import open_backbone
from mae.weights.start_from import initial_segmenter
from mae.weights.tools.inspect import inspect
from tests.weights.test_segmenter import WINDOWS, config

D, HEADS, P, DEPTH, S, C, K = 24, 3, 4, 3, 2, 10, 5
PRETRAINED, GRID = 3, 6  # patches along a side of the images of pre-training, of the detector
GLOBAL = 1


def shapes(*, cascade: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of detectron2's Mask R-CNN on ViTDet, or of its cascade."""
    net = "backbone.net."
    found: dict[str, tuple[int, ...]] = {
        f"{net}pos_embed": (1, 1 + PRETRAINED**2, D),
        f"{net}patch_embed.proj.weight": (D, 3, P, P),
        f"{net}patch_embed.proj.bias": (D,),
    }
    layers = {"attn.qkv": (3 * D, D), "attn.proj": (D, D), "mlp.fc1": (4 * D, D)}
    layers |= {"mlp.fc2": (D, 4 * D), "norm1": (D,), "norm2": (D,)}
    for i in range(DEPTH):
        for layer, shape in layers.items():
            found[f"{net}blocks.{i}.{layer}.weight"] = shape
            found[f"{net}blocks.{i}.{layer}.bias"] = shape[:1]
        rows = 2 * (GRID if i == GLOBAL else S) - 1
        for axis in "hw":
            found[f"{net}blocks.{i}.attn.rel_pos_{axis}"] = (rows, D // HEADS)

    return found | of_pyramid() | of_heads(stages=("0.", "1.", "2.") if cascade else ("",))


def layer(name: str, *shape: int, bias: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (bias,)}


def conv(name: str, out: int, to: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, to, kernel, kernel)} | layer(f"{name}.norm", out, bias=out)


def of_pyramid() -> dict[str, tuple[int, ...]]:
    found = layer("backbone.simfp_2.0", D, D // 2, 2, 2, bias=D // 2)
    found |= layer("backbone.simfp_2.1", D // 2, bias=D // 2)
    found |= layer("backbone.simfp_2.3", D // 2, D // 4, 2, 2, bias=D // 4)
    found |= layer("backbone.simfp_3.0", D, D // 2, 2, 2, bias=D // 2)
    for level, first, width in ((2, 4, D // 4), (3, 1, D // 2), (4, 0, D), (5, 1, D)):
        found |= conv(f"backbone.simfp_{level}.{first}", C, width, 1)
        found |= conv(f"backbone.simfp_{level}.{first + 1}", C, C, 3)
    return found


def of_heads(stages: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    rpn = "proposal_generator.rpn_head."
    found = layer(f"{rpn}objectness_logits", 3, C, 1, 1, bias=3)
    found |= layer(f"{rpn}anchor_deltas", 12, C, 1, 1, bias=12)
    for n in (0, 1):
        found |= layer(f"{rpn}conv.conv{n}", C, C, 3, 3, bias=C)
    for stage in stages:
        for n in range(1, 5):
            found |= conv(f"roi_heads.box_head.{stage}conv{n}", C, C, 3)
        found |= layer(f"roi_heads.box_head.{stage}fc1", 7, 49 * C, bias=7)
        found |= layer(f"roi_heads.box_predictor.{stage}cls_score", K + 1, 7, bias=K + 1)
        found |= layer(f"roi_heads.box_predictor.{stage}bbox_pred", 4 * K, 7, bias=4 * K)
    for n in range(1, 5):
        found |= conv(f"roi_heads.mask_head.mask_fcn{n}", C, C, 3)
    found |= layer("roi_heads.mask_head.deconv", C, C, 2, 2, bias=C)
    return found | layer("roi_heads.mask_head.predictor", K, C, 1, 1, bias=K)


def drawn(generator: torch.Generator, *, cascade: bool = False) -> dict[str, Tensor]:
    return {
        name: 0.2 * torch.randn(shape, generator=generator)
        for name, shape in shapes(cascade=cascade).items()
    }


def written(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": tensors, "iteration": 184_374}, folder / "model_final.pth")
    return folder / "model_final.pth"


def theirs(tensors: dict[str, Tensor]) -> VitDetModel:
    """The backbone of transformers with the same weights."""
    model = VitDetModel(
        VitDetConfig(
            hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS, mlp_ratio=4,
            image_size=GRID * P, pretrain_image_size=PRETRAINED * P, patch_size=P, window_size=S,
            window_block_indices=[i for i in range(DEPTH) if i != GLOBAL], layer_norm_eps=1e-6,
            use_relative_position_embeddings=True,
        )
    ).eval()  # fmt: skip
    names = {
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.projection",
        "blocks": "encoder.layer",
        "attn": "attention",
    }
    own = {}
    for name, tensor in tensors.items():
        if name.startswith("backbone.net."):
            for ours, other in names.items():
                name = name.replace(ours, other)
            own[name.removeprefix("backbone.net.")] = tensor
    model.load_state_dict(own)
    return model


def test_the_features_are_those_of_transformers_vitdet(
    generator: torch.Generator, tmp_path: Path
) -> None:
    tensors = drawn(generator)
    images = torch.randn(2, 3, GRID * P, GRID * P, generator=generator)

    backbone = mae.load_backbone(written(tensors, tmp_path), quiet=True).eval()

    with torch.no_grad():
        (found,) = backbone.encoder(images)
        expected = theirs(tensors)(images).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_maps_have_five_strides_and_the_pyramid_is_that_of_the_file(
    generator: torch.Generator, tmp_path: Path
) -> None:
    tensors = drawn(generator)
    backbone = mae.load_backbone(written(tensors, tmp_path), quiet=True).eval()
    images = torch.randn(2, 3, 24, 20, generator=generator)  # padded to 32 x 32

    with torch.no_grad():
        maps = backbone(images)
        (last,) = backbone.encoder(torch.nn.functional.pad(images, (0, 12, 0, 8)))
        # Written out by the names of the file: stride of a patch.
        four = torch.nn.functional.conv2d(last, tensors["backbone.simfp_4.0.weight"])
        four = layer_norm(four, tensors, "backbone.simfp_4.0.norm")
        four = torch.nn.functional.conv2d(four, tensors["backbone.simfp_4.1.weight"], padding=1)
        four = layer_norm(four, tensors, "backbone.simfp_4.1.norm")

    assert [tuple(m.shape) for m in maps] == [(2, C, s, s) for s in (32, 16, 8, 4, 2)]
    torch.testing.assert_close(maps[2], four, atol=1e-4, rtol=1e-4)
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


def layer_norm(maps: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    mean = maps.mean(dim=1, keepdim=True)
    var = maps.var(dim=1, keepdim=True, correction=0)
    weight, bias = (tensors[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return (maps - mean) / (var + 1e-6).sqrt() * weight + bias


@pytest.mark.parametrize("heads", ["mask", "cascade"])
def test_every_tensor_is_taken_or_named_as_left(
    heads: str, generator: torch.Generator, tmp_path: Path
) -> None:
    tensors = drawn(generator, cascade=heads == "cascade")
    path = written(tensors, tmp_path)

    model, notes = open_backbone(path)

    taken = sum(name.startswith("backbone.") for name in tensors)
    left = sum(name.startswith("roi_heads.") for name in tensors)
    assert len(model.state_dict()) == taken
    assert taken + left + 8 == len(tensors)
    text = "\n".join(notes)
    assert "took the encoder and pyramid" in text and f", {taken} tensors" in text
    assert f"left roi_heads, {left} tensors: the heads of boxes and masks of a detector" in text
    assert "left rpn, 8 tensors: the proposal network of a detector" in text
    assert "windows of 2 x 2 patches; to the whole image in blocks 1;" in text
    assert "positions: resized from (3, 3) to (6, 6) patches" in text
    assert "assumed" in text and "heads (" not in text  # the tables say the number of heads


def test_inspect_names_the_format_and_says_what_is_taken_and_left(
    generator: torch.Generator, tmp_path: Path
) -> None:
    found = inspect(written(drawn(generator), tmp_path))

    assert (found.format, found.model["num_heads"]) == ("vitdet", HEADS)
    assert found.told["num_heads"] == "by its relative positions"
    text = "\n".join(found.notes)
    for part in ("took the encoder and pyramid", "left rpn, 8", "left roi_heads", "windows of 2 x"):
        assert part in text


def test_no_plain_encoder_is_made_of_a_detector_in_silence(
    generator: torch.Generator, tmp_path: Path
) -> None:
    path = written(drawn(generator), tmp_path)

    with pytest.raises(WeightsError, match="is a ViTDet detector.*mae.load_backbone reads it"):
        mae.load_encoder(path, quiet=True)
    with pytest.raises(WeightsError, match="is a ViTDet detector"):
        initial_segmenter(path, config(dense=WINDOWS))


def test_a_missing_table_and_other_weights_are_refused_in_one_line(
    generator: torch.Generator, tmp_path: Path
) -> None:
    tensors = drawn(generator)
    del tensors["backbone.net.blocks.2.attn.rel_pos_w"]
    with pytest.raises(WeightsError, match="block 2 has relative positions of"):
        mae.load_backbone(written(tensors, tmp_path))

    tensors = drawn(generator)
    del tensors["backbone.simfp_5.2.norm.bias"]
    with pytest.raises(WeightsError, match=r"1 missing \(backbone.simfp_5.2.norm.bias\)"):
        mae.load_backbone(written(tensors, tmp_path))

    torch.save({"blocks.0.norm1.weight": torch.ones(4)}, tmp_path / "plain.pth")
    with pytest.raises(WeightsError, match="format facebook, expected a ViTDet detector"):
        mae.load_backbone(tmp_path / "plain.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_of_arrays_as_in_the_model_zoo_is_read_without_executing_it(
    protocol: int, generator: torch.Generator, tmp_path: Path
) -> None:
    tensors = drawn(generator)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    by_columns = "backbone.net.blocks.0.mlp.fc1.weight"
    arrays[by_columns] = np.asfortranarray(arrays[by_columns])
    path = tmp_path / "model_final_61ccd1.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "ViTDet"}, protocol=protocol))

    found = mae.load_backbone(path, quiet=True).state_dict()

    expected = mae.load_backbone(written(tensors, tmp_path), quiet=True).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


class Mark:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("mark-of-a-pickle"),)


def test_a_pickle_of_arrays_with_anything_else_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(3)}, "more": Mark()}))

    with pytest.raises(WeightsError, match="would run"):
        mae.load_backbone(path)

    assert not Path("mark-of-a-pickle").exists()
    whole = pickle.dumps({"model": {"a": np.ones(300)}})
    path.write_bytes(whole[:400])
    with pytest.raises(WeightsError, match="cut short or damaged"):
        mae.load_backbone(path)
    path.write_bytes(pickle.dumps({"model": {"a": np.array([{}])}}))
    with pytest.raises(WeightsError, match=r"numpy type .O"):
        mae.load_backbone(path)
