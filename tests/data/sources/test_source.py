"""Folders and arrays as sources: what is found, in which order, and what is said otherwise."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from mae.data.decoding.decode import BadImage
from mae.data.sources.source import ArraySource, FolderSource
from mae.errors import DataError
from tests.images import mixed_folder


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def names(source: FolderSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_images_are_sorted_bytewise_by_relative_path(tmp_path):
    fill(tmp_path, "b.JPG", "a/z.png", "a b/été 7.webp", "B.jpeg", "a.tif", "c/d/e.npy")

    source = FolderSource(tmp_path)

    assert names(source) == ["B.jpeg", "a b/été 7.webp", "a.tif", "a/z.png", "b.JPG", "c/d/e.npy"]
    assert source.read(2) == b"a.tif"


def test_hidden_and_other_files_are_left_out(tmp_path):
    fill(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".git/c.jpg", "notes.txt", "jpg", "d.jpg.bak")

    assert names(FolderSource(tmp_path)) == ["a.jpg"]


def test_folders_of_the_first_level_are_the_classes(tmp_path):
    fill(tmp_path, "dog/1.jpg", "cat/2.jpg", "cat/young/3.jpg", "readme.txt")

    source = FolderSource(tmp_path)

    assert source.class_names == ("cat", "dog")
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "layout", [("cat/1.jpg", "cat/2.jpg"), ("cat/1.jpg", "dog/2.jpg", "3.jpg")]
)
def test_one_folder_or_a_loose_image_makes_no_classes(tmp_path, layout):
    source = FolderSource(fill(tmp_path, *layout))

    assert source.labels is None
    assert source.class_names == ()


def test_links_are_followed_and_loops_end(tmp_path):
    fill(tmp_path, "data/a.jpg", "data/deep/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/deep/up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    (tmp_path / "data/itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "data/file.jpg").symlink_to("a.jpg")

    found = names(FolderSource(tmp_path / "data"))

    assert found == ["a.jpg", "deep/b.jpg", "file.jpg", "itself.jpg", "linked/c.jpg"]


def test_files_can_be_named_one_by_one_and_keep_their_order(tmp_path):
    fill(tmp_path, "x/b.jpg", "y/a.jpg", "noend")

    source = FolderSource.of_files(
        [tmp_path / "y/a.jpg", str(tmp_path / "x/b.jpg"), tmp_path / "noend"]
    )

    assert source.labels is None
    assert [source.read(index) for index in range(3)] == [b"y/a.jpg", b"x/b.jpg", b"noend"]


def test_a_named_file_that_is_missing_is_an_error_with_similar_names(tmp_path):
    fill(tmp_path, "kitten.jpg")

    with pytest.raises(DataError, match=r"no file .*/kiten\.jpg.*kitten\.jpg"):
        FolderSource.of_files([tmp_path / "kiten.jpg"])
    with pytest.raises(DataError, match="no files"):
        FolderSource.of_files([])


def test_a_missing_folder_names_the_nearest_and_similar_ones(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError) as error:
        FolderSource("imags/train")

    message = str(error.value)
    assert f"no folder {tmp_path}/imags/train" in message
    assert f"nearest folder is {tmp_path}, which has images" in message
    assert "\n" not in message


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path):
    fill(tmp_path, "a.jpg")

    with pytest.raises(DataError, match=r"a\.jpg is not a folder"):
        FolderSource(tmp_path / "a.jpg")


def test_an_empty_folder_says_what_was_found(tmp_path):
    fill(tmp_path, "a.txt", "b.txt", "sub/c.csv", ".d.jpg")

    with pytest.raises(DataError) as error:
        FolderSource(tmp_path)

    message = str(error.value)
    for part in (str(tmp_path), "2 .txt", "1 .csv", "1 hidden", "1 folder", ".jpeg .jpg .npy"):
        assert part in message
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="found nothing"):
        FolderSource(tmp_path / "none")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    fill(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)

    with pytest.raises(DataError, match="locked: permission denied"):
        FolderSource(tmp_path)


def test_what_cannot_be_read_is_a_bad_image_with_its_reason(tmp_path):
    fill(tmp_path, "a.jpg", "gone.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(2**32 + 1)
    source = FolderSource(tmp_path)
    (tmp_path / "gone.jpg").unlink()

    reasons = {}
    for index in range(len(source)):
        try:
            source.read(index)
        except BadImage as error:
            reasons[source.name(index)] = str(error)

    assert reasons == {
        "dangling.jpg": "no such file or directory",
        "folder.jpg": "not a file",
        "gone.jpg": "no such file or directory",
        "pipe.jpg": "not a file",
        "sparse.jpg": "too large (4294967297 bytes, at most 4294967296)",
    }


def test_a_folder_named_like_an_image_counts_only_if_it_holds_none(tmp_path):
    fill(tmp_path, "a.jpg", "full.jpg/b.jpg", "deep.jpg/c/d.jpg")
    (tmp_path / "empty.jpg").mkdir()

    assert names(FolderSource(tmp_path)) == [
        "a.jpg",
        "deep.jpg/c/d.jpg",
        "empty.jpg",
        "full.jpg/b.jpg",
    ]


def test_names_print_on_one_line(tmp_path):
    (tmp_path / "a\nb\t.jpg").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")

    source = FolderSource(tmp_path)

    assert names(source) == ["a\\nb\\t.jpg", "\\udcff.jpg"]
    assert source.read(1) == b"x"


def test_fingerprint_is_of_relative_names_and_sizes(tmp_path):
    first = FolderSource(fill(tmp_path / "one", "a.jpg", "b/c.jpg")).fingerprint()
    second = FolderSource(fill(tmp_path / "elsewhere/two", "a.jpg", "b/c.jpg")).fingerprint()
    renamed = FolderSource(fill(tmp_path / "three", "a.jpg", "b/d.jpg")).fingerprint()
    (tmp_path / "one/a.jpg").write_bytes(b"longer than before")
    grown = FolderSource(tmp_path / "one").fingerprint()

    assert first == second == hashlib.sha256(b"a.jpg\x005\nb/c.jpg\x007\n").hexdigest()
    assert len({first, renamed, grown}) == 3


def test_a_source_travels_to_another_process(tmp_path):
    source = FolderSource(fill(tmp_path, "cat/a.jpg", "dog/b.jpg"))

    copy = pickle.loads(pickle.dumps(source))

    assert names(copy) == names(source)
    assert copy.read(1) == b"dog/b.jpg"


def test_every_image_of_a_mixed_folder_is_listed(tmp_path):
    broken = mixed_folder(tmp_path, count=40, broken=7)

    source = FolderSource(tmp_path)

    assert len(source) == 40
    assert set(broken) <= set(names(source))
    assert source.labels is None


def test_an_array_is_a_source_of_its_images():
    images = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)

    source = ArraySource(images, labels=np.array([1, 0], dtype=np.uint8), class_names=("a", "b"))

    assert len(source) == 2
    assert source.images.shape == (2, 3, 5, 1)
    assert source.labels is not None and source.labels.dtype == np.int64
    assert np.array_equal(source.read(1)[..., 0], images[1])
    assert source.name(1) == "image 1"


def test_the_fingerprint_of_an_array_follows_pixels_and_labels():
    images = np.zeros((2, 3, 5, 3), dtype=np.uint8)
    changed = images.copy()
    changed[1, 2, 4, 0] = 1
    labels = np.array([0, 1])

    digests = [
        ArraySource(images).fingerprint(),
        ArraySource(changed).fingerprint(),
        ArraySource(images, labels=labels).fingerprint(),
        ArraySource(images, labels=1 - labels).fingerprint(),
        ArraySource(images.astype(np.uint16)).fingerprint(),
    ]

    assert len(set(digests)) == 5
    assert ArraySource(images.copy()).fingerprint() == digests[0]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((3, 5), np.uint8), r"shape \(3, 5\)"),
        (np.zeros((0, 3, 5), np.uint8), "not empty"),
        (np.zeros((2, 3, 5), np.int64), "int64.*Convert"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(images, words):
    with pytest.raises(DataError, match=words):
        ArraySource(images)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((48, 40, 3), r"one image H W C; give images\[None\]"),
        ((3, 48, 40), r"C H W; for one image C H W give images.transpose\(1, 2, 0\)\[None\]"),
        ((5, 3, 48, 40), r"B C H W; give images.transpose\(0, 2, 3, 1\)"),
        ((5, 1, 28, 28), "B C H W"),
        ((5, 12, 32, 32), "B C H W"),
    ],
)
def test_an_array_whose_axes_are_hardly_those_expected_is_refused(shape, words):
    with pytest.raises(DataError, match=words):
        ArraySource(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "shape", [(48, 40, 5), (4, 48, 40), (3, 48, 40, 1), (5, 48, 40, 12), (5, 9, 9, 64)]
)
def test_arrays_of_any_number_of_channels_in_the_last_axis_are_taken(shape):
    assert len(ArraySource(np.zeros(shape, np.uint8))) == shape[0]


def test_labels_of_another_number_are_refused():
    with pytest.raises(DataError, match=r"got shape \(3,\), expected \(2,\)"):
        ArraySource(np.zeros((2, 3, 5), np.uint8), labels=np.array([1, 2, 3]))
