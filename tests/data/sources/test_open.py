"""What --data may name besides a folder of images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.data.sources.open import open_source
from mae.data.sources.source import ArraySource
from mae.errors import DataError
from mae.evaluation.labelled_data import labelled
from mae.jobs.data_inspect import inspect_data
from mae.jobs.embed import embed, embed_to_file
from tests.data.sources.test_tars import write_tar
from tests.jobs.conftest import write_classes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", "cat", "dog", count=2)


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


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        (
            "a.csv",
            "image,class\ndog/1.png,dog\ncat/0.png,cat\n",
            "line 1 is taken for a heading (image, class)",
        ),
        ("a.csv", "dog/1.png;dog\ncat/0.png;cat\n", "cells are separated by semicolons"),
        ("a.csv", "\ufeffClass\tImage\r\ndog\tdog/1.png\r\ncat\tcat/0.png\r\n", "heading (Cl"),
        ("a.tsv", "dog/1.png\tdog\ncat/0.png\tcat\n", None),
        ("a.txt", "dog/1.png dog\ncat/0.png  cat\n", "cells are separated by blanks"),
        ("a.txt", '"dog/1.png",dog\n\ncat/0.png,cat', "cells are separated by commas"),
        ("a.LST", "dog/1.png\tdog\ncat/0.png\tcat\n", "a.LST: cells are separated by tabs"),
        ("a.csv", "id,image,fold,Label\n7,dog/1.png,0,dog\n8,cat/0.png,1,cat\n", "columns 2 and 4"),
    ],
)
def test_a_list_is_read_with_the_separator_and_heading_it_has(
    name: str, text: str, note: str | None, folder: Path
) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    said: list[str] = []

    source = open_source(folder / name, log=said.append)

    assert [source.name(i) for i in range(len(source))] == ["dog/1.png", "cat/0.png"]
    assert source.labels is not None and source.labels.tolist() == [1, 0]
    assert source.class_names == ("cat", "dog")
    if note is None:
        assert not said
    else:
        assert len(said) == 1 and note in said[0], said


@pytest.mark.parametrize("name", ["list.txt", "list.tsv", "list.csv"])
def test_a_list_of_paths_alone_needs_no_separator(name: str, folder: Path) -> None:
    (folder / "my dog, 1.png").write_bytes(b"x")
    (folder / name).write_text('dog/1.png\n"my dog, 1.png"\n')

    source = open_source(folder / name)

    assert [source.name(i) for i in range(2)] == ["dog/1.png", "my dog, 1.png"]
    assert source.labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n0001,cat\n", r"line 1: neither it nor the next one names a file: got \['id"),
        ("typo.png,cat\ndog/1.png,dog\n", "line 1: there is no .*/typo.png"),
        ("dog/1.png,dog,0\n", r"line 1: got dog/1.png, dog, 0; name the columns path and label"),
        ("a,b,c\ndog/1.png,dog,0\n", r"line 1: got a, b, c; name the columns"),
        ("path,fold,label\ndog/1.png,0,dog\ncat/0.png,cat\n", r"line 3: got .* expected 3 cells"),
        ("", "has no images"),
        ("\xff", "cannot be read: .*expected text in UTF-8"),
        ("path,label\n", "neither it nor the next one names a file"),
    ],
)
def test_a_list_that_is_not_plain_is_one_line_that_names_the_line(
    text: str, message: str, folder: Path
) -> None:
    (folder / "list.csv").write_text(text, encoding="latin-1")

    with pytest.raises(DataError, match=message) as caught:
        open_source(folder / "list.csv")

    assert "\n" not in str(caught.value) and str(caught.value).count("data: ") == 1


def test_lists_of_any_ending_are_labelled_data_with_the_one_for_testing_beside(
    folder: Path,
) -> None:
    (folder / "train.txt").write_text("dog/1.png dog\ncat/0.png cat\n")
    (folder / "val.txt").write_text("dog/0.png dog\n")
    (folder / "val.csv").write_text("cat/1.png;cat\n")

    by_list, by_folder = labelled(folder / "train.txt", seed=0), labelled(folder, seed=0)

    assert by_list.train.source.name(0) == "dog/1.png"
    assert by_list.test.source.name(0) == "dog/0.png" and len(by_list.test.ids) == 1
    assert len(by_folder.train.ids) + len(by_folder.test.ids) == 4  # those lists may be anything


def test_a_list_for_testing_of_another_separator_is_not_passed_over(folder: Path) -> None:
    (folder / "train.csv").write_text("dog/1.png,dog\ncat/0.png,cat\n")
    (folder / "val.csv").write_text("cat/1.png;cat\n")

    found = labelled(folder / "train.csv", seed=0)

    assert found.test.source.name(0) == "cat/1.png"


def test_a_tar_without_classes_says_which_label_is_missing(tmp_path: Path) -> None:
    members = {f"{i:06}.png": b"x" for i in range(24)}
    members |= {f"{i:06}.cls": b"1" for i in range(24) if i != 5}

    with pytest.raises(DataError, match=r"no classes.*1 of 24 images have no label.*: 000005\.png"):
        labelled(write_tar(tmp_path / "all.tar", members), seed=0)


def test_one_image_is_data(folder: Path, weights: Path, tmp_path: Path) -> None:
    source = open_source(folder / "dog" / "1.png")

    assert len(source) == 1 and source.name(0) == "1.png" and source.labels is None
    assert inspect_data(folder / "dog" / "1.png", quiet=True).looked_at == 1
    embedded = embed_to_file(weights, folder / "dog" / "1.png", out=tmp_path / "f.npy", quiet=True)
    assert embedded.images == 1


def test_a_file_of_another_kind_is_one_line_that_says_what_is_taken(folder: Path) -> None:
    (folder / "notes.docx").write_bytes(b"x")
    np.savez(folder / "many.npz", images=np.zeros((2, 9, 9), np.uint8))

    with pytest.raises(
        DataError, match=r"notes.docx ends in '.docx'; expected a folder, a list \("
    ):
        open_source(folder / "notes.docx")
    with pytest.raises(
        DataError, match=r"many.npz is compressed.*unzip -q \S+many.npz -d \S+many$"
    ):
        open_source(folder / "many.npz")


def test_what_a_tar_leaves_out_is_said_by_every_command(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*")}
    tar = write_tar(tmp_path / "all.tar", members)
    write_tar(tar, {"cat/0.png": members["cat/0.png"]}, "a")
    note = "all.tar: 1 repeated names, the last of each is used: cat/0.png"

    embed_to_file(weights, tar, out=tmp_path / "f.npy")
    found = inspect_data(tar, quiet=True)

    assert f"data: {note}\n" in capsys.readouterr().err
    assert found.values()["notes"] == [note]
    assert any(row[0].strip() == "note" for row in found.rows())


def test_an_array_file_is_mapped_and_travels_as_its_path(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (500, 30, 41), dtype=np.uint16)
    np.save(tmp_path / "images.npy", pixels)

    source = open_source(tmp_path / "images.npy")
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
        (np.zeros((3, 4), np.uint8), "images: got shape"),
        (np.zeros((2, 3, 4), np.int32), "images: got values of type int32"),
        (np.array([{}]), "images.npy: it cannot be read as an array"),
        (np.zeros((5, 3, 48, 40), np.uint8), r"B C H W; give images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((48, 40, 3), np.uint8), r"images.npy: images: .* give images\[None\]"),
    ],
)
def test_an_array_file_that_is_no_images_is_one_line(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", array)

    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "images.npy")


def test_a_tensor_as_training_data_is_one_line_that_says_how_to_give_it() -> None:
    with pytest.raises(DataError, match=r"got torch.Tensor, .* tensor.permute\(0, 2, 3, 1\)"):
        open_source(torch.zeros((5, 3, 48, 40), dtype=torch.uint8))  # type: ignore[arg-type]


def test_features_of_a_tar_are_those_of_its_folder(folder: Path, weights: Path) -> None:
    members = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*")}
    tar = write_tar(folder.parent / "all.tar", members)

    assert np.array_equal(embed(weights, tar), embed(weights, folder))
