"""A classifier is tested on what its fine-tuning held out, and on the rest only if asked to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mae.cli.main import main
from mae.config.run import AugmentConfig, FinetuneConfig, OptimConfig
from mae.data.sources.source import FolderSource
from mae.errors import ConfigError
from mae.evaluation.labelled_data import HeldOut, finetuning_data, labelled
from mae.evaluation.linear_probe import paper_config
from mae.evaluation.method import choose_method
from mae.jobs.data_pack import pack
from mae.jobs.evaluate import evaluate
from mae.jobs.finetune import finetune
from mae.jobs.probe import feature_probe, paper_probe
from tests.jobs.conftest import write_classes

CONFIG = FinetuneConfig(
    follow_weights=True,
    steps=1,
    batch=6,
    threads=1,
    seed=5,
    keep_checkpoints=True,
    pool="cls",
    optim=OptimConfig(lr=0.01, warmup_epochs=0),
    augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0),
    device="cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give 10 images each of 3 classes."""
    return write_classes(tmp_path_factory.mktemp("divided") / "data", "a", "b", "c", count=10)


@pytest.fixture(scope="module")
def tuned(data: Path, weights: Path) -> Path:
    """Give a run on it, whose seed is not the usual one."""
    finetune(CONFIG, data=data, weights=weights, out=data.parent / "run", quiet=True)
    return data.parent / "run"


def as_before(run: Path) -> None:
    """Take out of a run's files what older runs do not record."""
    for file in (run / "run.json", run / "weights" / "config.json"):
        if file.exists():
            values = json.loads(file.read_text())
            del (values if "data" in values else values["facts"])["data"]["split"]
            file.write_text(json.dumps(values))


def held_out_names(data: Path, seed: int) -> set[str]:
    source = FolderSource(data)
    return {source.name(i) for i in HeldOut(seed).divide(source)[1].tolist()}


def judged(weights: Path, data: Path, **how: object) -> tuple[set[str], str]:
    """Give the names of what is scored, and what is said of it."""
    file = data.parent / "predictions.csv"
    result = evaluate(weights, data, predictions=file, quiet=True, **how)  # type: ignore[arg-type]
    return {line.split(",")[0] for line in file.read_text().splitlines()[1:]}, result.part


@pytest.mark.parametrize("older", [False, True], ids=["now", "older run"])
@pytest.mark.parametrize("held", [".", "weights", "checkpoints/step-1"])
def test_only_what_fine_tuning_held_out_is_scored(
    held: str, tuned: Path, data: Path, tmp_path: Path, *, older: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    if older:
        as_before(run)
    at = next(iter((run / "checkpoints").iterdir())) if "step" in held else run / held

    names, part = judged(at, data)

    assert names == held_out_names(data, 5) and len(names) == 6
    assert part == "test part (20% of each class, seed 5)"


def test_weights_copied_away_from_their_run_know_it_too(
    tuned: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned / "weights", tmp_path / "copied")

    assert judged(tmp_path / "copied", data)[0] == held_out_names(data, 5)


def test_data_that_were_moved_are_the_same(tuned: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "moved")

    assert judged(tuned, tmp_path / "moved")[0] == held_out_names(data, 5)


def test_what_it_learnt_from_is_scored_if_asked_for(
    tuned: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, part = judged(tuned, data, split="train")

    assert len(names) == 24 and not names & held_out_names(data, 5)
    assert part == "train part (80% of each class, seed 5)"
    words = ["evaluate", str(tuned), "--data", str(data), "--split", "train"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "tested on 24 images, the train part" in said.err and "was fine-tuned on" in said.err
    assert "train part (80% of each class, seed 5)" in said.out


def test_of_other_data_everything_is_scored(tuned: Path, data: Path, tmp_path: Path) -> None:
    other = write_classes(tmp_path / "other", "a", "b", "c", count=4)

    names, part = judged(tuned, other)

    assert (len(names), part) == (12, "all images")
    with pytest.raises(ConfigError, match="split: .* has no train split, it has none, and fine-t"):
        judged(tuned, other, split="train")


@pytest.mark.parametrize("older", [False, True], ids=["now", "older"])
def test_what_cannot_be_told_is_said(
    tuned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, older: bool
) -> None:
    if older:  # the seed, which is not the usual one, is recorded nowhere
        shutil.copytree(tuned / "weights", tmp_path / "w" / "deep" / "weights")
        weights = tmp_path / "w" / "deep" / "weights"
        as_before(weights.parent)
        evaluate(weights, data)
    else:
        shutil.copytree(tuned, tmp_path / "run")
        (data / "a" / "more.png").write_bytes((data / "a" / "0.png").read_bytes())
        evaluate(tmp_path / "run", data)
        (data / "a" / "more.png").unlink()

    assert (
        "changed since the fine-tuning, which may have used some test images"
        in capsys.readouterr().err
    )


def test_the_folder_it_was_trained_on_is_named_as_such(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("train", 0), ("valid", 50)):
        write_classes(tmp_path / "data" / name, "a", "b", count=4, seed=seed)
    finetune(CONFIG, data=tmp_path / "data", weights=weights, out=tmp_path / "run", quiet=True)

    assert evaluate(tmp_path / "run", tmp_path / "data").part == "valid"
    said = capsys.readouterr().err
    assert "fine-tun" not in said and "trained on" not in said
    assert evaluate(tmp_path / "run", tmp_path / "data", split="train").part == "train"
    assert "the classifier was fine-tuned on these images" in capsys.readouterr().err
    assert evaluate(tmp_path / "run", tmp_path / "data" / "train").images == 8
    assert "the classifier was fine-tuned on these images" in capsys.readouterr().err


def test_probes_test_on_what_fine_tuning_held_out(
    tuned: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = labelled(data, seed=0, weights=tuned)
    names = {found.test.source.name(i) for i in found.test.ids.tolist()}
    assert names == held_out_names(data, 5)

    feature_probe(tuned, data, choose_method("knn", k=3, seed=0))
    line = "(20% of each class held out for testing, seed 5, as in the fine-tuning of the weights)"
    assert line in capsys.readouterr().err
    config = paper_config(epochs=1, batch=8, lr=1.0, seed=0, device="cpu")
    paper_probe(tuned, data, config=config)
    assert line in capsys.readouterr().err


def test_tuning_on_keeps_the_test_part_of_the_weights_and_resumes(
    tuned: Path, data: Path, tmp_path: Path
) -> None:
    other = replace(CONFIG, seed=1)
    finetune(other, data=data, weights=tuned, out=tmp_path / "r", quiet=True)
    file = tmp_path / "r" / "run.json"
    record = json.loads(file.read_text())
    assert record["data"]["split"].items() >= {"seed": 5, "share": 0.2}.items()

    file.write_text(json.dumps(record | {"finished": False}))
    again = finetune(other, data=data, weights=tuned, out=tmp_path / "r", quiet=True)

    assert again.resumed and judged(tmp_path / "r", data)[0] == held_out_names(data, 5)


def test_a_stopped_run_of_before_resumes_with_its_own_division(
    tuned: Path, data: Path, tmp_path: Path
) -> None:
    # Such a run divided by its own seed, whatever its weights were tuned on.
    other = replace(CONFIG, seed=1)
    shutil.copytree(tuned, tmp_path / "w")
    (tmp_path / "w" / "run.json").unlink()
    config = tmp_path / "w" / "weights" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"facts": {}}))
    finetune(other, data=data, weights=tmp_path / "w", out=tmp_path / "r", quiet=True)
    as_before(tmp_path / "r")
    file = tmp_path / "r" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"finished": False}))
    shutil.rmtree(tmp_path / "w")
    shutil.copytree(tuned, tmp_path / "w")

    again = finetune(other, data=data, weights=tmp_path / "w", out=tmp_path / "r", quiet=True)

    assert again.resumed
    assert judged(tmp_path / "r", data)[0] == held_out_names(data, 1) != held_out_names(data, 5)


def test_a_pack_of_its_own_data_is_suspected(
    tuned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(data, tmp_path / "pack", quiet=True)

    assert evaluate(tuned, tmp_path / "pack").images == 30
    assert "the classifier was trained on most of them; give the folder" in capsys.readouterr().err


def test_weights_of_pretraining_were_tuned_on_nothing(weights: Path, tmp_path: Path) -> None:
    assert finetuning_data(weights) is None and finetuning_data(None) is None
    assert finetuning_data(tmp_path / "nothing") is None
