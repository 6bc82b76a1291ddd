"""Fine-tuning: what comes out, what is refused before anything is made, and resuming bitwise."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.cli.main import main
from mae.config.run import AugmentConfig, FinetuneConfig, MixConfig, OptimConfig
from mae.errors import ConfigError, DataError, MaeError, Stopped, WeightsError
from mae.jobs.finetune import finetune
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.report.predictions import read_predictions
from mae.runs.checkpoint import latest_checkpoint
from mae.train import saver as running
from mae.weights.formats.native import save
from mae.weights.load import load_classifier
from tests.jobs.conftest import TINY, write_classes
from tests.jobs.kill_storm import CONTEXT

EVERYTHING = FinetuneConfig(
    follow_weights=True,
    steps=12,
    batch=6,
    micro_batch=3,
    threads=1,
    layer_decay=0.65,
    drop_path=0.3,
    ema=0.9,
    rand_augment="rand-m9-mstd0.5-inc1",
    erase=0.5,
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
    augment=AugmentConfig(crop_scale=(0.5, 1.0)),
    optim=OptimConfig(lr=0.02, warmup_epochs=0, betas=(0.9, 0.999), decay_tokens=False),
    device="cpu",
    workers=0,
    save_every_steps=3,
    log_every_steps=1,
    keep_checkpoints=True,
)
"""Everything that draws numbers is on."""
PLAIN = FinetuneConfig(
    follow_weights=True,
    steps=60,
    batch=8,
    threads=1,
    optim=OptimConfig(lr=0.05, warmup_epochs=0, betas=(0.9, 0.999)),
    augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0),
    device="cpu",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give train/ and val/ of three classes."""
    root = tmp_path_factory.mktemp("labelled")
    write_classes(root / "train", "red", "green", "blue", count=8)
    write_classes(root / "val", "red", "green", "blue", count=3, seed=50)
    return root


def digest(run: Path) -> str:
    """Give the digests of the last checkpoint and of the weights that came out."""
    last = latest_checkpoint(run / "checkpoints")
    assert last is not None
    names = ("model.safetensors", "optimizer.safetensors")
    weights = (run / "weights" / "model.safetensors").read_bytes()
    parts = [(last / name).read_bytes() for name in names]
    return last.name + hashlib.sha256(b"".join([*parts, weights])).hexdigest()


@pytest.mark.slow
def test_classes_told_by_their_shade_are_learnt(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    run = finetune(PLAIN, data=folder, weights=weights, out=tmp_path / "run", quiet=True)

    assert (run.classes, run.train, run.test, run.num_steps) == (3, 24, 9, 60)
    assert run.top1 == 1.0 and run.top5 is None
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results == {
        "top1": 1.0, "top5": None, "loss": run.loss, "images": 9, "unreadable": [],
        "averaged": False,
    }  # fmt: skip
    losses = [
        json.loads(r)["loss"] for r in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]
    assert "cross-entropy" in (tmp_path / "run" / "report.html").read_text()


def test_the_classifier_that_comes_out_is_evaluated_alike(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(EVERYTHING, data=folder, weights=weights, out=tmp_path / "run", quiet=True)

    again = ["--predictions", str(tmp_path / "p.csv"), "--json", "--quiet"]
    assert main(["evaluate", str(run.path), "--data", str(folder), *again]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["top1"], found["images"]) == (run.top1, run.test)
    assert found["loss"] == pytest.approx(run.loss, rel=1e-5)
    assert load_classifier(run.path).class_names == ("blue", "green", "red")
    kept, evaluated = map(read_predictions, (run.path / "predictions.csv", tmp_path / "p.csv"))
    assert [row[:3] for row in kept] == [row[:3] for row in evaluated]
    assert "Confusion matrix" in (run.path / "report.html").read_text()
    card = (run.path / "weights" / "config.json").read_text()
    assert json.loads(card)["pool"] == "mean"


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_and_ends_bitwise_alike(
    name: str, folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(EVERYTHING, data=folder, weights=weights, out=tmp_path / "whole", quiet=True)
    real, wishes = running.save_checkpoint, [getattr(signal, name)]

    def save_and_be_stopped(*args: object, **more: object) -> Path:
        if wishes:  # a second one, where a save takes long, would end the process at once
            os.kill(os.getpid(), wishes.pop())
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "save_checkpoint", save_and_be_stopped)
    with pytest.raises(Stopped, match="step 3 of 12"):
        finetune(EVERYTHING, data=folder, weights=weights, out=tmp_path / "run", quiet=True)
    monkeypatch.undo()

    again = finetune(EVERYTHING, data=folder, weights=weights, out=tmp_path / "run", quiet=True)

    assert again.resumed
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def train(data: str, weights: str, out: str) -> None:
    torch.set_num_threads(1)
    finetune(EVERYTHING, data=data, weights=weights, out=out, quiet=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bitwise_alike(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    def start(out: Path):  # type: ignore[no-untyped-def]
        process = CONTEXT.Process(target=train, args=(str(folder), str(weights), str(out)))
        process.start()
        return process

    start(tmp_path / "whole").join()
    process = start(tmp_path / "run")
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    start(tmp_path / "run").join()

    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_readers_and_micro_batches_change_nothing_that_shows(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    short = replace(EVERYTHING, steps=3, ema=None)
    one = finetune(short, data=folder, weights=weights, out=tmp_path / "a", quiet=True)
    other = replace(short, micro_batch=6)
    whole = finetune(other, data=folder, weights=weights, out=tmp_path / "b", quiet=True)

    assert one.loss == pytest.approx(whole.loss, rel=1e-3)


def test_few_labels_are_chosen_and_written_into_the_run(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    short = replace(PLAIN, steps=2)
    run = finetune(
        short, data=folder, weights=weights, out=tmp_path / "a", labels="2/class", quiet=True
    )
    chosen = tmp_path / "a" / "labels.csv"
    again = finetune(
        short, data=folder, weights=weights, out=tmp_path / "b", labels=str(chosen), quiet=True
    )

    assert run.train == 6 and chosen.read_text().count("\n") == 7
    assert run.loss == again.loss
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (record["labels"], record["data"]["count"]) == ("2/class", 6)


@pytest.mark.slow
def test_the_average_is_what_comes_out(folder: Path, weights: Path, tmp_path: Path) -> None:
    run = finetune(EVERYTHING, data=folder, weights=weights, out=tmp_path / "run", quiet=True)

    plain = replace(EVERYTHING, ema=None)
    other = finetune(plain, data=folder, weights=weights, out=tmp_path / "plain", quiet=True)
    last = {r.path: latest_checkpoint(r.path / "checkpoints") for r in (run, other)}
    trained = [(path / "model.safetensors").read_bytes() for path in last.values() if path]
    assert trained[0] == trained[1]
    assert not torch.equal(run.model.head.weight, other.model.head.weight)


def test_a_new_network_can_be_trained_from_scratch(folder: Path, tmp_path: Path) -> None:
    config = replace(PLAIN, follow_weights=False, model=TINY, steps=2)

    run = finetune(config, data=folder, out=tmp_path / "run", quiet=True)

    assert run.config.model.pixels.mean == (0.485, 0.456, 0.406)


def test_images_of_another_size_resize_the_positions(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(PLAIN, steps=1, resize=(32, 48))

    run = finetune(config, data=folder, weights=weights, out=tmp_path / "run")

    assert run.config.model.image_size == (32, 48)
    assert run.model.encoder.pos_embed.shape == (1, 1 + 4 * 6, 24)
    assert "positions: resized from (3, 5) to (4, 6)" in capsys.readouterr().err


def test_frozen_blocks_stay_as_they_were(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = replace(PLAIN, steps=3, train_blocks=0.5)

    run = finetune(config, data=folder, weights=weights, out=tmp_path / "run", quiet=True)

    before, after = create(TINY).encoder.state_dict(), run.model.encoder.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(n.startswith(("blocks.1.mlp.", "blocks.1.norm2.")) for n in changed)


def make(root: Path, case: str) -> Path:
    """Write labelled data with one thing wrong."""
    if case == "one class":
        write_classes(root, "red", count=4)
    elif case == "unlabelled":
        root.mkdir()
        Image.new("RGB", (40, 24)).save(root / "0.png")
    elif case == "empty class":
        write_classes(root, "red", "green", count=4)
        (root / "blue").mkdir()
    elif case == "differ":
        write_classes(root / "train", "red", "green", count=4)
        write_classes(root / "val", "red", "blue", count=4)
    return root


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("one class", "only one class, red"),
        ("unlabelled", "has no classes"),
        ("empty class", "no images of class blue"),
        ("differ", "1 of the classes of .*val are not in .*train: blue; add images of them"),
    ],
)
def test_data_that_cannot_be_learnt_from_leave_nothing_behind(
    case: str, message: str, weights: Path, tmp_path: Path
) -> None:
    data = make(tmp_path / "data", case)

    with pytest.raises(DataError, match=message) as raised:
        finetune(PLAIN, data=data, weights=weights, out=tmp_path / "run", quiet=True)

    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"follow_weights": False}, WeightsError, "patch_size: weights have 8, asked 16"),
        ({"rand_augment": "rand-x3"}, ConfigError, "rand_augment: got 'rand-x3'"),
        ({"train_blocks": 3}, ConfigError, "whole number from 1 to 2"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    changes: dict[str, object], error: type[MaeError], message: str, folder: Path, weights: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = replace(PLAIN, **changes)  # type: ignore[arg-type]

    with pytest.raises(error, match=message) as raised:
        finetune(config, data=folder, weights=weights, out=tmp_path / "run", quiet=True)

    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_other_channels_are_refused(folder: Path, tmp_path: Path) -> None:
    pixels = replace(TINY.pixels, mean=(0.5,) * 4, std=(0.5,) * 4)
    save(create(replace(TINY, channels=4, pixels=pixels)), tmp_path / "w")

    with pytest.raises(DataError, match="have 3 channels, the weights take 4"):
        finetune(PLAIN, data=folder, weights=tmp_path / "w", out=tmp_path / "run", quiet=True)


def test_floating_point_images_are_refused_by_weights_of_8_bits(
    weights: Path, tmp_path: Path
) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        np.save(tmp_path / name / "0.npy", np.zeros((24, 40, 3), dtype=np.float32))

    with pytest.raises(DataError, match="are floating-point, the weights take uint8"):
        finetune(PLAIN, data=tmp_path, weights=weights, out=tmp_path / "run", quiet=True)

    assert not (tmp_path / "run").exists()


def test_a_test_split_that_lacks_classes_is_judged_on_the_others(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "train", tmp_path / "data" / "Train")
    shutil.copytree(folder / "val" / "red", tmp_path / "data" / "Valid" / "red")

    run = finetune(PLAIN, data=tmp_path / "data", weights=weights, out=tmp_path / "r", quiet=True)

    assert (run.classes, run.train, run.test, run.top1) == (3, 24, 3, 1.0)


def test_weights_are_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected --weights.* paper-scratch-vit-b"):
        finetune(PLAIN, data=folder, out=tmp_path / "run", quiet=True)


def test_a_head_of_more_classes_than_the_data_is_refused_before_anything_is_made(
    folder: Path, tmp_path: Path
) -> None:
    made = Classifier(create(TINY).encoder, num_classes=7)
    save(made, tmp_path / "w", class_names=list("abcdefg"))

    with pytest.raises(WeightsError, match="head has 7 classes, the data 3; give data of"):
        finetune(PLAIN, data=folder, weights=tmp_path / "w", out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()


def test_images_added_to_those_judged_on_are_other_data(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    data, out, begun = tmp_path / "data", tmp_path / "r", replace(PLAIN, steps=1)
    shutil.copytree(folder, data)
    finetune(begun, data=data, weights=weights, out=out, quiet=True)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"finished": False}))
    there = next(path for path in sorted((data / "val").rglob("*.*")) if path.is_file())
    shutil.copy(there, there.with_stem("another"))

    with pytest.raises(ConfigError, match="its data has changed"):
        finetune(begun, data=data, weights=weights, out=out, quiet=True)


def test_a_classifier_can_be_tuned_on_with_a_new_head(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    made = Classifier(create(TINY).encoder, num_classes=2)
    save(made, tmp_path / "w", class_names=list("ab"))

    run = finetune(
        replace(PLAIN, steps=1), data=folder, weights=tmp_path / "w", out=tmp_path / "r", quiet=True
    )

    assert run.model.head.out_features == 3
    with pytest.raises(WeightsError, match="2 missing"):
        finetune(
            replace(PLAIN, pool="cls"), data=folder, weights=tmp_path / "w", out=tmp_path / "c",
            quiet=True,
        )  # fmt: skip


def test_the_command_takes_the_fields_of_a_fine_tuning_recipe(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--data", folder, "--weights", weights, "--out", tmp_path / "run"]
    fields = ["--steps", "2", "--batch", "4", "--lr", "0.01", "--mix.mixup", "0", "--pool", "cls"]

    code = main([*map(str, words), *fields, "--json", "--quiet"])

    values = json.loads(capsys.readouterr().out)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert code == 0 and values["classes"] == 3 and values["steps"] == 2
    assert (record["recipe"], record["finished"]) == ("finetune-folder", True)
    assert (record["config"]["pool"], record["config"]["mix"]["mixup"]) == ("cls", 0)
    assert record["class_names"] == ["blue", "green", "red"]


def test_the_choice_for_the_images_is_said_and_kept_by_the_run_and_by_older_ones(
    folder: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = partial(finetune, data=folder, weights=weights, out=tmp_path / "run", steps=2)
    run = again(threads=1, device="cpu")

    said = capfd.readouterr().err
    found = f"finetune-folder: 24 training images, network of width {TINY.width}; batch 16, base"
    assert found in said and "base rate 0.032; options" in said
    assert "2 steps of 16 see 32 images\n" in said
    assert "notice: a classifier learns little in under 100 steps; try steps=100\n" in said
    assert run.config.optim.peak_lr(run.config.batch) == pytest.approx(2e-3)

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["config"]["batch"], record["config"]["micro_batch"] = 24, 64
    record["config"]["optim"]["lr"] = 1e-3
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    older = again(threads=1, device="cpu")
    assert older.resumed and (older.config.batch, older.config.optim.lr) == (24, 1e-3)
    assert "training images; batch" not in capfd.readouterr().err


def test_the_record_of_a_run_repeats_it(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(EVERYTHING, steps=2, resize=(32, 48))
    run = finetune(short, data=folder, weights=weights, out=tmp_path / "a", quiet=True)

    words = ["--config", tmp_path / "a" / "run.json", "--data", folder, "--weights", weights]
    main(["finetune", *map(str, words), "--out", str(tmp_path / "b"), "--json", "--quiet"])

    assert json.loads(capsys.readouterr().out)["loss"] == run.loss


def test_a_network_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="model: has no effect .* use --resize"):
        FinetuneConfig(follow_weights=True, model=TINY)
    with pytest.raises(ConfigError, match="resize: has no effect without follow_weights"):
        FinetuneConfig(resize=(32, 32))
