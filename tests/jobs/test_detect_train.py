"""Detection: trained, killed, divided among ranks, and learnt by heart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mae.cli.main import main
from mae.config.dense import DenseConfig
from mae.config.detect import DetectConfig
from mae.config.run import AugmentConfig, OptimConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.jobs.detect_train import DetectRun, detect_train
from mae.recipes.custom import to_toml
from mae.runs.log import read_rows
from tests.boxes import CLASSES, coco_of, write_coco
from tests.jobs.kill_storm import CONTEXT
from tests.jobs.test_segment import digest
from tests.model.tiny import tiny_config

EVERYTHING = DetectConfig(
    model=tiny_config(patch_size=8, image_size=(40, 48)),
    num_classes=3,
    masks=True,
    dense=DenseConfig(window=2, global_blocks=(1,), relative_positions="decomposed"),
    pyramid_channels=8,
    sampled_boxes=16,
    steps=6,
    batch=4,
    micro_batch=2,
    threads=1,
    layer_decay=0.7,
    drop_path=0.3,
    optim=OptimConfig(lr=0.3, warmup_epochs=0, betas=(0.9, 0.999), decay_tokens=False),
    device="cpu",
    workers=0,
    save_every_steps=2,
    log_every_steps=1,
    keep_checkpoints=True,
)
"""Everything that draws numbers is on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give ten images with boxes and masks, of which two are held out."""
    return write_coco(tmp_path_factory.mktemp("boxes"), count=10)


def train(data: Path, out: Path, *, workers: int = 0) -> DetectRun:
    torch.set_num_threads(1)
    return detect_train(replace(EVERYTHING, workers=workers), data=data, out=out, quiet=True)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DetectRun]:
    """Give a run that nothing disturbs."""
    threads = torch.get_num_threads()
    yield train(folder, tmp_path_factory.mktemp("whole") / "run")
    torch.set_num_threads(threads)


def test_without_torchvision_one_line_comes_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)

    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[detect\]'") as raised:
        detect_train(EVERYTHING, data=tmp_path / "nothing", out=tmp_path / "run")

    assert "\n" not in str(raised.value)


def test_wrong_boxes_end_in_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_coco(tmp_path / "data", count=4)
    content = coco_of(4)
    content["annotations"][0]["bbox"] = [60, 4, 9, 9]
    content["annotations"][3]["bbox"] = [4, 4, 0, 9]
    (data / "annotations.json").write_text(json.dumps(content))

    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--follow-weights", "no"]
    code = main(["detect", "train", *words, "--quiet"])

    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert (
        "boxes: 2 of 8 boxes and 0 of 4 images are wrong: 1 box outside its image (0.png" in error
    )
    assert "1 box of zero size (1.png: 4 4 4 13)" in error and "--max-bad" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_leaves_scores_detections_report_and_weights(folder: Path, whole: DetectRun) -> None:
    results = json.loads((whole.path / "results.json").read_text())
    stored = json.loads((whole.path / "detections.json").read_text())
    page = (whole.path / "report.html").read_text()

    assert (whole.train, whole.test, whole.num_steps) == (8, 2, 6)
    assert results["ap"] == whole.scores.boxes.ap and results["images"] == 2
    assert [row["name"] for row in results["classes"]] == [*CLASSES]
    assert whole.scores.masks is not None
    assert {row["image_id"] for row in stored["annotations"]} <= {1, 2}
    assert [image["height"] for image in stored["images"]] == [40, 40]
    assert "Detection run" in page and "AP50" in page
    assert whole.metrics["loss"] > 0 and whole.metrics["ap"] == whole.scores.boxes.ap
    again = train(folder, whole.path)
    assert again.resumed and again.scores == whole.scores


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bitwise_alike(
    folder: Path, whole: DetectRun, tmp_path: Path
) -> None:
    process = CONTEXT.Process(target=train, args=(folder, tmp_path / "run"))
    process.start()
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    # Another process reads the rest: boxes come through its pipe unchanged.
    resumed = train(folder, tmp_path / "run", workers=1)

    assert resumed.resumed and digest(resumed.path) == digest(whole.path)


@pytest.mark.slow
def test_two_ranks_train_as_one_and_score_alike(
    folder: Path, whole: DetectRun, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(to_toml(to_dict(EVERYTHING)))
    words = ["--config", f"{tmp_path}/config.toml", "--data", str(folder), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "mae", "detect", "train", *words, "--ranks", "2", "--out",
         f"{tmp_path}/run"],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    runs = whole.path, tmp_path / "run"
    here, there = ([row["loss"] for row in read_rows(run / "log.jsonl")] for run in runs)
    assert len(here) == 6 and there == pytest.approx(here, rel=1e-4)
    one, two = (load_file(run / "weights" / "model.safetensors") for run in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    scores = [json.loads((run / "results.json").read_text()) for run in runs]
    assert scores[0]["ap"] == pytest.approx(scores[1]["ap"], abs=5e-3)


@pytest.mark.slow
def test_four_images_are_learnt_by_heart(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_coco(tmp_path / part, count=4)
    config = replace(
        EVERYTHING,
        model=tiny_config(patch_size=8, image_size=(40, 56), width=48),
        masks=None,
        dense=DenseConfig(),
        pyramid_channels=24,
        sampled_boxes=32,
        steps=250,
        epochs=62.5,
        batch=1,
        micro_batch=None,
        layer_decay=1.0,
        drop_path=0.0,
        scale_range=(1.0, 1.0),
        augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0),
        optim=replace(EVERYTHING.optim, lr=0.25, warmup_epochs=2.5),
        save_every_steps=500,
    )

    boxes, masks = detect_train(config, data=tmp_path, out=tmp_path / "run", quiet=True).scores

    assert boxes.ap50 is not None and boxes.ap50 > 0.9
    assert masks is not None and masks.ap50 is not None and masks.ap50 > 0.9
