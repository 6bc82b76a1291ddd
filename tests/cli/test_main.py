"""The manners of the command, each a test."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import Parameter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mae.jobs.doctor
import mae.jobs.pretrain
from mae.cli.main import VERBS, main
from mae.cli.options import RANKS, options_of
from mae.cli.slurm import OPTIONS
from mae.cli.verbs.shared import MULTI_PROCESS_VERBS
from mae.config.run import ObjectiveConfig, PretrainConfig
from mae.config.serialize import field_types
from mae.config.sizes import model_config
from mae.errors import CheckpointError, ConfigError, Stopped
from mae.model.create import create
from mae.recipes.catalogue import FOLDER, find_config
from mae.recipes.custom import build_config
from mae.weights.formats.native import save
from mae.weights.given import Given
from tests.jobs.conftest import TINY, write_classes

COMMAND = [sys.executable, "-c", "import sys; from mae.cli.main import main; sys.exit(main())"]
TINY_TOML = """
batch = 4
[model]
image_size = [24, 40]
patch_size = 8
width = 24
depth = 1
num_heads = 2
decoder_width = 16
decoder_depth = 1
decoder_heads = 2
"""

Run = Callable[..., "Said"]


class Said(SimpleNamespace):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def mae_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command inside this process."""
    monkeypatch.delenv("MAE_TRACEBACK", raising=False)

    def run(*words: str) -> Said:
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        return Said(code=code, out=out, err=err)

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Stand in for the pre-training job; holds what it was asked for."""
    calls: dict[str, Any] = {}

    def pretrain(config: PretrainConfig, **given: Any) -> mae.Run:
        calls.update(given, config=config)
        return mae.Run(tmp_path / "run", config, 3, resumed=False, model=create(TINY), loss=0.5)

    monkeypatch.setattr(mae.jobs.pretrain, "pretrain", pretrain)
    return calls


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "weights"
    save(create(TINY), path)
    return path


def one_line(said: Said, code: int = 2) -> str:
    """Check that a command failed in one line on stderr; give that line."""
    assert said.code == code and said.out == ""
    assert said.err.startswith("mae: ") and said.err.endswith("\n") and said.err.count("\n") == 1
    return said.err.removeprefix("mae: ").rstrip()


# 1: instant help


@pytest.mark.parametrize("words", [[], ["--help"], ["pretrain", "--help"], ["recipes", "--help"]])
def test_help_takes_half_a_second_and_imports_nothing_heavy(words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *words],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mae.cli.main" in imported
    assert not imported & {"torch", "numpy", "PIL", "rich.live", "rich.progress", "torchvision"}
    # Of processor time, since other work on the machine takes wall time.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


# 2: the short help, and the public surface


def test_mae_alone_prints_the_verbs_by_group(mae_: Run) -> None:
    said = mae_()

    assert said.code == 0 and said.err == "" and said.out == mae_("--help").out
    lines = said.out.splitlines()
    groups = ["train", "use", "segment", "detect", "inspect"]
    assert [line for line in lines if line in groups] == groups
    assert all(any(line.startswith(f"  {verb.name} ") for line in lines) for verb in VERBS)
    assert max(map(len, lines)) <= 100


def test_verbs_and_options_are_pinned() -> None:
    def flags(name: str) -> str:
        run = next(verb.run for verb in VERBS if verb.name == name)
        options = [o for o in options_of(run) if not is_dataclass(o.owner)]
        return " ".join(o.flag.upper() if o.positional else o.flag for o in options)

    given = " ".join(name.replace("_", "-") for name in Given.__annotations__)
    assert given == "heads decoder-heads norm-eps grid mean std normalize-target take"
    assert {verb.name: flags(verb.name) for verb in VERBS} == {
        "demo": "out minutes quiet json traceback",
        "pretrain": f"RECIPE data out init resume-from skip-steps {given} config print-config "
        "quiet model json traceback",
        "finetune": f"RECIPE data weights out labels resume-from skip-steps seeds {given} config "
        "print-config quiet model json traceback",
        "probe": "METHOD WEIGHTS data blocks out protocol k temperature labels labels-out "
        f"seeds epochs batch lr pool device precision crop-pct seed {given} quiet json traceback",
        "evaluate": "WEIGHTS data set all-classes split out predictions batch device precision "
        f"crop-pct pool {given} quiet json traceback",
        "worth": "data labels minutes weights out draws pool device seed quiet json traceback",
        "predict": "WEIGHTS IMAGES out top sort sheet batch device precision crop-pct pool "
        f"{given} quiet json traceback",
        "reconstruct": f"WEIGHTS IMAGES out mask mask-kind mask-ratio seed device crop-pct "
        f"{given} quiet json traceback",
        "embed": "WEIGHTS data out pool batch device precision crop-pct "
        f"{given} quiet json traceback",
        "segment train": "RECIPE data weights out labels resume-from skip-steps "
        f"{given} config print-config quiet model json traceback",
        "segment evaluate": f"WEIGHTS data split out max-bad device {given} quiet json traceback",
        "segment predict": f"WEIGHTS IMAGES out device {given} quiet json traceback",
        "detect train": "RECIPE data weights out labels resume-from skip-steps "
        f"{given} config print-config quiet model json traceback",
        "detect evaluate": f"WEIGHTS data split out max-bad device {given} quiet json traceback",
        "detect predict": f"WEIGHTS IMAGES out threshold crops device {given} quiet json traceback",
        "data inspect": "FOLDER limit out quarantine quiet json traceback",
        "report": "RUNS json traceback",
        "recipes list": "json traceback",
        "recipes show": "NAME json traceback",
        "recipes diff": "A B json traceback",
        "recipes paper": "json traceback",
        "plan": "RECIPE data gpu ranks images measure config quiet model json traceback",
        "data pack": "DATA DST short-side quality raw quiet json traceback",
        "data verify": "PACK quiet json traceback",
        "weights inspect": "WEIGHTS take json traceback",
        "weights convert": f"WEIGHTS DST to encoder-only allow-missing pool {given} json traceback",
        "weights diff": f"WEIGHTS OTHER pool {given} json traceback",
        "weights export": f"WEIGHTS DST to part dynamic {given} json traceback",
        "weights push": "WEIGHTS REPO public json traceback",
        "doctor": "json traceback",
        "bench": f"RECIPE data init {given} seconds config quiet model json traceback",
        "bench data": "RECIPE data images-per-second seconds batch device quiet json traceback",
    }


def test_the_options_of_a_recipe_are_pinned() -> None:
    run = next(verb.run for verb in VERBS if verb.name == "pretrain")

    assert next(o for o in options_of(run) if o.flag == "model").default is None
    assert [o.flag for o in options_of(run) if is_dataclass(o.owner)] == (
        "epochs steps minutes batch micro-batch checkpoint-every lr seed precision compile "
        "strategy device threads workers save-every-steps async-save log-every-steps keep "
        "keep-checkpoints follow-weights resize max-bad image-size crop-pct "
        "mask-kind mask-ratio channels measure-pixels init-channels views-per-decode "
        "start-size start-share held-out "
        "optim.name optim.decay optim.milestones optim.min-lr optim.min-lr-scaled "
        "optim.warmup-epochs optim.warmup-start optim.betas optim.eps "
        "optim.weight-decay optim.decay-tokens optim.decay-biases optim.decay-norms "
        "optim.clip-norm augment.crop-scale "
        "augment.crop-ratio augment.crop-clip augment.flip augment.scaled-decode "
        "model.patch-size model.width "
        "model.depth model.num-heads model.decoder-width model.decoder-depth model.decoder-heads "
        "model.mlp-ratio model.norm-eps objective.mask-block "
        "objective.normalize-target objective.target-eps"
    ).split()


def test_every_field_of_a_recipe_but_what_follows_from_the_images_is_an_option() -> None:
    run = next(verb.run for verb in VERBS if verb.name == "pretrain")

    left_out = set(field_types(PretrainConfig)) - {o.path for o in options_of(run)}

    assert left_out == {
        "model.channels",
        "model.pixels.dtype",
        "model.pixels.mean",
        "model.pixels.std",
        "model.pixels.tiff_pages",
    }


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_explains_itself_and_each_of_its_options(verb: Any, mae_: Run) -> None:
    said = mae_(*verb.name.split(), "--help")

    assert said.code == 0 and said.err == "" and "\x1b" not in said.out
    assert f"usage: mae {verb.name}" in said.out
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    starts = [i for i, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    options = [
        *options_of(verb.run),
        *([RANKS, *OPTIONS] if verb.name in MULTI_PROCESS_VERBS else []),
    ]
    for option, start, end in zip(options, starts, [*starts[1:], None], strict=True):
        name, *rest = " ".join(lines[start:end]).split()
        assert name == (option.flag.upper() if option.positional else f"--{option.flag}")
        is_switch = option.hint is bool and option.default is False
        assert is_switch or re.match(r"\S*(INT|FLOAT|TEXT|PATH|\w\|)", rest[0])
        assert ("(default: " in " ".join(rest)) == (option.default is not Parameter.empty)
        assert len(rest) > 3


def test_the_help_of_a_recipe_shows_its_own_values(mae_: Run) -> None:
    assert "(default: 200)" in mae_("pretrain", "--help").out
    assert "(default: 1600)" in mae_("pretrain", "paper-vit-b", "--help").out


def test_the_version_is_that_of_the_package(mae_: Run) -> None:
    assert mae_("--version").out == f"mae {mae.__version__}\n"


# 4: spellings


@pytest.mark.parametrize(
    "words",
    [
        "--data pics --optim.weight-decay 0.1",
        "--data=pics --optim.weight_decay=0.1",
        "data=pics optim.weight-decay=0.1",
        "data = pics optim.weight_decay = 0.1",
        "data= pics optim.weight_decay =0.1",
    ],
)
def test_every_spelling_of_an_option_means_the_same(
    words: str, mae_: Run, asked: dict[str, Any]
) -> None:
    assert mae_("pretrain", *words.split()).code == 0

    assert asked["data"] == "pics" and asked["config"].optim.weight_decay == 0.1


@pytest.mark.parametrize(
    "words",
    [
        "--model.mask-ratio .6 --model.normalize-target no",
        "model.mask_ratio=.6 model.normalize_target = no",
        "--mask-ratio .6 --objective.normalize-target=no",
    ],
)
def test_options_of_version_0_1_are_still_taken(
    words: str, mae_: Run, asked: dict[str, Any]
) -> None:
    assert mae_("pretrain", "--data", "pics", *words.split()).code == 0

    objective = ObjectiveConfig(mask_ratio=0.6, normalize_target=False)
    assert asked["config"].objective == objective


def test_the_kind_of_mask_is_an_option(mae_: Run, asked: dict[str, Any]) -> None:
    assert (
        mae_(*"pretrain --data pics --mask-kind block --objective.mask-block 4".split()).code == 0
    )

    objective = asked["config"].objective
    assert (objective.mask_kind, objective.mask_block, objective.mask_ratio) == ("block", 4, 0.75)
    for words, why in (
        ("--mask-kind stripes", "mask_kind: expected random or block or grid, got"),
        ("objective.mask_block=4", "mask_block: expected 2 unless mask_kind is block, got 4"),
        (
            "--mask-kind grid --mask-ratio .5",
            "mask_ratio: expected 0.75 with mask_kind grid",
        ),
        ("--mask-kind grid --model vit-s/32", "mask_kind grid: expected even numbers of patches"),
        ("--mask-kind block objective.mask_block=0", "mask_block: expected at least 1, got 0"),
    ):
        said = mae_("pretrain", "--data", "pics", *words.split())
        assert said.code == 2 and why in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "words", "name"),
    [
        ("folder", "--optim.muon", "muon"),
        ("folder", "optim.muon = true", "muon"),
        ("demo", "--optim.muon no", "adamw"),
        ("demo", "--optim.name lars", "lars"),
    ],
)
def test_muon_is_still_a_switch_and_now_a_name(
    recipe: str, words: str, name: str, mae_: Run, asked: dict[str, Any]
) -> None:
    assert mae_("pretrain", recipe, *words.split(), "--data", "pics").code == 0

    assert asked["config"].optim.name == name


def test_options_become_values_of_the_right_type(mae_: Run, asked: dict[str, Any]) -> None:
    mae_(
        *"pretrain --lr 3e-4 --image-size 224 160 --mask-ratio .6 --optim.betas 0.9 0.99".split(),
        *"--measure-pixels paper-vit-b --micro-batch none --precision bf16 --seed=7".split(),
        *"--optim.decay-tokens false --augment.crop-scale 0.5,1 --data pics".split(),
        *["--out", "a b/ü"],
    )

    config = asked["config"]
    assert (config.optim.lr, config.model.image_size, config.objective.mask_ratio) == (
        3e-4,
        (224, 160),
        0.6,
    )
    assert config.optim.betas == (0.9, 0.99) and config.augment.crop_scale == (0.5, 1.0)
    assert config.measure_pixels and not config.optim.decay_tokens
    assert (config.micro_batch, config.precision, config.seed) == (None, "bf16", 7)
    assert config.model.width == 768 and asked["out"] == Path("a b/ü")


@pytest.mark.parametrize("name", ["vit-ti/16", "vit-s/8", "vit-b/16", "vit-l/16", "vit-h/14"])
@pytest.mark.parametrize("recipe", ["folder", "paper-ablation-vit-l"])
def test_a_model_on_the_command_line_is_that_of_create(
    name: str, recipe: str, mae_: Run, asked: dict[str, Any]
) -> None:
    edge = 8 * int(name.partition("/")[2])
    said = mae_("pretrain", recipe, "--data", "pics", "--model", name, f"image-size={edge}")

    assert said.code == 0, said.err
    with torch.device("meta"):
        model = create(model_config(name, image_size=edge)).config
    own = find_config(recipe, PretrainConfig)
    assert (asked["config"].model, asked["config"].objective) == (model, own.objective)


def test_a_model_keeps_the_image_size_of_the_recipe_and_single_fields_win(
    mae_: Run, asked: dict[str, Any]
) -> None:
    mae_("pretrain", "demo", "--data", "pics", "--model.depth", "3", "--model", "vit-ti/7")

    model = asked["config"].model
    assert (model.image_size, model.patch_size, model.width, model.depth) == ((28, 28), 7, 192, 3)
    assert (model.decoder_depth, asked["config"].objective.target_eps) == (4, 1e-3)


@pytest.mark.parametrize("text", ["192", "192x192", "192,192"])
def test_one_number_is_the_edge_of_a_square(text: str, mae_: Run, asked: dict[str, Any]) -> None:
    mae_("pretrain", "data=pics", f"image-size={text}")

    assert asked["config"].model.image_size == (192, 192)


def test_the_job_is_told_which_recipe_was_changed(mae_: Run, asked: dict[str, Any]) -> None:
    mae_("pretrain", "paper-vit-b", "--data", "pics", "--seed", "3")

    assert asked["based_on"] == "paper-vit-b" and asked["config"].seed == 3


def test_a_length_given_takes_the_place_of_that_of_the_recipe(
    mae_: Run, asked: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a.toml").write_text("minutes = 5")

    mae_("pretrain", "--data", "pics", "--config", str(tmp_path / "a.toml"), "--steps", "9")

    assert (asked["config"].steps, asked["config"].minutes) == (9, None)


# 5 to 8 and 13: what is wrong, in one line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrian", "unknown verb pretrian; did you mean pretrain?"),
        ("--json", "unknown verb --json; see mae --help"),
        ("recipes lst", "unknown verb recipes lst; did you mean recipes list?"),
        ("recipes", "recipes: expected list or show or diff or paper after it; see mae --help"),
        ("probe kn w --data d", "method: expected knn or linear or partial, got 'kn'"),
        ("probe", "probe: expected METHOD; see mae probe --help"),
        (
            "probe knn w --data d --protocol paper",
            "protocol: has no effect on knn, expected with linear; drop it",
        ),
        (
            "probe linear w --data d --protocol paper --pool mean",
            "pool: has no effect on the paper's protocol, expected with --protocol quick; drop it",
        ),
        (
            "probe linear w --data d --epochs 3",
            "epochs: has no effect on the quick protocol, expected with --protocol paper; drop it",
        ),
        (
            "probe linear w --data d --k 3",
            "k: has no effect on linear, expected with knn; drop it",
        ),
        ("pretrain --optim.lrr 1", "unknown option --optim.lrr; did you mean --optim.lr?"),
        ("pretrain optim.lrr=1", "unknown option --optim.lrr; did you mean --optim.lr?"),
        (
            "pretrain --weight-decay 1",
            "unknown option --weight-decay; did you mean --optim.weight-decay?",
        ),
        (
            "pretrain --model.channels 1",
            "unknown option --model.channels; did you mean --channels?",
        ),
        ("pretrain -x", "unknown option -x; see mae pretrain --help"),
        ("demo --epochs 3", "unknown option --epochs; see mae demo --help"),
        ("pretrain --epochs abc", "epochs: expected a number, got 'abc'"),
        ("pretrain --batch 3.5", "batch: expected a whole number, got '3.5'"),
        (
            "pretrain --precision fp8",
            "precision: expected auto or float32 or bf16 or fp16, got 'fp8'",
        ),
        ("pretrain --optim.betas 0.9", "optim.betas: expected 2 numbers, got '0.9'"),
        ("pretrain --measure-pixels=maybe", "measure_pixels: expected true or false, got 'maybe'"),
        ("pretrain --epochs", "--epochs: expected a value after it"),
        ("pretrain --epochs --batch 3", "--epochs: expected a value after it"),
        ("pretrain --epochs -3", "epochs: expected a number above 0, got -3.0"),
        ("pretrain --optim.lr nan", "optim.lr: expected a number, got 'nan'"),
        (
            "pretrain --steps 2 --minutes 3",
            "steps and minutes: got both, expected one of them; drop one",
        ),
        (
            "pretrain --image-size 225",
            "image_size: got 225 x 225, expected multiples of the patch size 16; try 224 x 224",
        ),
        ("pretrain foldr", "recipe: there is no 'foldr'; did you mean folder?"),
        ("pretrain folder demo", "unexpected 'demo'; see mae pretrain --help"),
        ("pretrain", "pretrain: expected --data, a folder of images (or fashion-mnist)"),
        ("embed", "embed: expected WEIGHTS; see mae embed --help"),
        ("embed w", "embed: expected --data and --out; see mae embed --help"),
        ("reconstruct w", "reconstruct: expected IMAGES; see mae reconstruct --help"),
        ("recipes show foldr", "recipe: there is no 'foldr'; did you mean folder?"),
        ("recipes diff demo foldr", "recipe: there is no 'foldr'; did you mean folder?"),
        (
            "pretrain paper-ft-vit-b --data pics",
            "recipe: paper-ft-vit-b is for fine-tuning; "
            "use it as mae finetune paper-ft-vit-b --data DIR --weights W",
        ),
        (
            "pretrain continue --data pics",
            "init: expected --init, the weights or run whose network this recipe takes; to train "
            "a new network use the recipe folder",
        ),
        (
            "pretrain continue --data pics --init w --image-size 160",
            "model: has no effect with follow_weights; use --resize, or --follow-weights no",
        ),
        (
            "pretrain --data pics --init-channels mean",
            "init_channels: has no effect without --init; drop it",
        ),
        (
            "pretrain continue --data pics --init w --model vit-b/16",
            "model: has no effect with follow_weights, which takes the network from the weights; "
            "use --resize for another size, or --follow-weights no",
        ),
        (
            "pretrain --data pics --model vit-x/16",
            "model: got 'vit-x/16', expected one of vit-ti, vit-s, vit-b, vit-l, vit-h and /PATCH; "
            "did you mean vit-s/16?",
        ),
        ("pretrain vit-ti/16", "recipe: there is no 'vit-ti/16'; did you mean --model vit-ti/16?"),
        ("pretrain a/b", "recipe: there is no 'a/b'; did you mean --data a/b?"),
        (
            "pretrain fashion-mnist",
            "recipe: there is no 'fashion-mnist'; did you mean --data fashion-mnist?",
        ),
        ("pretrain w.pth", "recipe: there is no 'w.pth'; did you mean --init w.pth?"),
        ("finetune w.pth", "recipe: there is no 'w.pth'; did you mean --weights w.pth?"),
        ("finetune hf:a/b", "recipe: there is no 'hf:a/b'; did you mean --weights hf:a/b?"),
        ("pretrain my.toml", "recipe: there is no 'my.toml'; did you mean --config my.toml?"),
        ("bench data a/b --data d", "recipe: there is no 'a/b'; did you mean --data a/b?"),
        ("weights diff a", "weights diff: expected OTHER; see mae weights diff --help"),
        ("weights export a b.onnx", "weights export: expected --to; see mae weights export --help"),
        (
            "weights export a b --to torch-export",
            "dst: b ends in '', expected .pt2 for torch-export",
        ),
        ("weights push a name", "repo: got 'name', expected owner/name"),
        ("weights inspect hf:name", "hf:name: expected hf:owner/name, or hf:owner/name@revision"),
        (
            "weights convert a b --to jax",
            "to: expected facebook or timm or huggingface or dinov2 or mae, got 'jax'",
        ),
        ("plan demo", "plan: expected --data, your images, or --images, their number"),
        (
            "plan paper-vit-b --gpu h10x8",
            "gpu: got 'h10x8', expected a card and how many, as in h100x8; did you mean h100x8?",
        ),
        (
            "plan paper-vit-b --gpu h100x",
            "gpu: got 'h100x', expected a card and how many, as in h100x8; did you mean h100x8?",
        ),
        (
            "plan paper-vit-b --gpu tpu",
            "gpu: got 'tpu', expected a card and how many, as in h100x8; known are a100, h100, "
            "h200, l4, l40s, rtx4090, rtx3090, v100",
        ),
        (
            "plan paper-vit-b --gpu h100 --measure",
            "measure: has no effect with --gpu, a machine elsewhere; drop one",
        ),
        (
            "plan paper-vit-b --data d --images 3",
            "data and images: got both, expected one of them; drop one",
        ),
        ("plan demo --images 0", "images: expected at least 1, got 0"),
        (
            "plan folder --images 90 --gpu l4",
            "batch: expected at least 1, the ranks, at most 90, the images, got 128",
        ),
        (
            "plan continue --images 9",
            "plan: continue takes its network from weights; use --follow-weights no",
        ),
        ("bench", "bench: expected --data; see mae bench --help"),
        ("bench foldr --data d", "recipe: there is no 'foldr'; did you mean folder?"),
        ("bench --data d --seconds 0", "seconds: expected a number above 0, got 0.0"),
        (
            "bench continue --data d",
            "init: expected --init, the weights or run whose network this recipe takes; to train "
            "a new network use the recipe folder",
        ),
        ("embed w --data d --out f.csv", "out: f.csv ends in '.csv', expected .npy or .parquet"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(words: str, message: str, mae_: Run) -> None:
    assert one_line(mae_(*words.split())) == message


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("pretrain", "recipe: there is no 'my images'"),
        ("pretrain folder", "unexpected 'my images'"),
        ("finetune", "recipe: there is no 'my images'"),
        ("plan", "recipe: there is no 'my images'"),
        ("probe knn w", "unexpected 'my images'"),
        ("embed w", "unexpected 'my images'"),
    ],
)
def test_images_in_the_place_of_a_recipe_are_told_to_be_data(
    words: str, start: str, mae_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my images").mkdir()

    line = one_line(mae_(*words.split(), "my images"))

    assert line == f"{start}; did you mean --data 'my images'?"


def test_a_run_in_the_place_of_a_recipe_is_told_to_be_weights(mae_: Run, tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()

    line = one_line(mae_("finetune", str(tmp_path), "--data", "pics"))

    assert line.endswith(f"; did you mean --weights {tmp_path}?")


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_a_mask_that_hides_or_keeps_nothing_is_one_line(keep: float, mae_: Run) -> None:
    said = mae_("pretrain", "--data", "pics", "--mask-ratio", str(1 - keep))

    assert "expected a ratio that keeps at least one patch and hides" in one_line(said)


def test_a_misspelt_key_names_file_path_and_suggestion(mae_: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlrr = 1.0\n")

    line = one_line(mae_("pretrain", "--config", str(file), "--data", "pics"))

    assert line == f"unknown key 'optim.lrr' in {file}; did you mean 'optim.lr'?"


def test_a_missing_folder_is_named_with_its_neighbours(mae_: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    out = str(tmp_path / "run")

    line = one_line(mae_("pretrain", "--quiet", f"data={tmp_path / 'imges' / 'a'}", "--out", out))

    assert str(tmp_path / "imges" / "a") in line and f"{tmp_path}, which has images" in line


def test_a_folder_without_images_says_what_is_there(mae_: Run, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.heic", "b.heic", "c.txt"):
        (tmp_path / "d" / name).touch()

    line = one_line(
        mae_("pretrain", "--quiet", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "run"))
    )

    assert "2 .heic, 1 .txt" in line and ".jpg" in line


# 13 and 14: errors and exit codes


def raising(error: BaseException) -> Callable[..., None]:
    def job(*_: object, **__: object) -> None:
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("two\nlines"), 2, "two lines"),
        (CheckpointError("all damaged"), 1, "all damaged"),
        (Stopped("saved; the same command goes on", exit_code=75), 75, "saved; the same command"),
        (Stopped("saved", exit_code=130), 130, "saved"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_a_job_decides_the_exit_code(
    error: BaseException, code: int, line: str, mae_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mae.jobs.pretrain, "pretrain", raising(error))

    assert line in one_line(mae_("pretrain", "--data", "pics"), code)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_traceback_is_shown_where_asked_for(
    way: str, mae_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mae.jobs.pretrain, "pretrain", raising(ConfigError("wrong")))
    words = ["pretrain", "--data", "pics"]
    if way == "option":
        words.append("--traceback")
    else:
        monkeypatch.setenv("MAE_TRACEBACK", "1")

    said = mae_(*words)

    assert said.code == 2 and "Traceback" in said.err and said.err.endswith("mae: wrong\n")


def test_a_mistake_of_ours_shows_its_traceback_and_asks_for_a_report(
    mae_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mae.jobs.pretrain, "pretrain", raising(ZeroDivisionError("oh")))

    said = mae_("pretrain", "--data", "pics")

    assert said.code == 1 and "ZeroDivisionError: oh" in said.err
    assert said.err.splitlines()[-1].startswith("mae: this is a bug in mae")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)

    done = subprocess.run(
        [*COMMAND, "recipes", "list"], stdout=theirs, stderr=subprocess.PIPE, check=False
    )

    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


BARE = [sys.executable, "-S", "-m", "mae"]  # without site-packages


@pytest.mark.parametrize(
    ("words", "library"),
    [
        ("pretrain --data pics", "numpy"),
        ("embed w --data d --out f.npy", "numpy"),
    ],
)
def test_a_library_that_is_not_installed_is_one_line(words: str, library: str) -> None:
    done = bare(*words.split())

    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"mae: {library}: cannot be imported (No module named")
    assert "pip install --force-reinstall mae-vision" in done.stderr


@pytest.mark.parametrize(
    "words", ["--help", "--version", "pretrain --help", "recipes list", "recipes paper"]
)
def test_what_needs_no_library_works_without_any(words: str) -> None:
    done = bare(*words.split())

    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_doctor_works_with_nothing_installed_but_itself() -> None:
    done = bare("doctor", "--json")

    assert (done.returncode, done.stderr) == (1, "")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("torch", "numpy", "pillow", "device", "threads", "reads JPEG"):
        assert not checks[name]["ok"] and "reinstall it: pip install" in checks[name]["found"]
    assert checks["disk"]["ok"] and checks["allocator"]["ok"]


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(mae.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    return subprocess.run(
        [*BARE, *words], capture_output=True, text=True, env=environment, check=False
    )


def test_windows_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.platform = 'win32'; import mae"],
        capture_output=True,
        text=True,
        check=False,
    )

    line = "ImportError: mae needs Linux or macOS; on Windows, install it in WSL (wsl --install)"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == line


# 19 and 20: streams


@pytest.mark.parametrize("words", ["recipes list", "recipes show facebook-ft-vit-b", "demo --help"])
def test_what_stdout_cannot_encode_is_escaped(
    words: str, mae_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="ascii"))

    assert main(words.split()) == 0

    text = file.getvalue().decode("ascii")
    assert len(text) > 100 and (words != "recipes list" or "83.57 \\xb1 0.08 %" in text)


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_help_on_a_terminal_has_no_colours_where_nobody_wants_them(
    no_color: str,
    coloured: bool,  # noqa: FBT001
) -> None:
    ours, theirs = os.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color"}

    done = subprocess.run([*COMMAND, "demo", "--help"], stdout=theirs, env=environment, check=True)

    os.close(theirs)
    shown = os.read(ours, 2**16)
    os.close(ours)
    assert done.returncode == 0 and b"usage" in shown and (b"\x1b" in shown) == coloured


@pytest.mark.parametrize(
    "words",
    [
        "pretrian --json",
        "pretrain --epochs abc --json",
        "pretrain --json --epochs",
        "pretrain json=yes --epochs abc",
        "embed --json true",
        "pretrain --data nowhere --json --quiet",
    ],
)
def test_an_error_under_json_is_one_object_and_the_line(
    words: str, mae_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    said = mae_(*words.split())

    assert said.code == 2 and said.out.count("\n") == said.err.count("\n") == 1
    values = json.loads(said.out)
    assert values == {"error": said.err.removeprefix("mae: ").rstrip(), "exit_code": 2}


@pytest.mark.parametrize(
    ("error", "code"),
    [(Stopped("saved", exit_code=75), 75), (KeyboardInterrupt(), 130), (ZeroDivisionError(), 1)],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ends_a_job_is_an_object_under_json(
    error: BaseException, code: int, mae_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mae.jobs.pretrain, "pretrain", raising(error))

    said = mae_("pretrain", "--data", "pics", "--json")

    assert said.code == code and json.loads(said.out)["exit_code"] == code


def test_json_that_is_switched_off_is_off(mae_: Run) -> None:
    one_line(mae_("pretrain", "--json", "no", "--epochs", "abc"))


def test_results_go_to_stdout_and_everything_else_to_stderr(
    weights: Path, mae_: Run, tmp_path: Path
) -> None:
    classes = write_classes(tmp_path / "c", "a", "b", count=5)

    said = mae_("probe", "knn", str(weights), f"data={classes}", "k=3")

    assert said.code == 0
    assert said.out.splitlines()[0] == "method       k-NN, k = 3"
    assert "held out for testing" in said.err and "took the encoder" in said.err
    assert not set("\x1b\r") & set(said.out + said.err)


def test_json_is_one_object_and_quiet_is_quiet(weights: Path, mae_: Run, tmp_path: Path) -> None:
    classes = write_classes(tmp_path / "c", "a", "b", count=5)

    said = mae_("probe", "linear", str(weights), "--data", str(classes), "--json", "--quiet")

    assert said.err == "" and said.out.count("\n") == 1
    values = json.loads(said.out)
    assert values["method"] == "logistic regression" and values["test"] == 2
    assert values.keys() >= {"trained", "random", "pixels"}


@pytest.mark.parametrize(
    "words",
    [
        "recipes list",
        "recipes show demo",
        "recipes diff demo folder",
        "recipes diff demo demo",
        "recipes paper",
        "doctor",
        "weights inspect {}",
        "demo --help",
    ],
)
def test_every_table_is_also_json_or_plain(words: str, weights: Path, mae_: Run) -> None:
    plain = mae_(*words.format(weights).split())
    assert plain.code == 0 and "\x1b" not in plain.out

    if "--help" not in words:
        assert isinstance(json.loads(mae_(*words.format(weights).split(), "--json").out), dict)


def test_columns_are_aligned(mae_: Run) -> None:
    lines = mae_("recipes", "list").out.splitlines()

    assert len({line.index("ViT") for line in lines if "ViT-B" in line}) == 1


def test_recipes_are_listed_by_sort(mae_: Run) -> None:
    lines = mae_("recipes", "list").out.splitlines()

    assert lines[0] == "pre-training" and lines[lines.index("fine-tuning") - 1] == ""
    tuning = lines[lines.index("fine-tuning") + 1 :]
    names = {line.split()[0] for line in tuning if line}
    assert names >= {"paper-ft-vit-b", "facebook-ft-vit-h-448", "ade20k-upernet-b-160k"}


def test_doctor_fails_where_something_is_missing(
    mae_: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mae.jobs.doctor.LIBRARIES, "pillow", "no_such_module")

    said = mae_("doctor")

    assert said.code == 1 and "PROBLEM" in said.out


def test_bench_judges_a_run_or_the_way_of_its_data(mae_: Run, tmp_path: Path) -> None:
    classes = write_classes(tmp_path / "c", "a", "b", count=4)
    (tmp_path / "tiny.toml").write_text(TINY_TOML)
    given = ("--data", str(classes), "--seconds", "0.06", "--quiet", "--json")

    of_a_run = mae_("bench", *given, "--config", str(tmp_path / "tiny.toml"), "--device", "cpu")
    of_the_data = mae_("bench", "data", *given)

    assert of_a_run.err == "" and of_a_run.code == 0
    values = json.loads(of_a_run.out)
    assert values["images_per_second"].keys() == {"loader", "step", "both"}
    assert values["wall"] in values["verdict"] and values["hours"] > 0
    assert json.loads(of_the_data.out)["images_per_second"].keys() >= {"read", "decode"}


def test_the_help_of_bench_is_its_own_and_names_a_recipe(mae_: Run) -> None:
    said = mae_("bench", "paper-vit-b", "--help").out

    assert "usage: mae bench " in said and "(default: 1600)" in said and "RECIPE" in said
    assert "usage: mae bench data" in mae_("bench", "data", "--help").out


# 22: configurations


def test_the_printed_configuration_is_taken_back(mae_: Run, tmp_path: Path) -> None:
    said = mae_("pretrain", "--lr", "0.5", "--steps", "7", "--print-config")
    (tmp_path / "mine.toml").write_text(said.out)

    config = build_config("paper-vit-l", PretrainConfig, file=tmp_path / "mine.toml", fields={})

    assert (config.optim.lr, config.steps, config.model) == (0.5, 7, FOLDER.model)


# The whole way, with no network (31) and awkward paths (32)


def test_pretrain_probe_embed_reconstruct_and_report_on_a_folder(
    mae_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", raising(AssertionError("used the network")))
    home = tmp_path / "with space, ü"
    classes = write_classes(home / "pics", "a", "b", count=6)
    (home / "link").symlink_to(classes)
    (home / "tiny.toml").write_text(TINY_TOML)
    monkeypatch.chdir(home)
    classes.chmod(0o555)

    said = mae_(*"pretrain data=link config=tiny.toml steps=2 workers=0 threads=1".split())
    assert said.code == 0, said.err
    assert "runs/" in said.out and "steps    2" in said.out

    run = str(next(Path("runs").iterdir()))
    assert mae_(*f"probe knn {run} data=link k=3".split()).code == 0
    assert mae_(*f"embed {run} data=link out=features.npy".split()).code == 0
    assert mae_("reconstruct", run, "link/a").code == 0 and Path("reconstruction.png").exists()
    assert mae_("report", run).code == 0
    assert mae_("weights", "inspect", run).code == 0
    assert mae_("weights", "convert", run, "published.pth", "--to", "facebook").code == 0
    again = one_line(mae_("pretrain", "data=link", f"config={run}/run.json", "--quiet"))
    assert "this run is finished" in again
    classes.chmod(0o755)
