from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae.errors import ConfigError
from mae.evaluation.few_labels import FewLabels
from mae.evaluation.linear_probe import PROTOCOL, paper_config
from mae.jobs.probe import paper_probe
from mae.report.tables import report_of
from tests.jobs.conftest import write_classes

# Tiny batches need a rate far above the paper's, see `reach`.
CONFIG = paper_config(epochs=40, batch=8, lr=400.0, seed=0, device="cpu")
SHORT = replace(CONFIG, epochs=4)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Give train/ with 8 and val/ with 3 images each of 2 classes."""
    write_classes(tmp_path / "parts" / "train", "a", "b", count=8)
    write_classes(tmp_path / "parts" / "val", "a", "b", count=3, seed=50)
    return tmp_path / "parts"


def test_the_protocol_is_the_papers_unless_told_otherwise() -> None:
    config = paper_config(epochs=None, batch=None, lr=None, seed=0, device="auto")

    assert config == PROTOCOL


def test_the_warm_up_keeps_its_share() -> None:
    config = paper_config(epochs=45, batch=512, lr=0.2, seed=3, device="cpu")

    assert (config.epochs, config.optim.warmup_epochs) == (45, 5)
    assert (config.batch, config.optim.lr, config.seed) == (512, 0.2, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 1}, "batch: expected at least 2"),
        ({"epochs": 0.0}, "epochs: expected a number above 0"),
        ({"epochs": -1.0}, "epochs: expected a number above 0"),
        ({"lr": 0.0}, "optim.lr: expected a number above 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        paper_config(**({"epochs": None, "batch": None, "lr": None} | given), seed=0, device="cpu")  # type: ignore[arg-type]


def test_classes_of_different_colour_are_told_apart(weights: Path, parts: Path) -> None:
    result = paper_probe(weights, parts, config=CONFIG, quiet=True)

    assert result.top1 > 0.6 and result.top5 is None and result.seeds == (0,)
    assert (result.classes, result.train, result.test, result.steps) == (2, 16, 6, 80)
    rows = dict(report_of(result).rows)
    assert (rows["classes"], rows["train"], rows["test"]) == ("2", "16", "6")
    assert (rows["steps"], rows["batch"], rows["epochs"]) == ("80", "8", "40")
    assert (rows["base lr"], rows["peak lr"]) == ("400", "12.5")
    assert "top1" in rows and "top5" not in rows


def test_a_run_of_several_seeds_repeats_the_runs_of_each(weights: Path, parts: Path) -> None:
    both = paper_probe(weights, parts, config=SHORT, few=FewLabels(runs=2), quiet=True)
    first, second = (
        paper_probe(weights, parts, config=replace(SHORT, seed=seed), quiet=True) for seed in (0, 1)
    )

    assert both.seeds == (0, 1)
    assert both.top1 == pytest.approx((first.top1 + second.top1) / 2)
    assert both.loss == pytest.approx((first.loss + second.loss) / 2)


def test_a_batch_larger_than_the_data_is_lowered_and_a_hopeless_rate_said(
    weights: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = paper_config(epochs=2, batch=None, lr=None, seed=0, device="cpu")

    result = paper_probe(weights, parts, config=config)

    said = capsys.readouterr().err
    assert result.batch == 16 and result.steps == 2 and result.peak_lr == 0.1 * 16 / 256
    assert "batch: lowered from 16,384 to 16, all images" in said
    assert "almost nothing is learned; give --lr" in said
    assert "step 2/2" in said and "images/s" in said


def test_few_labels_are_all_that_is_learnt_from_and_are_written_down(
    weights: Path, parts: Path, tmp_path: Path
) -> None:
    few = FewLabels("3/class", tmp_path / "few.csv", 2)

    result = paper_probe(weights, parts, config=SHORT, few=few, quiet=True)

    assert (result.train, result.labels, result.seeds) == (6, "3/class", (0, 1))
    with (tmp_path / "few.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["draw"] for row in rows} == {"0", "1"}
    again = paper_probe(
        weights, parts, config=SHORT, few=FewLabels(f"{tmp_path / 'few.csv'}"), quiet=True
    )
    assert (again.top1, again.loss) == (result.top1, result.loss)


def test_a_broken_image_is_named_once_and_replaced_in_training_left_out_of_the_test(
    weights: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "train" / "b" / "3.png").write_bytes(b"nothing")
    (parts / "val" / "a" / "1.png").write_bytes(b"nothing")

    result = paper_probe(weights, parts, config=SHORT)

    said = capsys.readouterr().err
    assert result.test == 5 and said.count("unreadable: b/3.png") == 1
    assert "1 unreadable, left out: a/1.png" in said


def test_the_probe_draws_nothing_from_torchs_generator(weights: Path, parts: Path) -> None:
    before = torch.get_rng_state()

    paper_probe(weights, parts, config=SHORT, quiet=True)

    assert torch.equal(torch.get_rng_state(), before)
