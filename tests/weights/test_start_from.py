"""`mae pretrain continue`: weights of any size, trained further on other images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mae
from mae.config.run import ModelConfig, PixelConfig, PretrainConfig
from mae.errors import ConfigError, WeightsError
from mae.jobs.pretrain import pretrain
from mae.recipes.catalogue import CONTINUE, FOLDER, find_recipe
from mae.weights.formats.native import save
from tests.jobs.kill_storm import CONFIG
from tests.model.tiny import tiny_config, tiny_model
from tests.weights import published

CONTINUED = replace(CONFIG, model=ModelConfig(), follow_weights=True, steps=2)


def images(channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 24, channels)).astype(dtype)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Give weights that no recipe describes: 3 x 5 patches of 4 x 4, own scaling of pixels."""
    generator = torch.Generator().manual_seed(0)
    return save(tiny_model(generator, normalize_target=False, crop_pct=0.9), tmp_path / "w")


def go_on(init: Path, out: Path, config: PretrainConfig = CONTINUED, **given: object) -> mae.Run:
    data = given.pop("data", images())
    return pretrain(config, data=data, out=out, init=init, **given)  # type: ignore[arg-type]


def test_the_network_and_its_pixels_are_those_of_the_weights(weights: Path, tmp_path: Path) -> None:
    done = go_on(weights, tmp_path / "run")

    assert done.model.config == mae.load(weights).config
    assert done.model.config.pixels.std == (0.25, 0.25, 0.25)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (record["follow_weights"], record["model"]["width"]) == (False, 24)


def test_it_begins_with_the_weights_as_they_are(weights: Path, tmp_path: Path) -> None:
    still = replace(CONTINUED, steps=1, optim=replace(CONTINUED.optim, lr=1e-30))

    done = go_on(weights, tmp_path / "run", still)

    before = mae.load(weights).state_dict()
    for name, tensor in done.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-7)


def test_another_size_and_channel_count_are_said_and_trained(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONTINUED, resize=(16, 16))

    done = go_on(weights, tmp_path / "run", config, data=images(channels=4))

    assert (done.model.config.image_size, done.model.config.channels) == ((16, 16), 4)
    assert len(done.model.config.pixels.mean) == 4
    said = capfd.readouterr().err
    assert "positions: resized from (3, 5) to (4, 4) patches" in said
    assert "channels: 3 of the weights made 4 by the rule repeat" in said


def test_images_of_another_kind_are_measured_anew(weights: Path, tmp_path: Path) -> None:
    done = go_on(weights, tmp_path / "run", data=images(dtype="uint16"))

    assert done.model.config.pixels.dtype == "uint16"


@pytest.mark.slow
def test_a_file_without_a_decoder_gets_a_fresh_one_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = published.checkpoint(tmp_path / "encoder.pth", published.encoder_only())

    done = go_on(path, tmp_path / "run", replace(CONTINUED, steps=1))

    assert f"decoder: not in {path}, starts fresh" in capfd.readouterr().err
    assert done.model.config.image_size == (12, 12)
    assert done.model.config.pixels == PixelConfig()
    # Not a known size by its depth of 2: the published decoder.
    assert (done.model.config.decoder_width, done.model.config.decoder_depth) == (512, 8)


@pytest.mark.slow
def test_a_known_size_gets_the_decoder_that_belongs_to_it(tmp_path: Path) -> None:
    shapes = published.encoder_shapes(192, 12, patch=4, patches=9)
    path = published.checkpoint(tmp_path / "ti.pth", published.filled(shapes))

    config = go_on(path, tmp_path / "run", replace(CONTINUED, steps=1)).model.config

    assert (config.decoder_width, config.decoder_depth, config.decoder_heads) == (192, 4, 6)


@pytest.mark.slow
def test_the_same_command_goes_on_with_an_unfinished_run(weights: Path, tmp_path: Path) -> None:
    whole = go_on(weights, tmp_path / "whole", replace(CONTINUED, steps=4))
    go_on(weights, tmp_path / "run", replace(CONTINUED, steps=4))
    record = tmp_path / "run" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.rename(tmp_path / "last")

    again = go_on(weights, tmp_path / "run", replace(CONTINUED, steps=4))

    assert again.resumed
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONTINUED, "init: expected --init, the weights or run"),
        (replace(CONFIG, init_channels="mean"), "init_channels: has no effect without --init"),
    ],
)
def test_what_needs_weights_is_refused_without(
    config: PretrainConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(config, data=images(), out=tmp_path / "run", quiet=True)

    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_read_leave_no_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"not weights")

    with pytest.raises(WeightsError, match="is not weights"):
        go_on(tmp_path / "w.pth", tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_a_rule_without_effect_leaves_no_trained_run(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zero has no effect, weights and images both have 3"):
        go_on(weights, tmp_path / "run", replace(CONTINUED, init_channels="zero"))


def test_a_network_is_said_once() -> None:
    with pytest.raises(ConfigError, match="model: has no effect with follow_weights"):
        replace(CONTINUED, model=tiny_config())
    with pytest.raises(ConfigError, match="resize: has no effect without follow_weights"):
        replace(CONFIG, resize=(16, 16))


def test_the_recipe_is_gentler_than_starting_anew_and_names_its_command() -> None:
    assert CONTINUE.follow_weights
    assert CONTINUE.optim.lr < FOLDER.optim.lr and CONTINUE.epochs < FOLDER.epochs
    assert find_recipe("continue").command == "mae pretrain continue --data DIR --init W"
