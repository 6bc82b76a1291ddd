"""Detectors scored and applied from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import mae
from mae.cli.main import main
from mae.cli.options import options_of
from mae.cli.verbs.every import VERBS
from mae.config.dense import DenseConfig
from mae.data.detection.check import check
from mae.data.detection.layout import find_boxed
from mae.evaluation.dense.detection_metrics import DetectorScores, detection_scores
from mae.model.create import create
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.progress import Progress
from mae.recipes.catalogue import find_recipe
from mae.transfer.detector import Detector
from mae.weights.formats.native import save
from tests.boxes import CLASSES, SIZE, write_coco, write_images
from tests.model.tiny import tiny_config


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a detector that was not trained: it finds something of each class everywhere."""
    torch.manual_seed(0)
    config = tiny_config(patch_size=8, image_size=(40, 64))
    dense = DenseConfig(window=2, global_blocks=(1,), relative_positions="decomposed")
    model = Detector(PyramidBackbone(create(config).encoder, dense, channels=8), num_classes=3)
    folder = tmp_path_factory.mktemp("weights") / "detector"
    return save(model, folder, class_names=CLASSES)


def test_predict_names_a_broken_file_and_goes_on(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_images(images / "below", 3)
    broken = images / "below" / "1.png"
    broken.write_bytes(broken.read_bytes()[:99])
    words = [str(weights), str(images), "--out", str(out), "--threshold", "0.2", "--crops"]

    assert main(["detect", "predict", *words]) == 0

    shown, found = capsys.readouterr(), json.loads((out / "predictions.json").read_text())
    assert f"1 unreadable, left out: {broken}: PNG that cannot be decoded" in shown.err
    assert "resized to fit into 40 x 64 pixels" in shown.err
    assert re.search(rf"^unreadable +1 +{broken}$", shown.out, re.MULTILINE)
    assert [each["name"] for each in found["categories"]] == list(CLASSES)
    names = {each["id"]: each["file_name"] for each in found["images"]}
    assert [*names.values()] == ["0.png", "2.png"]
    rows = found["annotations"]
    assert rows and {row["image_id"] for row in rows} <= {*names}
    for row in rows:
        x, y, w, h = row["bbox"]
        assert 0 <= x and x + w <= SIZE[1] + 0.01 and 0 <= y and y + h <= SIZE[0] + 0.01
        assert row["score"] >= 0.2 and row["category"] == CLASSES[row["category_id"] - 1]
        assert row["segmentation"]["size"] == list(SIZE)
    with Image.open(out / "overlays" / "0.png") as drawn:
        assert (drawn.mode, drawn.size) == ("RGB", (448, 320))  # eight times as large
    crops = sorted(out.glob("crops/*/*.png"))
    assert len(crops) == len(rows)
    first = next(row for row in rows if names[row["image_id"]].endswith("0.png"))
    with Image.open(out / "crops" / first["category"] / "0-0.png") as cut:
        w, h = first["bbox"][2:]
        assert w <= cut.width <= w + 2 and h <= cut.height <= h + 2


def test_what_was_predicted_is_data_again(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_images(tmp_path / "images", 2)
    found = mae.detect_predict(weights, tmp_path / "images", out=out, threshold=0.2, quiet=True)
    shutil.rmtree(out / "overlays")
    shutil.move(tmp_path / "images", out / "images")

    part = find_boxed(out).whole
    assert part is not None
    opened = part()
    source = check([opened], max_bad=0.0, progress=Progress(quiet=True)).source(opened)

    assert source.box_classes == CLASSES and source.has_masks
    assert sum(found.objects.values()) == sum(len(source.instances(i).boxes) for i in range(2))
    assert [image.path for image in found.images] == [
        str(tmp_path / "images" / name) for name in ("0.png", "1.png")
    ]


def test_evaluate_scores_what_it_writes(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, page, rows = (
        write_coco(tmp_path / "data", count=4),
        tmp_path / "a.html",
        tmp_path / "b.json",
    )
    words = [str(weights), "--data", str(data), "--quiet", "--json", "--out"]

    assert main(["detect", "evaluate", *words, str(page)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["detect", "evaluate", *words, str(rows)]) == 0
    second = json.loads(capsys.readouterr().out)

    assert (first["part"], first["images"]) == ("all images", 4)
    assert [row["name"] for row in first["classes"]] == list(CLASSES)
    assert first["masks"]["classes"][0]["objects"] == first["classes"][0]["objects"] > 0
    assert first["ap"] == second["ap"] and "AP50 of masks" in page.read_text()
    part = find_boxed(data).whole
    assert part is not None
    opened = part()
    source = check([opened], max_bad=0.0, progress=Progress(quiet=True)).source(opened)
    written = json.loads(rows.read_text())["annotations"]
    assert detection_scores(source.coco(), written).ap50 == pytest.approx(first["ap50"], abs=1e-12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "2"], "threshold: expected at least 0, at most 1, got 2.0"),
        (["--out", "."], "out: . exists already; choose another, or remove it first"),
    ],
)
def test_wrong_options_end_in_one_line_before_any_work(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_images(tmp_path, 1)
    monkeypatch.chdir(tmp_path)

    assert main(["detect", "predict", "no-weights", "0.png", *words]) == 2

    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_the_verbs_of_classifiers_name_the_right_one(
    verb: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / "b", 1)
    words = [str(tmp_path)] if verb == "predict" else ["--data", str(tmp_path)]

    assert main([verb, str(weights), *words, "--quiet"]) == 2

    error = capsys.readouterr().err
    assert "is a detector, expected a classifier; use mae detect predict" in error
    assert error.count("\n") == 1


WITHOUT_EXTRA = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from mae.cli.main import main

sys.exit(sum(main(words.split()) for words in sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["torchvision", "faster_coco_eval pycocotools"])
def test_an_installation_without_the_extra_says_so_before_any_work(
    missing: str, weights: Path, tmp_path: Path
) -> None:
    write_coco(tmp_path / "data", count=2)
    commands = [
        f"detect train --data data --weights {weights}",
        f"detect evaluate {weights} --data data",
        f"detect predict {weights} data/images",
    ]
    needing = 3 if missing == "torchvision" else 2  # no scores are needed to find objects

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, missing, *commands[:needing]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2 * needing, "")
    lines = done.stderr.splitlines()
    assert len(lines) == needing and all("pip install 'mae-vision[detect]'" in s for s in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_twenty_images_are_trained_on_scored_and_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "cells", count=20)
    save(create(tiny_config(patch_size=8, image_size=(40, 56))).encoder, tmp_path / "weights")
    fields = "--epochs 1 --batch 4 --micro-batch 4 --pyramid-channels 8 --workers 0 --device cpu"

    assert main(f"detect train --data cells --weights weights {fields}".split()) == 0
    trained = capsys.readouterr()
    assert main("detect evaluate runs/cells-detect --data cells --out a.html --json".split()) == 0
    scored = json.loads(capsys.readouterr().out)
    words = "runs/cells-detect cells/images --out found --threshold 0.3 --json"
    assert main(f"detect predict {words}".split()) == 0
    found = json.loads(capsys.readouterr().out)

    assert "16 images for training, 4 for testing" in trained.err and "AP50" in trained.out
    results = json.loads((tmp_path / "runs" / "cells-detect" / "results.json").read_text())
    assert (scored["part"], scored["images"]) == ("held out in training", 4)
    assert scored["ap"] == pytest.approx(results["ap"], abs=1e-3)
    assert [row["name"] for row in scored["classes"]] == list(CLASSES)
    assert len(found["images"]) == 20 == len([*(tmp_path / "found" / "overlays").iterdir()])
    assert main(["report", "runs/cells-detect"]) == 0
    page = (tmp_path / "runs" / "cells-detect" / "report.html").read_text()
    assert "mae detect predict runs/cells-detect IMAGES" in page and "AP of masks" in page


def test_the_page_names_options_and_functions_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "detect.md").read_text()
    verbs = [verb.run for verb in VERBS if verb.name.startswith("detect ")]
    known = {option.flag for run in verbs for option in options_of(run)} | {"ranks"}

    assert {*re.findall(r"[` ]--([\w.-]*\w)\b(?!\.\*)", page)} <= known
    for name in re.findall(r"mae\.(\w+)\(", page):
        assert name in mae.__all__
    for name in re.findall(r"run\.scores\.(\w+)", page):
        assert name in DetectorScores._fields
    for name in re.findall(r"`(coco-[\w-]+)`", page):
        assert find_recipe(name).kind == "detection"
