import json

import numpy as np
import pytest
import torch

from mae.config.model import ModelConfig
from mae.errors import DataError
from mae.evaluation import evidence as table_module
from mae.evaluation.evidence import (
    EvidenceTable,
    Row,
    Score,
    evidence_table,
    score,
    shortfalls,
)
from mae.evaluation.features import LabelledImages, encoder_features, pixel_features, standardized
from mae.evaluation.knn import knn_accuracy
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.split import labels_per_class
from mae.model.create import create

CONFIG = ModelConfig(
    image_size=(12, 20), patch_size=4, channels=3, width=24, depth=2, num_heads=3,
    decoder_width=16, decoder_depth=1, decoder_heads=2,
)  # fmt: skip
COLUMNS = ("k-NN", "logistic, 10,000 labels", "10 a class")


def labelled_images(rng, n):
    labels = np.arange(n) % 3
    images = rng.integers(0, 200, (n, 3, 12, 20)) + 20 * labels[:, None, None, None]
    return LabelledImages(torch.from_numpy(images.astype(np.uint8)), labels)


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    train, test = labelled_images(rng, 60), labelled_images(rng, 30)
    patch = pytest.MonkeyPatch()
    patch.setattr(table_module, "FEW_LABELS", (2, 5))
    lines = []
    table = evidence_table(
        create(CONFIG, seed=9).encoder, train=train, test=test, init_seed=4, log=lines.append
    )
    patch.undo()
    return train, test, table, lines


@pytest.mark.slow
def test_rows_are_pixels_then_both_encoders_in_every_pool(made):
    _, _, table, lines = made

    names = [row.name for row in table.rows]
    assert names == [
        "raw pixels",
        "random encoder (seed 4), grid",
        "random encoder (seed 4), mean",
        "random encoder (seed 4), cls",
        "trained encoder, grid",
        "trained encoder, mean",
        "trained encoder, cls",
    ]
    assert set(names) <= set(lines)
    assert table.columns == ("k-NN", "logistic, 60 labels", "2 a class", "5 a class")
    assert [row.name for row in table.headline()] == [names[0], names[1], names[4]]


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 4])
def test_every_row_is_read_in_the_same_way(made, place):
    train, test, table, _ = made
    encoder = {1: create(CONFIG, seed=4).encoder, 4: create(CONFIG, seed=9).encoder}.get(place)
    train_x, test_x = (
        pixel_features([part.images])
        if encoder is None
        else encoder_features(encoder, [part.images], pools=["grid"])["grid"]
        for part in (train, test)
    )
    train_x, test_x = standardized(train_x, test_x)

    few = []
    for draw in range(3):
        ids = labels_per_class(train.labels, 5, seed=0, draw=draw)
        few.append(logistic_accuracy(train_x[ids], train.labels[ids], test_x, test.labels))

    knn, logistic, _, five = table.rows[place].scores
    assert knn.mean == pytest.approx(knn_accuracy(train_x, train.labels, test_x, test.labels))
    assert logistic.mean == pytest.approx(
        logistic_accuracy(train_x, train.labels, test_x, test.labels), abs=0.04
    )
    assert five.mean == pytest.approx(np.mean(few), abs=0.04)
    assert knn.spread == logistic.spread == 0


@pytest.mark.slow
def test_what_is_behind_raw_pixels_says_so(made):
    _, _, table, _ = made
    bars = table.rows[0].scores

    for row in table.rows:
        for cell, bar in zip(row.scores, bars, strict=True):
            assert cell.behind == (cell.mean < bar.mean)
            assert str(cell).endswith("behind raw pixels") == cell.behind


@pytest.mark.slow
def test_the_table_is_plain_json(made):
    _, _, table, _ = made

    plain = table.to_dict()

    assert json.loads(json.dumps(plain)) == plain
    assert plain["rows"][0]["scores"][0].keys() == {"mean", "spread", "behind"}
    assert "30 test images" in plain["about"]
    assert "60 training images" in plain["about"]


@pytest.mark.slow
def test_too_few_labels_are_reported_before_the_work_begins(made):
    train, test, _, _ = made
    lines = []

    with pytest.raises(DataError, match="expected at least 50 a class"):
        evidence_table(
            create(CONFIG).encoder, train=train, test=test, init_seed=0, log=lines.append
        )
    assert lines == []


def test_a_score_is_mean_and_sample_std():
    draws = score([0.70, 0.72, 0.80], Score(0.9))

    assert draws.mean == pytest.approx(0.74)
    assert draws.spread == pytest.approx(0.0529, abs=1e-4)
    assert str(draws) == "74.0 ± 5.3 behind raw pixels"
    assert str(score([0.5], Score(0.5))) == "50.0"


def headline(*, pixels, untrained, trained):
    rows = [("raw pixels", pixels), ("random", untrained), ("", (0, 0, 0)), ("", (0, 0, 0))]
    rows += [("trained", trained)]
    return EvidenceTable(
        COLUMNS, tuple(Row(name, tuple(map(Score, means))) for name, means in rows), ""
    )


def test_ahead_of_the_random_encoder_and_of_pixels_in_the_probe_is_ahead():
    table = headline(pixels=(0.9, 0.6, 0.9), untrained=(0.5, 0.5, 0.5), trained=(0.6, 0.7, 0.8))

    assert shortfalls(table) == ()


def test_equal_to_the_random_encoder_is_not_ahead():
    table = headline(pixels=(0, 0, 0), untrained=(0.6, 0.5, 0.5), trained=(0.6, 0.7, 0.8))

    assert shortfalls(table) == ("k-NN: trained 60.0, not ahead of random 60.0",)


def test_behind_pixels_in_the_probe_on_all_labels_is_not_ahead():
    table = headline(pixels=(0, 0.71, 0), untrained=(0.5, 0.5, 0.5), trained=(0.6, 0.7, 0.8))

    assert shortfalls(table) == (
        "logistic, 10,000 labels: trained 70.0, not ahead of raw pixels 71.0",
    )
