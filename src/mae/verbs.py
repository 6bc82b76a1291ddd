"""The verbs of the command: each calls its job and says what there is to show.

A verb is a function: its parameters are the options, its docstring is the help, and it imports
its job, and torch with it, only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from mae.config import FinetuneConfig, PretrainConfig
from mae.errors import ConfigError
from mae.fields import to_dict
from mae.jobs.recipes import configured, recipe_rows, recipe_toml, to_toml
from mae.recipes import find_config, find_recipe
from mae.train.rundir import RunDir

Pool = Literal["mean", "cls", "grid"]


class Shown(NamedTuple):
    """What a verb has to show."""

    values: Mapping[str, object]
    """For machines."""
    rows: Iterable[Sequence[str]]
    """For people, a table."""
    exit_code: int = 0


def demo(
    *, out: Path = Path("runs/demo"), minutes: float | None = None, quiet: bool = False
) -> Shown:
    """Pre-train on built-in pictures in minutes, and show what was learnt."""
    from mae.jobs import demo as job

    result = job.demo(out=out, minutes=minutes, quiet=quiet)
    return Shown(result.values(), result.rows(), result.exit_code)


def pretrain(
    recipe: str = "folder",
    *,
    data: str | None = None,
    out: Path | None = None,
    init: Path | None = None,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> Shown:
    """Pre-train on a folder of pictures; goes on where an unfinished run stopped."""
    settled = configured(recipe, PretrainConfig, file=config, fields=fields)
    if print_config:
        return Shown(to_dict(settled), [(to_toml(to_dict(settled)),)])
    if data is None:
        raise ConfigError("pretrain: expected --data, a folder of pictures (or fashion-mnist)")
    from mae.jobs import pretrain as job

    command = ["mae", *sys.argv[1:]]
    run = job.pretrain(
        settled, based_on=recipe, data=data, out=out, init=init, quiet=quiet, command=command
    )
    paths = RunDir(run.path)
    files = {"run": run.path, "weights": paths.weights, "report": paths.report}
    values = {**files, "steps": run.num_steps, "resumed": run.resumed}
    return Shown(values, [(name, str(value)) for name, value in values.items()])


def finetune(
    recipe: str = "finetune-folder",
    *,
    data: str | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    labels: str | None = None,
    seeds: int | None = None,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> Shown:
    """Fine-tune a classifier from weights; goes on where an unfinished run stopped.

    DATA holds one folder per class, of which a fifth is held out; or train/ and val/ of such.
    --seeds makes a run for each seed from --seed on, in folders under OUT, for mean and spread.
    """
    settled = configured(recipe, FinetuneConfig, file=config, fields=fields)
    if print_config:
        return Shown(to_dict(settled), [(to_toml(to_dict(settled)),)])
    if data is None:
        raise ConfigError("finetune: expected --data, labelled pictures (or fashion-mnist)")
    from mae.jobs.finetune import finetune as job
    from mae.jobs.seeds import finetune_seeds

    said = partial(job if seeds is None else partial(finetune_seeds, seeds=seeds), settled)
    ask = partial(said, data=data, weights=weights, out=out, labels=labels, quiet=quiet)
    result = ask(based_on=recipe, command=["mae", *sys.argv[1:]])
    return Shown(result.values(), result.rows())


def probe(
    method: Literal["knn", "linear", "partial"],
    weights: Path,
    *,
    data: str,
    blocks: float | None = None,
    out: Path | None = None,
    protocol: Literal["quick", "paper"] = "quick",
    k: int | None = None,
    temperature: float | None = None,
    labels: str | None = None,
    labels_out: Path | None = None,
    seeds: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    pool: Pool | None = None,
    device: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> Shown:
    """Classify by neighbours or logistic regression on features; or tune the last blocks.

    DATA holds one folder per class, of which a fifth is held out; or train/ and val/ of such.
    --protocol paper trains the paper's linear head instead, partial the last --blocks and a head;
    --labels learns from a few.
    """
    from mae.jobs import linear_probe
    from mae.jobs import probe as job
    from mae.jobs.features import FeatureSettings
    from mae.jobs.few import FewSettings, refuse_without_effect
    from mae.train.distributed import require_alone

    if method != "knn":
        require_alone(f"probe {method}")
    if method == "partial":
        refuse_without_effect(
            "partial", "knn or linear", k=k, temperature=temperature, labels_out=labels_out,
            seeds=seeds, protocol=None if protocol == "quick" else protocol,
        )  # fmt: skip
        fields = {"epochs": epochs, "batch": batch, "pool": pool, "seed": seed, "device": device}
        return _partial(weights, data, blocks=blocks, out=out, labels=labels, lr=lr, fields=fields,
                        quiet=quiet)  # fmt: skip
    refuse_without_effect(method, "partial", blocks=blocks, out=out)
    few = FewSettings(labels, labels_out, seeds)
    if protocol == "paper":
        if method == "knn":
            refuse_without_effect("knn", "linear", protocol=protocol)
        unused = {"k": k, "temperature": temperature, "pool": pool}
        refuse_without_effect("the paper's protocol", "--protocol quick", **unused)
        config = linear_probe.paper_config(
            epochs=epochs, batch=batch, lr=lr, seed=seed, device=device
        )
        return _shown(linear_probe.paper_probe(weights, data, config=config, few=few, quiet=quiet))
    refuse_without_effect("the quick protocol", "--protocol paper", epochs=epochs, lr=lr)
    how = job.choose_method(method, k=k, temperature=temperature, seed=seed)
    settings = FeatureSettings(pool or "mean", 64 if batch is None else batch, device)
    ask = partial(job.probe, settings=settings, few=few, seed=seed, quiet=quiet)
    return _shown(ask(weights, data, how))


def _partial(weights: Path, data: str, **given: Any) -> Shown:
    from mae.jobs.partial import partial_probe

    if given["fields"]["pool"] == "grid":
        raise ConfigError("pool: grid has no effect on partial, expected mean or cls")
    result = partial_probe(weights, data, command=["mae", *sys.argv[1:]], **given)
    return Shown(result.values(), result.rows())


def evaluate(
    weights: Path,
    *,
    data: str,
    set: Literal[
        "folder", "imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c"
    ] = "folder",
    all_classes: bool = False,
    out: Path | None = None,
    predictions: Path | None = None,
    batch: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> Shown:
    """Count what a fine-tuned classifier gets right, class by class; or its errors on ImageNet-C.

    DATA holds one folder per class, named as the classes of the classifier, or val/ of such. OUT
    is a .png of what is taken for what, or an .html of everything.
    """
    from mae.jobs import corruptions
    from mae.jobs import evaluate as job
    from mae.jobs.features import FeatureSettings
    from mae.jobs.few import refuse_without_effect

    settings = FeatureSettings(batch=batch, device=device)
    if set == "imagenet-c":
        refuse_without_effect(set, "another set", out=out, all_classes=all_classes or None)
        ask = partial(corruptions.evaluate_corruptions, settings=settings, quiet=quiet)
        errors = ask(weights, data, predictions=predictions)
        return Shown(errors.values(), errors.rows())
    ask_one = partial(job.evaluate, dataset=set, all_classes=all_classes, settings=settings)
    result = ask_one(weights, data, out=out, predictions=predictions, quiet=quiet)
    return Shown(result.values(), result.rows())


def reconstruct(
    weights: Path,
    *pictures: Path,
    out: Path = Path("reconstruction.png"),
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Shown:
    """Draw pictures masked, rebuilt, and pasted together, to a .png or .html."""
    from mae.jobs import reconstruct as job

    ask = partial(job.reconstruct, mask_ratio=mask_ratio, seed=seed, device=device, quiet=quiet)
    return _shown(ask(weights, pictures, out=out))


def embed(
    weights: Path,
    *,
    data: str,
    out: Path,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> Shown:
    """Write the features of every picture; goes on where it was stopped.

    OUT is a .npy, the names of its rows come beside it in a .tsv; or a .parquet of both.
    """
    from mae.jobs import embed as job
    from mae.jobs.features import FeatureSettings

    settings = FeatureSettings(pool, batch, device)
    return _shown(job.embed_to_file(weights, data, out=out, settings=settings, quiet=quiet))


def report(*runs: Path) -> Shown:
    """Write the offline page of a run, or of several compared: curves, pictures, numbers."""
    from mae.report.page import write_report

    page = str(write_report(*runs))
    return Shown({"report": page}, [("report", page)])


def data_inspect(
    folder: str,
    *,
    limit: int | None = None,
    out: Path | None = None,
    quarantine: Path | None = None,
    quiet: bool = False,
) -> Shown:
    """Say what is in a folder of pictures, what is broken, and what pre-training would do with it.

    OUT is an .html of everything, or a .png contact sheet.
    """
    from mae.jobs import inspect_data as job

    ask = partial(job.inspect_data, limit=limit, out=out, quarantine=quarantine, quiet=quiet)
    result = ask(folder)
    return Shown(result.values(), result.rows())


def recipes_list() -> Shown:
    """List the recipes: what they are, and what was published of them."""
    recipes, rows = recipe_rows(), list[tuple[str, ...]]()
    for sort, group in groupby(recipes, itemgetter("sort")):
        rows += [(sort,), *((f"  {r['name']}", r["about"], r["expected"]) for r in group), ("",)]
    return Shown({"recipes": recipes}, rows[:-1])


def recipes_show(name: str) -> Shown:
    """Print the fields of a recipe, as --config takes them back."""
    recipe = find_recipe(name)
    return Shown(to_dict(recipe.config), [(recipe_toml(recipe),)])


def recipes_diff(a: str, b: str) -> Shown:
    """Show where two recipes, or a run and a recipe, differ, with the source of each number."""
    from mae.jobs.differences import diff

    comparison = diff(a, b)
    return Shown(comparison.values(), comparison.rows())


def recipes_paper() -> Shown:
    """Print the published results, each with the commands that would reproduce it."""
    from mae.jobs.paper import paper_rows, paper_values

    built = frozenset(verb.name.split()[0] for verb in VERBS)
    return Shown(paper_values(built), paper_rows(built))


def weights_inspect(weights: Path) -> Shown:
    """Say what a file or folder of weights holds."""
    from mae.weights.inspect import inspect

    return _shown(inspect(weights))


def weights_convert(
    weights: Path,
    dst: Path,
    *,
    to: Literal["facebook", "timm", "huggingface", "mae"],
    heads: int | None = None,
    decoder_heads: int | None = None,
    encoder_only: bool = False,
    allow_missing: str | None = None,
) -> Shown:
    """Write weights in another layout, and prove that the model is the same.

    --encoder-only leaves a decoder or a head; --allow-missing 'decoder.norm.*' starts fresh what
    is missing.
    """
    from mae.weights.convert import convert

    how = partial(convert, heads=heads, decoder_heads=decoder_heads, encoder_only=encoder_only)
    allowed = allow_missing.split() if allow_missing else ()
    return _shown(how(weights, dst, to=to, allow_missing=allowed))


def weights_diff(
    weights: Path, other: Path, *, heads: int | None = None, decoder_heads: int | None = None
) -> Shown:
    """Show which tensors of two weights differ, and whether both do the same.

    Exits with 0 where they give the same for the same pictures and mask, else with 1.
    """
    from mae.weights.diff import diff

    result = diff(weights, other, heads=heads, decoder_heads=decoder_heads)
    return Shown(result.values(), result.rows(), exit_code=0 if result.same else 1)


def weights_export(
    weights: Path,
    dst: Path,
    *,
    to: Literal["onnx", "torch-export"],
    part: Literal["encoder", "full"] = "encoder",
    dynamic: bool = False,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> Shown:
    """Write a network for other runtimes, and hold it against PyTorch there.

    The encoder gives the tokens of whole pictures; the full model takes noise, a number a patch,
    and gives predictions and mask. Images go in as the network takes them, normalised.
    """
    from mae.weights.export import export

    ask = partial(export, heads=heads, decoder_heads=decoder_heads)
    return _shown(ask(weights, dst, to=to, part=part, dynamic=dynamic))


def weights_push(weights: Path, repo: str, *, public: bool = False) -> Shown:
    """Put a folder of weights on the Hugging Face Hub, privately unless asked otherwise."""
    from mae.weights.push import push

    url = push(weights, repo, public=public)
    return Shown({"url": url}, [("pushed", url)])


def data_pack(
    data: str,
    dst: Path,
    *,
    short_side: int | None = None,
    quality: int | None = None,
    raw: int | None = None,
    quiet: bool = False,
) -> Shown:
    """Pack pictures into shards that are read at random; goes on where it was stopped.

    A finished pack takes in pictures of other names. The files stay as they are, byte for byte,
    unless --short-side or --raw says otherwise.
    """
    from mae.jobs import pack as job

    form = job.asked_form(short_side=short_side, quality=quality, raw=raw)
    return _shown(job.pack(data, dst, form=form, quiet=quiet))


def data_verify(pack: Path, *, quiet: bool = False) -> Shown:
    """Read a pack whole, compare every digest, and name the damaged pictures."""
    from mae.jobs.verify import verify

    return _shown(verify(pack, quiet=quiet))


def doctor() -> Shown:
    """Say whether this machine is ready: torch, device, decoders, disk."""
    from mae.jobs import doctor as job

    checks = job.doctor()
    values = {"checks": [check._asdict() for check in checks]}
    ok = all(check.ok for check in checks)
    return Shown(values, [check.row() for check in checks], exit_code=0 if ok else 1)


def bench_data(
    recipe: str = "folder",
    *,
    data: str,
    images_per_second: float | None = None,
    seconds: float = 10.0,
    batch: int = 64,
    device: str = "auto",
    quiet: bool = False,
) -> Shown:
    """Measure how fast one core reads, decodes and crops pictures, and which of it is the wall.

    Also how many cores a GPU needs that takes --images-per-second of them.
    """
    from mae.jobs import bench as job

    config = replace(find_config(recipe, PretrainConfig), batch=batch, device=device)
    ask = partial(job.bench_data, images_per_second=images_per_second, seconds=seconds, quiet=quiet)
    result = ask(data, config)
    return Shown(result.values(), result.rows())


class _Result(Protocol):
    def rows(self) -> Iterable[Sequence[str]]: ...
    def _asdict(self) -> dict[str, Any]: ...


def _shown(result: _Result) -> Shown:
    return Shown(result._asdict(), result.rows())


class Verb(NamedTuple):
    """One thing the command does."""

    name: str
    run: Callable[..., Shown]


GROUPS: dict[str, tuple[Callable[..., Shown], ...]] = {
    "train": (demo, pretrain, finetune),
    "use": (probe, evaluate, reconstruct, embed),
    "inspect": (
        data_inspect,
        report,
        recipes_list,
        recipes_show,
        recipes_diff,
        recipes_paper,
        data_pack,
        data_verify,
        weights_inspect,
        weights_convert,
        weights_diff,
        weights_export,
        weights_push,
        doctor,
        bench_data,
    ),
}
ON_RANKS = frozenset((probe, evaluate))
"""What may be started as several processes of one job."""
VERBS = tuple(Verb(run.__name__.replace("_", " "), run) for runs in GROUPS.values() for run in runs)
