"""A folder of images in, a run directory out, and one line for whatever is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mae
from mae.config.run import ObjectiveConfig, PretrainConfig
from mae.errors import CheckpointError, ConfigError, DataError, TrainingError
from mae.jobs.pretrain import pretrain
from mae.recipes.catalogue import FOLDER
from mae.runs.checkpoint import latest_checkpoint
from tests.images import mixed_folder
from tests.jobs.kill_storm import CONFIG, end_state
from tests.model.tiny import tiny_config

SMALL = tiny_config()  # images of 12 x 20, C=3
SHORT = replace(CONFIG, steps=6)
SQUARE = replace(CONFIG.model, image_size=(16, 24))  # 4 x 6 patches
KINDS = [
    ObjectiveConfig(mask_kind="block", mask_block=3),
    ObjectiveConfig(mask_kind="grid"),
]


def run(out: Path, data: object, config: PretrainConfig = SHORT, **options: object) -> mae.Run:
    return pretrain(config, data=data, out=out, quiet=True, **options)  # type: ignore[arg-type]


def stop_after_first_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the process die, as far as the run can tell, right after its first checkpoint."""
    from mae.train import saver as job

    real = job.save_checkpoint

    def save_and_die(*args: object, **kwargs: object) -> Path:
        path = real(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt(path)

    monkeypatch.setattr(job, "save_checkpoint", save_and_die)


def begin(
    out: Path, data: object, monkeypatch: pytest.MonkeyPatch, config: PretrainConfig = SHORT
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_first_save(patch)
        run(out, data, config)


def test_a_mixed_nested_folder_runs_and_names_the_broken_ones_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = mixed_folder(tmp_path / "in", count=40, broken=2)

    done = pretrain(SHORT, data=tmp_path / "in", out=tmp_path / "run")

    lines = (tmp_path / "run" / "bad-files.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == sorted(broken)
    said = capfd.readouterr().err
    assert all(said.count(f"unreadable: {name}") == 1 for name in broken)
    assert done.model.config.channels == 3
    with pytest.warns(UserWarning, match="cannot be read|unreadable"):
        features = mae.embed(tmp_path / "run", tmp_path / "in")
    assert features.shape == (38, 24)


@pytest.mark.slow
def test_fields_given_as_keywords_make_the_run_of_their_configuration(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 12, 20, 3), dtype=np.uint8)
    how = {"data": images, "quiet": True, "device": "cpu", "threads": 1}
    config = replace(FOLDER, model=SMALL, steps=2, batch=5, device="cpu", threads=1)

    by_keywords = mae.pretrain(out=tmp_path / "a", model=SMALL, steps=2, batch=5, **how)
    by_config = mae.pretrain(config, data=images, out=tmp_path / "b", quiet=True)
    changed = mae.pretrain(config, out=tmp_path / "c", steps=1, **how)

    assert by_keywords.config == by_config.config
    assert (changed.num_steps, changed.config.batch) == (1, 5)
    assert json.loads((tmp_path / "a" / "run.json").read_bytes())["recipe"] == "folder"


def test_a_wrong_keyword_makes_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown keyword 'step'; did you mean steps\?"):
        mae.pretrain(data="nowhere", out=tmp_path / "run", step=2)
    with pytest.raises(ConfigError, match=r"unknown keyword 'weigths'; did you mean weights\?"):
        mae.finetune(data="nowhere", out=tmp_path / "run", weigths="runs/x")

    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 1), dtype=np.uint8)
    monkeypatch.setattr("mae.planning.hardware.multiplies_bf16", lambda: False)
    assert SHORT.precision == "auto"
    alone = run(tmp_path / "alone", images)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_first_save(patch)
        run(tmp_path / "run", images, replace(SHORT, precision="bf16"))

    with pytest.raises(ConfigError, match="precision: run has bf16, asked float32"):
        run(tmp_path / "run", images, replace(SHORT, precision="float32"))
    gone_on = run(tmp_path / "run", images)

    assert (alone.config.precision, gone_on.config.precision) == ("float32", "bf16")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["precision"] == "bf16"


def test_a_run_holds_what_it_promises(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 1), dtype=np.uint8)

    done = run(tmp_path, images, replace(SHORT, log_every_steps=2))

    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["num_steps"], record["finished"], record["recipe"]) == (6, True, "custom")
    assert record["data"]["count"] == 20 and record["threads"] == 1
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    assert set(rows[0]) >= {"epoch", "lr", "loss", "images_per_second", "data_seconds",
                            "memory_bytes"}  # fmt: skip
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000004", "step-00000006",
    ]  # fmt: skip
    again = mae.load(tmp_path)
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert "<html" in (tmp_path / "report.html").read_text()


def test_pixels_of_other_than_three_channels_are_measured_and_stored(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(40, 60, (20, 16, 24, 1), dtype=np.uint8)

    done = run(tmp_path, images)

    pixels = done.model.config.pixels
    assert pixels.mean == pytest.approx((images.mean() / 255,), abs=1e-3)
    assert pixels.std == pytest.approx((images.std() / 255,), rel=0.02)


@pytest.mark.slow
def test_colour_keeps_the_mean_of_imagenet_unless_asked_to_measure(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 9, (20, 16, 24, 3), dtype=np.uint8)

    usual = run(tmp_path / "a", images)
    measured = run(tmp_path / "b", images, replace(SHORT, measure_pixels=True))

    assert usual.model.config.pixels.mean == (0.485, 0.456, 0.406)
    assert max(measured.model.config.pixels.mean) < 0.05


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_images_of_four_channels_train(tmp_path: Path, dtype: str) -> None:
    images = np.random.default_rng(0).integers(0, 9000, (20, 16, 24, 4)).astype(dtype)

    done = run(tmp_path, images)

    assert (done.model.config.channels, done.model.config.pixels.dtype) == (4, dtype)


def test_a_batch_larger_than_the_data_is_lowered_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = np.zeros((5, 16, 24, 3), dtype=np.uint8)

    done = pretrain(SHORT, data=images, out=tmp_path)

    assert done.config.batch == 5
    assert "batch: lowered from 8 to 5" in capfd.readouterr().err


def test_other_channels_than_there_are_are_refused(tmp_path: Path) -> None:
    images = np.zeros((20, 16, 24, 3), dtype=np.uint8)

    with pytest.raises(ConfigError, match="channels: asked for 4, but the images have 3"):
        run(tmp_path, images, replace(SHORT, channels=4))


def test_colour_can_be_read_as_grey(tmp_path: Path) -> None:
    images = np.zeros((20, 16, 24, 3), dtype=np.uint8)

    assert run(tmp_path, images, replace(SHORT, channels=1)).model.config.channels == 1


def test_another_configuration_in_the_same_run_shows_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((20, 16, 24, 3), dtype=np.uint8)
    begin(tmp_path, images, monkeypatch)

    with pytest.raises(ConfigError, match=r"objective\.mask_ratio: run has 0\.75, asked 0\.5"):
        run(tmp_path, images, replace(SHORT, objective=ObjectiveConfig(mask_ratio=0.5)))


def test_a_stopped_run_of_version_0_1_resumes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((20, 16, 24, 3), dtype=np.uint8)
    begin(tmp_path / "old", images, monkeypatch)
    record = json.loads((tmp_path / "old" / "run.json").read_bytes())
    objective = record["config"].pop("objective")
    record["config"]["model"] |= {
        name: objective[name] for name in ("mask_ratio", "normalize_target", "target_eps")
    }
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))

    with pytest.raises(ConfigError, match=r"objective\.target_eps: run has 1e-06, asked 0\.1"):
        run(tmp_path / "old", images, replace(SHORT, objective=ObjectiveConfig(target_eps=0.1)))
    resumed, whole = run(tmp_path / "old", images), run(tmp_path / "new", images)

    assert resumed.resumed
    mine, yours = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("objective", KINDS)
def test_a_stopped_run_of_another_mask_kind_resumes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: ObjectiveConfig
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), dtype=np.uint8)
    config = replace(SHORT, objective=objective, model=SQUARE)
    begin(tmp_path / "stopped", images, monkeypatch, config)

    with pytest.raises(ConfigError, match=f"mask_kind: run has {objective.mask_kind}, asked ran"):
        run(tmp_path / "stopped", images, replace(config, objective=ObjectiveConfig()))
    resumed = run(tmp_path / "stopped", images, replace(config, workers=2))
    whole = run(tmp_path / "whole", images, config)
    random = run(tmp_path / "random", images, replace(config, objective=ObjectiveConfig()))

    assert resumed.resumed and resumed.model.objective == objective
    record = json.loads((tmp_path / "whole" / "run.json").read_bytes())
    assert record["config"]["objective"]["mask_kind"] == objective.mask_kind
    ends = [done.model.decoder.pred.weight for done in (resumed, whole, random)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])
    drawings = [
        (tmp_path / name / "images" / "step-00000000.png").read_bytes()
        for name in ("stopped", "whole", "random")
    ]
    assert drawings[0] == drawings[1] != drawings[2]


def test_files_added_to_an_unfinished_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed_folder(tmp_path / "in", count=20, broken=0)
    begin(tmp_path / "run", tmp_path / "in", monkeypatch)
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "new.png")

    with pytest.raises(ConfigError, match="1 files added, 21 images, the run has 20"):
        run(tmp_path / "run", tmp_path / "in")


def test_too_many_broken_images_stop_the_run_and_list_them(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "in", count=20, broken=5)

    with pytest.raises(TrainingError, match=r"cannot be read, more than 10%; see .*bad-files\.tsv"):
        run(tmp_path / "run", tmp_path / "in", replace(SHORT, batch=10))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_and_the_one_before_gives_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), dtype=np.uint8)
    run(tmp_path / "whole", images)
    run(tmp_path / "run", images)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"finished": False}))
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (newest / "model.safetensors").write_bytes(content)

    pretrain(SHORT, data=images, out=tmp_path / "run")

    assert "step-00000006" in capfd.readouterr().err
    assert end_state(tmp_path / "run").split()[1] == end_state(tmp_path / "whole").split()[1]


def test_no_usable_checkpoint_left_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((20, 16, 24, 3), dtype=np.uint8)
    begin(tmp_path, images, monkeypatch)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    (newest / "state.json").unlink()

    with pytest.raises(CheckpointError, match="no intact checkpoint: step-00000002"):
        run(tmp_path, images)

    assert newest.is_dir()


def test_training_goes_on_from_weights_and_says_what_it_took(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 3), dtype=np.uint8)
    run(tmp_path / "first", images)
    mae.save(mae.load_encoder(tmp_path / "first"), tmp_path / "encoder")
    capfd.readouterr()

    pretrain(replace(SHORT, steps=1), data=images, out=tmp_path / "b", init=tmp_path / "encoder")

    assert "decoder" in capfd.readouterr().err


def test_an_empty_folder_writes_no_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()

    with pytest.raises(DataError):
        run(tmp_path / "run", tmp_path / "in")

    assert not (tmp_path / "run" / "run.json").exists()
