from pathlib import Path

import numpy as np

from mae.data.sources.source import ArraySource, FolderSource
from mae.data.sources.subset import subset
from tests.jobs.conftest import write_classes


def test_a_subset_of_files_keeps_names_labels_and_classes(tmp_path: Path) -> None:
    source = FolderSource(write_classes(tmp_path / "d", "a", "b", "c", count=2))

    part = subset(source, np.array([5, 0]))

    assert len(part) == 2 and [part.name(i) for i in range(2)] == ["c/1.png", "a/0.png"]
    assert part.labels is not None and part.labels.tolist() == [2, 0]
    assert part.class_names == ("a", "b", "c")
    assert part.read(0) == source.read(5)


def test_images_in_memory_stay_in_memory() -> None:
    images = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3, 1)
    source = ArraySource(images, labels=np.array([0, 1, 0, 1]), class_names=("a", "b"))

    part = subset(source, np.array([3, 1]))

    assert isinstance(part, ArraySource) and part.class_names == ("a", "b")
    assert np.array_equal(part.images, images[[3, 1]])
    assert part.labels is not None and part.labels.tolist() == [1, 1]


def test_all_of_a_source_is_the_source(tmp_path: Path) -> None:
    source = FolderSource(write_classes(tmp_path / "d", "a", "b", count=2))

    assert subset(source, np.arange(4)) is source
    assert subset(source, np.array([0, 1, 3, 2])) is not source


def test_other_images_have_another_fingerprint(tmp_path: Path) -> None:
    source = FolderSource(write_classes(tmp_path / "d", "a", "b", count=2))

    first, again, other = (subset(source, np.array(ids)).fingerprint() for ids in ([0], [0], [1]))

    assert first == again != other
