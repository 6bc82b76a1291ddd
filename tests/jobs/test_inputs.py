"""What --data may name besides a folder of pictures."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from mae.data.source import ArraySource
from mae.errors import DataError
from mae.jobs.embed import embed
from mae.jobs.inputs import open_source
from tests.data.test_tars import write_tar
from tests.jobs.conftest import write_classes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "pictures", "cat", "dog", count=2)


def test_a_list_of_paths_alone_has_no_labels(folder: Path) -> None:
    (folder / "list.csv").write_text("path\ndog/1.png\ncat/0.png\n")

    source = open_source(folder / "list.csv")

    assert source.labels is None and source.class_names == ()
    assert [source.name(i) for i in range(len(source))] == ["dog/1.png", "cat/0.png"]


def test_a_list_of_one_class_can_be_trained_on(folder: Path) -> None:
    (folder / "list.csv").write_text("dog/1.png,dog\ndog/0.png,dog\n")

    source = open_source(str(folder / "list.csv"))

    assert source.labels is not None and source.labels.tolist() == [0, 0]
    assert source.class_names == ("dog",)


def test_an_array_file_is_mapped_and_travels_as_its_path(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (500, 30, 41), dtype=np.uint16)
    np.save(tmp_path / "pictures.npy", pixels)

    source = open_source(tmp_path / "pictures.npy")
    parcel = pickle.dumps(source)

    assert isinstance(source, ArraySource)
    assert len(parcel) < 1000
    assert np.array_equal(pickle.loads(parcel).read(499)[..., 0], pixels[499])
    assert source.fingerprint() == ArraySource(pixels).fingerprint()
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4), np.uint8), "images: got an array of shape"),
        (np.zeros((2, 3, 4), np.int32), "images: got values of type int32"),
        (np.array([{}]), "pictures.npy cannot be read"),
    ],
)
def test_an_array_file_that_is_no_pictures_is_one_line(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "pictures.npy", array)

    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "pictures.npy")


def test_features_of_a_tar_are_those_of_its_folder(folder: Path, weights: Path) -> None:
    members = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*")}
    tar = write_tar(folder.parent / "all.tar", members)

    assert np.array_equal(embed(weights, tar), embed(weights, folder))
