"""The page of a fine-tuning run: score, confusion, mistakes as images, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.config.run import FinetuneConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.report.confusion import MOST_NAMED, confusion_figure
from mae.report.mistakes import WrongImage, most_confident, read_thumbnails, save_thumbnails
from mae.report.page import write_report
from mae.report.predictions import read_predictions, write_predictions
from tests.model.tiny import tiny_config
from tests.report.runs import make_run
from tests.report.test_page import Page

NAMES = ["ant", "b<e>e", "cat"]
ROWS = [
    ("0.png", "ant", "ant", 0.9, 1, 0.1),
    ("1.png", "ant", "cat", 0.6, 2, 1.5),
    ("2 <x>.png", "b<e>e", "cat", 0.75, 3, 2.5),
    ("3.png", "cat", "cat", 0.5, 1, 0.7),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a finished run of four test images, two of them wrong."""
    monkeypatch.chdir(tmp_path)
    config = to_dict(FinetuneConfig(model=tiny_config(), batch=8))
    run = make_run(
        tmp_path / "my run", images=0, config=config, class_names=NAMES,
        data={"path": "/data/my images", "count": 20},
        command=["mae", "finetune", "--data", "my images"],
    )  # fmt: skip
    results = {"top1": 0.5, "top5": None, "loss": 1.2, "images": 4, "unreadable": ["x.png"]}
    (run / "results.json").write_text(json.dumps(results))
    return run


def keep_predictions(run: Path) -> None:
    write_predictions(run / "predictions.csv", ROWS)
    worst = most_confident(ROWS)
    images = [Image.new("RGB", (20 + 9 * i, 30), (200, 100 * i, 0)) for i in range(len(worst))]
    wrong = [WrongImage(*row[:4], image) for row, image in zip(worst, images, strict=True)]
    save_thumbnails(run / "mistakes.png", wrong)


def test_the_page_tells_a_fine_tuning_from_the_score_to_the_next_commands(run: Path) -> None:
    keep_predictions(run)

    page = Page(write_report(run))

    places = [page.text.index(words) for words in (
        "Fine-tuning run my run", "top-1 50.0% of 4 test images", "unreadable 1 test images",
        "Training curves", "running mean: cross-entropy", "Confusion matrix",
        "most frequent mistakes",
        "Most confident mistakes", "cat 75.0% true: b<e>e 2 <x>.png", "cat 60.0% true: ant 1.png",
        "Classes", "ant 50.0% 2 cat", "b<e>e 0.0% 1 cat", "Next commands",
        f"mae evaluate '{run}' --data '/data/my images' --out evaluation.html",
        f"mae predict '{run}' IMAGES",
    )]  # fmt: skip
    assert places == sorted(places)
    sizes = zip(page.values("img", "width"), page.values("img", "height"), strict=True)
    assert [*sizes] == [("20", "30"), ("29", "30")]
    assert "mae pretrain" not in page.text and "mae reconstruct" not in page.text


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_without_the_images_the_mistakes_are_named(run: Path, content: bytes | None) -> None:
    keep_predictions(run)
    (run / "mistakes.png").unlink()
    if content is not None:
        (run / "mistakes.png").write_bytes(content)

    page = Page(write_report(run))

    assert "cat 75.0% true: b<e>e 2 <x>.png" in page.text
    assert page.values("img", "src") == []


def test_a_run_of_an_earlier_version_has_a_page_that_says_how_to_get_the_rest(run: Path) -> None:
    page = Page(write_report(run))

    assert "top-1 50.0% of 4 test images" in page.text
    assert "This run kept no predictions; for the confusion matrix: mae evaluate" in page.text
    assert "Classes" not in page.text


def test_a_damaged_file_of_predictions_is_named(run: Path) -> None:
    for text in ("", "name,class\n", "name,class,predicted,probability,rank,loss\na,b\n"):
        (run / "predictions.csv").write_text(text)
        with pytest.raises(ConfigError, match=r"predictions.csv: is not a file of predictions"):
            write_report(run)


def test_predictions_read_back_as_they_were_written(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", ROWS)

    assert read_predictions(tmp_path / "p.csv") == ROWS


def test_mistakes_come_most_confident_first_and_right_ones_never() -> None:
    many = [(f"{i}", "a", "b", i / 100, 2, 1.0) for i in range(40)]

    assert [row[0] for row in most_confident(ROWS)] == ["2 <x>.png", "1.png"]
    assert [row[0] for row in most_confident(many)] == [str(i) for i in range(39, 27, -1)]


def test_thumbnails_come_back_in_their_order_and_size(tmp_path: Path) -> None:
    images = [Image.new("RGB", (112, 40), "red"), Image.new("RGB", (7, 112), "white")]
    rows = [(f"{i}", "a", "b", 0.9 - i / 10, 2, 1.0) for i in range(2)]
    wrong = [WrongImage(*row[:4], image) for row, image in zip(rows, images, strict=True)]
    save_thumbnails(tmp_path / "m.png", wrong)

    found = read_thumbnails(tmp_path / "m.png", rows)

    for each, image in zip(found, images, strict=True):
        assert each.image is not None
        assert np.array_equal(np.asarray(each.image), np.asarray(image))


def test_a_matrix_has_names_numbers_and_a_scale_unless_the_classes_are_many() -> None:
    counts = np.array([[4, 0, 1], [3, 0, 1], [0, 0, 0]])
    many = MOST_NAMED + 1

    small = confusion_figure(counts, NAMES)
    large = confusion_figure(np.eye(many, dtype=np.int64), ["x"] * many)

    cells = [cell.text for cell in small.iter("td")]
    styles = [str(cell.get("style")) for cell in small.iter("td")]
    assert cells == ["4", "0", "1", "3", "0", "1", "0", "0", "0"]
    assert [span.text for span in small.iter("th")][4:] == NAMES
    assert styles[1] == styles[8] == "background:#f7f6f3;color:#222"
    assert [span.text for span in small.iter("span")][-6:] == [
        "0%",
        "2%",
        "10%",
        "30%",
        "60%",
        "100%",
    ]
    assert len([*large.iter("img")]) == 1 and not [*large.iter("td")]
