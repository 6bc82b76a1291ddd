"""Semantic segmentation: trained, killed, divided, scored, and applied."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mae
from mae.cli.main import main
from mae.cli.options import options_of
from mae.cli.verbs.every import VERBS
from mae.config.dense import DenseConfig, HeadConfig
from mae.config.run import AugmentConfig, OptimConfig
from mae.config.segment import SegmentConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.evaluation.dense.segment_metrics import SegmentScores
from mae.jobs.segment_train import SegmentRun, segment_train
from mae.model.create import create
from mae.recipes.custom import to_toml
from mae.runs.checkpoint import latest_checkpoint
from mae.runs.log import read_rows
from mae.train.segment_batch import num_draws
from mae.weights.formats.native import save
from mae.weights.start_from import initial_segmenter
from tests.jobs.kill_storm import CONTEXT
from tests.model.tiny import tiny_config
from tests.segments import CLASSES, write_segmented

MODEL = tiny_config(patch_size=8, image_size=(24, 32))
EVERYTHING = SegmentConfig(
    model=MODEL,
    num_classes=3,
    steps=10,
    batch=4,
    micro_batch=2,
    threads=1,
    layer_decay=0.65,
    drop_path=0.3,
    head=HeadConfig(channels=32, norm="group", auxiliary_channels=16, dropout=0.3),
    dense=DenseConfig(relative_positions="table", layer_scale=0.5),
    short_side=36,
    distort=True,
    inference="slide",
    stride=(16, 20),
    optim=OptimConfig(lr=0.3, warmup_epochs=0, betas=(0.9, 0.999), decay="linear"),
    augment=AugmentConfig(crop_scale=(1.0, 1.0)),
    device="cpu",
    workers=0,
    save_every_steps=3,
    log_every_steps=1,
    keep_checkpoints=True,
)
"""Everything that draws numbers is on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give twelve images with masks, of which two are held out."""
    return write_segmented(tmp_path_factory.mktemp("segmented"), count=12)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentRun:
    """Give a short run from weights."""
    root = tmp_path_factory.mktemp("run")
    save(create(replace(MODEL, image_size=(24, 40)), seed=1).encoder, root / "weights")
    config = replace(EVERYTHING, threads=None, steps=4)
    return segment_train(
        config, data=folder, weights=root / "weights", out=root / "run", quiet=True
    )


def test_the_draws_of_an_image_are_as_many_as_the_network_takes() -> None:
    for head in (EVERYTHING.head, HeadConfig(kind="linear", norm="group", dropout=0.1)):
        config = replace(EVERYTHING, head=head)

        assert num_draws(config) == initial_segmenter(None, config).model.num_draws


def test_bad_masks_end_in_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_segmented(tmp_path / "data", count=6)
    for i, change in enumerate((lambda m: m[:-2], lambda m: m + 7)):
        mask = data / "masks" / f"{i}.png"
        Image.fromarray(change(np.asarray(Image.open(mask)))).save(mask)

    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--follow-weights", "no"]
    code = main(["segment", "train", *words, "--quiet"])

    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert "masks: 2 of 6 cannot be used: 1 mask of another size (0.png: 38 x 56" in error
    assert "1 mask with a value of no class (1.png: " in error and "--max-bad" in error
    assert not (tmp_path / "run").exists()


def test_the_page_names_options_and_functions_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "segment.md").read_text()
    verbs = [verb.run for verb in VERBS if verb.name.startswith("segment ")]
    known = {option.flag for run in verbs for option in options_of(run)} | {"ranks"}

    assert {*re.findall(r"[` ]--([\w.-]*\w)\b(?!\.\*)", page)} <= known
    for name in re.findall(r"mae\.(\w+)\(", page):
        assert name in mae.__all__
    for name in re.findall(r"run\.scores\.(\w+)", page):
        assert name in SegmentScores._fields


@pytest.mark.slow
def test_a_run_leaves_scores_report_and_weights(run: SegmentRun) -> None:
    results = json.loads((run.path / "results.json").read_text())
    page = (run.path / "report.html").read_text()

    assert (run.train, run.test, run.num_steps) == (10, 2, 4)
    assert results["miou"] == run.scores.miou and results["images"] == 2
    assert [row["name"] for row in results["classes"]] == [*CLASSES]
    assert sum(row["pixels"] for row in results["classes"]) == 2 * 40 * 56
    assert (run.path / "images" / results["worst"][0]["file"]).exists()
    for text in ("Segmentation run", "mIoU", "Worst images", "roof", "cross-entropy"):
        assert text in page
    assert "mIoU" in run._repr_html_()  # type: ignore[attr-defined]
    assert main(["recipes", "diff", "segment-folder", str(run.path)]) == 0
    assert "loss" in run.metrics and run.metrics["miou"] == run.scores.miou


@pytest.mark.slow
def test_a_finished_run_is_scored_alike_on_what_it_held_out(
    run: SegmentRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = [str(run.path), "--data", str(folder), "--out", str(page), "--json", "--quiet"]
    assert main(["segment", "evaluate", *words]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["part"], found["images"]) == ("held out in training", 2)
    assert found["miou"] == pytest.approx(run.scores.miou, abs=1e-3)
    assert [row["name"] for row in found["classes"]] == [*CLASSES]
    assert "Worst images" in page.read_text()


@pytest.mark.slow
def test_predict_names_a_broken_file_and_goes_on(
    run: SegmentRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:99])
    out = tmp_path / "out"

    assert main(["segment", "predict", str(run.path), str(images), "--out", str(out)]) == 0

    shown, summary = capsys.readouterr(), json.loads((out / "summary.json").read_text())
    assert f"1 unreadable, left out: {images}/3.png: PNG that cannot be decoded" in shown.err
    assert summary["unreadable"] == [f"{images}/3.png"] and len(summary["images"]) == 11
    first = summary["images"][0]
    with Image.open(first["mask"]) as stored, Image.open(first["overlay"]) as drawn:
        assert (stored.mode, drawn.mode) == ("P", "RGB") and stored.size == drawn.size == (56, 40)
        mask = np.asarray(stored)
    areas = [first["areas"].get(name, 0) for name in CLASSES]
    assert areas == pytest.approx((np.bincount(mask.ravel(), minlength=3) / mask.size).tolist())
    # What was written is data again: the segmenter agrees with itself on every pixel.
    (images / "3.png").unlink()
    shutil.move(images, out / "images")
    assert main(["segment", "evaluate", str(run.path), "--data", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["aacc"] == 1.0


@pytest.mark.slow
def test_half_of_the_masks_are_chosen_and_written_into_the_run(
    folder: Path, tmp_path: Path
) -> None:
    config = replace(EVERYTHING, steps=1)

    few = segment_train(config, data=folder, labels="50%", out=tmp_path / "a", quiet=True)
    choice = str(tmp_path / "a" / "labels.csv")
    again = segment_train(config, data=folder, labels=choice, out=tmp_path / "b", quiet=True)

    assert few.train == again.train == 5 and few.scores == again.scores


def test_without_weights_no_recipe_of_classification_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a new network takes --follow-weights no with --model"):
        segment_train(data=folder, out=tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_was(folder: Path, run: SegmentRun, tmp_path: Path) -> None:
    config = replace(EVERYTHING, steps=2, train_blocks=0)
    weights = run.path.parent / "weights"

    frozen = segment_train(config, data=folder, weights=weights, out=tmp_path / "a", quiet=True)

    trained, before = frozen.model.state_dict(), load_file(weights / "model.safetensors")
    names = [name for name in before if name.startswith("encoder.blocks.")]
    assert names and all(torch.equal(trained[name], before[name]) for name in names)


def digest(path: Path) -> str:
    """Give the digests of the last checkpoint and of the weights that came out."""
    last = latest_checkpoint(path / "checkpoints")
    assert last is not None
    files = [last / "model.safetensors", last / "optimizer.safetensors"]
    parts = [file.read_bytes() for file in (*files, path / "weights" / "model.safetensors")]
    return last.name + hashlib.sha256(b"".join(parts)).hexdigest()


def train(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    segment_train(EVERYTHING, data=data, out=out, quiet=True)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a run that nothing disturbs."""
    path, threads = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    train(folder, path)
    yield path
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bitwise_alike(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    process = CONTEXT.Process(target=train, args=(folder, tmp_path / "run"))
    process.start()
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    train(folder, tmp_path / "run")

    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.slow
def test_two_ranks_train_as_one_and_score_alike(folder: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(to_dict(EVERYTHING)))
    words = ["--config", f"{tmp_path}/config.toml", "--data", str(folder), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "mae", "segment", "train", *words, "--ranks", "2", "--out",
         f"{tmp_path}/run"],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    runs = whole, tmp_path / "run"
    here, there = ([row["loss"] for row in read_rows(run / "log.jsonl")] for run in runs)
    assert len(here) == 10 and there == pytest.approx(here, rel=1e-4)
    one, two = (load_file(run / "weights" / "model.safetensors") for run in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    scores = [json.loads((run / "results.json").read_text()) for run in runs]
    assert scores[0]["miou"] == pytest.approx(scores[1]["miou"], abs=5e-3)
    pixels = [[row["pixels"] for row in found["classes"]] for found in scores]
    assert pixels[0] == pixels[1]


@pytest.mark.slow
def test_four_images_are_learnt_by_heart(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_segmented(tmp_path / part, count=4, size=(32, 40))
    config = replace(
        EVERYTHING,
        model=tiny_config(patch_size=8, image_size=(32, 40), width=48),
        steps=150,
        micro_batch=None,
        drop_path=0.0,
        head=HeadConfig(channels=32, norm="group", auxiliary_channels=0, dropout=0.0),
        dense=DenseConfig(),
        short_side=None,
        scale_range=(1.0, 1.0),
        most_of_class=1.0,
        distort=False,
        augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0),
        inference="whole",
        stride=None,
        optim=replace(EVERYTHING.optim, lr=0.4),
        save_every_steps=500,
    )

    found = segment_train(config, data=tmp_path, out=tmp_path / "run", quiet=True)

    assert found.scores.miou > 0.9
