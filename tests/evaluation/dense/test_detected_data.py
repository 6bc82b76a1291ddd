"""Images with boxes are divided as labelled images are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.data.detection.source import BoxSource
from mae.errors import ConfigError, DataError
from mae.evaluation.dense.detected_data import detected, detected_for_evaluation
from mae.evaluation.dense.divided import Divided
from mae.progress import Progress
from tests.boxes import CLASSES, write_coco


def divided(data: Path, *, seed: int = 0) -> Divided[BoxSource]:
    return detected(data, seed=seed, max_bad=0.1, progress=Progress(quiet=True))


def names(found: Divided[BoxSource]) -> tuple[set[str], set[str]]:
    train, test = ({s.name(i) for i in range(len(s))} for s in (found.train, found.test))
    return train, test


def test_a_fifth_is_held_out_by_the_seed(tmp_path: Path) -> None:
    found = divided(write_coco(tmp_path, count=10))

    train, test = names(found)
    assert len(train) == 8 and len(test) == 2 and not train & test
    assert names(divided(tmp_path)) == (train, test) != names(divided(tmp_path, seed=1))
    assert found.notes[0].endswith(
        "8 images for training, 2 for testing (20% held out, seed 0); 3 classes: roof, tree, car"
    )
    assert found.held is not None and len(found.whole) == 10


def test_own_splits_are_used(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("val", 3), ("test", 2)):
        write_coco(tmp_path / name, count=count)

    found = divided(tmp_path)

    assert (len(found.train), len(found.test), found.held) == (4, 3, None)
    assert "4 images in train for training, 3 in val for testing; 3 classes" in found.notes[0]


def test_a_training_split_alone_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "train", count=4)

    with pytest.raises(DataError, match="neither val nor test; add one, or give images with boxes"):
        divided(tmp_path)


def test_the_split_to_score_is_val_or_the_one_asked_for(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("val", 3), ("test", 2)):
        write_coco(tmp_path / name, count=count)
    how = {"weights": None, "max_bad": 0.1, "progress": Progress(quiet=True)}

    found = {
        split: detected_for_evaluation(tmp_path, classes=("sky", *CLASSES), split=split, **how)
        for split in (None, "test")
    }

    assert [(len(each.source), each.part) for each in found.values()] == [(3, "val"), (2, "test")]
    assert found[None].source.box_classes == ("sky", *CLASSES)
    assert found[None].source.instances(0).classes.min() >= 1
    whole = write_coco(tmp_path / "whole", count=2)
    with pytest.raises(ConfigError, match="has no test split, it has none"):
        detected_for_evaluation(whole, classes=CLASSES, split="test", **how)
