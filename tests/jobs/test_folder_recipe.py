"""`mae pretrain --data IMAGES`: what it prints and records, and how its runs resume."""

from __future__ import annotations

import json
import shutil
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

import mae
from mae.cli.main import main
from mae.config.run import PretrainConfig
from mae.config.serialize import field_types, from_dict
from mae.errors import DataError
from mae.recipes.custom import build_config, read_fields
from mae.recipes.folder import CHOSEN, FOLDER
from mae.runs.directory import read_record
from mae.train import saver
from tests.jobs.conftest import write_classes
from tests.jobs.older.make import images as older_images

OLDER = Path(__file__).parent / "older"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pics", "a", "b", count=4)  # 30 x 44, 3 channels


def test_a_command_prints_three_lines_and_resumes_by_itself(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    command = ["pretrain", "--data", f"{images}", "--out", f"{out}", "--steps", "3", "--threads",
               "1", "--device", "cpu", "--save-every-steps", "1"]  # fmt: skip
    save = saver.save_checkpoint

    def save_and_die(*args: object, **how: object) -> Path:
        raise KeyboardInterrupt(save(*args, **how))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(saver, "save_checkpoint", save_and_die)
        assert main(command) == 130
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("folder: ")]
    assert lines[0] == "folder: 8 images, 30 pixels along their shorter side, 3 channels; cpu"
    assert len(lines) == 3 and "28 x 28" in lines[1] and "3 steps" in lines[2]

    record = json.loads((out / "run.json").read_text())
    assert record["recipe"] == "folder" and record["config"]["model"]["image_size"] == [28, 28]
    assert main(command) == 0
    assert not any(line.startswith("folder: ") for line in capsys.readouterr().err.splitlines())
    done = mae.pretrain(data=images, out=out, steps=3, quiet=True)  # finished: as it is
    assert done.resumed and done.num_steps == 3
    assert done.config.model.image_size == (28, 28)


def test_the_printed_configuration_is_the_choice_where_data_are_given(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--print-config", "--device", "cpu", "--lr", "0.5"]
    printed = {}
    for name, more in (("before", []), ("after", ["--data", f"{images}"])):
        assert main([*words, *more]) == 0
        out, err = capsys.readouterr()
        (tmp_path / f"{name}.toml").write_text(out)
        printed[name] = from_dict(
            PretrainConfig, read_fields(tmp_path / f"{name}.toml"), where=name
        )
        assert err.count("folder: ") == (3 if more else 0)

    fields = {"device": "cpu", "optim.lr": 0.5}
    assert printed["before"] == build_config("folder", PretrainConfig, fields=fields)
    assert printed["after"].model.image_size == (28, 28)
    assert printed["after"].optim.lr == 0.5


@pytest.mark.parametrize("verb", ["plan", "data inspect"])
def test_other_verbs_show_the_run_that_would_be_made(
    verb: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{images}"] if verb == "data inspect" else ["--data", f"{images}"]
    assert main([*verb.split(), *words, "--json"]) == 0

    out, err = capsys.readouterr()
    found = json.loads(out)
    if verb == "plan":
        assert err.count("folder: ") == 3 and found["parameters"] < 10e6
    else:
        assert found["pretrain"]["image_size"] == [28, 28]


def test_a_run_of_the_former_recipe_resumes_by_its_command(tmp_path: Path) -> None:
    """Its network, batch and rate are not those that would be chosen now."""
    out = tmp_path / "run"
    shutil.copytree(OLDER / "pretrain-stopped", out)
    record = json.loads((out / "run.json").read_text().replace("ROOT", f"{tmp_path}"))
    (out / "run.json").write_text(json.dumps(record | {"recipe": "folder"}))
    stored = read_record(out)
    assert stored is not None
    before = from_dict(PretrainConfig, stored["config"], where="run.json")
    # What is not chosen was an option of its command.
    options = {
        name: attrgetter(name)(before)
        for name in field_types(PretrainConfig)
        if name not in CHOSEN and not name.startswith(("model.pixels", "model.channels"))
        and attrgetter(name)(before) != attrgetter(name)(FOLDER)
    }  # fmt: skip

    done = mae.pretrain(data=older_images(), out=out, quiet=True, **options)

    assert done.resumed and done.num_steps == 12
    assert done.config.model.width == 8 and done.config.batch == 9


@pytest.mark.slow
def test_a_run_goes_on_from_the_weights_of_another_choice(tmp_path: Path) -> None:
    """The command that a finished run suggests."""
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 20, 3), dtype=np.uint8)
    how = {"data": images, "quiet": True, "device": "cpu", "threads": 1, "steps": 1}
    first = mae.pretrain(out=tmp_path / "a", **how)

    after = mae.pretrain(out=tmp_path / "b", init=tmp_path / "a", **how)

    assert after.config.model == first.config.model
    assert first.config.model.image_size == (12, 12)


def test_a_folder_without_a_readable_image_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")

    with pytest.raises(DataError, match="no readable image in 1: a.png"):
        mae.pretrain(data=tmp_path, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
