"""Exported networks give what PyTorch gives, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from mae.errors import ConfigError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.report.tables import plain, value_rows
from mae.weights.formats.native import save
from mae.weights.tools import export as exporting
from mae.weights.tools.export import Exported, Part, Target, export
from tests.model.tiny import scrambled, tiny_model

SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}
# Batches and grids: as trained, and what the exporter itself did not try.
TRIES = [(1, (3, 5)), (4, (3, 5)), (1, (6, 2)), (2, (9, 8))]


@pytest.fixture
def model(generator: torch.Generator) -> MaskedAutoencoder:
    return tiny_model(generator, mask_ratio=0.6, depth=1).eval()


@pytest.fixture
def weights(model: MaskedAutoencoder, tmp_path: Path) -> Path:
    return save(model, tmp_path / "weights")


def run(path: Path, to: Target, *given: Tensor) -> list[Tensor]:
    """Run an exported file as its user would, with nothing of ours."""
    if to == "torch-export":
        found = torch.export.load(path).module()(*given)
        return list(found) if isinstance(found, tuple) else [found]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    values = {n: g.numpy() for n, g in zip(names, given, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, values)]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_an_encoder_of_any_size_gives_the_tokens_of_pytorch(
    to: Target, model: MaskedAutoencoder, weights: Path, tmp_path: Path, generator: torch.Generator
) -> None:
    done = export(weights, tmp_path / f"e{SUFFIX[to]}", to=to, dynamic=True)

    for batch, (h, w) in TRIES:
        images = torch.randn(batch, 3, 4 * h, 4 * w, generator=generator)
        (tokens,) = run(Path(done.path), to, images)
        torch.testing.assert_close(tokens, model.encoder(images), rtol=0, atol=1e-4)
    assert done.largest < 1e-5 and len({tuple(shape) for shape in done.tried}) == 4
    assert done.inputs == {"images": ["batch", 3, "4 rows", "4 columns"]}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_a_full_model_of_any_size_hides_and_predicts_as_pytorch_does(
    to: Target, model: MaskedAutoencoder, weights: Path, tmp_path: Path, generator: torch.Generator
) -> None:
    done = export(weights, tmp_path / f"f{SUFFIX[to]}", to=to, part="full", dynamic=True)

    for batch, (h, w) in TRIES:
        images = torch.randn(batch, 3, 4 * h, 4 * w, generator=generator)
        # Of a few values, so that many are equal and the order of ties shows.
        noise = torch.randint(0, 5, (batch, h, w), generator=generator) / 5
        pred, mask = run(Path(done.path), to, images, noise)
        wanted = model.reconstruct(images, noise=noise.flatten(1))
        torch.testing.assert_close(pred, wanted.pred, rtol=0, atol=1e-4)
        assert torch.equal(mask, wanted.mask)
    assert done.outputs == {
        "pred": ["batch", "rows columns", 48],
        "mask": ["batch", "rows columns"],
    }


@pytest.mark.slow
def test_without_dynamic_the_batch_alone_may_change(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path, generator: torch.Generator
) -> None:
    done = export(weights, tmp_path / "f.pt2", to="torch-export", part="full")

    images = torch.randn(5, 3, 12, 20, generator=generator)
    noise = torch.rand(5, 3, 5, generator=generator)
    pred, _ = run(tmp_path / "f.pt2", "torch-export", images, noise)
    wanted = model.reconstruct(images, noise=noise.flatten(1)).pred
    torch.testing.assert_close(pred, wanted, rtol=0, atol=1e-4)
    assert done.inputs == {"images": ["batch", 3, 12, 20], "noise": ["batch", 3, 5]}
    with pytest.raises((RuntimeError, AssertionError)):
        run(tmp_path / "f.pt2", "torch-export", images[..., :16], noise[..., :4])


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "torch-export"])
def test_a_classifier_gives_the_scores_of_pytorch_and_names_its_classes(
    to: Target, model: MaskedAutoencoder, tmp_path: Path, generator: torch.Generator
) -> None:
    classifier = scrambled(Classifier(model.encoder, num_classes=4), generator).eval()
    save(classifier, tmp_path / "c", class_names=("a", "b", "c", "d"))

    done = export(tmp_path / "c", tmp_path / f"c{SUFFIX[to]}", to=to, part="classifier")

    images = torch.randn(5, 3, 12, 20, generator=generator)
    (scores,) = run(Path(done.path), to, images)
    torch.testing.assert_close(scores, classifier(images), rtol=0, atol=1e-4)
    assert done.outputs == {"scores": ["batch", 4]}
    if to == "onnx":
        session = onnxruntime.InferenceSession(done.path)
        said = json.loads(session.get_modelmeta().custom_metadata_map["mae"])
        assert said["class_names"] == ["a", "b", "c", "d"]


@pytest.mark.slow
def test_what_is_written_says_what_it_is(weights: Path, tmp_path: Path) -> None:
    done = export(weights, tmp_path / "e.onnx", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")

    said = json.loads(session.get_modelmeta().custom_metadata_map["mae"])
    assert (said["part"], said["model"]["pixels"]["std"]) == ("encoder", [0.25, 0.25, 0.25])
    assert [(e.name, e.shape) for e in session.get_inputs()] == [("images", ["batch", 3, 12, 20])]
    assert done.bytes == (tmp_path / "e.onnx").stat().st_size
    rows = dict(value_rows(plain(done)))
    assert rows["bytes"] == f"{done.bytes / 1e6:,.1f} MB" and rows["seconds"].endswith(" s")
    assert rows["inputs images"] == "batch 3 12 20" and rows["threads"] == f"{done.threads}"


@pytest.mark.slow
def test_values_too_large_for_one_file_lie_beside_it(
    model: MaskedAutoencoder, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_ONE_FILE", 0)

    export(weights, tmp_path / "e.onnx", to="onnx")

    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.onnx", "e.onnx.data", "weights"]
    images = torch.zeros(2, 3, 12, 20)
    (tokens,) = run(tmp_path / "e.onnx", "onnx", images)
    torch.testing.assert_close(tokens, model.encoder(images), rtol=0, atol=1e-4)


def test_other_values_leave_nothing_behind(
    weights: Path,
    tmp_path: Path,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tiny_model(generator, depth=1)
    real = exporting.write_torch

    def write_another(case: exporting.Case, path: Path, *, description: str) -> None:
        real(case._replace(module=other.encoder), path, description=description)

    monkeypatch.setattr(exporting, "write_torch", write_another)

    with pytest.raises(WeightsError, match="not written: it gives other values than PyTorch"):
        export(weights, tmp_path / "e.pt2", to="torch-export")

    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def asked(path: Path, to: Target = "torch-export", part: Part = "encoder") -> Exported:
    return export(path.parent / "weights", path, to=to, part=part)


def test_a_missing_package_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnx" else name)

    with pytest.raises(
        ConfigError, match=r"onnx requires onnx; pip install 'mae-vision\[export\]'"
    ):
        asked(tmp_path / "e.onnx", "onnx")


def test_what_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "e.pt2").write_text("mine")

    with pytest.raises(WeightsError, match="exists already"):
        asked(tmp_path / "e.pt2")
    with pytest.raises(ConfigError, match=r"ends in '.onnx', expected .pt2 for torch-export"):
        asked(tmp_path / "e.onnx")
    with pytest.raises(WeightsError, match="no such folder"):
        export(tmp_path, tmp_path / "new" / "e.pt2", to="torch-export")

    assert (tmp_path / "e.pt2").read_text() == "mine"


def test_an_encoder_alone_is_no_full_model(model: MaskedAutoencoder, tmp_path: Path) -> None:
    save(model.encoder, tmp_path / "weights")

    with pytest.raises(WeightsError, match="decoder: not in this file"):
        asked(tmp_path / "f.pt2", part="full")

    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_a_share_that_whole_numbers_cannot_count_is_refused(
    generator: torch.Generator, tmp_path: Path
) -> None:
    save(tiny_model(generator, mask_ratio=0.66667), tmp_path / "weights")

    with pytest.raises(ConfigError, match="cannot be counted in whole numbers; export without"):
        export(tmp_path / "weights", tmp_path / "f.pt2", to="torch-export", part="full",
               dynamic=True)  # fmt: skip
