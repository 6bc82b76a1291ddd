"""Our own folder, runs and checkpoints: bitwise there and back, whole or refused."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from mae.config.model import ModelConfig, PixelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.weights.formats.native import save
from mae.weights.load import load, load_encoder

# Nothing is what a default would give: 3 x 5 patches of 4 x 4, 2 channels of 16 bits.
CONFIG = ModelConfig(
    image_size=(12, 20),
    patch_size=4,
    channels=2,
    width=24,
    depth=2,
    num_heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=4,
    mlp_ratio=3.0,
    pixels=PixelConfig(dtype="uint16", mean=(0.1, 0.2), std=(0.3, 0.4)),
)
OBJECTIVE = ObjectiveConfig(mask_ratio=0.6, normalize_target=False, target_eps=1e-3)


@pytest.fixture
def model() -> MaskedAutoencoder:
    return create(CONFIG, objective=OBJECTIVE, seed=1)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, yours = a.state_dict(), b.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[n], yours[n]) for n in mine)


def test_a_folder_of_version_0_1_is_read(tmp_path: Path, model: MaskedAutoencoder) -> None:
    save(model, tmp_path)
    said = json.loads((tmp_path / "config.json").read_bytes())
    objective = said.pop("objective")
    names = ("mask_ratio", "normalize_target", "target_eps")
    said["model"] |= {name: objective[name] for name in names}
    (tmp_path / "config.json").write_text(json.dumps(said))

    again = load(tmp_path)

    assert (again.config, again.objective) == (CONFIG, OBJECTIVE)


def test_an_encoder_has_no_objective(tmp_path: Path, model: MaskedAutoencoder) -> None:
    save(model.encoder, tmp_path)

    assert json.loads((tmp_path / "config.json").read_bytes())["objective"] is None
    assert load_encoder(tmp_path).config == CONFIG


def test_folder_round_trip_is_bitwise_and_keeps_the_configuration(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    save(model, tmp_path / "a" / "weights")

    again = load(tmp_path / "a" / "weights")

    assert (again.config, again.objective) == (CONFIG, OBJECTIVE)
    assert same(again, model)
    assert same(load_encoder(tmp_path / "a" / "weights"), model.encoder)


def test_encoder_by_itself_round_trips(tmp_path: Path, model: MaskedAutoencoder) -> None:
    save(model.encoder, tmp_path / "encoder")

    assert same(load_encoder(tmp_path / "encoder"), model.encoder)
    with pytest.raises(WeightsError, match="decoder: not in this file"):
        load(tmp_path / "encoder")


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    save(model, tmp_path)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save(model, tmp_path)

    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first
    assert first.keys() == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_modes_follow_the_umask(tmp_path: Path, model: MaskedAutoencoder, mask: int) -> None:
    before = os.umask(mask)
    try:
        save(model, tmp_path / "weights")
    finally:
        os.umask(before)

    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "weights").iterdir()}
    assert modes == {0o666 & ~mask}


def test_facts_and_format_are_stored_with_the_weights(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    save(model, tmp_path, facts={"recipe": "demo", "num_steps": 7, "license": "mit"})

    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["format"] == "mae"
    assert stored["facts"] == {"recipe": "demo", "num_steps": 7, "license": "mit"}
    pixels = {"dtype": "uint16", "mean": [0.1, 0.2], "std": [0.3, 0.4], "tiff_pages": False}
    assert stored["model"]["pixels"] == pixels
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_model_card_is_one_of_the_hub(tmp_path: Path, model: MaskedAutoencoder) -> None:
    save(model, tmp_path / "a", facts={"license": "mit", "recipe": "demo"})
    save(model, tmp_path / "b")

    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "mae-vision"
    assert "masked-autoencoder" in (card.data.tags or [])
    assert "- recipe: demo" in card.text
    assert ModelCard.load(tmp_path / "b" / "README.md").data.license == "unknown"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_unknown_keys_are_named(tmp_path: Path, model: MaskedAutoencoder) -> None:
    save(model, tmp_path)

    edit(tmp_path, model=to_dict(CONFIG) | {"widht": 24})
    with pytest.raises(WeightsError, match="'model.widht' .*did you mean 'model.width'"):
        load(tmp_path)

    edit(tmp_path, model=to_dict(CONFIG), colour="blue")
    with pytest.raises(WeightsError, match="unknown key 'colour'"):
        load(tmp_path)


def test_other_or_newer_configurations_are_refused(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    save(model, tmp_path)

    edit(tmp_path, format_version=2)
    with pytest.raises(WeightsError, match="format_version: expected 1, got 2"):
        load(tmp_path)

    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    with pytest.raises(WeightsError, match="does not describe weights as this version"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "mae"}', '{"format": ["mae"]}']
)
def test_unreadable_configuration_is_one_line(
    tmp_path: Path, model: MaskedAutoencoder, text: str
) -> None:
    save(model, tmp_path)
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(WeightsError, match="config.json: ") as caught:
        load(tmp_path)

    assert "\n" not in str(caught.value)


def test_configuration_of_another_model_is_refused(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    save(model, tmp_path)

    edit(tmp_path, model=to_dict(replace(CONFIG, depth=3)))
    with pytest.raises(WeightsError, match="says depth 3, its tensors 2"):
        load(tmp_path)

    edit(tmp_path, model=to_dict(replace(CONFIG, width=48)))
    with pytest.raises(WeightsError, match="says width 48, its tensors 24"):
        load(tmp_path)

    edit(tmp_path, model=to_dict(replace(CONFIG, decoder_depth=10**9)))
    with pytest.raises(WeightsError, match="says decoder_depth 1000000000, its tensors 1"):
        load(tmp_path)
    assert same(load_encoder(tmp_path), model.encoder)


def test_bare_tensors_find_their_configuration_beside_them(
    tmp_path: Path, model: MaskedAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model, tmp_path)
    monkeypatch.chdir(tmp_path)

    assert load("model.safetensors").config == CONFIG


def test_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot be written"):
        save(model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def write_checkpoint(run: Path, step: int, model: MaskedAutoencoder) -> Path:
    """Lay out a checkpoint as a run does."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    save(model, folder)
    (folder / "config.json").unlink()
    (folder / "README.md").unlink()
    content = (folder / "model.safetensors").read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"model.safetensors": entry}))
    (run / "run.json").write_text(json.dumps({"config": {"model": to_dict(CONFIG)}, "data": {}}))
    return folder


def test_unfinished_run_gives_its_newest_checkpoint(tmp_path: Path) -> None:
    old, new, bad = (create(CONFIG, seed=seed) for seed in range(3))
    first = write_checkpoint(tmp_path, 90, old)
    write_checkpoint(tmp_path, 100, new)
    write_checkpoint(tmp_path, 110, bad).rename(tmp_path / "checkpoints" / "step-00000110.bad")

    assert same(load(tmp_path), new)
    assert same(load(first), old)
    assert load(tmp_path).config == CONFIG


def test_finished_run_gives_its_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 100, create(CONFIG, seed=0))
    final = create(CONFIG, seed=1)
    save(final, tmp_path / "weights")

    assert same(load(tmp_path), final)


def test_changed_checkpoint_is_refused(tmp_path: Path, model: MaskedAutoencoder) -> None:
    file = write_checkpoint(tmp_path, 100, model) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)

    with pytest.raises(WeightsError, match="is not what manifest.json says"):
        load(tmp_path)


def test_run_without_a_record_or_a_checkpoint_is_refused(
    tmp_path: Path, model: MaskedAutoencoder
) -> None:
    with pytest.raises(WeightsError, match="holds nothing; expected model.safetensors"):
        load(tmp_path)

    write_checkpoint(tmp_path, 100, model)
    (tmp_path / "run.json").write_text('{"config": {"model": {"width": "wide"}}, "data": {}}')
    with pytest.raises(ConfigError, match="width: expected a whole number, got 'wide'"):
        load(tmp_path)

    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="run.json: is not the record of a run"):
        load(tmp_path)

    (tmp_path / "run.json").unlink()
    with pytest.raises(WeightsError, match="a run without run.json"):
        load(tmp_path)
