from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import mae
from mae.data.batching.batch import evaluation_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError, DataError, WeightsError
from mae.evaluation.batch_store import BatchStore, Work, compute_batches
from mae.evaluation.inputs import FeatureSettings
from mae.jobs import embed as module
from mae.jobs.embed import embed_to_file
from mae.model.create import create
from mae.parallel.processes import Communicator, ProcessInfo
from mae.progress import Progress
from mae.runs.signals import StopSignal
from mae.weights.formats.native import save
from tests.images import encoded, image, photo, rotated_jpeg
from tests.jobs.conftest import TINY, write_classes
from tests.model.tiny import tiny_config

SETTINGS = FeatureSettings(batch=3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Give seven images in two folders, and a broken one between them."""
    root = write_classes(tmp_path / "images", "cats", "dogs", count=3)
    (root / "cats" / "1b.jpg").write_bytes(b"\xff\xd8\xff no image")
    (root / "dogs" / "über 9.jpg").write_bytes(rotated_jpeg(image(44, 30), 6))
    return root


def whole(images: Path) -> list[Path]:
    return [path for path in sorted(images.rglob("*.*")) if path.name != "1b.jpg"]


def test_features_are_those_of_the_encoder_on_whole_images(weights: Path, images: Path) -> None:
    encoder, source = mae.load_encoder(weights), FolderSource.of_files(whole(images))
    read = evaluation_batch(source, range(7), kind=PixelKind("uint8", 3), size=TINY.image_size)

    features = mae.embed(weights, whole(images), pool="grid")

    assert features.shape == (7, 9 * 24) and features.dtype == np.float32
    np.testing.assert_allclose(features, encoder.encode(read.images, pool="grid"), atol=1e-6)


def test_maps_of_blocks_are_those_of_the_encoder_on_whole_images(
    weights: Path, images: Path
) -> None:
    encoder, source = mae.load_encoder(weights), FolderSource.of_files(whole(images))
    size = (TINY.image_size[0] * 2, TINY.image_size[1])
    read = evaluation_batch(source, range(7), kind=PixelKind("uint8", 3), size=size)

    with pytest.warns(UserWarning, match="1b.jpg"):
        maps = mae.features(weights, images, blocks=(1, 0), image_size=size, batch=3, quiet=True)

    (h, w), expected = TINY.grid, encoder.intermediates(read.images, blocks=(1, 0))
    assert [(m.shape, m.dtype) for m in maps] == [((7, 24, 2 * h, w), np.float32)] * 2
    for found, theirs in zip(maps, expected, strict=True):
        np.testing.assert_allclose(found, theirs.detach(), atol=1e-5)
    with pytest.raises(ConfigError, match="block: got 2"):
        mae.features(weights, images, blocks=(2,), quiet=True)


def test_paths_pillow_images_and_arrays_give_the_same_features(
    weights: Path, tmp_path: Path
) -> None:
    colour, grey = photo(30, 44), photo(31, 45, channels=1)[..., 0]
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.png")

    of_paths = mae.embed(weights, [tmp_path / "a.png", str(tmp_path / "b.png")])
    of_folder = mae.embed(weights, tmp_path)
    of_pillow = mae.embed(weights, [Image.fromarray(colour), Image.open(tmp_path / "b.png")])
    of_arrays = mae.embed(weights, [colour, grey])
    of_stack = mae.embed(weights, colour[None])

    for other in (of_folder, of_pillow, of_arrays):
        assert np.array_equal(of_paths, other)
    assert np.array_equal(of_paths[:1], of_stack)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_pillow_image_of_any_mode_gives_what_its_file_gives(
    mode: str, weights: Path, tmp_path: Path
) -> None:
    drawn = image(30, 44).convert(mode)
    (tmp_path / "a.tif").write_bytes(encoded(drawn, "TIFF"))

    assert np.array_equal(mae.embed(weights, drawn), mae.embed(weights, tmp_path / "a.tif"))


def test_an_open_rotated_jpeg_gives_what_its_file_gives(weights: Path, images: Path) -> None:
    path = images / "dogs" / "über 9.jpg"

    assert np.array_equal(mae.embed(weights, [Image.open(path)]), mae.embed(weights, path))


def test_a_broken_image_has_no_row_and_is_named(weights: Path, images: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 unreadable, left out: cats/1b\.jpg: JPEG"):
        features = mae.embed(weights, images)

    assert len(features) == 7
    assert np.array_equal(features, mae.embed(weights, whole(images)))


def test_the_file_holds_a_row_for_each_image_in_the_order_of_the_names(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new folder" / "features.npy"

    result = embed_to_file(weights, images, out=out, settings=SETTINGS, quiet=True)

    assert (result.images, result.width, result.unreadable) == (7, 24, 1)
    expected = mae.embed(weights, whole(images))
    np.testing.assert_allclose(np.load(out, allow_pickle=False), expected, atol=1e-6)
    names = out.with_suffix(".tsv").read_text(encoding="utf-8").splitlines()
    assert names[:2] == ["name\tclass", "cats/0.png\tcats"]
    assert names[-1] == "dogs/über 9.jpg\tdogs" and len(names) == 1 + 7
    assert "cats/1b.jpg\tJPEG" in out.with_suffix(".bad-files.tsv").read_text()
    assert sorted(p.suffix for p in out.parent.iterdir()) == [".npy", ".tsv", ".tsv"]


def test_a_parquet_holds_names_classes_and_features(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.report.parquet.ROWS", 5)
    out = tmp_path / "features.parquet"

    result = embed_to_file(weights, images, out=out, settings=SETTINGS, quiet=True)

    table = parquet.read_table(out)
    assert table.schema.names == ["name", "class", "features"]
    assert table.schema.field("features").type == pyarrow.list_(pyarrow.float32(), 24)
    assert table["name"].to_pylist()[::6] == ["cats/0.png", "dogs/über 9.jpg"]
    assert set(table["class"].to_pylist()) == {"cats", "dogs"}
    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)
    assert np.array_equal(np.array(table["features"].to_pylist()), np.load(tmp_path / "a.npy"))
    assert (result.names, result.images, result.unreadable) == (str(out), 7, 1)
    assert (tmp_path / "features.bad-files.tsv").exists()


def test_a_parquet_goes_on_where_it_was_stopped(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    embed_to_file(weights, images, out=a, settings=SETTINGS, quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        embed_to_file(weights, images, out=b, settings=SETTINGS, quiet=True)
    assert not b.exists()

    encoded_now = interrupted_after(99, monkeypatch)
    embed_to_file(weights, images, out=b, settings=SETTINGS, quiet=True)

    assert encoded_now == [2]
    assert b.read_bytes() == a.read_bytes()


def test_without_pyarrow_one_line_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.report.parquet.find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[parquet\]', or name a .npy"):
        embed_to_file("nowhere", "nowhere", out=tmp_path / "p.parquet")

    assert not list(tmp_path.iterdir())


def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the job stop after some batches; give the list of batches that were encoded."""
    sizes: list[int] = []
    real = module.encoder_features

    def encoder_features(encoder: object, images: Sequence[object], *, pools: object) -> object:
        if len(sizes) == batches:
            raise KeyboardInterrupt
        sizes.append(len(images[0]))  # type: ignore[arg-type]
        return real(encoder, images, pools=pools)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encoder_features", encoder_features)
    return sizes


def test_a_second_start_goes_on_and_ends_with_the_same_bytes(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        embed_to_file(weights, images, out=tmp_path / "b.npy", settings=SETTINGS, quiet=True)
    assert not (tmp_path / "b.npy").exists()

    encoded_now = interrupted_after(99, monkeypatch)
    result = embed_to_file(weights, images, out=tmp_path / "b.npy", settings=SETTINGS, quiet=True)

    assert encoded_now == [2]  # 8 images, 3 and 3 of which were done
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()
    assert (tmp_path / "b.tsv").read_bytes() == (tmp_path / "a.tsv").read_bytes()
    assert result.unreadable == 1 and not (tmp_path / ".b.npy.part").exists()


@pytest.mark.parametrize("change", ["weights", "images", "pool", "precision"])
def test_a_second_start_with_something_else_begins_anew(
    change: str,
    weights: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, settings = tmp_path / "a.npy", SETTINGS
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        embed_to_file(weights, images, out=out, settings=settings, quiet=True)
    if change == "weights":
        save(create(TINY, seed=1), weights := tmp_path / "others")
    elif change == "images":
        (images / "dogs" / "0.png").unlink()
    elif change == "pool":
        settings = settings._replace(pool="cls")
    else:
        settings = settings._replace(precision="bf16")

    embed_to_file(weights, images, out=out, settings=settings)

    assert "starting over" in capsys.readouterr().err
    paths = whole(images)
    expected = mae.embed(weights, paths, pool=settings.pool, precision=settings.precision)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    images = write_classes(tmp_path / "images", "cats", "dogs", count=60)
    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)
    command = [sys.executable, "-c", "import sys; from mae.cli.main import main; sys.exit(main())"]
    command += ["embed", str(weights), f"data={images}"]
    command += [f"--out={tmp_path / 'b.npy'}", "--batch=3", "--quiet"]

    job = subprocess.Popen(command)
    while len(list(tmp_path.glob(".b.npy.part/batches/*.npy"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()

    assert not (tmp_path / "b.npy").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_is_one_error_and_nothing_done_is_lost(
    name: str, weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if name == "replace" else os, name, full)
        with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
            embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)

    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)

    assert len(np.load(tmp_path / "a.npy")) == 7


def test_a_batch_that_was_not_finished_is_made_again(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        embed_to_file(weights, images, out=tmp_path / "b.npy", settings=SETTINGS, quiet=True)
    batches = tmp_path / ".b.npy.part" / "batches"
    (batches / ".tmp-2.npy-01234567").write_bytes(b"cut off")
    # An image that could not be read then, of a batch whose features did not get to the disk.
    (batches / "2.json").write_text(json.dumps([[[6, "dogs/2.png", "gone"]], []]))

    embed_to_file(weights, images, out=tmp_path / "b.npy", settings=SETTINGS, quiet=True)

    for name in ("npy", "tsv", "bad-files.tsv"):
        assert (tmp_path / f"b.{name}").read_bytes() == (tmp_path / f"a.{name}").read_bytes()


def test_the_file_is_what_numpy_saves(weights: Path, images: Path, tmp_path: Path) -> None:
    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS, quiet=True)

    np.save(tmp_path / "b.npy", np.load(tmp_path / "a.npy"))

    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()


def test_a_stop_signal_ends_after_the_batch_and_names_the_command(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out, again = module.encoder_features, tmp_path / "a.npy", ["mae", "embed", "w"]

    def signalled(*images: object, **how: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*images, **how)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(mae.Stopped) as stopped:
        patch.setattr(module, "encoder_features", signalled)
        embed_to_file(weights, images, out=out, settings=SETTINGS, command=again, quiet=True)

    assert str(stopped.value) == "stopped: 3 images are done; to resume: mae embed w"
    assert stopped.value.exit_code == 75
    encoded_now = interrupted_after(99, monkeypatch)
    embed_to_file(weights, images, out=out, settings=SETTINGS, quiet=True)
    assert encoded_now == [3, 2] and len(np.load(out)) == 7


def test_ranks_meet_after_the_last_batch_before_the_file_is_written(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    class Two(Communicator):
        def all_gather(self, mine):  # type: ignore[no-untyped-def]
            events.append("meet")
            return [mine, mine]

    monkeypatch.setattr(BatchStore, "write", lambda self, number, *_: events.append(number))
    store, ranks = BatchStore(tmp_path, batch=3, images=8), Two(ProcessInfo(0, 2))
    encoder, source = mae.load_encoder(weights), FolderSource(images)
    work = Work("w", encoder, encoder, source, SETTINGS, encoder.encode, "mean")
    how = {"ranks": ranks, "stop": StopSignal(), "progress": Progress(quiet=True)}

    compute_batches(store, [0, 1, 2], work, **how)  # type: ignore[arg-type]

    assert events == [0, "meet", 2, "meet"]


def test_a_file_that_an_older_version_began_is_begun_anew(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store := tmp_path / ".a.npy.part").mkdir()
    (store / "features").write_bytes(b"rows")
    (store / "done.json").write_text(json.dumps({"work": "0", "images": 3, "size": 4}))

    embed_to_file(weights, images, out=tmp_path / "a.npy", settings=SETTINGS)

    assert "starting over: weights, images, settings or version" in capsys.readouterr().err
    assert len(np.load(tmp_path / "a.npy")) == 7 and not store.exists()


def test_an_existing_file_is_left_as_it_is(weights: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_text("precious")
    (tmp_path / "b.tsv").write_text("precious")

    for name in ("a", "b"):
        with pytest.raises(ConfigError, match="exists already"):
            embed_to_file(weights, images, out=tmp_path / f"{name}.npy", quiet=True)

    assert (tmp_path / "a.npy").read_text() == (tmp_path / "b.tsv").read_text() == "precious"


def test_a_mistake_leaves_nothing_behind(weights: Path, images: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())

    with pytest.raises(WeightsError):
        embed_to_file("nowhere", images, out=tmp_path / "a.npy", quiet=True)
    with pytest.raises(DataError):
        embed_to_file(weights, "nowhere", out=tmp_path / "a.npy", quiet=True)

    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_to_is_said(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        embed_to_file(weights, images, out=tmp_path / "file" / "a.npy", quiet=True)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], DataError, "images: got no files, expected at least one"),
        (["nowhere.png"], DataError, "no file .*nowhere.png"),
        ("nowhere", DataError, "no folder .*nowhere"),
        (
            np.ones((2, 30, 44, 3), dtype=np.float32),
            DataError,
            r"got float32, expected uint8.*give \(images \* 255\).round\(\) as uint8",
        ),
        (np.zeros((2, 30, 44, 7), np.uint8), DataError, "none of 2 .*7 channels in a run of 3"),
        (np.zeros((2, 30, 44, 3), np.int64), DataError, "int64, expected uint8"),
        ([[1, 2], [3, 4]], DataError, "image 0: got list, expected a path"),
        ((path for path in ["a.png"]), DataError, "got builtins.generator, expected a path"),
    ],
    ids=["none", "no file", "no folder", "floats", "channels", "type", "numbers", "generator"],
)
def test_images_that_cannot_be_used_are_refused(
    images: object, error: type[Exception], message: str, weights: Path
) -> None:
    with pytest.raises(error, match=message):
        mae.embed(weights, images)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def grey_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of weights for images of 24 x 40, C=1."""
    path = tmp_path_factory.mktemp("made") / "grey"
    save(create(tiny_config(patch_size=8, channels=1)), path)
    return path


PHOTOS = np.stack([photo(30, 44, seed=seed) for seed in range(5)])  # B H W C
GREYS = PHOTOS[..., 1].copy()


@pytest.mark.parametrize(
    ("given", "images"),
    [
        (PHOTOS[0], PHOTOS[:1]),
        (PHOTOS, PHOTOS),
        (PHOTOS[:3], PHOTOS[:3]),
        (GREYS[..., None], GREYS),
        (GREYS, GREYS),
        (GREYS[0], GREYS[:1]),
        (GREYS[:1], GREYS[:1]),
        (list(PHOTOS), PHOTOS),
        ([GREYS[0], GREYS[1][None], GREYS[2][..., None]], GREYS[:3]),
        (torch.from_numpy(PHOTOS).permute(0, 3, 1, 2), PHOTOS),
        (torch.from_numpy(PHOTOS).permute(0, 3, 1, 2)[0], PHOTOS[:1]),
        (torch.from_numpy(PHOTOS), PHOTOS),
        (torch.from_numpy(PHOTOS)[0], PHOTOS[:1]),
        (torch.from_numpy(GREYS), GREYS),
        (torch.from_numpy(GREYS)[:, None], GREYS),
        ([torch.from_numpy(image).permute(2, 0, 1) for image in PHOTOS], PHOTOS),
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'shape', '')}",
)
def test_arrays_and_tensors_of_any_order_that_is_plain_give_a_row_an_image(
    given: object, images: np.ndarray, weights: Path, tmp_path: Path
) -> None:
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    assert np.array_equal(mae.embed(weights, given), mae.embed(weights, tmp_path))  # type: ignore[arg-type]


def test_three_grey_images_are_three_to_a_network_of_one_channel(grey_weights: Path) -> None:
    each = np.concatenate([mae.embed(grey_weights, image) for image in GREYS[:3]])

    for given in (GREYS[:3], GREYS[:3, ..., None], torch.from_numpy(GREYS[:3])[..., None]):
        np.testing.assert_allclose(mae.embed(grey_weights, given), each, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (PHOTOS.transpose(0, 3, 1, 2), r"\(5, 3, 30, 44\), which may be B C H W; give images.tran"),
        (
            PHOTOS[0].transpose(2, 0, 1),
            r"one image C H W give images.transpose\(1, 2, 0\), for 3 gr",
        ),
        (GREYS[:3], r"for 3 grey images give images\[..., None\]"),
        (GREYS[:, None], "may be B C H W"),
        ([PHOTOS[0].transpose(2, 0, 1)], r"image 0: .*C H W; give image.transpose\(1, 2, 0\)"),
        ([PHOTOS[0], PHOTOS], r"image 1: .*\(5, 30, 44, 3\), expected one image H W or H W C"),
        ([GREYS], r"image 0: images: got shape \(5, 30, 44\), expected one image H W or H W C"),
        (torch.from_numpy(GREYS)[:4], r"for one image C H W give images.permute\(1, 2, 0\), for 4"),
        (PHOTOS[0, 0, 0], r"got shape \(3,\), expected H W, H W C, B H W or B H W C"),
    ],
    ids=range(9),
)
def test_an_array_that_may_be_two_things_is_an_error_that_asks(
    given: object, message: str, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        mae.embed(weights, given)  # type: ignore[arg-type]
    if isinstance(given, np.ndarray):
        np.save(tmp_path / "given.npy", given)
        with pytest.raises(DataError, match=message):
            mae.embed(weights, tmp_path / "given.npy")


def test_a_tensor_of_colour_and_three_grey_images_are_asked_by_a_grey_network(
    grey_weights: Path,
) -> None:
    with pytest.raises(DataError, match="for 3 grey images give"):
        mae.embed(grey_weights, torch.from_numpy(GREYS[:3]))
    with pytest.raises(DataError, match=r"image 0: .*give image.transpose\(1, 2, 0\)"):
        mae.embed(grey_weights, [PHOTOS[0].transpose(2, 0, 1)])


def test_in_a_list_a_tensor_of_colour_is_one_image_to_a_grey_network(grey_weights: Path) -> None:
    tensor = torch.from_numpy(PHOTOS[0]).permute(2, 0, 1)

    features = mae.embed(grey_weights, [tensor])

    assert np.array_equal(features, mae.embed(grey_weights, [Image.fromarray(PHOTOS[0])]))


def test_an_array_file_is_embedded_as_the_array_in_it(weights: Path, tmp_path: Path) -> None:
    for name, array in (("one", PHOTOS[0]), ("all", PHOTOS), ("grey", GREYS[0])):
        np.save(path := tmp_path / f"{name}.npy", array)
        embed_to_file(weights, path, out=tmp_path / f"{name}-out.npy", quiet=True)

        features = mae.embed(weights, array)

        assert np.array_equal(mae.embed(weights, path), features)
        assert np.array_equal(np.load(tmp_path / f"{name}-out.npy"), features)


def test_a_folder_without_a_readable_image_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    with pytest.raises(DataError, match=r"none of 1 can be read.*a\.png"):
        embed_to_file(weights, tmp_path, out=tmp_path / "out.npy", quiet=True)


def test_a_batch_of_none_and_a_device_that_is_not_there_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="batch: expected at least 1, got 0"):
        mae.embed(weights, [photo(30, 44)], batch=0)
    with pytest.raises(ConfigError, match="device: 'tpu' cannot be used here"):
        mae.embed(weights, [photo(30, 44)], device="tpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "list", "tar"])
def test_names_and_classes_do_not_depend_on_the_locale(
    kind: str, weights: Path, tmp_path: Path
) -> None:
    images = write_classes(tmp_path / "images", "Bär", "猫", "zebra", count=1)
    (images / "Bär" / "a\tb\u2028ß.png").write_bytes((images / "Bär" / "0.png").read_bytes())
    (images / os.fsdecode(b"zebra/\xff.png")).write_bytes(encoded(image(30, 44), "PNG"))
    data = {"folder": images, "list": images / "list.csv", "tar": tmp_path / "all.tar"}[kind]
    if kind == "list":
        data.write_text("猫/0.png,猫\nBär/0.png,Bär\n", encoding="utf-8")
    elif kind == "tar":
        with tarfile.open(data, "w", format=tarfile.GNU_FORMAT) as tar:
            for path in sorted(images.glob("*/*.png")):
                tar.add(path, str(path.relative_to(images)))
    script = (
        "import sys; from pathlib import Path; from mae.jobs.embed import embed_to_file as f; "
        "f(*sys.argv[1:3], out=Path(sys.argv[3]), quiet=True)"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    command = [sys.executable, "-c", script, str(weights), str(data)]
    subprocess.run([*command, str(tmp_path / "ascii.npy")], env=plain, check=True)
    embed_to_file(weights, data, out=tmp_path / "utf-8.npy", quiet=True)

    names = (tmp_path / "utf-8.tsv").read_text(encoding="utf-8")
    assert (tmp_path / "ascii.tsv").read_text(encoding="utf-8") == names
    assert np.array_equal(np.load(tmp_path / "ascii.npy"), np.load(tmp_path / "utf-8.npy"))
    if kind != "list":
        assert names.splitlines() == [
            "name\tclass", "Bär/0.png\tBär", "Bär/a\\tb\\u2028ß.png\tBär", "zebra/0.png\tzebra",
            "zebra/\\udcff.png\tzebra", "猫/0.png\t猫",
        ]  # fmt: skip
