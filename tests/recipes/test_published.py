"""Published results, typed off their tables row by row, and commands that can be given."""

from __future__ import annotations

import shlex

import pytest

from mae.cli.options import options_of, read_words
from mae.cli.verbs.every import VERBS
from mae.config.detect import DetectConfig
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.segment import SegmentConfig
from mae.recipes.catalogue import find_config
from mae.recipes.published import PublishedScore, read_published

PUBLISHED = read_published()
SCORES = PUBLISHED.scores
B, L, H = "ViT-B/16", "ViT-L/16", "ViT-H/14"


def values(where: str, what: str, model: str) -> list[float]:
    found = [s for s in SCORES if (s.where, s.what, s.model) == (where, what, model)]
    assert len(found) == 1, [s.what for s in SCORES if s.where == where]
    return list(found[0].values.values())


@pytest.mark.parametrize(
    ("where", "what", "expected"),
    [
        ("Table 1", "default", [84.9, 73.5]),
        ("Table 1a", "decoder of 1 block", [84.8, 65.5]),
        ("Table 1a", "decoder of 2 blocks", [84.9, 70.0]),
        ("Table 1a", "decoder of 4 blocks", [84.9, 71.9]),
        ("Table 1a", "decoder of 12 blocks", [84.4, 73.3]),
        ("Table 1b", "decoder of width 128", [84.9, 69.1]),
        ("Table 1b", "decoder of width 256", [84.8, 71.3]),
        ("Table 1b", "decoder of width 768", [84.4, 73.1]),
        ("Table 1b", "decoder of width 1024", [84.3, 73.1]),
        ("Table 1c", "mask tokens in the encoder", [84.2, 59.6]),
        ("Table 1d", "normalised pixels", [85.4, 73.9]),
        ("Table 1d", "principal components", [84.6, 72.3]),
        ("Table 1d", "dVAE tokens", [85.3, 71.6]),
        ("Table 1e", "no augmentation", [84.0, 65.7]),
        ("Table 1e", "crops of fixed size", [84.7, 73.1]),
        ("Table 1e", "crops and colour jitter", [84.3, 71.9]),
        ("Table 1f", "half hidden, in blocks", [83.9, 72.3]),
        ("Table 1f", "75 % hidden, in blocks", [82.8, 63.9]),
        ("Table 1f", "75 % hidden, as a grid", [84.0, 66.0]),
        ("Figure 5", "10 % hidden", [54.6]),
        ("Figure 9", "half a block tuned", [79.1]),
        ("Figure 9", "1 block tuned", [81.0]),
        ("PRETRAIN.md", "800 epochs", [85.5]),
    ],
)
def test_what_was_tried_on_vit_l(where: str, what: str, expected: list[float]) -> None:
    assert values(where, what, L) == expected


# The rows below are those of the tables: what, then a number for B, L and H (and H at 448).
@pytest.mark.parametrize(
    ("where", "what", "place", "expected"),
    [
        ("Table 3", "MAE, 1600 epochs", 0, [83.6, 85.9, 86.9]),
        ("Table 3, A.2", "from scratch", 0, [82.3, 82.6, 83.1]),
        ("Table 3, A.2", "from scratch", 1, [82.1, 81.5, 80.9]),
        ("Table 4", "COCO, supervised", 0, [47.9, 49.3]),
        ("Table 4", "COCO, supervised", 1, [42.9, 43.9]),
        ("Table 4", "COCO, MAE", 0, [50.3, 53.3]),
        ("Table 4", "COCO, MAE", 1, [44.9, 47.2]),
        ("Table 5", "ADE20K, supervised", 0, [47.4, 49.9]),
        ("Table 5", "ADE20K, MAE", 0, [48.1, 53.6]),
        ("Table 6", "other images", 0, [70.5, 75.7, 79.3]),
        ("Table 6", "other images", 1, [75.4, 80.1, 83.0]),
        ("Table 6", "other images", 2, [80.5, 83.4, 85.7]),
        ("Table 6", "other images", 3, [63.9, 65.8, 65.9]),
        ("Table 6", "other images", 4, [57.9, 59.4, 59.8]),
        ("Table 7", "plain pixels", 0, [83.3, 85.1, 86.2]),
        ("Table 7", "plain pixels", 1, [49.5, 52.8]),
        ("Table 7", "plain pixels", 2, [48.0, 51.8]),
        ("Table 7", "normalised pixels", 0, [83.6, 85.9, 86.9]),
        ("Table 7", "normalised pixels", 1, [50.3, 53.3]),
        ("Table 7", "normalised pixels", 2, [48.1, 53.6]),
        ("Table 7", "dVAE tokens", 0, [83.6, 85.7, 86.9]),
        ("Table 7", "dVAE tokens", 1, [50.3, 53.2]),
        ("Table 7", "dVAE tokens", 2, [48.1, 53.4]),
        ("Table 12", "linear probe", 0, [68.0, 75.8, 76.6]),
        ("Table 13", "robustness, MAE", 0, [51.7, 41.8, 33.8]),
        ("Table 13", "robustness, MAE", 1, [35.9, 57.1, 68.2]),
        ("Table 13", "robustness, MAE", 2, [48.3, 59.9, 64.4]),
        ("Table 13", "robustness, MAE", 3, [34.5, 45.3, 49.6]),
        ("Table 13", "robustness, supervised", 0, [45.8, 42.3, 41.3]),
        ("Table 13", "robustness, supervised", 1, [27.2, 29.6, 33.1]),
        ("Table 13", "robustness, supervised", 2, [49.4, 50.9, 50.3]),
        ("Table 13", "robustness, supervised", 3, [35.6, 37.5, 38.0]),
        ("FINETUNE.md", "released fine-tuned model", 0, [83.664, 85.952, 86.928]),
        ("FINETUNE.md", "released fine-tuned model", 1, [96.530, 97.570, 98.088]),
        ("FINETUNE.md", "released fine-tuned model", 2, [0.731, 0.646, 0.584]),
        ("FINETUNE.md", "fine-tuned, 4 seeds", 0, [83.57, 85.87]),
        ("FINETUNE.md", "fine-tuned, 4 seeds", 1, [0.08, 0.07]),
        ("FINETUNE.md", "linear probe", 0, [67.8, 76.0, 77.2]),
    ],
)
def test_rows_of_the_published_tables(
    where: str, what: str, place: int, expected: list[float]
) -> None:
    assert [values(where, what, m)[place] for m in (B, L, H)[: len(expected)]] == expected


@pytest.mark.parametrize(
    ("where", "what", "expected"),
    [
        ("Table 3", "MAE, fine-tuned at 448", [87.8]),
        ("Table 6", "other images at 448", [83.4, 86.8, 88.3, 66.8, 60.3]),
        ("Table 13", "robustness, MAE at 448", [36.8, 76.7, 66.5, 50.9]),
        ("mmpretrain", "1600 epochs, at 448", [87.3]),
    ],
)
def test_vit_h_at_448(where: str, what: str, expected: list[float]) -> None:
    assert values(where, what, H) == expected


@pytest.mark.parametrize(
    ("what", "model", "hours", "tuned"),
    [
        ("800 epochs, mask tokens in the encoder", L, 42.4, [84.2]),
        ("800 epochs, decoder of 8 blocks", L, 15.4, [84.9]),
        ("800 epochs, decoder of 1 block", L, 11.6, [84.8]),
        ("800 epochs, mask tokens in the encoder", H, 119.6, []),
        ("800 epochs, decoder of 8 blocks", H, 34.5, [85.8]),
        ("800 epochs, decoder of 1 block", H, 29.3, [85.9]),
    ],
)
def test_table_2_is_hours_and_scores(
    what: str, model: str, hours: float, tuned: list[float]
) -> None:
    assert values("Table 2", what, model) == [hours, *tuned]


@pytest.mark.parametrize(
    ("what", "model", "expected"),
    [
        ("300 epochs", B, [83.1, 60.8]),
        ("400 epochs", B, [83.3, 62.5]),
        ("800 epochs", B, [83.3, 65.1]),
        ("1600 epochs", B, [83.5, 67.1]),
        ("400 epochs", L, [85.2, 70.7]),
        ("800 epochs", L, [85.4, 73.7]),
        ("1600 epochs", L, [85.7, 75.5]),
        ("1600 epochs", H, [86.9]),
    ],
)
def test_what_mmpretrain_found(what: str, model: str, expected: list[float]) -> None:
    assert values("mmpretrain", what, model) == expected


def test_the_seed_s_result_is_83_1() -> None:
    assert values("mmselfsup 0.x", "400 epochs", B) == [83.1]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("COCO, Mask R-CNN", [(51.6, 45.9), (55.5, 49.2), (56.7, 50.2)]),
        ("COCO, Cascade", [(54.0, 46.7), (57.6, 50.0), (58.7, 51.0)]),
        ("LVIS, Mask R-CNN", [(40.2, 38.2), (46.1, 43.6), (49.1, 46.0)]),
        ("LVIS, Cascade", [(43.0, 38.9), (49.2, 44.5), (51.5, 46.6)]),
    ],
)
def test_what_vitdet_found(what: str, expected: list[tuple[float, float]]) -> None:
    models = [f"ViT-{size}/16" for size in "BLH"]

    assert [tuple(values("ViTDet", what, model)) for model in models] == expected


def test_segmentation_with_mmsegmentation() -> None:
    assert values("mmsegmentation", "ADE20K, UperNet", B) == [48.13, 48.70]


# What was never checked at its source, and the scores of other methods, stay out.
@pytest.mark.parametrize("unchecked", [57.3, 64.4, 69.7, 75.1, 83.2, 77.6, 76.5])
def test_nothing_unchecked_is_quoted(unchecked: float) -> None:
    of_vit_l = [s for s in SCORES if s.model == L and s.where.startswith(("Figure", "Table 1"))]

    assert all(unchecked not in score.values.values() for score in of_vit_l)


def test_no_number_of_others_is_shown_as_ours() -> None:
    assert {score.measured for score in SCORES} == {"not run"}


@pytest.mark.parametrize("command", sorted({c for score in SCORES for c in score.commands}))
def test_every_command_is_accepted_by_the_command_line(command: str) -> None:
    program, *words = shlex.split(command)
    (verb,) = [v for v in VERBS if words[: len(v.name.split())] == v.name.split()]
    words = words[len(verb.name.split()) :]

    plain, named = read_words(words, options_of(verb.run, words=words), verb=verb.name)

    assert program == "mae" and {"data"} <= named.keys()
    if verb.name == "pretrain":
        assert find_config(plain[0], PretrainConfig)
    if verb.name == "finetune":
        assert find_config(plain[0], FinetuneConfig)
    if verb.name == "segment train":
        assert find_config(plain[0], SegmentConfig)
    if verb.name == "detect train":
        assert find_config(plain[0], DetectConfig)


@pytest.mark.parametrize("score", SCORES, ids=lambda s: f"{s.where} {s.what} {s.model}")
def test_what_a_command_reads_was_written_by_one_before_it(score: PublishedScore) -> None:
    written: set[str] = set()
    for command in score.commands:
        words = shlex.split(command)
        out = words[words.index("--out") + 1] if "--out" in words else ""
        read = {word for word in words if word.startswith("runs/")} - {out}
        assert read <= written
        written.add(out)


def test_every_result_has_commands_or_says_why_not() -> None:
    assert all(score.commands or "no command" in score.note for score in SCORES)
