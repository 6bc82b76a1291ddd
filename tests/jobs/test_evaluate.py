from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.nn.functional import cross_entropy

import mae.jobs.evaluate
from mae.cli.main import main
from mae.config.model import ModelConfig, PixelConfig
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError, DataError
from mae.evaluation import classify as module
from mae.evaluation.classify import find_candidates
from mae.evaluation.inputs import FeatureSettings
from mae.evaluation.robustness import ALEXNET_ERRORS
from mae.jobs.evaluate import evaluate, evaluate_corruptions
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.report.tables import report_of
from mae.weights.formats.native import save
from mae.weights.load import LoadedClassifier

H, W = 24, 40
CLASSES = tuple("abcdefg")
SHADES = {name: 30 * (number + 1) for number, name in enumerate(CLASSES)}


class ByShade(torch.nn.Module):
    """Stands in for a classifier: scores fall with the distance of an image to a class's shade."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        pixels = PixelConfig(mean=(0.0,) * 3, std=(1.0,) * 3)
        config = ModelConfig(
            image_size=(H, W), patch_size=8, width=24, depth=1, num_heads=2, decoder_width=16,
            decoder_depth=1, decoder_heads=2, pixels=pixels,
        )  # fmt: skip
        self.encoder = create(config).encoder
        self.shades = 30 * torch.arange(1, classes + 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -((255 * images).mean(dim=(1, 2, 3))[:, None] - self.shades).abs()


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let any path stand for a classifier of the seven shades, or of others."""

    def use(names: tuple[str, ...]) -> None:
        def opened(_: object, settings: FeatureSettings, **how: object) -> LoadedClassifier:
            settings.checked_device()
            model: Classifier = ByShade(len(names))  # type: ignore[assignment]
            return LoadedClassifier(model, names)

        monkeypatch.setattr(mae.jobs.evaluate, "open_for_evaluation", opened)

    use(CLASSES)
    return use


def write(root: Path, shown: dict[str, list[str]]) -> Path:
    """Write a folder per class, whose images have the shades of the classes given."""
    for name, shades in shown.items():
        (root / name).mkdir(parents=True)
        for i, shade in enumerate(shades):
            Image.new("RGB", (W, H), (SHADES[shade],) * 3).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give 2 images of each class; one of b looks like f, and one of c like d."""
    shown = {name: [name, name] for name in CLASSES} | {"b": ["b", "f"], "c": ["d", "c"]}
    return write(tmp_path / "val", shown)


def test_figures_are_those_counted_by_hand(folder: Path) -> None:
    result = evaluate("w", folder, quiet=True)

    assert (result.images, result.top1) == (14, 12 / 14)
    # The b that looks like f is nearer to f, e, g, d and c than to b.
    assert result.top5 == 13 / 14
    assert result.scored == "7 classes" and result.unreadable == ()
    rows = {row.name: (row.images, row.right, row.mistaken_for) for row in result.classes}
    assert rows["b"] == (2, 1, "f") and rows["c"] == (2, 1, "d") and rows["g"] == (2, 2, "")
    assert [(m.name, m.taken_for, m.times) for m in result.mistakes] == [
        ("b", "f", 1),
        ("c", "d", 1),
    ]


def test_a_classifier_of_ours_is_asked_as_it_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    model = Classifier(ByShade(7).encoder, num_classes=7).train()
    torch.nn.init.normal_(model.head.weight)
    saved = save(model, tmp_path / "w", class_names=CLASSES)

    result = evaluate(saved, folder, batch=5, device="cpu", quiet=True)

    images = torch.cat([torch.full((1, 3, H, W), SHADES[s] / 255) for s in "aabfdcddeeffgg"])
    with torch.inference_mode():
        scores = model(images)
    labels = torch.arange(7).repeat_interleave(2)
    assert result.loss == pytest.approx(float(cross_entropy(scores, labels)), rel=1e-5)
    assert result.top1 == float((scores.argmax(dim=1) == labels).double().mean())


@pytest.mark.parametrize("batch", [1, 3, 5, 14, 64])
def test_every_image_counts_once_whatever_the_batch(batch: int, folder: Path) -> None:
    whole = evaluate("w", folder, quiet=True)

    assert evaluate("w", folder, batch=batch, quiet=True) == whole


def test_a_broken_image_is_named_left_out_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b" / "1.png").write_bytes(b"nothing")

    result = evaluate("w", folder)

    assert (result.images, result.top1, result.unreadable) == (13, 12 / 13, ("b/1.png",))
    assert "1 unreadable, left out: b/1.png" in capsys.readouterr().err
    assert ("unreadable", "1") in result.rows()


def test_the_folder_beside_train_is_the_one_for_testing(folder: Path) -> None:
    write(folder.parent / "train", {name: [name] for name in CLASSES})

    assert evaluate("w", folder.parent, quiet=True).images == 14


def test_predictions_are_a_row_an_image(folder: Path, tmp_path: Path) -> None:
    evaluate("w", folder, predictions=tmp_path / "p.csv", quiet=True)

    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"{c}/{i}.png" for c in CLASSES for i in (0, 1)]
    wrong = [(r["name"], r["class"], r["predicted"]) for r in rows if r["class"] != r["predicted"]]
    assert wrong == [("b/1.png", "b", "f"), ("c/0.png", "c", "d")]
    assert all((row["rank"] == "1") == (row["class"] == row["predicted"]) for row in rows)
    assert float(rows[0]["probability"]) == pytest.approx(1) and float(rows[3]["loss"]) > 100


def test_predictions_in_parquet_hold_the_same(folder: Path, tmp_path: Path) -> None:
    evaluate("w", folder, predictions=tmp_path / "p.parquet", quiet=True)
    evaluate("w", folder, predictions=tmp_path / "p.csv", quiet=True)

    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [{k: str(v) for k, v in row.items()} for row in table] == list(csv.DictReader(file))


def test_an_image_or_a_page_is_written(folder: Path, tmp_path: Path) -> None:
    evaluate("w", folder, out=tmp_path / "c.png", quiet=True)
    evaluate("w", folder, out=tmp_path / "c.html", quiet=True)

    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (595, 595)
    page = (tmp_path / "c.html").read_text()
    assert "top1" in page and "85.71 %" in page and "taken for" in page


def wnids(count: int) -> tuple[str, ...]:
    return tuple(f"n{i:08}" for i in range(count))


def source_of(names: tuple[str, ...], tmp_path: Path) -> FolderSource:
    return FolderSource(write_named(tmp_path / "set", names))


def write_named(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.png").touch()
    return root


@pytest.fixture
def two_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let imagenet-a be classes 1 and 3 of four."""
    monkeypatch.setattr(module, "set_classes", lambda which: [1, 3])
    monkeypatch.setattr(module, "IMAGENET_CLASSES", 4)


def test_a_restricted_set_chooses_among_its_own_classes(
    two_of_four: None, stub: Callable[..., None], tmp_path: Path
) -> None:
    stub(tuple("abcd"))
    # Of class b, one between b and c and one like c; of class d, one like c.
    folder = write(tmp_path / "a", {"b": ["b", "c"], "d": ["c", "d"]})

    restricted = evaluate("w", folder, set="imagenet-a", quiet=True)
    free = evaluate("w", folder, set="imagenet-a", all_classes=True, quiet=True)

    # c is as far from b as from d: of equal scores the first class, b, is predicted.
    assert restricted.top1 == 3 / 4 and free.top1 == 2 / 4
    assert restricted.scored == "restricted to the scores of its 2 classes"
    assert free.scored == "the scores of all 4 classes compared"
    assert restricted.loss < free.loss
    assert [row.name for row in restricted.classes] == ["b", "d"]
    assert [row.name for row in free.classes] == ["a", "b", "c", "d"]


def test_the_real_lists_match_folders_by_name(tmp_path: Path) -> None:
    names, indices = wnids(1000), module.set_classes("imagenet-r")
    source = source_of(tuple(names[i] for i in indices), tmp_path)

    asked = find_candidates(source, names, dataset="imagenet-r", all_classes=False)

    assert asked.classes.tolist() == indices and asked.positions.tolist() == list(range(200))
    assert asked.names(names) == list(source.class_names)


def test_classes_are_matched_by_name_not_by_place(tmp_path: Path) -> None:
    asked = find_candidates(
        source_of(("a", "b", "c"), tmp_path), ("c", "a", "b"), dataset="folder", all_classes=False
    )

    assert asked.positions.tolist() == [1, 2, 0] and asked.classes.tolist() == [0, 1, 2]


def test_classes_without_an_image_have_an_empty_row(folder: Path) -> None:
    shutil.rmtree(folder / "d")
    for path in (folder / "g").iterdir():
        path.unlink()

    result = evaluate("w", folder, quiet=True)

    # The c that looks like d is still taken for it, as one of seven classes.
    assert (result.images, result.top1) == (10, 8 / 10)
    assert result.scored == "7 classes, no image of 2: d, g"
    assert [row.images for row in result.classes] == [2, 2, 2, 0, 2, 2, 0]
    assert ("d", "", "of 0") in result.rows()
    values = json.loads(json.dumps(report_of(result).values))
    assert values["classes"][3]["accuracy"] is None and values["classes"][0]["accuracy"] == 1


def test_a_test_set_of_one_class_can_be_scored(folder: Path) -> None:
    for name in CLASSES[1:]:
        shutil.rmtree(folder / name)

    result = evaluate("w", folder, quiet=True)

    assert (result.images, result.top1, result.part) == (2, 1.0, "all images")


def test_the_split_that_is_asked_for_is_scored(folder: Path) -> None:
    write(folder.parent / "Train", {name: [name] for name in CLASSES})
    write(folder.parent / "testing", {"b": ["b", "f", "b"]})

    parts = {
        split: evaluate("w", folder.parent, split=split, quiet=True)  # type: ignore[arg-type]
        for split in (None, "train", "val", "test")
    }

    assert [r.part for r in parts.values()] == ["val", "Train", "val", "testing"]
    assert [r.images for r in parts.values()] == [14, 7, 14, 3]
    assert parts["test"].top1 == 2 / 3


@pytest.mark.parametrize(
    ("folders", "dataset", "message"),
    [
        (("a", "x"), "folder", "1 of 2 classes are unknown to the classifier: x; expected"),
        (("a", "b"), "imagenet-a", "2 folders, which are not the 200 classes of imagenet-a"),
    ],
)
def test_other_classes_are_refused(
    folders: tuple[str, ...], dataset: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        find_candidates(source_of(folders, tmp_path), CLASSES, dataset=dataset, all_classes=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--all-classes", "all_classes: has no effect on the set folder, expected with imagenet-a"),
        ("--out a.jpg", "out: expected a name ending in .png or .html, got a.jpg"),
        ("--predictions a.txt", "predictions: a.txt ends in '.txt', expected .csv or .parquet"),
        ("--batch 0", "batch: expected at least 1, got 0"),
        ("--set imagenet-d", "set: expected folder or imagenet or imagenet-a or"),
        ("--set imagenet-c --out a.png", "out: has no effect on imagenet-c, expected with another"),
        ("--set imagenet-c", "75 of 75 folders of ImageNet-C are not in"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", "w", "--data", str(folder), "--quiet", *words.split()])

    said = capsys.readouterr()
    assert code == 2 and said.out == "" and said.err.count("\n") == 1
    assert message in said.err


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae.report.parquet.find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[parquet\]', or name a .csv"):
        evaluate("w", "d", predictions=Path("p.parquet"))


def test_the_command_prints_a_table_and_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "w", "--data", str(folder), "--quiet"]) == 0
    table = capsys.readouterr().out
    assert main(["evaluate", "w", "--data", str(folder), "--quiet", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)

    assert table.startswith("top1") and "85.71 %" in table and "b taken for f: 1 (50%)" in table
    assert values["top1"] == 12 / 14 and values["classes"][1]["accuracy"] == 0.5


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """Give one image of each of two classes for every condition; snow hides a at 4 and 5."""
    for name in ALEXNET_ERRORS:
        for severity in range(1, 6):
            hidden = name == "snow" and severity >= 4
            shown = {"a": ["b" if hidden else "a"], "b": ["b"]}
            write(tmp_path / "c" / name / str(severity), shown)
    return tmp_path / "c"


def test_the_mce_is_that_counted_by_hand(
    corrupted: Path, stub: Callable[..., None], tmp_path: Path
) -> None:
    stub(("a", "b"))
    (corrupted / "spatter").mkdir()

    result = evaluate_corruptions("w", corrupted, predictions=tmp_path / "p.csv", quiet=True)

    # Half of the images are wrong at two of five severities of one corruption.
    assert result.mce == pytest.approx(0.2 / 0.866816 / 15)
    assert result.error == pytest.approx(0.2 / 15) and result.images == 150
    snow = next(each for each in result.corruptions if each.name == "snow")
    assert snow.errors == (0, 0, 0, 0.5, 0.5) and snow.ce == pytest.approx(0.2 / 0.866816)
    with (tmp_path / "p.csv").open() as file:
        wrong = [r["name"] for r in csv.DictReader(file) if r["class"] != r["predicted"]]
    assert wrong == ["snow/4/a/0.png", "snow/5/a/0.png"]
    assert ("mCE", "1.5") == result.rows()[0][:2]


def test_a_class_that_a_condition_lacks_is_said(
    corrupted: Path, stub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub(("a", "b"))
    shutil.rmtree(corrupted / "fog" / "3" / "a")

    assert evaluate_corruptions("w", corrupted).images == 149
    assert "no image of some classes in 1 folders: fog/3" in capsys.readouterr().err


def test_a_missing_severity_is_found_before_any_work(corrupted: Path) -> None:
    (corrupted / "fog" / "3").rename(corrupted / "fog" / "6")

    with pytest.raises(DataError, match="1 of 75 folders of ImageNet-C are not in .*: fog/3"):
        evaluate_corruptions("w", corrupted, quiet=True)


def test_corrupted_images_are_seen_pixel_for_pixel(
    corrupted: Path, stub: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(("a", "b"))
    noise = np.random.default_rng(0).integers(0, 256, (H + 6, W + 4, 3), dtype=np.uint8)
    for path in corrupted.rglob("*.png"):
        Image.fromarray(noise).save(path)
    seen: list[torch.Tensor] = []

    def keep(self: ByShade, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    monkeypatch.setattr(ByShade, "forward", keep)

    evaluate_corruptions("w", corrupted, quiet=True)

    centre = torch.from_numpy(noise[3:-3, 2:-2]).permute(2, 0, 1)
    assert torch.equal((255 * seen[0][0]).round().to(torch.uint8), centre)
