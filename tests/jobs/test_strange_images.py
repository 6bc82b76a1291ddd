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
from mae.config.run import FinetuneConfig
from mae.errors import TrainingError
from mae.jobs.finetune import finetune
from mae.jobs.pretrain import pretrain
from mae.recipes.catalogue import find_config
from tests.bad_images import write_bad, write_good
from tests.images import encoded, image, photo, uint16
from tests.jobs.kill_storm import CONFIG, end_state

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


def test_files_that_are_read_with_a_warning_are_listed_and_counted_but_not_as_bad(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=20)
    data = encoded(image(30, 40), "JPEG")
    place = data.index(b"\xff\xdb")
    for number in range(5):
        name = tmp_path / "in" / f"junk {number}.jpg"
        name.write_bytes(data[:place] + bytes(5) + data[place:])
    fax = encoded(image(61, 83).convert("1"), "TIFF", compression="group4")
    (tmp_path / "in" / "fax.tif").write_bytes(fax[:100] + b"\1\2\3\4\5" + fax[105:])

    pretrain(replace(EPOCH, batch=26, max_bad=0.05), data=tmp_path / "in", out=tmp_path / "run")

    reasons = dict(
        line.split("\t") for line in (tmp_path / "run" / "bad-files.tsv").read_text().splitlines()
    )
    assert sorted(reasons) == ["fax.tif", *(f"junk {number}.jpg" for number in range(5))]
    assert "Fax4Decode: Bad code word" in reasons["fax.tif"]
    assert all(reasons[n].startswith("read with a warning: JPEG") for n in reasons if "junk" in n)
    said = capfd.readouterr().err
    assert "5 read with a warning; see" in said
    assert sum("Fax4Decode" in line for line in said.splitlines()) == 1  # where it is named


def test_one_image_of_other_channels_is_left_out_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=20)
    np.save(tmp_path / "in" / "two.npy", photo(20, 30, channels=2))

    run = pretrain(replace(EPOCH, batch=21), data=tmp_path / "in", out=tmp_path / "run")

    assert run.config.model.channels == 3
    assert listed(tmp_path / "run") == ["two.npy"]
    named = "left out: 1 of 21 images looked at are of another kind: 1 of 2 x uint8 (two.npy)"
    assert named in capfd.readouterr().err


@pytest.mark.parametrize("asked", [None, 3])
def test_pages_are_read_after_training_as_in_it(tmp_path: Path, asked: int | None) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        planes = np.moveaxis(photo(30, 40, seed=number), -1, 0)
        with tifffile.TiffWriter(tmp_path / "in" / f"{number}.tif") as writer:
            for plane in planes:
                writer.write(plane, metadata=None)
    config = replace(EPOCH, batch=6, channels=asked)

    pretrain(config, data=tmp_path / "in", out=tmp_path / "run", quiet=True)

    images = [photo(30, 40, seed=number) for number in range(6)]
    if asked is None:
        images = [image[..., :1] for image in images]
    assert mae.load(tmp_path / "run").config.pixels.tiff_pages == (asked is not None)
    expected = mae.embed(tmp_path / "run", images)
    assert np.array_equal(mae.embed(tmp_path / "run", tmp_path / "in"), expected)


def test_a_run_of_pages_that_was_begun_before_they_were_recorded_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        with tifffile.TiffWriter(tmp_path / "in" / f"{number}.tif") as writer:
            for plane in np.moveaxis(five(number)[:30, :40], -1, 0):
                writer.write(plane, metadata=None)
    config = replace(EPOCH, batch=6, channels=5)
    pretrain(config, data=tmp_path / "in", out=tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["config"]["model"]["pixels"].pop("tiff_pages") is True
    path.write_text(json.dumps({**record, "finished": False}))

    run = pretrain(config, data=tmp_path / "in", out=tmp_path / "run", quiet=True)

    assert run.resumed


def pretrained(folder: Path, out: Path, *more: str) -> mae.ModelConfig:
    """Run the command in a process of its own; give what its weights say of themselves."""
    code = "import sys; from mae.cli.main import main; sys.exit(main())"
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
        drawn = Image.fromarray(photo(30 + 5 * number, 70 - 3 * number, seed=number))
        Image.fromarray(uint16(drawn)).save(tmp_path / "in" / f"{number}.png")

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
