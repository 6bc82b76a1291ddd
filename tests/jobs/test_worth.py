"""`mae worth`: one real comparison, killed and resumed; and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mae
import mae.evaluation.supervised
from mae.cli.main import main
from mae.config.model import PixelConfig
from mae.config.run import AugmentConfig, PretrainConfig
from mae.evaluation.health import effective_rank
from mae.jobs.worth import RANDOM, RAW, SCRATCH, SUPERVISED, worth
from mae.model.create import create
from mae.report.tables import report_of
from mae.weights.formats.native import save
from tests.images import photo
from tests.jobs.conftest import TINY, write_classes
from tests.model.tiny import tiny_config

RECIPE = PretrainConfig(
    model=TINY, steps=6, batch=8, threads=1, workers=0, device="cpu",
    augment=AugmentConfig(crop_scale=(0.5, 1.0)),
)  # fmt: skip


def compare(data: Path, weights: Path, out: Path) -> Any:
    torch.set_num_threads(1)
    mae.evaluation.supervised.LEAST_STEPS = mae.evaluation.supervised.PASSES = 3
    return worth(
        data=data,
        out=out,
        weights=weights,
        recipe=RECIPE,
        draws=2,
        labels="2/class",
        minutes=3,
        quiet=True,
    )


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give PNG files of 3 classes, and JPEG files of one of them."""
    root = write_classes(tmp_path_factory.mktemp("worth") / "shapes", "a", "b", "c", count=11)
    for i in range(3):
        Image.fromarray(photo(30, 44, seed=i)).save(root / "a" / f"more-{i}.jpg")
    return root


@pytest.mark.slow
def test_a_killed_comparison_resumes_and_ends_as_an_undisturbed_one(
    classes: Path, weights: Path, tmp_path: Path
) -> None:
    start = multiprocessing.get_context("spawn").Process
    process = start(target=compare, args=(classes, weights, tmp_path / "killed"))
    process.start()
    while not (tmp_path / "killed" / "supervised" / "draw-1-seed-0.json").exists():
        time.sleep(0.002)
        assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    trained = [*(tmp_path / "killed").glob("*/weights/model.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in trained}

    resumed, whole = (compare(classes, weights, tmp_path / name) for name in ("killed", "whole"))

    assert len(before) == 2  # from scratch and continued
    assert {path: path.stat().st_mtime_ns for path in trained} == before
    found, expected = resumed.comparison, whole.comparison
    assert [s.name for s in (*found.baselines, *found.starts)] == [
        RAW, RANDOM, f"{weights.name}, frozen", f"{weights.name}, continued", SCRATCH, SUPERVISED,
    ]  # fmt: skip
    assert [s.curve for s in found.starts] == [s.curve for s in expected.starts]
    assert [s.verdict for s in found.starts] == [s.verdict for s in expected.starts]
    assert (found.train, found.test, found.draws, found.labels) == (29, 7, 2, (6,))
    record = json.loads((tmp_path / "killed" / "worth.json").read_bytes())
    assert record["results"]["starts"][2]["minutes"] > 0
    page = resumed.page.read_text()
    assert "Cannot tell" in page and "MAE from scratch" in page and "http" not in page


def refused(capsys: pytest.CaptureFixture[str], data: Path, *words: str) -> str:
    """Check that a command ends with exit code 2, one line on stderr at its end; give it."""
    out = data.parent / "out"
    code = main(["worth", "--data", str(data), "--out", str(out), "--quiet", *words])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and not out.exists()
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("mae: ")


def test_fewer_than_twenty_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "few", "a", "b", count=9)

    assert "got 18 images, expected at least 20" in refused(capsys, data)


def test_a_class_with_one_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "few", "a", "b", count=11)
    for path in sorted((data / "b").glob("*"))[2:]:
        path.unlink()
    write_classes(data, "c", count=11)

    assert "got 1 of class b to learn from, expected at least 2" in refused(capsys, data)


def test_one_label_a_class_asked_for(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "got 1 of class a" in refused(capsys, classes, "--labels", "1/class")


def test_images_that_are_all_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "same" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 14), (9, 99, 50)).save(tmp_path / "same" / name / f"{i}.png")

    assert "images looked at are equal" in refused(capsys, tmp_path / "same")


def test_labels_of_no_image(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("draw,name,class\n0,gone/1.png,a\n")

    assert "gone/1.png is not in the data" in refused(capsys, classes, "--labels", str(labels))


def test_a_list_of_labels_that_is_not_there(
    classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "labels: no file gone.csv" in refused(capsys, classes, "--labels", "gone.csv")


def test_few_images_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_classes(tmp_path / "flat", "a", count=19) / "a"

    assert "got 19 images, expected at least 20" in refused(capsys, data)


@pytest.mark.slow
def test_images_without_classes_are_shown_figures_and_no_verdict(
    weights: Path, tmp_path: Path
) -> None:
    data = write_classes(tmp_path / "flat", "a", count=24) / "a"

    found = worth(
        data=data, out=tmp_path / "out", weights=weights, recipe=RECIPE, minutes=1, quiet=True
    )

    values, (sentence, head, *rows) = report_of(found).values, found.rows()
    assert (
        sentence[0].startswith("Cannot tell: without labels") and "weaker evidence" in sentence[0]
    )
    assert [row[0] for row in rows[:-1]] == [
        RANDOM, f"{weights.name}, frozen", f"{weights.name}, continued", SCRATCH,
    ]  # fmt: skip
    assert head[1] == "effective rank" and values["answer"] == "cannot tell"
    starts = {start["name"]: start for start in values["starts"]}
    assert all(1 <= start["rank"] <= 24 for start in starts.values())
    assert starts[RANDOM]["gain"] is None and starts[SCRATCH]["gain"] is not None
    rank = effective_rank(torch.from_numpy(mae.embed(weights, data)))
    assert starts[f"{weights.name}, frozen"]["rank"] == pytest.approx(rank, rel=1e-4)
    assert "weaker evidence" in found.page.read_text()


def test_weights_of_another_channel_count(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = PixelConfig(mean=(0.5,) * 6, std=(0.25,) * 6)
    made = save(create(tiny_config(channels=6, pixels=pixels)), tmp_path / "six")

    message = refused(capsys, classes, "--weights", str(made))

    assert "six: takes 6 channels, the images have 3" in message


@pytest.mark.parametrize(
    "words, message",
    [
        (("--minutes", "0"), "minutes: expected a number above 0"),
        (("--draws", "1"), "draws: expected at least 2"),
        (("--ranks", "2"), "ranks"),
    ],
)
def test_numbers_without_meaning(
    words: tuple[str, ...], message: str, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, classes, *words)


def test_a_folder_of_other_files_is_left_alone(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    code = main(["worth", "--data", str(classes), "--out", str(tmp_path), "--quiet"])

    assert code == 2 and "holds other files, no worth.json" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_another_comparison_in_the_folder_is_refused(
    classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"minutes": 3.0, "draws": 5}
    (tmp_path / "worth.json").write_text(json.dumps({"asked": asked}))

    code = main(["worth", "--data", str(classes), "--out", str(tmp_path), "--quiet"])

    assert code == 2 and "minutes: run has 3.0, asked 20.0" in capsys.readouterr().err
    assert json.loads((tmp_path / "worth.json").read_bytes()) == {"asked": asked}
    assert os.listdir(tmp_path) == ["worth.json"]
