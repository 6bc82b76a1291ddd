"""Tar files as they are: names, labels and bytes at random, by an index that is made once."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from mae.data.sources.open import open_source
from mae.data.sources.pack import PackSource
from mae.data.sources.pack_index import IndexInfo, whole, write_index
from mae.data.sources.source import FolderSource
from mae.data.sources.tars import is_tars, open_tars
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
        "b.jpg": b"image b",
        "b.cls": b"10",
        "b.txt": b"a bee",
        "a.png": b"a",
        "a.cls": b"2\n",
    }
    write_tar(root / "train-0001.tar", {"c.seg.jpg": b"c", "c.json": b'{"label": 2, "url": "x"}'})
    write_tar(root / "train-0000.tar", first)
    return root


def test_webdataset_shards_give_images_with_labels(shards: Path) -> None:
    source = open_tars(shards)

    assert names(source) == [
        "train-0000.tar/a.png",
        "train-0000.tar/b.jpg",
        "train-0001.tar/c.seg.jpg",
    ]
    assert [source.read(index) for index in (2, 0, 1)] == [b"c", b"a", b"image b"]
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


def test_blanks_around_labels_in_a_tar_are_cut(tmp_path: Path) -> None:
    members = {"1.jpg": b"1", "1.json": b'{"label": "a "}', "2.jpg": b"2", "2.cls": b" a\n"}
    members |= {"3.jpg": b"3", "3.json": b'{"cls": "b"}'}

    source = open_tars(write_tar(tmp_path / "all.tar", members))

    assert source.class_names == ("a", "b")


def test_labels_that_some_lack_are_none(tmp_path: Path) -> None:
    members = {"a.jpg": b"a", "a.cls": b"1", "b.jpg": b"b", "b.json": json.dumps([1]).encode()}

    source = open_tars(write_tar(tmp_path / "all.tar", members))

    assert source.labels is None and source.class_names == ()


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "all.tar", {"a.jpg": b"first"})
    write_tar(tmp_path / "all.tar", {"a.jpg": b"second"}, "a")

    source = open_tars(tmp_path / "all.tar")

    assert names(source) == ["a.jpg"] and source.read(0) == b"second"
    assert source.notes == ("all.tar: 1 repeated names, the last of each is used: a.jpg",)
    assert open_tars(tmp_path / "all.tar").notes == source.notes  # by the index


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n.jpg")
    with tarfile.open(tmp_path / "all.tar", "w", errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo(name))

    assert names(open_tars(tmp_path / "all.tar")) == ["\\udcff\\n.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "all.tar cannot be read as tar"),
        (b"\x1f\x8b" + bytes(600), "gzip -dc .*/all.tar > .*/unpacked-all.tar$"),
        (None, "no images in .*all.tar: expected members ending in"),
    ],
)
def test_what_is_no_tar_of_images_is_one_line(
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


def test_a_folder_with_images_or_folders_beside_is_no_folder_of_tars(shards: Path) -> None:
    assert is_tars(shards) and is_tars(shards / "train-0000.tar")
    (shards / "sizes.json").write_text("{}")
    assert is_tars(shards)

    (shards / "a.jpg").write_bytes(b"x")

    assert not is_tars(shards) and not is_tars(shards.parent)


def linked_folder(root: Path) -> Path:
    """Write images of different bytes and links of every sort to them."""
    folder = root / "data"
    (folder / "deep/er").mkdir(parents=True)
    (root / "outside.png").write_bytes(b"outside")
    for name in ("a.png", "deep/b.png", "deep/er/c.png"):
        (folder / name).write_bytes(name.encode())
    (folder / "blob").write_bytes(b"of no ending")
    os.link(folder / "a.png", folder / "hard.png")
    os.link(folder / "deep/b.png", folder / "deep/er/hard.png")
    for name, target in {
        "soft.png": "a.png",
        "deep/up.png": "../a.png",
        "chain.png": "deep/up.png",
        "of-hard.png": "hard.png",
        "to-blob.png": "./blob",
        "linked": "deep",
        "through.png": "linked/er/c.png",
        "deep/er/back": "..",
        "deep/loop": "../linked",
        "itself.png": "itself.png",
        "absent.png": "nowhere.png",
        "out.png": "../outside.png",
        "absolute.png": str(root / "outside.png"),
        "out": "..",
    }.items():
        (folder / name).symlink_to(target)
    return folder


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
def test_links_in_a_tar_are_what_they_are_where_tar_unpacks_it(tmp_path: Path) -> None:
    folder = linked_folder(tmp_path)
    subprocess.run(["tar", "cf", tmp_path / "all.tar", "-C", folder, "."], check=True)
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "all.tar", "-C", tmp_path / "unpacked"], check=True)
    (tmp_path / "unpacked/out").unlink()  # it would list what lies beside

    source, expected = open_tars(tmp_path / "all.tar"), FolderSource(tmp_path / "unpacked")

    gone = {"absent.png", "absolute.png", "itself.png", "out.png"}
    there = [i for i in range(len(expected)) if expected.name(i) not in gone]
    assert names(source) == [expected.name(i) for i in there]
    assert [source.read(i) for i in range(len(source))] == [expected.read(i) for i in there]
    assert {"linked/er/hard.png", "through.png", "to-blob.png"} < {*names(source)}
    (note,) = source.notes
    assert note.startswith("all.tar: 5 left out: ") and note.endswith(" and 2 more")
    assert "which leads to nothing in the tar file" in note


def add_link(tar: tarfile.TarFile, name: str, target: str, sort: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = sort, target
    tar.addfile(info)


def test_a_hard_link_keeps_what_its_name_held_then(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "all.tar", {"a.jpg": b"first"})
    with tarfile.open(path, "a") as tar:
        add_link(tar, "hard.jpg", "a.jpg", tarfile.LNKTYPE)
        add_link(tar, "early.jpg", "later.jpg", tarfile.LNKTYPE)
        add_link(tar, "soft.jpg", "a.jpg", tarfile.SYMTYPE)
    write_tar(path, {"a.jpg": b"second", "later.jpg": b"x"}, "a")

    source = open_tars(path)

    read = {source.name(i): source.read(i) for i in range(len(source))}
    assert read == {
        "a.jpg": b"second", "hard.jpg": b"first", "soft.jpg": b"second", "later.jpg": b"x"
    }  # fmt: skip
    assert (
        "early.jpg (a hard link to later.jpg, which is not before it in the tar)" in source.notes[0]
    )


def test_linked_images_and_labels_of_a_webdataset_shard_count(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.jpg": b"a", "a.cls": b"7", "b.jpg": b"b"})
    with tarfile.open(path, "a") as tar:
        add_link(tar, "b.cls", "a.cls", tarfile.LNKTYPE)
        add_link(tar, "c.jpg", "b.jpg", tarfile.SYMTYPE)
        add_link(tar, "c.cls", "d.cls", tarfile.SYMTYPE)
    write_tar(path, {"d.jpg": b"d", "d.cls": b"3"}, "a")

    source = open_tars(path)

    assert names(source) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"] and source.read(2) == b"b"
    assert source.labels is not None and source.labels.tolist() == [1, 1, 0, 0]
    assert source.class_names == ("3", "7") and source.notes == ()


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
def test_a_sparse_member_is_left_out_and_named(tmp_path: Path) -> None:
    with (tmp_path / "holes.npy").open("wb") as file:
        file.write(b"head")
        file.truncate(2**20)
    (tmp_path / "a.jpg").write_bytes(b"a")
    command = ["tar", "cSf", tmp_path / "all.tar", "-C", tmp_path, "a.jpg", "holes.npy"]
    subprocess.run(command, check=True)

    source = open_tars(tmp_path / "all.tar")

    assert names(source) == ["a.jpg"]
    assert source.notes == (
        "all.tar: 1 left out: holes.npy (stored sparse; make the tar without --sparse)",
    )


def test_a_tar_of_links_out_of_it_says_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        add_link(tar, "cats", "/data/cats", tarfile.SYMTYPE)

    with pytest.raises(DataError, match=r"no images in .*1 left out: cats \(a link to /data/cats"):
        open_tars(tmp_path / "all.tar")


def test_an_index_made_when_links_were_left_out_is_made_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "all.tar", {"a.jpg": b"a"})
    index = tmp_path / ".all.tar.mae-index.safetensors"
    status = path.stat()
    old = json.dumps([["all.tar", status.st_size, status.st_mtime_ns]])
    columns = {name: whole(array) for name, array in open_tars(path).index.arrays.items()}
    write_index(index, columns, IndexInfo((("all.tar", 0),), stamp=old))

    assert names(open_tars(path)) == ["a.jpg"]


def test_a_label_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    members = {f"{i:06}.png": b"x" for i in range(24)}
    members |= {f"{i:06}.cls": b"1" for i in range(22) if i != 5}
    members |= {"000022.json": b'{"label": 2}', "000023.json": b'{"label": 2'}

    source = open_tars(write_tar(tmp_path / "all.tar", members))

    assert source.labels is None
    broken, without = source.notes
    assert broken.startswith("all.tar: 1 not JSON: 000023.json (Expecting ")
    assert without == (
        "labels: 2 of 24 images have no label, so those of the others are not used: "
        "000005.png, 000023.png"
    )


def test_captions_without_labels_are_no_fault(tmp_path: Path) -> None:
    members = {"a.jpg": b"a", "a.json": b'{"caption": "a bee"}', "a.txt": b"a bee"}

    assert open_tars(write_tar(tmp_path / "all.tar", members)).notes == ()


def test_dots_in_names_take_the_label_of_the_same_name_before_that_of_the_key(
    tmp_path: Path,
) -> None:
    own = {"img.000.png": b"0", "img.000.cls": b"4", "img.001.png": b"1", "img.001.cls": b"5"}
    key = {
        "img.000.png": b"0",
        "img.001.png": b"1",
        "img.cls": b"6",
        "b.seg.png": b"b",
        "b.cls": b"7",
    }

    by_own = open_tars(write_tar(tmp_path / "own.tar", own))
    by_key = open_tars(write_tar(tmp_path / "key.tar", key))

    assert by_own.class_names == ("4", "5") and by_own.notes == ()
    assert by_own.labels is not None and by_own.labels.tolist() == [0, 1]
    assert by_key.labels is not None and by_key.labels.tolist() == [1, 0, 0]
    assert by_key.notes == (
        "key.tar: 2 images have no label file of their own name and share that of their key, "
        "which ends at the first dot: img.000.png, img.001.png",
    )


@pytest.mark.parametrize(
    ("name", "tool"),
    [("a.tar.gz", "gzip"), ("a.tgz", "gzip"), ("a b.tar.xz", "xz"), ("a.tar.bz2", "bzip2")],
)
def test_a_compressed_tar_is_refused_with_the_command_that_unpacks_it(
    name: str, tool: str, tmp_path: Path
) -> None:
    mode = {"gzip": "w:gz", "xz": "w:xz", "bzip2": "w:bz2"}[tool]
    path = write_tar(tmp_path / name, {"a.jpg": b"a"}, mode)

    with pytest.raises(DataError, match="is compressed") as caught:
        open_source(path)
    command = str(caught.value).partition("unpack it: ")[2]

    assert "\n" not in str(caught.value) and command.startswith(f"{tool} -dc ")
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool}")
    subprocess.run(command, shell=True, check=True)
    target = path.with_name(re.split(r"\.t", name)[0] + ".tar")
    assert names(open_tars(target)) == ["a.jpg"]


def test_a_folder_of_compressed_tars_is_refused_until_each_is_unpacked(shards: Path) -> None:
    for name in ("train-0000", "train-0001"):
        write_tar(shards / f"{name}.tar.gz", {"x.jpg": b"x"}, "w:gz")
    assert len(open_tars(shards)) == 3

    (shards / "train-0001.tar").unlink()

    with pytest.raises(DataError, match=r"train-0001\.tar\.gz is compressed; unpack it: "):
        open_source(shards)
    (shards / "train-0000.tar").unlink()
    with pytest.raises(DataError, match=r"train-0000\.tar\.gz is compressed, and 1 more are"):
        open_source(shards)
