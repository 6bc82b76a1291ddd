"""What two weights have in common: values by hand, and a verdict that follows what they do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae.cli.main import main
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.weights.formats.native import save
from mae.weights.tools.convert import convert
from mae.weights.tools.diff import diff
from tests.model.tiny import scrambled, tiny_config, tiny_model
from tests.weights import published


@pytest.fixture
def model(generator: torch.Generator) -> MaskedAutoencoder:
    return tiny_model(generator)


@pytest.fixture
def weights(model: MaskedAutoencoder, tmp_path: Path) -> Path:
    return save(model, tmp_path / "a")


def test_a_converted_file_is_the_same(weights: Path, tmp_path: Path) -> None:
    convert(weights, tmp_path / "b.pth", to="facebook")

    found = diff(weights, tmp_path / "b.pth")

    assert found.same
    assert (found.differing, found.only_a, found.only_b, found.fields) == ([], [], [], {})
    assert [(o.name, o.largest) for o in found.outputs] == [("features", 0), ("reconstruction", 0)]


def test_a_changed_tensor_is_named_with_its_distance(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        bias = model.encoder.blocks[1].mlp.fc1.bias  # type: ignore[union-attr]
        bias.zero_()[3] = 2.0
        save(model, tmp_path / "b")
        bias[3] = 2.5
        bias[5] = -0.25
        save(model, tmp_path / "c")

    found = diff(tmp_path / "b", tmp_path / "c")

    assert not found.same
    (tensor,) = found.differing
    assert tensor == ("encoder.blocks.1.mlp.fc1.bias", 0.5, 0.25, None)
    assert all(output.largest and output.largest > 1e-4 for output in found.outputs)


def test_the_most_different_tensor_comes_first(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.encoder.norm.bias.mul_(1.5)
        model.decoder.norm.bias.mul_(1.1)
    save(model, tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert [t.name for t in found.differing] == ["encoder.norm.bias", "decoder.norm.bias"]
    assert found.differing[0].relative == pytest.approx(0.5)


def test_other_tensors_of_the_same_function_are_the_same(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path
) -> None:
    # The order of the hidden units of an MLP is nobody's business.
    with torch.no_grad():
        mlp = model.encoder.blocks[0].mlp
        mlp.fc1.weight.copy_(mlp.fc1.weight.flip(0))  # type: ignore[union-attr]
        mlp.fc1.bias.copy_(mlp.fc1.bias.flip(0))  # type: ignore[union-attr]
        mlp.fc2.weight.copy_(mlp.fc2.weight.flip(1))  # type: ignore[union-attr]
    save(model, tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert len(found.differing) == 3
    assert found.same


def test_other_scaling_of_pixels_is_another_function(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path
) -> None:
    pixels = replace(model.config.pixels, mean=(0.4, 0.5, 0.5))
    model.encoder.config = model.config = replace(model.config, pixels=pixels)
    save(model, tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert (found.differing, found.same) == ([], False)
    assert found.fields["pixels"][1]["mean"] == [0.4, 0.5, 0.5]


def test_what_only_one_can_do_is_said(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path
) -> None:
    save(model.encoder, tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert not found.same
    assert all(name.startswith("decoder.") for name in found.only_a) and found.only_a
    assert found.notes == ["reconstruction: only a computes it"]
    assert [(o.name, o.largest) for o in found.outputs] == [("features", 0)]


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"channels": 4}, "channels: 3 in a, 4 in b; no image is the same to both"),
        ({"patch_size": 8}, "patch_size: 4 in a, 8 in b; no image is the same to both"),
    ],
)
def test_what_no_image_can_compare_is_said(
    fields: dict[str, int], note: str, weights: Path, generator: torch.Generator, tmp_path: Path
) -> None:
    save(tiny_model(generator, **fields), tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert (found.outputs, found.notes, found.same) == ([], [note], False)
    shape = next(t.shapes for t in found.differing if t.name == "decoder.pred.bias")
    assert shape is not None and shape[0] == (48,)


def test_other_widths_differ_in_the_shape_of_their_features(
    weights: Path, generator: torch.Generator, tmp_path: Path
) -> None:
    save(tiny_model(generator, width=36), tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert found.outputs[0].shapes == ((2, 16, 24), (2, 16, 36))
    assert not found.same


def test_classifiers_are_compared_by_their_scores(
    generator: torch.Generator, tmp_path: Path
) -> None:
    model = scrambled(Classifier(tiny_model(generator).encoder, num_classes=5), generator)
    names = ["a", "b", "c", "d", "e"]
    save(model, tmp_path / "a", class_names=names)
    with torch.no_grad():
        model.head.bias[2] += 1
    save(model, tmp_path / "b", class_names=names)

    assert diff(tmp_path / "a", tmp_path / "a").same
    (scores,) = diff(tmp_path / "a", tmp_path / "b").outputs
    assert scores.name == "scores" and scores.largest == pytest.approx(1)


def test_values_that_are_not_finite_are_shown_and_no_function(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.decoder.norm.bias[0] = float("nan")
    save(model, tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert found.differing == [("decoder.norm.bias", None, None, None)]
    assert "not finite numbers (decoder.norm.bias)" in found.notes[0]
    assert not found.same


def test_heads_can_be_told(tmp_path: Path) -> None:
    path = published.checkpoint(tmp_path / "odd.pth", published.full(width=24, decoder=16))

    assert not diff(path, path).same
    assert diff(path, path, heads=4, decoder_heads=2).same


@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_code_says_whether_they_are_the_same(
    weights: Path,
    generator: torch.Generator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    as_json: bool,
) -> None:
    save(tiny_model(generator), tmp_path / "b")
    words = ["weights", "diff", str(weights)]
    how = ["--json"] if as_json else []

    assert main([*words, str(weights), *how]) == 0
    same = capsys.readouterr().out
    assert main([*words, str(tmp_path / "b"), *how]) == 1
    other = capsys.readouterr().out

    if as_json:
        assert json.loads(same)["same"] and not json.loads(other)["same"]
        assert json.loads(other)["differing"][0].keys() == {
            "name", "largest", "relative", "shapes",
        }  # fmt: skip
    else:
        assert same.splitlines()[-1].split() == ["verdict", "the", "same", "function"]
        assert "more; --json lists them all" in other and "not the same function" in other


def test_a_model_at_another_size_is_compared_on_the_images_of_the_first(
    model: MaskedAutoencoder, weights: Path, generator: torch.Generator, tmp_path: Path
) -> None:
    save(tiny_model(generator, grid=(4, 6)), tmp_path / "b")

    found = diff(weights, tmp_path / "b")

    assert found.fields["image_size"] == ([12, 20], [16, 24])
    assert found.outputs[0].shapes is None
    assert tiny_config().image_size == (12, 20)
