"""Partial fine-tuning: what learns, what stays, and what the command refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mae.cli.main import main
from mae.weights.load import load_classifier, load_encoder
from tests.jobs.conftest import write_classes


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("labelled"), "red", "green", count=5)


@pytest.mark.parametrize(
    ("blocks", "learnt"),
    [("0.5", ("blocks.1.mlp.", "blocks.1.norm2.")), ("1", ("blocks.1.",)), ("2", ("blocks.",))],
)
def test_the_last_blocks_learn_and_the_others_stay(
    blocks: str, learnt: tuple[str, ...], classes: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["probe", "partial", str(weights), "--data", str(classes), "--blocks", blocks]
    # Two epochs, since the very first step of the warm-up has a rate of zero.
    code = main([*words, "--epochs", "2", "--out", str(tmp_path / "run"), "--json", "--quiet"])

    values = json.loads(capsys.readouterr().out)
    assert code == 0 and (values["classes"], values["train"], values["test"]) == (2, 8, 2)
    before = load_encoder(weights).state_dict()
    after = load_classifier(tmp_path / "run").model.encoder.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith(learnt)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "blocks: expected --blocks"),
        (["--blocks", "0"], "for 0 use mae probe linear"),
        (["--blocks", "3"], "whole number from 1 to 2"),
        (["--blocks", "1", "--k", "3"], "k: has no effect on partial"),
        (["--blocks", "1", "--pool", "grid"], "pool: grid has no effect on partial"),
        (["--blocks", "1", "--protocol", "paper"], "protocol: has no effect on partial"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(
    words: list[str], message: str, classes: Path, weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = main(["probe", "partial", str(weights), "--data", str(classes), *words])

    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and message in error


def test_blocks_are_of_partial_alone(
    classes: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["probe", "knn", str(weights), "--data", str(classes), "--blocks", "1"])

    assert code == 2 and "blocks: has no effect on knn" in capsys.readouterr().err
