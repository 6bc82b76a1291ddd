"""A detector whose answers are known, scored on images with boxes against numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae.data.detection.check import check
from mae.data.detection.layout import find_boxed
from mae.data.detection.source import BoxSource
from mae.data.segmentation.coco import instance_inside
from mae.errors import DataError
from mae.evaluation.dense.detect import Detected, DetectView, detected_objects, score_boxes
from mae.parallel.processes import Communicator, ProcessInfo
from mae.progress import Progress
from mae.transfer.detector import Detections, Detector
from tests.boxes import CLASSES, SIZE, Marked, marked, write_coco
from tests.model.tiny import tiny_config

VIEW = DetectView((80, 100))


class Known(nn.Module):
    """A detector that knows the boxes of `tests.boxes` by heart, image by image.

    They are resized as the view resizes images of 40 x 56: by 100 / 56 to 71 x 100.
    """

    has_masks = True

    def __init__(self, answers: Sequence[Sequence[tuple[Marked, float]]]) -> None:
        super().__init__()
        self.backbone = self
        self.encoder = self
        self.config = tiny_config()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers, self.seen = iter(answers), list[tuple[Tensor, Any]]()

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() + 1000

    def forward(self, images: Tensor, *, sizes: Any) -> list[Detections]:
        self.seen.append((images, sizes))
        (h, w), own = sizes[0], next(self.answers)
        scale = torch.tensor([w / SIZE[1], h / SIZE[0]] * 2)
        boxes = torch.tensor([[*each[:4]] for each, _ in own]).reshape(-1, 4) * scale
        classes = torch.tensor([each.number for each, _ in own], dtype=torch.int64)
        scores = torch.tensor([score for _, score in own])
        # Ones in every place: the mask of an object is its box but for rounded corners.
        return [Detections(boxes, classes, scores, torch.ones(len(own), 28, 28))]


def known(*answers: Sequence[tuple[Marked, float]]) -> Detector:
    return cast(Detector, Known(answers))


@pytest.fixture
def source(tmp_path: Path) -> BoxSource:
    part = find_boxed(write_coco(tmp_path, count=4)).whole
    assert part is not None
    opened = part()
    return check([opened], max_bad=0.0, progress=Progress(quiet=True)).source(opened)


def scored(model: Detector, source: BoxSource, **how: Any) -> Detected:
    return score_boxes(model, source, VIEW, progress=Progress(quiet=True), **how)


def truths(source: BoxSource) -> list[list[tuple[Marked, float]]]:
    return [[(each, 0.9) for each in marked(int(source.file(i)))] for i in range(len(source))]


def test_an_image_is_resized_to_fit_and_padded_after_normalisation() -> None:
    model = known([], [])
    pixels = np.full((40, 56, 3), 7, dtype=np.uint8)
    for image in (pixels, pixels.transpose(1, 0, 2)):
        detected_objects(model, image, VIEW)

    (wide, sizes), (tall, others) = cast(Known, model).seen
    assert (sizes, others) == ([(71, 100)], [(80, 57)])
    assert wide.shape == tall.shape == (1, 3, 80, 100)
    assert (wide[..., :71, :] == 1007).all() and (wide[..., 71:, :] == 0).all()
    assert (tall[..., :57] == 1007).all() and (tall[..., 57:] == 0).all()


def test_objects_come_back_in_the_pixels_of_the_image() -> None:
    box = Marked(8, 4, 36, 32, 2)
    found = detected_objects(known([(box, 0.7)]), np.zeros((*SIZE, 3), dtype=np.uint8), VIEW)

    assert found.instances.boxes[0] == pytest.approx([8, 4, 36, 32], abs=1e-4)
    assert (found.instances.size, found.instances.classes.tolist()) == (SIZE, [2])
    assert found.scores == pytest.approx([0.7])
    inside = instance_inside(found.instances.segmentations[0], size=SIZE)
    expected = np.zeros(SIZE, dtype=np.bool_)
    expected[4:32, 8:36] = True
    assert not (inside & ~expected).any() and (expected & ~inside).sum() <= 4
    assert found.instances.areas[0] == inside.sum()
    two, pixels = known([(box, 0.7), (box, 0.4)]), np.zeros((*SIZE, 3), dtype=np.uint8)
    assert detected_objects(two, pixels, VIEW, score=0.5).scores == pytest.approx([0.7])


def test_the_truth_scores_one_and_a_missed_class_zero(source: BoxSource) -> None:
    answers = truths(source)
    whole = scored(known(*answers), source)

    assert whole.scores.boxes.ap == whole.scores.boxes.ap50 == 1.0
    assert whole.scores.masks is not None and whole.scores.masks.ap50 == 1.0
    assert [each.compared.right for each in whole.images] == [2] * 4

    roofs = scored(known(*([a for a in own if a[0].number] for own in answers)), source)

    # By hand: trees and cars are found, no roof is.
    assert roofs.scores.boxes.ap == pytest.approx(2 / 3)
    assert [row.ap for row in roofs.scores.boxes.classes] == [0, 1, 1]
    assert (
        sum(len(each.compared.missed) for each in roofs.images)
        == roofs.scores.boxes.classes[0].objects
    )


def test_a_more_confident_mistake_costs_precision(source: BoxSource) -> None:
    answers = truths(source)
    number = answers[0][0][0].number
    answers[0] = [(Marked(50, 35, 55, 39, number), 0.95), *answers[0]]

    found = scored(known(*answers), source).scores.boxes

    # By hand: after one wrong detection, the k-th right one of n has precision k / (k + 1); made
    # to fall, it is n / (n + 1) at every recall.
    n = found.classes[number].objects
    assert found.classes[number].ap == pytest.approx(n / (n + 1))


def test_an_image_that_cannot_be_read_is_named_and_left_out(
    source: BoxSource, tmp_path: Path
) -> None:
    answers, images = truths(source), tmp_path / "images"
    path = images / source.name(1)
    path.write_bytes(path.read_bytes()[:60])

    found = scored(known(*(answers[:1] + answers[2:])), source)

    assert found.unreadable == (path.name,) and len(found.images) == 3
    assert found.scores.boxes.ap == 1.0
    assert sum(row.objects for row in found.scores.boxes.classes) == 6
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of 4 can be read"):
        scored(known(), source)


class OneOfTwo(Communicator):
    """A rank of two whose other one searched its images already."""

    def __init__(self, rank: int, others: Any = None) -> None:
        self.process, self.others, self.mine = ProcessInfo(rank, 2, rank), others, None

    def all_gather(self, mine: Any) -> Any:
        self.mine = mine
        return [mine] if self.others is None else [mine, self.others]

    def on_main(self, make: Any) -> Any:
        return make()


def test_two_ranks_score_as_one(source: BoxSource) -> None:
    answers = truths(source)
    answers[3] = answers[3][:1]
    second = OneOfTwo(1)
    scored(known(*(answers[i] for i in second.process.shard(range(4)))), source, ranks=second)
    first = OneOfTwo(0, second.mine)

    both = scored(known(*(answers[i] for i in first.process.shard(range(4)))), source, ranks=first)

    alone = scored(known(*answers), source)
    assert both.scores == alone.scores and alone.scores.boxes.ap != 1
    assert [each.name for each in both.images] == [each.name for each in alone.images]


def test_a_view_is_stored_with_weights_and_read_back() -> None:
    assert DetectView.of_facts({"view": VIEW.facts()}) == VIEW
    assert DetectView.of_facts({}) is None
    assert CLASSES and "80 x 100" in VIEW.text()
