"""Results from the tables of He et al. 2021, with the commands that would reproduce them.

The numbers are copied from the tables and checked against the text of the paper. Rows of other
methods (DINO, MoCo v3, BEiT, iGPT) are left out, since nothing here runs them.
"""

from __future__ import annotations

from collections.abc import Iterator

from mae.recipes.recipe import MODEL_NAMES
from mae.recipes.score import (
    NOT_BUILT,
    Score,
    finetune_command,
    linear_command,
    pretrain_command,
    transfer_commands,
)

_SIZES = ("b", "l", "h")


def _ablated(run: str, options: str = "") -> tuple[str, ...]:
    return (
        pretrain_command("paper-ablation-vit-l", run, options),
        finetune_command("paper-ft-vit-l", run),
        linear_command(f"runs/{run}"),
    )


# Table, setting, fine-tuned %, linear %, options that reproduce it or the missing feature.
_ABLATIONS = (
    ("1a", "decoder of 1 block", 84.8, 65.5, "--model.decoder-depth 1"),
    ("1a", "decoder of 2 blocks", 84.9, 70.0, "--model.decoder-depth 2"),
    ("1a", "decoder of 4 blocks", 84.9, 71.9, "--model.decoder-depth 4"),
    ("1a", "decoder of 12 blocks", 84.4, 73.3, "--model.decoder-depth 12"),
    ("1b", "decoder of width 128", 84.9, 69.1, "--model.decoder-width 128"),
    ("1b", "decoder of width 256", 84.8, 71.3, "--model.decoder-width 256"),
    ("1b", "decoder of width 768", 84.4, 73.1, "--model.decoder-width 768"),
    ("1b", "decoder of width 1024", 84.3, 73.1, "--model.decoder-width 1024"),
    ("1c", "mask tokens in the encoder", 84.2, 59.6, "an encoder of mask tokens"),
    ("1d", "normalised pixels", 85.4, 73.9, "--model.normalize-target yes"),
    ("1d", "principal components", 84.6, 72.3, "a PCA target"),
    ("1d", "dVAE tokens", 85.3, 71.6, "a token target"),
    ("1e", "no augmentation", 84.0, 65.7, "a centre crop in training"),
    ("1e", "crops of fixed size", 84.7, 73.1, "a crop of fixed size"),
    ("1e", "crops and colour jitter", 84.3, 71.9, "colour jitter"),
    ("1f", "half hidden, in blocks", 83.9, 72.3, "block-wise masking"),
    ("1f", "75 % hidden, in blocks", 82.8, 63.9, "block-wise masking"),
    ("1f", "75 % hidden, as a grid", 84.0, 66.0, "grid masking"),
)


def _table_1_and_figures() -> Iterator[Score]:
    default = {"% fine-tuned": 84.9, "% linear": 73.5}
    took = "pre-training: 15.4 h on 128 TPU-v3 cores (Table 2)"
    yield Score("Table 1", "default", "ViT-L/16", default, _ablated("table1"), took=took)
    for table, what, tuned, linear, needs in _ABLATIONS:
        built = needs.startswith("--")
        run = f"table{table}-{needs.split()[-1]}"
        yield Score(
            f"Table {table}",
            what,
            "ViT-L/16",
            {"% fine-tuned": tuned, "% linear": linear},
            _ablated(run, needs) if built else (),
            note="" if built else NOT_BUILT.format(needs),
        )
    run = "figure5-0.1"
    commands = (
        pretrain_command("paper-ablation-vit-l", run, "--mask-ratio 0.1"),
        linear_command(f"runs/{run}"),
    )
    yield Score("Figure 5", "10 % hidden", "ViT-L/16", {"% linear": 54.6}, commands)
    for blocks, top1 in (("0.5", 79.1), ("1", 81.0)):
        probe = f"mae probe partial runs/table1 --data IN1K --blocks {blocks}"
        yield Score(
            "Figure 9",
            "half a block tuned" if blocks == "0.5" else f"{blocks} block tuned",
            "ViT-L/16",
            {"% top-1": top1},
            (pretrain_command("paper-ablation-vit-l", "table1"), probe),
        )


# Setting, model, fine-tuned %, hours on 128 TPU-v3 cores, depth of the decoder or None.
_HOURS = (
    ("mask tokens in the encoder", "l", 84.2, 42.4, None),
    ("decoder of 8 blocks", "l", 84.9, 15.4, 8),
    ("decoder of 1 block", "l", 84.8, 11.6, 1),
    ("mask tokens in the encoder", "h", None, 119.6, None),
    ("decoder of 8 blocks", "h", 85.8, 34.5, 8),
    ("decoder of 1 block", "h", 85.9, 29.3, 1),
)


def _table_2() -> Iterator[Score]:
    for what, size, tuned, hours, depth in _HOURS:
        run, options = f"table2-{size}-{depth}", f"--model.decoder-depth {depth}"
        recipe = "paper-ablation-vit-l"
        if size == "h":
            recipe, options = "paper-vit-h", f"--epochs 800 --model.normalize-target no {options}"
        pretraining = pretrain_command(recipe, run, options)
        yield Score(
            "Table 2",
            f"800 epochs, {what}",
            MODEL_NAMES[size],
            {"hours": hours} | ({"% fine-tuned": tuned} if tuned else {}),
            (pretraining, finetune_command(f"paper-ft-vit-{size}", run)) if depth else (),
            took=f"{hours} h on 128 TPU-v3 cores" + ("" if tuned else ", estimated from 10 epochs"),
            note="" if depth else NOT_BUILT.format("an encoder of mask tokens"),
        )


def _full(size: str) -> tuple[str, str]:
    """Return the commands for Table 3; fine-tuning follows the FINETUNE.md of those weights."""
    run = f"paper-vit-{size}"
    return pretrain_command(run, run), finetune_command(f"facebook-ft-vit-{size}", run)


_FULL_448 = (_full("h")[0], finetune_command("paper-ft-vit-h-448", "paper-vit-h", ends="448"))


def _scratch(size: str) -> str:
    return f"mae finetune paper-scratch-vit-{size} --data IN1K --out runs/scratch-vit-{size}"


_FINETUNING_TIME = {
    "b": "fine-tuning: 7 h 11 min on 32 V100 (FINETUNE.md)",
    "l": "pre-training: 31 h on 128 TPU-v3 cores; fine-tuning: 8 h 52 min on 32 V100",
    "h": "fine-tuning: 13 h 9 min on 64 V100 (FINETUNE.md)",
}


def _table_3() -> Iterator[Score]:
    tuned = {"b": 83.6, "l": 85.9, "h": 86.9}
    for size, top1 in tuned.items():
        yield Score(
            "Table 3",
            "MAE, 1600 epochs",
            MODEL_NAMES[size],
            {"% fine-tuned": top1},
            _full(size),
            took=_FINETUNING_TIME[size],
        )
    yield Score("Table 3", "MAE, fine-tuned at 448", "ViT-H/14", {"% fine-tuned": 87.8}, _FULL_448)
    for size, average, plain in (("b", 82.3, 82.1), ("l", 82.6, 81.5), ("h", 83.1, 80.9)):
        values = {"% top-1": average, "% without EMA": plain}
        commands = (_scratch(size), f"{_scratch(size)}-plain --ema none")
        yield Score("Table 3, A.2", "from scratch", MODEL_NAMES[size], values, commands)


# Scores of ViT-B and ViT-L.
_DENSE = (
    (
        "supervised",
        {"box AP": 47.9, "mask AP": 42.9, "mIoU": 47.4},
        {"box AP": 49.3, "mask AP": 43.9, "mIoU": 49.9},
    ),
    (
        "MAE",
        {"box AP": 50.3, "mask AP": 44.9, "mIoU": 48.1},
        {"box AP": 53.3, "mask AP": 47.2, "mIoU": 53.6},
    ),
)
_SEARCHED = "The paper searched rates and epochs for each entry and does not print them."


def _tables_4_and_5() -> Iterator[Score]:
    for table, verb, data, units in (
        ("Table 4", "detect", "COCO", ("box AP", "mask AP")),
        ("Table 5", "segment", "ADE20K", ("mIoU",)),
    ):
        for what, *sizes in _DENSE:
            for size, scores in zip(_SIZES, sizes, strict=False):
                run = f"paper-vit-{size}" if what == "MAE" else f"scratch-vit-{size}"
                first = _full(size)[0] if what == "MAE" else _scratch(size)
                commands = transfer_commands(verb, data, f"runs/{run}", f"{run}-{data.lower()}")
                yield Score(
                    table,
                    f"{data}, {what}",
                    MODEL_NAMES[size],
                    {unit: scores[unit] for unit in units},
                    (first, *commands),
                    note=_SEARCHED,
                )


_TRANSFERS = ("INAT17", "INAT18", "INAT19", "PLACES205", "PLACES365")
_TABLE_6 = {
    "b": (70.5, 75.4, 80.5, 63.9, 57.9),
    "l": (75.7, 80.1, 83.4, 65.8, 59.4),
    "h": (79.3, 83.0, 85.7, 65.9, 59.8),
    "h-448": (83.4, 86.8, 88.3, 66.8, 60.3),
}
# Box AP and mIoU exist only for ViT-B and ViT-L.
_TABLE_7: tuple[tuple[str, tuple[float, ...], tuple[float, ...], tuple[float, ...]], ...] = (
    ("plain pixels", (83.3, 49.5, 48.0), (85.1, 52.8, 51.8), (86.2,)),
    ("normalised pixels", (83.6, 50.3, 48.1), (85.9, 53.3, 53.6), (86.9,)),
    ("dVAE tokens", (83.6, 50.3, 48.1), (85.7, 53.2, 53.4), (86.9,)),
)


def _tables_6_and_7() -> Iterator[Score]:
    for size, scores in _TABLE_6.items():
        run = f"paper-vit-{size[0]}"
        recipe = f"paper-ft-vit-{size}"
        tuning = [
            finetune_command(recipe, run, data=data, ends=f"{data.lower()}{size[1:]}")
            for data in _TRANSFERS
        ]
        yield Score(
            "Table 6",
            f"other pictures{' at 448' if size[1:] else ''}",
            MODEL_NAMES[size[0]],
            {f"% {data}": top1 for data, top1 in zip(_TRANSFERS, scores, strict=True)},
            (pretrain_command(run, run), *tuning),
            note="Rate and epochs of each are not published.",
        )
    for what, *sizes in _TABLE_7:
        plain = what == "plain pixels"
        for size, results in zip(_SIZES, sizes, strict=True):
            run = f"table7-{size}" if plain else f"paper-vit-{size}"
            options = "--model.normalize-target no" if plain else ""
            commands = [pretrain_command(f"paper-vit-{size}", run, options)]
            commands += [finetune_command(f"{'paper' if plain else 'facebook'}-ft-vit-{size}", run)]
            if len(results) > 1:
                commands += transfer_commands("detect", "COCO", f"runs/{run}", f"{run}-coco")
                commands += transfer_commands("segment", "ADE20K", f"runs/{run}", f"{run}-ade20k")
            yield Score(
                "Table 7",
                what,
                MODEL_NAMES[size],
                dict(zip(("% fine-tuned", "box AP", "mIoU"), results, strict=False)),
                () if what == "dVAE tokens" else tuple(commands),
                note=NOT_BUILT.format("a token target") if what == "dVAE tokens" else "",
            )


_ROBUST = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch")
_TABLE_13: dict[str, dict[str, tuple[float, ...]]] = {
    "MAE": {
        "b": (51.7, 35.9, 48.3, 34.5),
        "l": (41.8, 57.1, 59.9, 45.3),
        "h": (33.8, 68.2, 64.4, 49.6),
        "h-448": (36.8, 76.7, 66.5, 50.9),
    },
    "supervised": {
        "b": (45.8, 27.2, 49.4, 35.6),
        "l": (42.3, 29.6, 50.9, 37.5),
        "h": (41.3, 33.1, 50.3, 38.0),
    },
}


def _tables_12_and_13() -> Iterator[Score]:
    for size, linear in (("b", 68.0), ("l", 75.8), ("h", 76.6)):
        run = f"paper-vit-{size}"
        commands = (pretrain_command(run, run), linear_command(f"runs/{run}"))
        yield Score("Table 12", "linear probe", MODEL_NAMES[size], {"% linear": linear}, commands)
    for what, sizes in _TABLE_13.items():
        for size, scores in sizes.items():
            first: tuple[str, ...] = (_scratch(size),)
            if what == "MAE":
                first = _FULL_448 if size == "h-448" else _full(size)
            run = first[-1].split()[-1]
            units = ("mCE IN-C", "% IN-A", "% IN-R", "% IN-SKETCH")
            tests = [
                f"mae evaluate {run} --data {unit.split()[1]} --set {name}"
                for unit, name in zip(units, _ROBUST, strict=True)
            ]
            yield Score(
                "Table 13",
                f"robustness, {what}{' at 448' if '448' in size else ''}",
                MODEL_NAMES[size[0]],
                dict(zip(units, scores, strict=True)),
                (*first, *tests),
            )


TABLES = (
    *_table_1_and_figures(),
    *_table_2(),
    *_table_3(),
    *_tables_4_and_5(),
    *_tables_6_and_7(),
    *_tables_12_and_13(),
)
