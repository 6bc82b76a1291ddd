from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mae
from mae.errors import ConfigError, DataError
from mae.evaluation.features import pixels_size, standardized
from mae.evaluation.few_labels import FewLabels, read_choice
from mae.evaluation.inputs import FeatureSettings
from mae.evaluation.knn import knn_accuracy
from mae.evaluation.labelled_data import labelled
from mae.evaluation.method import Method, choose_method
from mae.jobs import probe as module
from mae.jobs.probe import Probe, feature_probe
from tests.jobs.conftest import TINY, write_classes

K3 = choose_method("knn", k=3, seed=0)
LINEAR = choose_method("linear", k=None, seed=0)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Give 6 images each of 3 classes."""
    return write_classes(tmp_path / "classes", "a", "b", "c", count=6)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Give train/ with 4 and val/ with 2 images each of 2 classes."""
    write_classes(tmp_path / "parts" / "train", "a", "b", count=4)
    write_classes(tmp_path / "parts" / "val", "a", "b", count=2, seed=50)
    return tmp_path / "parts"


@pytest.mark.parametrize("method", [K3, LINEAR], ids=lambda method: method.name)
def test_classes_of_different_colour_are_told_apart_by_all_three(
    method: Method, weights: Path, classes: Path
) -> None:
    result = feature_probe(weights, classes, method, quiet=True)

    assert (result.classes, result.train, result.test) == (3, 15, 3)
    assert min(result.trained, result.random, result.pixels) > 0.5


def test_the_random_encoder_is_the_same_network_untrained(weights: Path, classes: Path) -> None:
    # The "trained" weights were never trained: with their seed the two are the same encoder.
    result = feature_probe(weights, classes, K3, seed=0, quiet=True)

    assert result.trained == result.random


def test_a_pool_that_is_not_given_follows_from_the_width(weights: Path, parts: Path) -> None:
    given, none = FeatureSettings(), FeatureSettings(None)
    narrow, wide = (replace(TINY, width=width) for width in (384, 456))

    assert (none.pool_of(narrow), none.pool_of(wide)) == ("grid", "mean")
    assert given.pool_of(narrow) == "mean"  # of embed, as before
    assert mae.probe("knn", weights, data=parts, k=3, quiet=True).pool == "grid"
    assert mae.probe("knn", weights, data=parts, k=3, pool="mean", quiet=True).pool == "mean"


def test_the_accuracy_is_that_of_standardised_features(
    weights: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def accuracy(*features: np.ndarray) -> float:
        seen.append(features)
        return knn_accuracy(*features, k=3)

    feature_probe(weights, parts, Method("k-NN", accuracy), quiet=True)

    train, test = (mae.embed(weights, parts / name) for name in ("train", "val"))
    train, test = standardized(train, test)
    np.testing.assert_allclose(seen[0][0], train, atol=1e-4)
    np.testing.assert_allclose(seen[0][2], test, atol=1e-4)
    assert seen[0][1].tolist() == [0] * 4 + [1] * 4 and seen[0][3].tolist() == [0, 0, 1, 1]
    assert seen[2][0].shape == (8, 14 * 23 * 3)  # raw pixels, of at most 1024 values


def test_grey_images_of_28_pixels_are_compared_as_they_are() -> None:
    config = mae.ModelConfig(
        image_size=(28, 28), patch_size=4, channels=1, width=24, depth=1, num_heads=2,
        pixels=mae.PixelConfig(mean=(0.5,), std=(0.5,)),
    )  # fmt: skip

    assert pixels_size(config) == (28, 28)


def test_a_fifth_of_each_class_is_held_out_as_a_function_of_the_seed(classes: Path) -> None:
    first, again, other = (labelled(classes, seed=seed) for seed in (0, 0, 1))

    assert first.train.source.labels is not None
    assert first.train.source.labels[first.test.ids].tolist() == [0, 1, 2]
    assert sorted([*first.train.ids, *first.test.ids]) == list(range(18))
    assert first.test.ids.tolist() == again.test.ids.tolist() != other.test.ids.tolist()
    assert "20% of each class held out" in first.notes[0]


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_train_and_a_test_folder_are_taken_as_they_are(name: str, parts: Path) -> None:
    (parts / "val").rename(parts / name)

    found = labelled(parts, seed=0)

    assert (len(found.train.ids), len(found.test.ids)) == (8, 4)
    assert f"8 images in train for training, 4 in {name} for testing" in found.notes[0]


def test_train_alone_is_divided(parts: Path) -> None:
    shutil.rmtree(parts / "val")

    found = labelled(parts, seed=0)

    assert (len(found.train.ids), len(found.test.ids)) == (6, 2)


def test_the_built_in_images_have_their_own_division() -> None:
    found = labelled("fashion-mnist", seed=0)

    assert len(found.train.ids) >= 20_000 and len(found.test.ids) == 10_000
    assert len(found.train.source.class_names) == 10


def test_a_broken_image_is_left_out_and_said(
    weights: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (classes / "b" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")

    result = feature_probe(weights, classes, K3)

    assert result.train + result.test == 17
    assert "1 unreadable, left out: b/3.png" in capsys.readouterr().err


def test_no_flat_folder_has_classes(classes: Path) -> None:
    with pytest.raises(DataError, match="has no classes; expected every image in one of"):
        labelled(classes / "a", seed=0)


def test_one_class_alone_is_refused(classes: Path) -> None:
    shutil.rmtree(classes / "a")
    shutil.rmtree(classes / "b")

    with pytest.raises(DataError, match="has only one class, c; expected"):
        labelled(classes, seed=0)


def test_an_empty_class_is_refused_by_name(classes: Path) -> None:
    (classes / "d").mkdir()

    with pytest.raises(DataError, match="no images of class d in"):
        labelled(classes, seed=0)


def test_other_classes_in_either_part_are_refused_by_name(parts: Path) -> None:
    (parts / "val" / "b").rename(parts / "val" / "bee")

    with pytest.raises(DataError, match="1 of the classes of .*val are not in .*: bee; add"):
        labelled(parts, seed=0)


@pytest.mark.parametrize("method", [K3, LINEAR], ids=lambda method: method.name)
def test_a_test_folder_that_lacks_a_class_is_probed(
    method: Method, weights: Path, parts: Path
) -> None:
    shutil.rmtree(parts / "val" / "a")

    result = feature_probe(weights, parts, method, quiet=True)

    # Of b alone; were it numbered from 0, it would be taken for a.
    assert (result.classes, result.test) == (2, 2) and result.pixels > 0.5


def test_a_class_without_a_readable_image_is_refused_by_name(weights: Path, parts: Path) -> None:
    for path in (parts / "train" / "b").iterdir():
        path.write_bytes(b"nothing")

    with pytest.raises(DataError, match="no image of class b can be read"):
        feature_probe(weights, parts, K3, quiet=True)


def test_a_test_part_without_a_readable_image_is_refused(weights: Path, parts: Path) -> None:
    for path in (parts / "val").rglob("*.png"):
        path.write_bytes(b"nothing")

    with pytest.raises(DataError, match="none of 4 can be read"):
        feature_probe(weights, parts, K3, quiet=True)


def test_more_neighbours_than_images_are_refused(weights: Path, parts: Path) -> None:
    k20 = choose_method("knn", k=None, seed=0)

    with pytest.raises(ConfigError, match="k: got 20 neighbours, expected 1 to 8"):
        feature_probe(weights, parts, k20, quiet=True)


def test_no_neighbours_are_refused(weights: Path, parts: Path) -> None:
    with pytest.raises(ConfigError, match="k: got 0 neighbours, expected 1 to 8"):
        none = choose_method("knn", k=0, seed=0)
        feature_probe(weights, parts, none, quiet=True)


def test_a_number_of_neighbours_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="k: has no effect on linear"):
        choose_method("linear", k=3, seed=0)


def test_a_row_behind_says_so() -> None:
    result = Probe(
        "k-NN", "mean", trained=0.5, random=0.4, pixels=0.6, pixels_size=(18, 18), classes=2,
        train=8, test=4,
    )  # fmt: skip

    rows = result.rows()

    assert ("trained", "50.0%") in rows and ("pixels size", "18 18") in rows
    assert [text for _, text in rows if "behind" in text] == ["behind raw pixels"]


def test_the_size_of_the_batch_changes_nothing(weights: Path, classes: Path) -> None:
    small, large = (
        feature_probe(weights, classes, K3, settings=FeatureSettings(batch=b), quiet=True)
        for b in (2, 64)
    )

    assert small == large and TINY.image_size == (24, 40)


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_few_labels_in_several_draws_give_mean_and_deviation(
    name: str, weights: Path, classes: Path
) -> None:
    method = choose_method(name, k=3 if name == "knn" else None, seed=0)  # type: ignore[arg-type]

    result = feature_probe(weights, classes, method, few=FewLabels("2/class", None, 3), quiet=True)

    assert (result.train, result.test, result.labels, result.runs) == (6, 3, "2/class", 3)
    rows = dict(result.rows())
    assert [rows[name] for name in ("train", "test", "labels", "runs")] == [
        "6",
        "3",
        "2/class",
        "3",
    ]
    assert "±" in rows["trained"] and "±" in rows["pixels"]


def test_a_probe_on_few_labels_sees_the_chosen_images_and_the_same_test(
    weights: Path, parts: Path, tmp_path: Path
) -> None:
    seen = []

    def accuracy(*features: np.ndarray) -> float:
        seen.append(features)
        return len(seen) / 10

    few = FewLabels("2/class", tmp_path / "few.csv", 2)
    result = feature_probe(weights, parts, Method("any", accuracy), few=few, quiet=True)

    source = labelled(parts, seed=0).train.source
    chosen = read_choice(tmp_path / "few.csv", source, among=np.arange(8))
    train = mae.embed(weights, parts / "train")
    for draw, ids in enumerate(chosen):
        x, y, _, test_y = seen[3 * draw]
        np.testing.assert_allclose(x, standardized(train[ids], train)[0], atol=1e-4)
        assert y.tolist() == [0, 0, 1, 1] and test_y.tolist() == [0, 0, 1, 1]
    # Trained 0.1 and 0.4, random 0.2 and 0.5, pixels 0.3 and 0.6.
    assert (result.trained, result.random, result.pixels) == pytest.approx((0.25, 0.35, 0.45))
    assert result.trained_spread == pytest.approx(0.3 / 2**0.5)


def test_a_choice_read_back_gives_the_same_result(
    weights: Path, classes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "few.csv"
    made = feature_probe(weights, classes, K3, few=FewLabels("2/class", file, 2), quiet=True)

    read = feature_probe(weights, classes, K3, few=FewLabels(str(file)), quiet=True)

    assert read._replace(labels="2/class") == made


def test_a_choice_that_holds_test_images_is_refused(
    weights: Path, classes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "few.csv"
    feature_probe(weights, classes, K3, few=FewLabels("4/class", file), quiet=True)

    with pytest.raises(DataError, match="is held out for testing; use the seed of the choice"):
        feature_probe(weights, classes, K3, few=FewLabels(str(file)), seed=1, quiet=True)


@pytest.mark.parametrize(
    ("few", "message"),
    [
        (FewLabels(None, Path("few.csv")), "labels_out: has no effect on all labels"),
        (FewLabels(None, None, 3), "seeds: has no effect on all labels, expected with --labels"),
        (FewLabels("2/class", None, 0), "seeds: expected at least 1, got 0"),
        (FewLabels("few.csv", None, 2), "seeds: has no effect, few.csv holds its draws"),
        (FewLabels("2"), "labels: got '2', expected a fraction"),
        (FewLabels("9/class"), "got 5 images of class a, expected at least 9"),
    ],
)
def test_bad_settings_of_few_labels_are_refused_before_any_work(
    few: FewLabels, message: str, weights: Path, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "open_for_features")

    with pytest.raises((ConfigError, DataError), match=message):
        feature_probe(weights, classes, K3, few=few, quiet=True)


def test_a_temperature_is_said_and_refused_where_it_does_nothing() -> None:
    method = choose_method("knn", k=None, temperature=0.5, seed=0)

    assert method.name == "k-NN, k = 20, temperature 0.5"
    with pytest.raises(ConfigError, match="temperature: expected a number above 0, got 0"):
        choose_method("knn", k=None, temperature=0.0, seed=0)
    with pytest.raises(ConfigError, match="temperature: has no effect on linear"):
        choose_method("linear", k=None, temperature=0.5, seed=0)
