"""Folders as they are: a tenth of them broken, 16 bits, five channels, no square anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import mae
from mae.config import FinetuneConfig
from mae.errors import TrainingError
from mae.jobs.finetune import finetune
from mae.jobs.pretrain import pretrain
from mae.recipes import find_config
from tests.bad_pictures import write_bad, write_good
from tests.jobs.kill_storm import CONFIG, end_state
from tests.pictures import photo, uint16

EPOCH = replace(CONFIG, steps=None, epochs=1, batch=50)
TINY = (
    "--image-size 24 40 --model.patch-size 8 --model.width 24 --model.depth 1 --model.num-heads 2 "
    "--model.decoder-width 16 --model.decoder-depth 1 --model.decoder-heads 2 --steps 2 --batch 4 "
    "--threads 1 --quiet --json"
).split()


def listed(run: Path) -> list[str]:
    lines = (run / "bad-files.tsv").read_text().splitlines()
    assert all(len(line.split("\t")) == 2 and line.split("\t")[1] for line in lines)
    return [line.split("\t")[0] for line in lines]


@pytest.mark.slow
def test_a_hundred_bad_files_of_twenty_kinds_among_a_thousand_good_ones(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=1000)
    bad = write_bad(tmp_path / "in", times=5)

    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        pretrain(EPOCH, data=tmp_path / "in", out=run, quiet=True)

    for run in runs:
        record = json.loads((run / "run.json").read_text())
        assert (record["num_steps"], record["finished"]) == (22, True)
        assert sorted(listed(run), key=os.fsencode) == bad
    assert end_state(runs[0]) == end_state(runs[1])


@pytest.mark.slow
def test_one_more_than_a_tenth_of_bad_files_stops_the_run_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=100)
    write_bad(tmp_path / "in")

    with pytest.raises(TrainingError, match=r"of 120 cannot be read, more than 10%; see .*bad-f"):
        pretrain(replace(EPOCH, batch=5), data=tmp_path / "in", out=tmp_path / "run", quiet=True)

    assert 13 <= len(listed(tmp_path / "run")) <= 17  # those of the batch that tipped it


def test_more_bad_files_are_borne_when_asked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=20)
    bad = write_bad(tmp_path / "in")

    config = replace(EPOCH, batch=20, max_bad=0.5)
    pretrain(config, data=tmp_path / "in", out=tmp_path / "run", quiet=True)

    assert sorted(listed(tmp_path / "run"), key=os.fsencode) == bad


def pretrained(folder: Path, out: Path, *more: str) -> mae.ModelConfig:
    """Run the command in a process of its own; give what its weights say of themselves."""
    code = "import sys; from mae.cli import main; sys.exit(main())"
    words = ["pretrain", "--data", str(folder), "--out", str(out), *TINY, *more]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    assert not (out / "bad-files.tsv").exists()
    return mae.load(out).config


@pytest.mark.slow
def test_grey_of_16_bits_that_is_not_square_pretrains_by_the_command_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        picture = Image.fromarray(photo(30 + 5 * number, 70 - 3 * number, seed=number))
        Image.fromarray(uint16(picture)).save(tmp_path / "in" / f"{number}.png")

    config = pretrained(tmp_path / "in", tmp_path / "run")

    assert (config.image_size, config.grid) == ((24, 40), (3, 5))
    assert (config.channels, config.pixels.dtype) == (1, "uint16")


def five(seed: int) -> np.ndarray:
    return photo(30 + seed, 50 - seed, channels=5, seed=seed).astype(np.float32) * 40


@pytest.mark.slow
def test_float_tiff_of_five_bands_pretrains_by_the_command_alone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        how = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / "in" / f"{number}.tif", five(number), **how)

    config = pretrained(tmp_path / "in", tmp_path / "run")

    values = np.concatenate([five(number).reshape(-1, 5) for number in range(6)])
    assert (config.channels, config.pixels.dtype) == (5, "float32")
    assert config.pixels.mean == pytest.approx(values.mean(axis=0), rel=0.01)
    features = mae.embed(tmp_path / "run", tmp_path / "in")
    assert features.shape == (6, 24)


@pytest.mark.slow
def test_tiff_whose_channels_are_pages_needs_their_number_and_nothing_else(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / "in" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{number}.tif", np.moveaxis(five(number), -1, 0))

    config = pretrained(tmp_path / "in", tmp_path / "run", "--channels", "5")

    assert (config.channels, config.pixels.dtype) == (5, "float32")
    assert mae.embed(tmp_path / "run", tmp_path / "in").shape == (12, 24)
    short = replace(find_config("finetune-folder", FinetuneConfig), steps=1, batch=4, threads=1)
    tuned = finetune(short, data=tmp_path / "in", weights=tmp_path / "run", out=tmp_path / "tuned",
                     quiet=True)  # fmt: skip
    assert tuned.config.model.channels == 5
