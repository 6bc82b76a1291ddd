"""Tar files as they are: names, labels and bytes at random, by an index that is made once."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from mae.data.packed import PackSource
from mae.data.tars import is_tars, open_tars
from mae.errors import DataError


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def names(source: PackSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    root.mkdir()
    first = {
        "b.jpg": b"picture b",
        "b.cls": b"10",
        "b.txt": b"a bee",
        "a.png": b"a",
        "a.cls": b"2\n",
    }
    write_tar(root / "train-0001.tar", {"c.seg.jpg": b"c", "c.json": b'{"label": 2, "url": "x"}'})
    write_tar(root / "train-0000.tar", first)
    return root


def test_webdataset_shards_give_pictures_with_labels(shards: Path) -> None:
    source = open_tars(shards)

    assert names(source) == [
        "train-0000.tar/a.png",
        "train-0000.tar/b.jpg",
        "train-0001.tar/c.seg.jpg",
    ]
    assert [source.read(index) for index in (2, 0, 1)] == [b"c", b"a", b"picture b"]
    assert source.class_names == ("2", "10")
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0]


def test_shards_are_indexed_once_until_they_change(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_tars(shards).fingerprint()

    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert open_tars(shards).fingerprint() == before
    write_tar(shards / "train-0001.tar", {"d.jpg": b"dd", "d.cls": b"2"})
    again = open_tars(shards)

    assert again.fingerprint() != before
    assert names(again)[2] == "train-0001.tar/d.jpg" and again.read(2) == b"dd"


def test_the_index_goes_to_the_cache_where_it_cannot_lie_beside(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(shards.parent / "cache"))
    (shards / ".mae-index.safetensors").mkdir()

    source = open_tars(shards)

    assert len(list((shards.parent / "cache" / "mae").iterdir())) == 1
    assert pickle.loads(pickle.dumps(source)).read(0) == b"a"


def test_folders_in_a_tar_are_classes_as_those_on_a_disk_are(tmp_path: Path) -> None:
    members = {"./dog/1.jpg": b"d", "./cat/2.jpg": b"c", "./cat/._2.jpg": b"x", "./readme": b"x"}

    source = open_tars(write_tar(tmp_path / "all.tar", members))

    assert names(source) == ["cat/2.jpg", "dog/1.jpg"]
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None and source.labels.tolist() == [0, 1]


def test_labels_that_some_lack_are_none(tmp_path: Path) -> None:
    members = {"a.jpg": b"a", "a.cls": b"1", "b.jpg": b"b", "b.json": json.dumps([1]).encode()}

    source = open_tars(write_tar(tmp_path / "all.tar", members))

    assert source.labels is None and source.class_names == ()


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "all.tar", {"a.jpg": b"first"})
    write_tar(tmp_path / "all.tar", {"a.jpg": b"second"}, "a")

    source = open_tars(tmp_path / "all.tar")

    assert names(source) == ["a.jpg"] and source.read(0) == b"second"


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n.jpg")
    with tarfile.open(tmp_path / "all.tar", "w", errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo(name))

    assert names(open_tars(tmp_path / "all.tar")) == ["\\udcff\\n.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "all.tar cannot be read as tar"),
        (b"\x1f\x8b" + bytes(600), "unpack it if it is compressed"),
        (None, "no pictures in .*all.tar: expected members ending in"),
    ],
)
def test_what_is_no_tar_of_pictures_is_one_line(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "all.tar", {"notes.txt": b"x"})
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match=message) as caught:
        open_tars(path)

    assert "\n" not in str(caught.value)


def test_a_tar_cut_short_is_one_line(shards: Path) -> None:
    path = write_tar(shards / "train-0002.tar", {"e.jpg": bytes(9000)})
    path.write_bytes(path.read_bytes()[:5000])

    with pytest.raises(DataError, match="train-0002.tar cannot be read as tar"):
        open_tars(shards)


def test_a_folder_with_pictures_or_folders_beside_is_no_folder_of_tars(shards: Path) -> None:
    assert is_tars(shards) and is_tars(shards / "train-0000.tar")
    (shards / "sizes.json").write_text("{}")
    assert is_tars(shards)

    (shards / "a.jpg").write_bytes(b"x")

    assert not is_tars(shards) and not is_tars(shards.parent)
