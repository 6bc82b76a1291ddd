"""The comparisons of starts: their images, their budget, and runs of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import transfer_boxes
from benchmarks.transfer import (
    CLASSES,
    LABELS,
    TINY,
    Size,
    composed,
    mae_config,
    main,
    segment_config,
    supervised_config,
)

from mae.model.costs import encoder_flops, step_flops
from tests.boxes import coco_of, write_images


def test_classes_are_told_by_texture_and_not_by_colour() -> None:
    random = np.random.default_rng(0)
    drawn = [composed(64, random) for _ in range(60)]

    pixels = np.concatenate([image.reshape(-1, 3) for image, _, _ in drawn]).astype(float)
    classes = np.concatenate([mask.ravel() for _, mask, _ in drawn])
    means = np.array([pixels[classes == k].mean() for k in range(len(CLASSES))])
    assert {*np.unique(classes).tolist()} == {0, 1, 2, 3, 4}
    assert means.max() - means.min() < 0.5 * pixels.std()
    assert {label for _, _, label in drawn} == {*range(len(LABELS))}


def test_no_image_is_flipped_which_would_exchange_two_classes() -> None:
    config = mae_config(Size(), seed=0)
    own = segment_config(config, Size(), scratch=True)

    assert config.augment.flip == supervised_config(config).augment.flip == own.augment.flip == 0


def test_both_kinds_of_pre_training_have_the_same_arithmetic() -> None:
    config = mae_config(Size(), seed=0)
    own = supervised_config(config)

    assert config.steps is not None and own.steps is not None
    ours = config.steps * step_flops(config.model, config.objective)
    assert own.steps * 3 * encoder_flops(own.model) == pytest.approx(ours, rel=1e-3)
    assert own.batch == config.batch and own.augment == config.augment


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_drawn_objects_are_what_pycocotools_and_torchvision_read(tmp_path: Path) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    masks_to_boxes = pytest.importorskip("torchvision.ops").masks_to_boxes

    transfer_boxes.write_drawn(tmp_path, 32, {"train": 3})

    coco = json.loads((tmp_path / "train.json").read_text())
    random = np.random.default_rng((12, 0))
    classes = [composed(32, random)[1] for _ in coco["images"]]
    assert len(coco["images"]) == 3 and len(coco["annotations"]) >= 4
    for each in coco["annotations"]:
        mask = coco_mask.decode(each["segmentation"]).astype(bool)
        assert np.array_equal(mask, classes[each["image_id"]] == each["category_id"])
        x0, y0, x1, y1 = masks_to_boxes(torch.from_numpy(mask)[None])[0].tolist()
        assert each["bbox"] == [x0, y0, x1 + 1 - x0, y1 + 1 - y0]
        assert each["area"] == mask.sum()


@pytest.mark.slow
def test_a_few_steps_give_the_table_and_are_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path), "--tiny"])
    first = capsys.readouterr().out
    logs = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("log.jsonl")}

    main([str(tmp_path), "--tiny"])

    assert capsys.readouterr().out == first
    assert len(logs) == TINY.seeds * 5
    assert logs == {p: p.stat().st_mtime_ns for p in logs}
    assert first.splitlines()[0].split() == [
        "masks", "scratch", "supervised", "mae", "mae", "-", "supervised", "mae", "-", "scratch"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_few_steps_on_boxes_give_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for number, split in enumerate(("train", "val", "test")):
        write_images(data / "images", 4, first=4 * number)
        (data / f"{split}.json").write_text(json.dumps(coco_of(4, first=4 * number)))
    words = [str(tmp_path / "out"), str(data), "--tiny", "--seeds", "0", "1"]

    transfer_boxes.main(words)

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["minutes", "random", "mae", "mae"]
    assert rows[0] == ["minutes", "ap", "ap50", "ap75"]
    assert all((tmp_path / f"out/seed-{seed}/mae/test.html").exists() for seed in (0, 1))
