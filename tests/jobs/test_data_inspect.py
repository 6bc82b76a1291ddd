"""A folder of images looked at as a run would: every fact is right, and nothing is touched."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
import tifffile
from benchmarks.memory import saved_bytes
from PIL import Image

import mae.jobs.data_inspect as job
from mae.cli.main import main
from mae.config.objective import ObjectiveConfig
from mae.config.run import PretrainConfig
from mae.data.decoding.decode import PixelKind, decode
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError, DataError
from mae.evaluation.labelled_data import labelled
from mae.jobs.data_inspect import Inspected, inspect_data
from mae.model.create import create
from mae.planning.estimate import LEARNT_STEPS, Estimate
from mae.planning.hardware import this_machine
from mae.report.tables import report_of
from tests.bad_images import BAD, MAYBE_SOUND, npy, write_bad, write_good
from tests.boxes import coco_of, write_images
from tests.data.decoding.test_tiff import tiff
from tests.images import encoded, image, mixed_folder, photo, png_bomb
from tests.jobs.conftest import write_classes
from tests.jobs.kill_storm import CONFIG
from tests.model.tiny import tiny_config
from tests.report.test_page import Page

RECIPE = replace(CONFIG, steps=None, epochs=20, batch=8)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the measured rate: four images a second."""

    def step_seconds(config: PretrainConfig, *args: Any, **more: Any) -> float:
        return config.batch / 4

    monkeypatch.setattr("mae.train.measure.step_seconds", step_seconds)


def look(folder: Path, **options: Any) -> Inspected:
    return inspect_data(folder, recipe=RECIPE, quiet=True, **options)


def pretrain_rows(found: Inspected) -> dict[str, str]:
    title = "what mae pretrain would do"
    return dict(next(section.rows for section in found.sections() if section.title == title))


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_mean_and_deviation_are_those_of_all_pixels_in_numpy(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=16, broken=2)

    values = look(tmp_path).values()

    source, kind, planes = FolderSource(tmp_path), PixelKind("uint16", 3), []
    for index in range(len(source)):
        if source.name(index) not in values["broken"]:
            planes.append(decode(source.read(index), kind=kind).reshape(-1, 3))
    pixels = np.concatenate(planes).astype(np.float64)
    assert values["mean"] == pytest.approx(pixels.mean(axis=0), rel=1e-14)
    assert values["std"] == pytest.approx(pixels.std(axis=0), rel=1e-12)


def test_every_fact_of_a_mixed_folder_is_said(tmp_path: Path) -> None:
    broken = mixed_folder(tmp_path, count=40, broken=7)
    before = tree(tmp_path)

    found = look(tmp_path)

    values = json.loads(json.dumps(found.values()))
    assert (values["count"], values["looked_at"], values["readable"]) == (40, 40, 33)
    assert sorted(values["broken"] | values["unfit"]) == sorted(broken)
    assert list(values["unfit"].values()) == ["too large (900000000 pixels, at most 134217728)"]
    assert sum(values["formats"].values()) == 33 and {"JPEG", "TIFF", "GIF"} < set(
        values["formats"]
    )
    assert {(k["dtype"], k["channels"]) for k in values["stored_as"]} == {
        ("uint8", 1), ("uint8", 3), ("uint16", 1),
    }  # fmt: skip
    assert values["heights"] == [41, 55, 75] and values["widths"][0] == 41  # some are turned
    assert values["pretrain"]["kind"] == {"dtype": "uint16", "channels": 3}
    assert tree(tmp_path) == before
    text = "\n".join("  ".join(row) for row in found.rows())
    assert all(name in text for name in broken) and "JPEG that cannot be decoded" in text


def test_copies_look_alikes_and_flat_images_are_told_apart(tmp_path: Path) -> None:
    write_good(tmp_path, count=9)
    shown = image(60, 90, seed=77)
    (tmp_path / "a.png").write_bytes(encoded(shown, "PNG"))
    (tmp_path / "b.png").write_bytes(encoded(shown, "PNG"))
    (tmp_path / "c.jpg").write_bytes(encoded(shown.resize((72, 48)), "JPEG", quality=90))
    for number in range(2):
        Image.new("RGB", (30 + number, 20), (90, 91, 92)).save(tmp_path / f"flat {number}.png")

    values = look(tmp_path).values()

    assert values["copies"] == [["a.png", "b.png"]]
    assert values["look_alikes"] == [["a.png", "c.jpg"]]
    assert values["nearly_constant"] == ["flat 0.png", "flat 1.png"]


def test_what_is_never_read_of_a_file_is_said(tmp_path: Path) -> None:
    frames = [image(20, 30, seed=seed).convert("P") for seed in range(2)]
    (tmp_path / "a.gif").write_bytes(encoded(frames[0], "GIF", save_all=True,
                                             append_images=frames[1:]))  # fmt: skip
    (tmp_path / "deep.png").write_bytes(deep_colour_png(photo(20, 30).astype(np.uint16) * 257))
    write_good(tmp_path, count=3)

    values = look(tmp_path).values()

    assert values["not_read"] == {
        "frames or pages after the first": 1, "the lower 8 of 16 bits of colour PNG": 1,
    }  # fmt: skip


def deep_colour_png(pixels: np.ndarray) -> bytes:
    """Encode H W 3 of 16 bits, which Pillow cannot."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc32(name + body))

    H, W, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_splits_and_classes_are_said_as_commands_that_need_labels_say_them(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("valid", 2)):
        write_classes(tmp_path / "in" / name, "a", "b", "c", count=count)

    found = look(tmp_path / "in")

    line = labelled(tmp_path / "in", seed=0).notes[0]
    assert line.endswith("12 images in train for training, 6 in valid for testing; "
                         "3 classes: a, b, c")  # fmt: skip
    labels = next(section for section in found.sections() if section.title == "labels")
    assert labels.rows == [("found", line)]
    values = json.loads(json.dumps(found.values()))
    assert values["classes"] == ["a", "b", "c"]
    assert values["labelled"] == {"train": 12, "test": 6, "held_out": None, "notes": [line]}


def test_why_there_are_no_labels_is_said(tmp_path: Path) -> None:
    write_good(tmp_path, count=3)

    found = look(tmp_path)

    labels = next(section for section in found.sections() if section.title == "labels")
    assert labels.rows[0][1].startswith("none found; ") and "has no classes" in labels.rows[0][1]
    assert found.values()["classes"] == [] and found.values()["labelled"] is None


def test_a_sample_is_spread_evenly_and_said(tmp_path: Path) -> None:
    write_good(tmp_path, count=30)

    found = look(tmp_path, limit=6)

    assert found.found.ids == [0, 5, 10, 15, 20, 25]
    assert dict(next(found.sections()).rows)["inspected"] == "6, a sample of 30, evenly spread"


def test_images_of_kinds_that_no_run_can_mix_are_looked_at_all_the_same(tmp_path: Path) -> None:
    write_good(tmp_path, count=3)
    np.save(tmp_path / "five.npy", photo(20, 30, channels=5))

    found = look(tmp_path)

    assert found.estimate is None and "images disagree" in found.notes[0]
    values = found.values()
    assert values["readable"] == 4 and values["mean"] is None and values["pretrain"] is None


def test_the_estimate_is_of_what_pretraining_would_do(tmp_path: Path) -> None:
    write_good(tmp_path, count=30)

    found = look(tmp_path)

    estimate = found.estimate
    assert estimate is not None
    assert (estimate.config.batch, estimate.steps_per_epoch, estimate.steps) == (8, 3, 60)
    assert estimate.images_per_second == 4
    assert estimate.hours == pytest.approx(20 * 3 * 8 / 4 / 3600)
    assert estimate.config.model.pixels.mean == (0.485, 0.456, 0.406)
    assert estimate.sensible_epochs == 1600  # of 3 steps each: too few images
    rows = pretrain_rows(found)
    assert rows["crops"] == "50% to 100% of the area of each image, as 12 x 20"
    assert "few images" in rows["epochs"]
    assert rows["time"].startswith("about 2 minutes: 60 steps")
    pretrain = report_of(found).values["pretrain"]
    assert (pretrain["hours"], pretrain["memory_bytes"]) == (estimate.hours, estimate.memory_bytes)


def test_a_run_that_would_stop_over_broken_files_is_foretold(tmp_path: Path) -> None:
    write_good(tmp_path, count=30)
    write_bad(tmp_path)

    rows = [text for section in look(tmp_path).sections() for _, text in section.rows]

    assert (
        "40% cannot be used, more than --max-bad 0.1: mend them, move them with --quarantine, or "
        "raise it"
    ) in rows


def test_a_batch_larger_than_the_folder_is_lowered_and_said(tmp_path: Path) -> None:
    write_good(tmp_path, count=5)

    found = look(tmp_path)

    assert found.estimate is not None and found.estimate.config.batch == 5
    assert pretrain_rows(found)[""] == "batch: lowered from 8 to 5; there are 5 images"


@pytest.mark.parametrize(("per_epoch", "epochs"), [(10_000, 20), (100, 94), (1, 1600)])
def test_epochs_make_as_many_steps_as_were_seen_to_teach(per_epoch: int, epochs: int) -> None:
    estimate = Estimate(RECIPE, this_machine("cpu"), per_epoch * RECIPE.batch, 9, 9)

    assert estimate.sensible_epochs == epochs
    assert epochs in (20, 1600) or 0 <= epochs * per_epoch - LEARNT_STEPS < per_epoch


def test_memory_grows_with_depth_by_what_each_block_keeps() -> None:
    kept = []
    for depth in (2, 3, 4):
        config = replace(tiny_config(), depth=depth)
        images = np.zeros((2, config.channels, *config.image_size), np.uint8)
        noise = np.random.default_rng(0).random((2, config.num_patches), np.float32)
        kept.append(saved_bytes(create(config), *map(job_tensor, (images, noise))))

    assert kept[2] - kept[1] == kept[1] - kept[0] > 0
    D, T = config.width, 1 + ObjectiveConfig().num_keep(config.num_patches)
    assert kept[1] - kept[0] > 4 * T * D * 8  # at least both norms, qkv, heads, MLP in and out


def job_tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def test_the_page_shows_the_sheet_and_every_section(tmp_path: Path) -> None:
    mixed_folder(tmp_path / "in", count=40, broken=7)

    found = look(tmp_path / "in", out=tmp_path / "page.html")

    page = Page(tmp_path / "page.html")
    assert page.values("img", "src")[0].startswith("data:image/png;base64,")
    for section in found.sections():
        assert section.title == "images" or section.title[1:] in page.text
    assert "not an image" in page.text and "http" not in page.text.replace("http-", "")


def test_the_sheet_draws_images_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(10):
        bands = photo(30 + number, 300, channels=5, seed=number).astype(np.float32)
        how = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / "in" / f"{number}.tif", bands, **how)

    look(tmp_path / "in", out=tmp_path / "sheet.png")

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 + 8 * 120, 8 + 2 * 134)
        assert np.asarray(sheet)[8:120, 8:120].std() > 20


def test_nothing_is_moved_but_broken_files_and_only_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_good(tmp_path / "in" / "deep", count=30)
    names = write_bad(tmp_path / "in" / "deep")
    unfit = [name for name in names if any(word in name for word in MAYBE_SOUND)]
    bad = [name for name in names if name not in unfit]
    before = tree(tmp_path / "in")

    look(tmp_path / "in")
    assert tree(tmp_path / "in") == before

    found = look(tmp_path / "in", quarantine=tmp_path / "aside")

    assert found.moved is not None and not found.moved.left
    assert sorted(found.moved.moved) == sorted(f"deep/{name}" for name in bad)
    assert sorted(os.listdir(tmp_path / "aside" / "deep")) == sorted(bad)
    assert len(tree(tmp_path / "in")) == 31 + 3  # the folder, the good ones, the unfit ones
    values = look(tmp_path / "in").values()
    assert values["broken"] == {} and sorted(values["unfit"]) == [f"deep/{n}" for n in unfit]


def test_no_file_is_moved_over_another_or_from_behind_a_link(tmp_path: Path) -> None:
    for folder in ("in", "aside", "elsewhere"):
        (tmp_path / folder).mkdir()
    write_good(tmp_path / "in", count=3)
    (tmp_path / "in" / "a.jpg").write_bytes(b"new")
    (tmp_path / "aside" / "a.jpg").write_bytes(b"old")
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(b"")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "c.jpg").mkdir()
    (tmp_path / "in" / "c.jpg" / "notes.txt").write_text("kept")

    found = look(tmp_path / "in", quarantine=tmp_path / "aside")

    assert found.moved is not None and found.moved.moved == []
    assert set(found.moved.left) == {"a.jpg", "link/b.jpg", "c.jpg"}
    assert (tmp_path / "aside" / "a.jpg").read_bytes() == b"old"
    assert (tmp_path / "elsewhere" / "b.jpg").exists()


def test_a_sound_file_that_does_not_fit_or_cannot_be_opened_is_no_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=20)
    (tmp_path / "in" / "denied.png").write_bytes(encoded(image(20, 30), "PNG"))
    np.save(tmp_path / "in" / "five.npy", photo(20, 30, channels=5))
    real, surveyed = open, PixelKind("uint8", 3)

    def denied(path: Any, *how: Any) -> Any:
        if str(path).endswith("denied.png"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *how)

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr("mae.train.resolve.survey", lambda *args, **more: surveyed)
    found = look(tmp_path / "in", quarantine=tmp_path / "aside")

    values = found.values()
    assert values["broken"] == {}
    assert values["unfit"] == {
        "denied.png": "permission denied", "five.npy": "5 channels in a run of 3",
    }  # fmt: skip
    assert not (tmp_path / "aside").exists()


def test_sound_files_of_another_kind_are_never_moved(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_good(folder, count=30)
    nan = np.full((20, 30), np.nan, np.float32)
    jpeg = bytearray(encoded(image(20, 30), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12  # bits
    sound = {
        "lab.tif": tiff(photo(20, 30), photometric="cielab"),
        "labels.tif": tiff(np.full((64, 64), 70000, np.uint32)),
        "cmyk.tif": tiff(photo(20, 30, channels=4).astype(np.uint16), photometric="separated"),
        "twelve.jpg": bytes(jpeg),
        "holes.tif": tiff(nan),
        "whole.npy": npy(np.zeros((20, 30), np.int64)),
        "first.npy": npy(np.zeros((3, 224, 224), np.uint8)),
        "heic.jpg": b"\0\0\0\x18ftypheic" + bytes(99),
        "avif.png": b"\0\0\0\x18ftypavif" + bytes(99),
        "huge.png": png_bomb(12_000, 12_000),
    }
    for name, data in sound.items():
        (folder / name).write_bytes(data)
    (folder / "broken.jpg").write_bytes(encoded(image(41, 53), "JPEG")[:-300])

    found = look(folder, quarantine=tmp_path / "aside")

    assert found.moved is not None and found.moved.moved == ["broken.jpg"]
    assert sorted(found.values()["unfit"]) == sorted(sound)


def test_what_was_read_with_a_warning_is_counted_and_named(tmp_path: Path) -> None:
    write_good(tmp_path, count=9)
    data = encoded(image(20, 30), "JPEG")
    place = data.index(b"\xff\xdb")
    (tmp_path / "junk.jpg").write_bytes(data[:place] + bytes(5) + data[place:])

    found = look(tmp_path)

    values = found.values()
    assert values["readable"] == 10 and values["broken"] == values["unfit"] == {}
    assert list(values["read_with_a_warning"]) == ["junk.jpg"]
    assert dict(next(found.sections()).rows)["with a warning"].startswith("1: ")
    text = "\n".join("  ".join(row) for row in found.rows())
    assert "read with a warning" in text and "extraneous bytes before marker 0xdb" in text


@pytest.mark.parametrize("place", ["in/aside", "in", ".", "in/0000.jpg"])
def test_a_quarantine_within_the_folder_is_refused_before_looking(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=2)

    with pytest.raises(ConfigError, match="quarantine"):
        look(tmp_path / "in", quarantine=tmp_path / place)


def test_a_quarantine_of_a_pack_is_refused_before_looking(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=2)
    assert main(["data", "pack", str(tmp_path / "in"), str(tmp_path / "pack"), "--quiet"]) == 0

    with pytest.raises(ConfigError, match="quarantine: moves image files of a folder"):
        look(tmp_path / "pack", quarantine=tmp_path / "aside")


def test_arrays_are_inspected_too() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 1), dtype=np.uint8)
    images[4] = images[2]

    values = inspect_data(images, recipe=RECIPE, quiet=True).values()

    assert values["copies"] == [["image 2", "image 4"]]
    assert values["mean"] == [images.mean()]
    assert values["std"] == pytest.approx([images.std()], rel=1e-14)


def test_nothing_readable_is_said_with_the_reasons(tmp_path: Path) -> None:
    write_bad(tmp_path)

    found = look(tmp_path)

    values = json.loads(json.dumps(found.values()))
    assert values["readable"] == 0 and len(values["broken"] | values["unfit"]) == len(BAD)
    assert found.notes == ["none of 20 can be read"]
    assert list(found.rows())


def test_ctrl_c_ends_it_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_good(tmp_path / "in", count=9)
    write_bad(tmp_path / "in")

    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "thumbnail", interrupted)
    words = ["data", "inspect", str(tmp_path / "in"), "--out", str(tmp_path / "page.html"),
             "--quarantine", str(tmp_path / "aside")]  # fmt: skip
    assert main(words) == 130

    assert capsys.readouterr().err.endswith("mae: stopped\n")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_mistakes_are_said_before_looking(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out: .*\.html or \.png"):
        look(tmp_path, out=tmp_path / "page.pdf")
    with pytest.raises(ConfigError, match="limit"):
        look(tmp_path, limit=0)
    with pytest.raises(DataError, match="no images"):
        look(tmp_path)


def boxes_of(found: Inspected) -> list[tuple[str, str]]:
    return [row for section in found.sections() if section.title == "boxes" for row in section.rows]


def test_boxes_are_counted_by_class_and_size_over_all_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5)
    train, val = coco_of(3), coco_of(2, first=3)
    train["annotations"][0]["area"] = 32**2  # of class roof
    val["annotations"][0]["bbox"] = [5, 5, 0, 9]  # the roof of image 3
    for name, values in (("train", train), ("val", val)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))

    found = look(tmp_path)

    *rows, gaps, wrong = boxes_of(found)
    # Images 0 to 4 show classes (0, 1), (1, 2), (2, 0), (0, 1), (1, 2).
    assert rows == [
        ("found", "3 images in train, 2 images in val; 3 classes; boxes and masks"),
        ("roof", "2 boxes: 1 small, 1 medium, 0 large"),
        ("tree", "4 boxes: 4 small, 0 medium, 0 large"),
        ("car", "3 boxes: 3 small, 0 medium, 0 large"),
        ("sizes", "small: less than 32 x 32 pixels; large: at least 96 x 96"),
    ]
    assert gaps[1].startswith("classes: 3 category ids with gaps")
    assert "1 box of zero size (val/3.png: 5 5 5 14)" in wrong[1]
    values = found.values()["boxes"]
    assert values["classes"]["roof"] == {"small": 1, "medium": 1, "large": 0}
    assert values["images"] == {"train": 3, "val": 2} and json.dumps(values)


def test_boxes_that_cannot_be_used_are_said_and_others_are_not(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2)

    assert boxes_of(look(tmp_path)) == []

    (tmp_path / "boxes.json").write_text(json.dumps(coco_of(0)))
    ((name, reason),) = boxes_of(look(tmp_path))
    assert name == "refused" and "none of the 0 images" in reason
