"""Packs: what goes in comes out, whatever kills the packer; damage is named in one line."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.cli.main import main
from mae.config.run import AugmentConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.decoding.decode import BadImage
from mae.data.packing.writer import Packing
from mae.data.sources.open import open_source
from mae.data.sources.pack import PackSource, open_pack
from mae.data.sources.source import ArraySource, FolderSource, Source
from mae.data.survey import survey
from mae.errors import ConfigError, DataError
from mae.evaluation.labelled_data import labelled
from mae.jobs.data_pack import asked_form, pack
from mae.jobs.data_verify import verify
from tests.data.augment.test_crop import psnr
from tests.images import encoded, image, mixed_folder
from tests.jobs.conftest import write_classes


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", "cat", "dog", "été", count=3)


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


# What goes in comes out


def test_a_pack_gives_the_names_bytes_and_classes_of_its_folder(classes: Path) -> None:
    folder = FolderSource(classes)

    made = pack(classes, classes.parent / "pack", shard_bytes=9000, quiet=True)

    packed = open_source(classes.parent / "pack")
    assert isinstance(packed, PackSource)
    assert (made.images, made.added, made.classes) == (9, 9, 3)
    assert made.shards > 1
    assert names(packed) == names(folder)
    assert [packed.read(i) for i in range(9)] == [folder.read(i) for i in range(9)]
    assert packed.class_names == folder.class_names
    assert packed.labels is not None and folder.labels is not None
    assert packed.labels.tolist() == folder.labels.tolist()


def test_a_run_on_a_pack_sees_what_it_sees_on_the_folder(classes: Path) -> None:
    pack(classes, classes.parent / "pack", quiet=True)

    batches = []
    for source in (FolderSource(classes), open_source(classes.parent / "pack")):
        plan = BatchPlan(
            source=source, kind=survey(source), size=(16, 24), grid=(2, 3),
            augment=AugmentConfig(), batch=4, seed=3,
        )  # fmt: skip
        batches.append(training_batch(plan, 5))

    for found, expected in zip(batches[1][:4], batches[0][:4], strict=True):
        assert torch.equal(found, expected)


def test_the_shards_are_plain_tar_files(classes: Path) -> None:
    pack(classes, classes.parent / "pack", quiet=True)

    with tarfile.open(classes.parent / "pack" / "shard-00000.tar") as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]

    assert found == {
        str(path.relative_to(classes)): path.read_bytes() for path in classes.glob("*/*")
    }


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "mixed", count=40, broken=7)

    made = pack(tmp_path / "mixed", tmp_path / "pack", quiet=True)

    lines = (tmp_path / "pack" / "bad-files.tsv").read_text().splitlines()
    assert (made.images, made.unreadable) == (38, 2)
    assert sorted(line.partition("\t")[2] for line in lines) == [
        "no such file or directory",
        "not a file",
    ]
    assert len(verify(tmp_path / "pack", quiet=True).fingerprint) == 64


def test_images_of_which_none_can_be_read_make_no_pack(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").symlink_to("gone.jpg")

    with pytest.raises(DataError, match="none of 1 can be read.*a.jpg: no such file"):
        pack(tmp_path / "in", tmp_path / "pack", quiet=True)

    assert list(contents(tmp_path / "pack")) == ["lock"]


def test_a_pack_is_labelled_data(classes: Path) -> None:
    pack(classes, classes.parent / "pack", quiet=True)

    train, test, *_ = labelled(classes.parent / "pack", seed=0)

    assert train.source.class_names == ("cat", "dog", "été")
    assert len(train.ids) + len(test.ids) == 9 and len(test.ids) == 3


def test_images_in_memory_can_be_packed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 2), dtype=np.uint8)

    pack(ArraySource(pixels), tmp_path / "pack", quiet=True)

    stored = open_pack(tmp_path / "pack").read(2)
    assert isinstance(stored, bytes)
    assert np.array_equal(np.load(io.BytesIO(stored)), pixels[2])


# Smaller images


def test_the_short_side_is_reduced_and_small_images_stay_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    large = image(90, 131, seed=1)
    large.save(tmp_path / "in" / "large.png")
    small = encoded(image(40, 61), "JPEG")
    (tmp_path / "in" / "small.jpg").write_bytes(small)

    form = asked_form(short_side=60, quality=95, raw=None)
    pack(tmp_path / "in", tmp_path / "pack", form=form, quiet=True)

    packed = open_pack(tmp_path / "pack")
    stored = packed.stored(0)
    reduced = Image.open(io.BytesIO(stored))
    expected = large.resize((87, 60), Image.Resampling.BICUBIC)
    assert packed.stored(1) == small
    assert (reduced.format, reduced.size) == ("JPEG", (87, 60))
    assert len(stored) < (tmp_path / "in" / "large.png").stat().st_size / 4
    again = io.BytesIO(encoded(expected, "JPEG", quality=95, subsampling="4:2:0"))
    assert psnr(np.asarray(reduced), np.asarray(Image.open(again))) > 40


def test_raw_pixels_are_the_centre_as_pillow_resizes_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    original = image(50, 81, seed=2)
    original.save(tmp_path / "in" / "a.png")

    form = asked_form(short_side=None, quality=None, raw=24)
    pack(tmp_path / "in", tmp_path / "pack", form=form, quiet=True)

    pixels = open_pack(tmp_path / "pack").read(0)
    square = original.crop((15, 0, 65, 50)).resize((24, 24), Image.Resampling.BICUBIC)
    assert isinstance(pixels, np.ndarray) and pixels.shape == (24, 24, 3)
    assert psnr(pixels, np.asarray(square)) > 50


def test_small_raw_images_are_cropped_as_an_array_of_them_is(tmp_path: Path) -> None:
    packed = _raw_pack(tmp_path)
    array = ArraySource(np.stack([packed.read(i) for i in range(6)]))  # type: ignore[arg-type]

    of_pack, of_array = map(_batch_of, (packed, array))

    assert of_pack.images.shape == (6, 3, 16, 20)
    assert torch.equal(of_pack.images, of_array.images)


def test_a_file_that_another_thread_opens_as_well_stays_open_for_its_reader(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(classes, classes.parent / "pack", quiet=True)
    packed, read = open_pack(classes.parent / "pack"), os.pread
    whole = packed.stored(0)

    def late(*given: int) -> bytes:
        packed._open.clear()  # what the other thread's own file does to this one's
        return read(*given)

    monkeypatch.setattr(os, "pread", late)

    assert packed.stored(0) == whole


def test_a_raw_image_that_cannot_be_read_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    packed = _raw_pack(tmp_path)
    whole = _batch_of(packed)
    shard = next((tmp_path / "pack").glob("*.tar"))
    os.truncate(shard, packed.index.arrays["offsets"][5] + 9)

    cut = _batch_of(PackSource(tmp_path / "pack"))

    (bad,) = cut.bad
    same = [torch.equal(a, b) for a, b in zip(whole.images, cut.images, strict=True)]
    assert (bad.id, [int(i) for i in whole.ids[~torch.tensor(same)]]) == (5, [5])


def _raw_pack(root: Path) -> PackSource:
    (root / "in").mkdir()
    for i in range(6):
        image(40, 33, seed=i).save(root / "in" / f"{i}.png")
    form = asked_form(short_side=None, quality=None, raw=24)
    pack(root / "in", root / "pack", form=form, quiet=True)
    return open_pack(root / "pack")


def _batch_of(source: Source) -> Batch:
    plan = BatchPlan(source=source, kind=survey(source), size=(16, 20), grid=(4, 5),
                     augment=AugmentConfig(), batch=6, seed=3)  # fmt: skip
    return training_batch(plan, 2)


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pixels = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 50
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")

    for number, edges in enumerate(
        ({"short_side": 20, "raw": None}, {"short_side": None, "raw": 9})
    ):
        out = tmp_path / str(number)
        pack(tmp_path / "in", out, form=asked_form(quality=None, **edges), quiet=True)

        assert survey(open_pack(out)) == ("uint16", 1)


# Adding


def test_images_added_later_lie_where_they_would_have_been_packed(classes: Path) -> None:
    parts = classes.parent
    write_classes(parts / "more", "ant", "dog", count=4, seed=500)
    for path in (parts / "more").glob("dog/*"):
        path.rename(path.with_name(f"more {path.name}"))
    shutil.copytree(classes, parts / "both")
    shutil.copytree(parts / "more", parts / "both", dirs_exist_ok=True)
    pack(classes, parts / "pack", quiet=True)

    made = pack(parts / "more", parts / "pack", shard_bytes=5000, quiet=True)

    pack(parts / "both", parts / "at once", quiet=True)
    added, at_once = open_pack(parts / "pack"), open_pack(parts / "at once")
    assert (made.images, made.added) == (17, 8)
    assert names(added) == names(at_once) == names(FolderSource(parts / "both"))
    assert [added.read(i) for i in range(17)] == [at_once.read(i) for i in range(17)]
    assert added.class_names == at_once.class_names == ("ant", "cat", "dog", "été")
    assert added.fingerprint() == at_once.fingerprint() != made.pack
    assert verify(parts / "pack", quiet=True).images == 17


def test_packing_the_same_again_changes_nothing(classes: Path) -> None:
    out = classes.parent / "pack"
    pack(classes, out, quiet=True)
    before = contents(out)

    made = pack(classes, out, quiet=True)

    assert made.added == 0
    assert contents(out) == before and not (out / ".packing").exists()


@pytest.mark.parametrize("form", [{}, {"short_side": 20}])
def test_a_name_that_is_there_with_other_bytes_is_an_error(
    form: dict[str, int], classes: Path
) -> None:
    out = classes.parent / "pack"
    asked = asked_form(**{"short_side": None, "quality": None, "raw": None} | form)  # type: ignore[arg-type]
    pack(classes, out, form=asked, quiet=True)
    before = contents(out)
    image(33, 44, seed=77).save(classes / "dog" / "1.png")
    image(33, 44, seed=78).save(classes / "dog" / "new.png")

    with pytest.raises(DataError, match="dog/1.png is there with other bytes"):
        pack(classes, out, form=asked, quiet=True)

    assert contents(out) == before


def test_a_name_that_is_there_of_another_class_is_an_error(classes: Path) -> None:
    for name in ("one", "two"):
        lines = [f"{path.relative_to(classes)},{path.parent.name}" for path in classes.glob("*/*")]
        if name == "two":
            lines = [line.replace("cat/2.png,cat", "cat/2.png,dog") for line in lines]
        (classes / f"{name}.csv").write_text("\n".join(lines))
    pack(classes / "one.csv", classes.parent / "pack", quiet=True)

    with pytest.raises(DataError, match="cat/2.png is there as cat, not as dog"):
        pack(classes / "two.csv", classes.parent / "pack", quiet=True)


def test_what_does_not_fit_the_pack_is_refused(classes: Path) -> None:
    out = classes.parent / "pack"
    pack(classes, out, quiet=True)
    shutil.copytree(classes / "cat", classes.parent / "no classes")

    with pytest.raises(ConfigError, match="its images are originals, asked for raw 8"):
        form = asked_form(short_side=None, quality=None, raw=8)
        pack(classes, out, form=form, quiet=True)
    with pytest.raises(DataError, match="it has classes and the new images have none"):
        pack(classes.parent / "no classes", out, quiet=True)
    with pytest.raises(ConfigError, match="is not empty and not a pack: holds cat"):
        pack(classes.parent / "no classes", classes, quiet=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--quality 80", "quality: has no effect without --short-side"),
        ("--raw 8 --short-side 9", "raw: excludes --short-side"),
        ("--short-side 0", "short-side: expected at least 1 pixel, got 0"),
        ("--short-side 9 --quality 101", "quality: expected 1 to 100, got 101"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "pack", "x", str(tmp_path / "out"), *words.split()]) == 2

    assert message in capsys.readouterr().err


# Kills


def killed(data: Path, out: Path, *, kills: int, shard_bytes: int) -> dict[str, list[int]]:
    script = Path(__file__).with_name("killed_packer.py")
    words = [str(data), str(out), str(kills), "1", str(shard_bytes)]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_pack_killed_again_and_again_is_bit_for_bit_that_of_one_go(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(300):
        content = encoded(image(20, 30, seed=number % 10), "PNG") + bytes([number % 256])
        (tmp_path / "in" / f"{number}.png").write_bytes(content)

    counts = killed(tmp_path / "in", tmp_path / "killed", kills=4, shard_bytes=100_000)

    pack(tmp_path / "in", tmp_path / "one go", shard_bytes=100_000, quiet=True)
    assert counts["kept"] == sorted(counts["kept"]) and 0 < counts["kept"][-1] < 300
    assert contents(tmp_path / "killed") | {"lock": b""} == (
        contents(tmp_path / "one go") | {"lock": b""}
    )
    assert verify(tmp_path / "killed", quiet=True).images == 300


def test_an_unfinished_pack_is_no_data_and_other_images_begin_it_anew(classes: Path) -> None:
    out = classes.parent / "pack"
    pack(classes, out, quiet=True)
    (out / "index.safetensors").unlink()
    (out / ".packing").mkdir()

    with pytest.raises(DataError, match="was not finished; give the same `mae data pack` again"):
        open_source(out)
    shutil.rmtree(classes / "dog")
    assert pack(classes, out, quiet=True).images == 6
    assert verify(out, quiet=True).images == 6


class Died(Exception):
    """Stands for a kill between two images."""


def test_images_that_changed_since_a_kill_begin_the_pack_anew(
    classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = classes.parent / "pack"

    def commit_and_die(packing: Packing) -> None:
        commit(packing)
        raise Died

    commit = Packing.commit
    with monkeypatch.context() as patch:
        patch.setattr(Packing, "commit", commit_and_die)
        with pytest.raises(Died):
            pack(classes, out, quiet=True)
    image(33, 44, seed=77).save(classes / "dog" / "1.png")

    pack(classes, out)

    assert "starting over: the images changed since" in capsys.readouterr().err
    packed = open_pack(out)
    assert packed.read(4) == (classes / "dog" / "1.png").read_bytes()
    assert len(packed.index.info.shards) == 1
    assert verify(out, quiet=True).images == 9


def test_an_image_that_only_a_later_start_could_read_takes_its_place(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, denied = classes.parent / "pack", {"cat/1.png"}

    def read(source: FolderSource, index: int) -> bytes:
        if source.name(index) in denied:
            raise BadImage("input/output error")
        return read_any(source, index)

    read_any = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", read)
    with monkeypatch.context() as patch:
        patch.setattr(Packing, "publish", lambda *given, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(classes, out, quiet=True)
    denied.clear()

    made = pack(classes, out, quiet=True)

    assert (made.images, made.added, made.unreadable) == (9, 9, 0)
    assert names(open_pack(out)) == names(FolderSource(classes))
    assert verify(out, quiet=True).images == 9


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = classes.parent / "pack"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
            pack(classes, out, quiet=True)

    assert not (out / "index.safetensors").exists()
    assert pack(classes, out, quiet=True).images == 9
    assert verify(out, quiet=True).images == 9


# Damage


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that fails in one line, and give that line."""
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def cut(out: Path) -> None:
    shard = out / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:900])


def remove(out: Path) -> None:
    (out / "shard-00001.tar").unlink()


def flip(out: Path) -> None:
    shard = out / "shard-00001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 4
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "opened", "verified"),
    [
        (cut, "shard-00001.tar has 900 bytes, expected", "ends before the image does"),
        (remove, "shard-00001.tar: no such file", "shard-00001.tar: no such file"),
        (flip, None, "other bytes than were packed"),
    ],
)
def test_damaged_shards_are_named_in_one_line(
    harm: object, opened: str | None, verified: str, classes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = classes.parent / "pack"
    pack(classes, out, shard_bytes=1, quiet=True)

    harm(out)  # type: ignore[operator]

    line = said(["data", "verify", str(out), "--quiet"], capsys)
    assert "1 of 9 images are damaged: cat/1.png" in line and verified in line
    if opened is not None:
        line = said(["pretrain", "--data", str(out), "--out", str(out.parent / "run")], capsys)
        assert opened in line
        assert not (out.parent / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"version": "1"', b'"version": "9"', "version 9, expected 1"),
        (b'"format": "mae pack"', b'"format": "mae sack"', "not an index of images"),
        (b"cat", b"cut", "cannot be used"),
        (b"cat/1.png", b"cat/9.png", "is damaged (names)"),
        (b"{", b"[", "cannot be used"),
    ],
)
def test_a_damaged_index_and_one_of_another_version_are_one_line(
    old: bytes, new: bytes, message: str, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(classes, classes.parent / "pack", quiet=True)
    index = classes.parent / "pack" / "index.safetensors"
    content = index.read_bytes()
    blob = content.replace(b"cat/0.pngcat/1.png", b"cat/0.png" + new) if b"/" in new else None
    index.write_bytes(blob or content.replace(old, new, 1))

    assert message in said(["data", "verify", str(classes.parent / "pack")], capsys)


def test_an_index_cut_short_is_one_line(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(classes, classes.parent / "pack", quiet=True)
    index = classes.parent / "pack" / "index.safetensors"
    index.write_bytes(index.read_bytes()[:-5])

    assert "cannot be used" in said(["data", "verify", str(classes.parent / "pack")], capsys)


def test_what_is_no_pack_is_not_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no pack" in said(["data", "verify", str(tmp_path)], capsys)
