"""Classes of images without labels: what is printed and written, and how a stopped job goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from scipy.special import softmax

import mae
from mae.cli.main import VERBS, main
from mae.cli.options import options_of
from mae.config.run import FinetuneConfig, OptimConfig
from mae.data.batching.batch import evaluation_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError, DataError, WeightsError
from mae.evaluation import classify
from mae.jobs import predict as module
from mae.jobs.evaluate import evaluate
from mae.jobs.finetune import finetune
from mae.jobs.predict import predict
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.weights.formats.native import save
from mae.weights.load import load_classifier
from tests.images import photo
from tests.jobs.conftest import TINY, write_classes

KIND = PixelKind("uint8", 3)
CLASSES = ["hen", "lynx", "newt", "toad"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a classifier of four classes that is sure of nothing."""
    model = Classifier(create(TINY).encoder, num_classes=4)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return save(model, tmp_path_factory.mktemp("made") / "w", class_names=CLASSES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Give seven images of several sizes in two folders, and a broken one between them."""
    for number in range(7):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = photo(30 + 7 * number, 44 + 3 * number, seed=number)
        Image.fromarray(pixels).save(path)
    (tmp_path / "images" / "a" / "3b.jpg").write_bytes(b"\xff\xd8\xff no image")
    return tmp_path / "images"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def jpegs(root: Path, *, seed: int, count: int) -> Path:
    """Write a folder per class of JPEG files of several sizes."""
    for number, name in enumerate(["blue", "green", "red"]):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = photo(26 + 5 * i, 41 + 11 * number, seed=seed + 100 * number + i).astype(int)
            pixels[..., number] += 80
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> mae.Tuned:
    """Fine-tune a tiny network for a few steps."""
    root = tmp_path_factory.mktemp("tuned")
    config = FinetuneConfig(
        model=TINY, steps=5, batch=6, threads=1, device="cpu", optim=OptimConfig(lr=0.05)
    )
    return finetune(config, data=jpegs(root / "d", seed=0, count=4), out=root / "run", quiet=True)


@pytest.mark.parametrize("batch", [4, 64])
def test_predictions_are_those_of_evaluate_to_the_last_bit(
    batch: int, tuned: mae.Tuned, tmp_path: Path
) -> None:
    how = {"batch": batch, "device": "cpu", "quiet": True}
    data = jpegs(tmp_path / "new", seed=50, count=5)
    (data / "green" / "2.jpg").write_bytes(b"nothing")

    evaluate(tuned.path, data, predictions=tmp_path / "e.csv", **how)
    predict(tuned.path, [data], out=tmp_path / "p.csv", **how)
    found = tuned.predict(data, **how)

    scored = [(r["predicted"], r["probability"]) for r in read_csv(tmp_path / "e.csv")]
    assert len(scored) == 14 and len({p for _, p in scored}) == 14
    assert [(r["class"], r["probability"]) for r in read_csv(tmp_path / "p.csv")] == scored
    assert [(row[1], repr(row[2])) for row in found.table()] == scored
    assert found.class_names == ("blue", "green", "red")


def test_probabilities_are_the_softmax_of_the_scores_and_add_up_to_one(
    classifier: Path, images: Path
) -> None:
    found = predict(classifier, images, quiet=True)

    paths = [path for path in sorted(images.rglob("*.jpg")) if path.name != "3b.jpg"]
    assert found.names == tuple(map(str, paths)) and found.unreadable == (f"{images}/a/3b.jpg",)
    assert found.probabilities.shape == (7, 4) and found.probabilities.dtype == np.float64
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-12)
    best = found.probabilities.argmax(axis=1)
    assert found.classes == tuple(CLASSES[k] for k in best)
    assert len(set(found.classes)) > 1
    model, view = load_classifier(classifier).model, TINY.image_size
    read = evaluation_batch(FolderSource.of_files(paths), range(7), kind=KIND, size=view)
    with torch.inference_mode():
        scores = model.eval()(model.encoder.normalize(read.images))
    np.testing.assert_allclose(found.probabilities, softmax(scores.double(), axis=1), rtol=1e-6)


def test_paths_pillow_images_and_arrays_are_classified_alike(
    classifier: Path, tmp_path: Path
) -> None:
    pixels = [photo(30, 44), photo(31, 45, seed=1)]
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{number}.png")

    of_folder = predict(classifier, tmp_path, quiet=True)
    of_paths = predict(classifier, sorted(tmp_path.iterdir()), quiet=True)
    of_arrays = predict(classifier, pixels, quiet=True)
    of_pillow = predict(classifier, [Image.fromarray(each) for each in pixels], quiet=True)

    assert of_paths.names == of_folder.names and of_arrays.names == ("image 0", "image 1")
    for other in (of_paths, of_arrays, of_pillow):
        assert np.array_equal(other.probabilities, of_folder.probabilities)


def test_several_inputs_are_classified_in_their_order_and_named_by_their_paths(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_classes(Path("in here"), "x", "y", count=1)
    Image.fromarray(photo(30, 44, seed=7)).save("one.JPG")
    np.save("all.npy", np.stack([photo(30, 44, seed=seed) for seed in (8, 9)]))
    with tarfile.open("t.tar", "w") as tar:
        tar.add("one.JPG", "deep/one.jpg")
    Path("list.csv").write_text("in here/y/0.png,newt\none.JPG,hen\n")

    found = predict(classifier, ["one.JPG", folder, "all.npy", "t.tar", "list.csv"], quiet=True)

    assert found.names == (
        "one.JPG", "in here/x/0.png", "in here/y/0.png", "all.npy/image 0", "all.npy/image 1",
        "t.tar/deep/one.jpg", "./in here/y/0.png", "./one.JPG",
    )  # fmt: skip
    rows = found.probabilities
    assert np.array_equal(rows[[0, 2]], rows[[7, 6]]) and np.array_equal(rows[0], rows[5])


def test_tables_hold_path_class_probability_and_the_next_classes(
    classifier: Path, images: Path, tmp_path: Path
) -> None:
    for end in ("csv", "json", "parquet"):
        found = predict(classifier, [images], out=tmp_path / f"p.{end}", top=3, batch=3, quiet=True)

    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [*rows[0]] == [
        "path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3",
    ]  # fmt: skip
    assert [{k: str(v) for k, v in row.items()} for row in rows] == read_csv(tmp_path / "p.csv")
    values = json.loads((tmp_path / "p.json").read_bytes())
    assert values["images"] == rows and values["unreadable"] == [f"{images}/a/3b.jpg"]
    assert values["counts"] == found.counts and sum(found.counts.values()) == 7
    for row, probabilities in zip(rows, found.probabilities, strict=True):
        best = [float(p) for p in sorted(probabilities, reverse=True)[:3]]
        assert [row["probability"], row["probability_2"], row["probability_3"]] == best
    assert "a/3b.jpg\tJPEG" in (tmp_path / "p.bad-files.tsv").read_text()
    assert len(list(tmp_path.glob("p.*"))) == 4 and not list(tmp_path.glob(".*.part"))


def test_the_least_certain_images_come_first_where_asked(
    classifier: Path, images: Path, tmp_path: Path
) -> None:
    plain = predict(classifier, [images], quiet=True)

    found = predict(classifier, [images], out=tmp_path / "p.csv", sort="uncertainty", quiet=True)

    top = found.probabilities.max(axis=1).tolist()
    assert top == sorted(plain.probabilities.max(axis=1).tolist()) and found.names != plain.names
    assert {*zip(found.names, found.classes, strict=True)} == {
        *zip(plain.names, plain.classes, strict=True)
    }
    assert tuple(row["path"] for row in read_csv(tmp_path / "p.csv")) == found.names


def test_the_command_shows_twenty_images_counts_the_rest_and_names_the_unreadable(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "d", "a", "b", count=13)
    (data / "b" / "5.png").write_bytes(b"nothing")
    words = ["predict", str(classifier), str(data), "--top", "2"]

    assert main(words) == 0
    shown, notes = capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert main([*words, "--out", str(tmp_path / "p.csv"), "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[21] == f"and 5 more in {tmp_path / 'p.csv'}"

    lines = shown.splitlines()
    assert lines[0].split() == ["path", "class", "probability", "2.", "class"]
    assert lines[1].split()[0].endswith("/d/a/0.png") and lines[20].split()[0].endswith("b/3.png")
    assert lines[21] == "and 5 more; --out FILE.csv writes and --json prints all"
    counts = {line.split()[0]: line.split()[1] for line in lines[24:-1]}
    assert lines[23].split() == ["images", "25"]
    assert counts == {name: str(count) for name, count in values["counts"].items()}
    assert lines[-1].split()[:2] == ["unreadable", "1"] and lines[-1].endswith("b/5.png")
    assert "1 unreadable, left out" in notes
    assert len(values["images"]) == 25 and values["unreadable"] == [f"{data}/b/5.png"]


def test_the_sheet_draws_images_under_their_class(
    classifier: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, list[str]]] = []
    real = module.grouped_sheet

    def watched(groups):  # type: ignore[no-untyped-def]
        drawn.extend((heading, [label for label, _ in some]) for heading, some in groups)
        return real(groups)

    monkeypatch.setattr(module, "grouped_sheet", watched)
    monkeypatch.setattr(module, "MOST_ON_SHEET", 3)

    found = predict(classifier, [images], sheet=tmp_path / "s.png", quiet=True)

    assert [heading.partition(":")[0] for heading, _ in drawn] == [*found.counts]
    (first, count), labels = [*found.counts.items()][0], drawn[0][1]
    assert count > 3 and drawn[0][0] == f"{first}: {count} images, 3 of them" and len(labels) == 3
    row = found.classes.index(first)
    top = found.probabilities[row].max()
    assert labels[0] == f"{top:.1%} {Path(found.names[row]).stem}"
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width == 8 + 3 * 120 and sheet.height > 2 * 134


def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the job stop after some batches; give the sizes of those that were classified."""
    sizes: list[int] = []
    real = classify.class_probabilities

    def class_probabilities(model: Classifier, images: torch.Tensor) -> object:
        if len(sizes) == batches:
            raise KeyboardInterrupt
        sizes.append(len(images))
        return real(model, images)

    monkeypatch.setattr(module, "class_probabilities", class_probabilities)
    return sizes


def test_a_second_start_goes_on_even_with_other_columns_and_ends_with_the_same_bytes(
    classifier: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    predict(classifier, [images], out=a, top=2, batch=3, quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(2, patch)
        predict(classifier, [images], out=b, batch=3, quiet=True)
    assert not b.exists()

    classified = interrupted_after(99, monkeypatch)
    predict(classifier, [images], out=b, top=2, batch=3, quiet=True)

    assert classified == [2]  # 8 images, 3 and 3 of which were done
    assert b.read_bytes() == a.read_bytes()
    assert (tmp_path / "b.bad-files.tsv").read_bytes() == (
        tmp_path / "a.bad-files.tsv"
    ).read_bytes()


def test_images_in_memory_are_not_taken_for_others_of_a_stopped_call(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, others = ([photo(30, 44, seed=seed + i) for i in range(5)] for seed in (0, 50))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(1, patch)
        predict(classifier, first, out=tmp_path / "p.csv", batch=3, quiet=True)

    found = predict(classifier, others, out=tmp_path / "p.csv", batch=3, quiet=True)

    expected = predict(classifier, others, batch=3, quiet=True)
    assert np.array_equal(found.probabilities, expected.probabilities)


@pytest.mark.slow
def test_a_process_is_killed_and_two_ranks_end_with_the_bytes_of_an_undisturbed_one(
    classifier: Path, tmp_path: Path
) -> None:
    data = write_classes(tmp_path / "d", "a", "b", "c", count=40)
    (data / "b" / "7.png").write_bytes(b"nothing")
    command = [sys.executable, "-m", "mae", "predict", str(classifier), str(data), "--batch=2"]
    command += [f"--out={tmp_path / 'two.csv'}"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}

    job = subprocess.Popen(command, env=alone)
    while len(list(tmp_path.glob(".two.csv.part/batches/*.npy"))) < 3:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "two.csv").exists() and (tmp_path / ".two.csv.part").exists()
    again = subprocess.run(
        [*command, "--ranks=2"], env=alone, capture_output=True, text=True, check=True
    )

    assert again.stderr.count("resuming: ") == again.stderr.count("1 unreadable, left out") == 1
    assert not (tmp_path / ".two.csv.part").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a rank has it: their number may change a last bit
    predict(classifier, [data], out=tmp_path / "one.csv", batch=2, quiet=True)
    torch.set_num_threads(threads)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert (tmp_path / "one.csv").read_bytes().count(b"\n") == 1 + 119


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": []}, DataError, "images: got no files, expected at least one"),
        ({"inputs": ["nowhere"]}, DataError, "no folder .*nowhere"),
        ({"inputs": ["nowhere.jpg"]}, DataError, "no file .*nowhere.jpg"),
        ({"inputs": ["empty", "empty too"]}, DataError, "no images in .*empty: found nothing"),
        ({"inputs": ["bands.npy"]}, DataError, "none of 2 .*7 channels"),
        ({"top": 5}, ConfigError, "top: expected 1 to 4, the classes of .*, got 5"),
        ({"top": 0}, ConfigError, "top: expected 1 to 4"),
        ({"out": "p.txt"}, ConfigError, "out: p.txt ends in '.txt', expected .csv or .json or .pa"),
        ({"out": "there.csv"}, ConfigError, "out: there.csv exists already; choose another"),
        ({"sheet": "s.jpg"}, ConfigError, "sheet: s.jpg ends in '.jpg', expected .png"),
        ({"sheet": "there.png"}, ConfigError, "sheet: there.png exists already"),
        ({"weights": "pretrained"}, WeightsError, "no classifier's head.*mae finetune"),
    ],
    ids=str,
)
def test_what_cannot_be_classified_is_one_line_and_nothing_is_written(
    change: dict[str, object],
    error: type[Exception],
    message: str,
    classifier: Path,
    weights: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "empty too"):
        Path(folder).mkdir()
    for file in ("there.csv", "there.png"):
        Path(file).write_text("precious")
    np.save("bands.npy", np.zeros((2, 30, 44, 7), np.uint8))
    Path("pretrained").symlink_to(weights)
    before = sorted(tmp_path.iterdir())
    given = {"weights": classifier, "inputs": [images], "top": 1} | change
    paths = {name: Path(str(given[name])) for name in ("out", "sheet") if name in given}

    with pytest.raises(error, match=message) as raised:
        predict(
            given["weights"],  # type: ignore[arg-type]
            given["inputs"],  # type: ignore[arg-type]
            top=given["top"],  # type: ignore[arg-type]
            quiet=True,
            **paths,
        )

    assert "\n" not in str(raised.value) and sorted(tmp_path.iterdir()) == before


def test_no_image_readable_is_refused_with_a_file_to_write_too(
    classifier: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    with pytest.raises(DataError, match=r"none of 1 can be read.*a\.png"):
        predict(classifier, [tmp_path / "a.png"], out=tmp_path / "p.csv", quiet=True)

    assert not (tmp_path / "p.csv").exists()


def test_images_given_as_data_are_told_where_they_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["predict", "w", "--data", "images"]) == 2
    assert capsys.readouterr().err == (
        "mae: unknown option --data; give the images without it: mae predict WEIGHTS IMAGES\n"
    )


def test_the_page_shows_options_and_columns_that_exist(tuned: mae.Tuned) -> None:
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    verb = next(verb.run for verb in VERBS if verb.name == "predict")

    named = set(re.findall(r"^\| `--([\w-]+)", page, flags=re.MULTILINE))
    assert named == {"out", "top", "sort", "sheet", "json"}
    assert named <= {option.flag for option in options_of(verb)}
    found = tuned.predict(photo(30, 44), quiet=True)._replace(top=3)
    assert ", ".join(f"`{name}`" for name in found.columns()[3:]) in page
    for name in ("names", "classes", "probabilities", "class_names"):
        assert f"found.{name}" in page and hasattr(found, name)


@pytest.mark.parametrize("verb", ["embed", "probe"])
def test_the_encoder_of_a_fine_tuned_run_gives_features(
    verb: str, tuned: mae.Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jpegs(tmp_path / "new", seed=50, count=5)
    words: dict[str, list[str]] = {
        "embed": ["embed", str(tuned.path), "--data", str(data), f"--out={tmp_path / 'f.npy'}"],
        "probe": ["probe", "knn", str(tuned.path), "--data", str(data), "--k=3"],
    }

    assert main(words[verb]) == 0, capsys.readouterr().err

    if verb == "embed":
        encoder: Callable[..., torch.Tensor] = mae.load_encoder(tuned.path)
        assert np.load(tmp_path / "f.npy").shape == (15, 24)
        tokens = encoder(torch.zeros(1, 3, *TINY.image_size))
        assert torch.equal(tokens, tuned.model.encoder(torch.zeros(1, 3, *TINY.image_size)))


def test_a_fine_tuned_run_has_no_decoder_to_reconstruct_with(
    tuned: mae.Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jpegs(tmp_path / "new", seed=50, count=1)

    code = main(["reconstruct", str(tuned.path), str(data), f"--out={tmp_path / 'r.png'}"])

    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1 and "Traceback" not in line
    assert "pre-training run" in line
