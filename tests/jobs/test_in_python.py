"""The functions of mae as in a notebook: runs and networks in place of paths, and how they show."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import mae
from mae.config.run import AugmentConfig, MixConfig
from mae.errors import ConfigError, WeightsError
from tests.jobs.conftest import TINY, write_classes

HOW: dict[str, Any] = {"device": "cpu", "threads": 1, "batch": 6, "log_every_steps": 1}


class Made(NamedTuple):
    labelled: Path
    run: mae.Run
    tuned: mae.Tuned


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Give a pre-training run, and one fine-tuned from it on two splits."""
    root = tmp_path_factory.mktemp("made")
    for name, count in (("train", 6), ("val", 3)):
        write_classes(root / "labelled" / name, "red", "green", "blue", count=count, seed=count)
    data = root / "labelled" / "train"
    run = mae.pretrain(data=data, out=root / "run", model=TINY, steps=4, quiet=True, **HOW)
    tuned = mae.finetune(
        data=root / "labelled", weights=run, out=root / "tuned", steps=25, lr=0.05, quiet=True,
        augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0), mix=MixConfig(),
        drop_path=0.0, optim={"warmup_epochs": 0.0}, **HOW,
    )  # fmt: skip
    return Made(root / "labelled", run, tuned)


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Check that `quiet` leaves nothing to read; every call below is quiet."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_an_encoder_in_memory_gives_the_features_of_its_file(made: Made) -> None:
    images = made.labelled / "val"
    encoder = mae.load_encoder(made.run, quiet=True)
    before = encoder.config

    for pool in ("mean", "cls"):
        found = mae.embed(encoder, images, pool=pool, quiet=True, device="cpu")
        assert np.array_equal(found, mae.embed(made.run, images, pool=pool, quiet=True))
    assert np.array_equal(
        mae.embed(made.run.model, images, quiet=True), mae.embed(encoder, images, quiet=True)
    )
    whole = mae.embed(encoder, images, crop_pct=0.5, quiet=True)
    assert np.array_equal(whole, mae.embed(made.run, images, crop_pct=0.5, quiet=True))
    assert encoder.config == before and encoder.training and encoder.pos_embed.device.type == "cpu"


def test_a_network_in_memory_takes_no_settings_of_a_file(made: Made) -> None:
    encoder = made.run.model.encoder

    with pytest.raises(ConfigError, match="heads: has no effect on a network in memory"):
        mae.embed(encoder, made.labelled / "val", heads=2, quiet=True)
    with pytest.raises(
        WeightsError, match=r"got Encoder in memory, which has no classifier's head"
    ):
        mae.evaluate(encoder, made.labelled, quiet=True)


def test_a_run_or_an_encoder_is_probed_as_its_file(made: Made) -> None:
    how: dict[str, Any] = {"data": made.labelled, "k": 3, "device": "cpu", "quiet": True}

    found = [
        mae.probe("knn", weights, **how)
        for weights in (made.run.path, made.run, made.run.model, made.run.model.encoder)
    ]

    assert found[0].trained > 0
    assert found == found[:1] * 4


def test_a_classifier_in_memory_is_evaluated_and_predicts_as_its_run(made: Made) -> None:
    of_run = mae.evaluate(made.tuned, made.labelled, quiet=True)
    of_model = mae.evaluate(made.tuned.model, made.labelled, quiet=True)
    predicted = mae.predict(made.tuned.model, made.labelled / "val", quiet=True)

    assert made.tuned.model.class_names == ("blue", "green", "red")
    assert of_run == of_model and of_run.top1 == made.tuned.top1
    assert np.array_equal(
        predicted.probabilities, made.tuned.predict(made.labelled / "val", quiet=True).probabilities
    )


def test_a_new_classifier_has_the_names_that_a_read_one_has(made: Made, tmp_path: Path) -> None:
    again = mae.finetune(
        data=made.labelled, weights=made.run, out=tmp_path / "r", steps=1, quiet=True, **HOW
    )
    mae.save(again.model, tmp_path / "saved")

    assert again.model.class_names == made.tuned.model.class_names
    assert mae.evaluate(tmp_path / "saved", made.labelled, quiet=True).top1 == again.top1


def test_a_network_in_memory_does_not_begin_a_run(made: Made, tmp_path: Path) -> None:
    for begin, name in ((mae.finetune, "weights"), (mae.pretrain, "init")):
        with pytest.raises(
            ConfigError, match=rf"{name}: got Encoder, expected a path, a run .*mae\.save"
        ):
            begin(data=made.labelled, out=tmp_path / "r", **{name: made.run.model.encoder})  # type: ignore[operator]

    assert not (tmp_path / "r").exists()


def test_arrays_and_networks_in_memory_are_reconstructed_as_files(
    made: Made, tmp_path: Path
) -> None:
    file = made.labelled / "val" / "red" / "0.png"
    array = np.asarray(Image.open(file))
    before = made.run.model.objective

    drawn = mae.reconstruct(made.run, file, out=tmp_path / "a.png", quiet=True)
    how: dict[str, Any] = {"out": None, "quiet": True}
    others = [
        mae.reconstruct(made.run.model, array, **how),
        mae.reconstruct(made.run.model, torch.from_numpy(array.copy()).permute(2, 0, 1), **how),
    ]

    for other in others:
        assert other.psnr == drawn.psnr and other.out is None
        assert np.array_equal(np.asarray(other.strip), np.asarray(drawn.strip))
    mae.reconstruct(made.run.model, array, mask_ratio=0.5, **how)
    assert made.run.model.objective == before


def test_a_log_is_columns_with_a_value_for_each_step(made: Made) -> None:
    log = made.run.log

    assert log["step"].tolist() == [1, 2, 3, 4]
    assert {len(column) for column in log.values()} == {4}
    assert np.isfinite(log["loss"]).all() and log["lr"].dtype == np.float64
    metrics = made.run.metrics
    assert metrics["step"] == 4 and metrics["loss"] == made.run.loss
    assert metrics["seconds"] == pytest.approx(log["seconds"].sum())
    tuned = made.tuned.metrics
    assert (tuned["top1"], tuned["loss"]) == (made.tuned.top1, made.tuned.loss)
    assert math.isfinite(tuned["train_loss"]) and "top5" not in tuned


def test_results_show_in_one_line(made: Made) -> None:
    results = [
        made.run,
        made.tuned,
        mae.probe("knn", made.run, data=made.labelled, k=3, quiet=True),
        mae.evaluate(made.tuned, made.labelled, quiet=True),
        made.tuned.predict(made.labelled, quiet=True),
        mae.reconstruct(made.run, made.labelled / "val", out=None, quiet=True),
    ]

    lines = [repr(result) for result in results]

    assert all(len(line) < 400 and "\n" not in line for line in lines)
    assert lines[0].startswith(f"Run(path='{made.run.path}', num_steps=4, resumed=False, loss=")
    assert f"top1={made.tuned.top1:.4g}" in lines[1] and "Linear" not in lines[1]
    assert lines[2].startswith("Probe(method='k-NN, k = 3', pool='")
    assert "classes=<3>" in lines[3] and "names=<27>" in lines[4]


def test_results_show_as_a_table_with_their_drawing(made: Made) -> None:
    shown = [result._repr_html_() for result in (made.run, made.tuned)]  # type: ignore[attr-defined]
    drawn = mae.reconstruct(made.run, made.labelled / "val", out=None, quiet=True)
    probe = mae.probe("knn", made.run, data=made.labelled, k=3, quiet=True)

    assert "images per second" in shown[0] and "<style" not in shown[0]
    assert len(re.findall('src="data:image/png;base64,', shown[0])) == 4  # the stages
    assert f"{made.tuned.top1:.1%} of 9 test images" in shown[1] and ">blue<" in shown[1]
    assert drawn._repr_html_().count("<img") == 1  # type: ignore[attr-defined]
    assert "random encoder" in probe._repr_html_() or "trained" in probe._repr_html_()  # type: ignore[attr-defined]
    gone = made.run._replace(path=Path("<gone>"))
    assert "&lt;gone&gt;" in gone._repr_html_()  # type: ignore[attr-defined]
