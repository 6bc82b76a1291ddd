"""Command-line parser: the options of a verb are the parameters of its function.

Text is converted to values by the same rules for every verb, and every error is one line.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from functools import reduce
from inspect import Parameter
from io import BytesIO, TextIOWrapper
from itertools import pairwise, takewhile
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from mae.config import model as network
from mae.config import run as config
from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig
from mae.config.serialize import coerce_text, did_you_mean, field_types
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES, Recipe

HELP = {
    "a": "Recipe, or folder of a run.",
    "all_classes": "Of imagenet-a and imagenet-r: compare the scores of all classes, not of 200.",
    "allow_missing": "Patterns of names that may be missing and start fresh (decoder.norm.*).",
    "b": "Recipe or run to hold against it.",
    "batch": "Pictures taken at a time; of the paper's linear probe (16384) and partial, a step.",
    "blocks": "Of partial: last blocks that learn; 0.5: the MLP of the last one.",
    "crop_pct": "Fraction of the resized image that is shown, cut at its centre; none: as trained.",
    "config": "TOML file of the same fields, or run.json of a run; options win over it.",
    "data": "Folder of images, pack, list (.csv .tsv .txt), .tar, .npy or image; or fashion-mnist.",
    "decoder_heads": "Decoder heads of weights that do not tell them; none: by their width.",
    "device": "cpu, cuda, mps, or auto: the best there is.",
    "dst": "File or folder to make.",
    "dynamic": "Let height and width change too, not only the batch.",
    "encoder_only": "Leave a decoder or a classifier's head.",
    "epochs": "Passes of the paper's linear probe (none: 90) or of partial (50).",
    "folder": "Folder of pictures, nested as it likes; or fashion-mnist, the built-in pictures.",
    "gpu": "Card and how many, as in h100x8; none: this machine.",
    "grid": "Patches along height and width, of weights that do not tell them; none: a square.",
    "heads": "Encoder heads of weights that do not tell them; none: by their width.",
    "images": "Number of pictures instead of --data; none: ImageNet-1k's, of the paper's recipes.",
    "images_per_second": "What a GPU takes; none: estimates for the published models on an H100.",
    "init": "Weights, run or hf:OWNER/NAME to start anew from.",
    "json": "Print the result as one JSON object; of an error, its text and the exit code.",
    "k": "Neighbours of knn; none: 20.",
    "labels": "Few labels: a share as in 1%, a number as in 10/class, or a .csv made before.",
    "labels_out": "File to write the choice of labels to (.csv), so that others can repeat it.",
    "limit": "Look at so many pictures, evenly spread; none: all.",
    "lr": "Base rate per 256 pictures of the paper's linear probe (none: 0.1), partial (1e-3).",
    "mask_ratio": "Share of the patches that is hidden; none: as in training.",
    "mean": "Pixel mean of each channel, 0 to 1, of weights that do not tell it; none: ImageNet's.",
    "measure": "Measure the rate of this machine on steps that are thrown away.",
    "method": "knn: vote of neighbours; linear: logistic regression; partial: last blocks tuned.",
    "minutes": "Pre-train for so long, without the verdict; none: the whole demo.",
    "model": "Size and patch, as in vit-b/16, for the network of the recipe; its image size stays.",
    "name": "Name of the recipe.",
    "norm_eps": "Eps of the norms of weights that do not tell it; none: 1e-6.",
    "normalize_target": "Whether a decoder predicts pixels normalised by patch, where that is not "
    "told.",
    "other": "Weights to hold against them.",
    "out": "File or folder to write.",
    "part": "encoder: images to tokens; full: images and noise to predictions and mask.",
    "pack": "Folder that mae data pack made.",
    "pictures": "Picture files, or folders of them.",
    "pool": "Mean of the patch tokens, cls token, or means over a 3 x 3 grid; none: mean, or what "
    "a classifier's file says.",
    "predictions": "Write a row a picture (.csv, or .parquet with pyarrow).",
    "print_config": "Print the configuration, as --config takes it back, and do nothing.",
    "protocol": "Of linear: quick, on features computed once; paper, 90 epochs of crops by LARS.",
    "public": "Let everyone see it; without, only you.",
    "quality": "Of the JPEGs that --short-side makes, 1 to 100; none: 90.",
    "quarantine": "Folder to move broken files to, by the same names; none: nothing is moved.",
    "quiet": "Show no progress and no notes.",
    "raw": "Edge of the centred square whose pixels are stored; none: files.",
    "recipe": "Recipe to start from (mae recipes list); its fields are the options below.",
    "repo": "Name on the Hub, OWNER/NAME.",
    "runs": "Folders of runs.",
    "seconds": "Time to measure for.",
    "seed": "Key of every random choice.",
    "seeds": "Runs: over draws of labels, or seeds of fine-tuning and the paper's probe; none: 1.",
    "set": "What DATA is; decides classes and view.",
    "short_side": "Pixels to reduce the shorter side of larger pictures to; none: as they are.",
    "split": "Split to score; none: val or test; of the classifier's own data, what was held out.",
    "std": "Pixel std of each channel, of weights that do not tell it; none: ImageNet's.",
    "take": "Which network of a file with several; none: model.",
    "temperature": "Of the votes of knn: the smaller, the more the nearest decide; none: 0.07.",
    "to": "facebook: the published PyTorch layout; huggingface: a folder; mae: a folder of ours; "
    "onnx (.onnx); torch-export (.pt2).",
    "traceback": "Show where an error came from (also MAE_TRACEBACK=1).",
    "weights": "Folder or file of weights, a run, or hf:OWNER/NAME of the Hugging Face Hub.",
}
"""Help text of each parameter of a verb; fields of a recipe use their docstrings instead."""

# Recipe fields that are changed most often, listed first and under a short name.
_SHORT = {"optim.lr": "lr", "model.image_size": "image-size", "model.mask_ratio": "mask-ratio",
          "model.crop_pct": "crop-pct"}  # fmt: skip
# Fields determined by the images; --channels and --measure-pixels control how.
_DERIVED = ("model.channels", "model.pixels.", "num_classes")
SORTS: dict[str, type[FitConfig]] = {
    "pretrain": PretrainConfig,
    "plan": PretrainConfig,
    "bench": PretrainConfig,
    "finetune": FinetuneConfig,
}
"""Type of the recipe, for each verb whose options are the fields of a recipe."""
_NAMED = re.compile(r"(?P<dashes>--?)?(?P<flag>[A-Za-z][\w.-]*)(=(?P<text>.*))?", re.DOTALL)
_NUMBER = re.compile(r"[-+.\d][-+.\dex,]*", re.IGNORECASE)
_TRUTHS = ("true", "false", "yes", "no")


class Option(NamedTuple):
    """One option, or one positional argument."""

    path: str
    """Name of the parameter, or dotted name of a recipe field."""
    flag: str
    """As typed, without the leading dashes."""
    hint: Any
    default: object
    """`Parameter.empty` if a value is required."""
    positional: bool = False
    many: bool = False
    """Whether it takes all remaining words."""
    owner: type | None = None
    """Configuration class that a recipe field belongs to."""
    group: str = ""
    """Parameter of the verb that takes several options as one dictionary, as `Given`."""

    @property
    def is_switch(self) -> bool:
        """Whether it is a flag without a value, off by default."""
        return self.hint is bool and self.owner is None and self.default is False


EVERYWHERE = (
    Option("json", "json", bool, default=False),
    Option("traceback", "traceback", bool, default=False),
)
"""Options of every verb besides the parameters of its function."""


def options_of(run: Callable[..., object], *, words: Sequence[str] = ()) -> list[Option]:
    """Return the options of a verb.

    Args:
        run: its function; `**fields` stands for every field of a recipe, a `TypedDict` for one
            option per key.
        words: words typed by the user; a recipe named there sets the defaults of its fields.
    """
    hints, options = get_type_hints(run), []
    for name, parameter in inspect.signature(run).parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            sort = SORTS[run.__name__]
            known = [recipe for recipe in RECIPES if isinstance(recipe.config, sort)]
            options += _recipe_options(next((r for r in known if r.name in words), known[0]), sort)
            continue
        if is_typeddict(hints[name]):
            options += [
                Option(key, key.replace("_", "-"), hint, None, group=name)
                for key, hint in get_type_hints(hints[name]).items()
            ]
            continue
        positional = parameter.kind is not Parameter.KEYWORD_ONLY
        many = parameter.kind is Parameter.VAR_POSITIONAL
        flag = name.replace("_", "-")
        options.append(Option(name, flag, hints[name], parameter.default, positional, many))
    return [*options, *EVERYWHERE]


def _recipe_options(recipe: Recipe, sort: type[FitConfig]) -> list[Option]:
    options = [Option("model", "model", str | None, None)]
    for path, hint in field_types(sort).items():
        if not path.startswith(_DERIVED):
            *groups, name = path.split(".")
            value: Any = reduce(getattr, groups, recipe.config)
            flag = _SHORT.get(path, path.replace("_", "-"))
            options.append(Option(path, flag, hint, getattr(value, name), owner=type(value)))
    return sorted(options, key=lambda option: "." in option.flag)


def read_words(
    words: Sequence[str], options: Sequence[Option], *, verb: str
) -> tuple[list[Any], dict[str, Any]]:
    """Parse the words after a verb; `--a x`, `--a=x`, `a=x` and `a = x` are equivalent.

    Returns:
        Positional values in order, and named values by path.

    Raises:
        ConfigError: for an unknown option, an extra or missing word, or an invalid value.
    """
    flags = [option for option in options if not option.positional]
    known = {o.path.replace("_", "-"): o for o in flags} | {o.flag: o for o in flags}
    named: dict[str, Any] = {}
    unnamed: list[str] = []
    rest = deque(_joined(words))
    while rest:
        word = rest.popleft()
        match = _NAMED.fullmatch(word)
        if match is None or (not match["dashes"] and match["text"] is None):
            unnamed.append(word)
            continue
        flag = match["flag"].replace("_", "-")
        if flag not in known:
            near = nearest(flag, known, dashes="--") or f"; see mae {verb} --help"
            raise ConfigError(f"unknown option {match['dashes'] or '--'}{flag}{near}")
        text = _taken(known[flag], rest) if match["text"] is None else match["text"]
        named[known[flag].path] = _value(known[flag], text)
    places = [option for option in options if option.positional]
    room = sys.maxsize if any(option.many for option in places) else len(places)
    if len(unnamed) > room:
        word = unnamed[room]
        is_data = "data" in known and "data" not in named and Path(word).expanduser().exists()
        hint = f"did you mean --data {shlex.quote(word)}?" if is_data else f"see mae {verb} --help"
        raise ConfigError(f"unexpected {word!r}; {hint}")
    values = list(_unnamed_values(unnamed, places, verb=verb))
    needed = [f"--{o.flag}" for o in flags if o.default is Parameter.empty and o.path not in named]
    if needed:
        raise ConfigError(f"{verb}: expected {' and '.join(needed)}; see mae {verb} --help")
    for group in {option.group for option in flags} - {""}:
        own = [option.path for option in flags if option.group == group]
        named[group] = {path: named.pop(path) for path in own if path in named}
    return values, named


def is_on(switch: str, words: Sequence[str]) -> bool:
    """Return whether a switch is on; the other words may be invalid."""
    for word, after in pairwise([*_joined(words), ""]):
        match = _NAMED.fullmatch(word)
        if match and match["flag"] == switch and (match["dashes"] or match["text"] is not None):
            return (match["text"] or after).lower() not in ("no", "false")
    return False


def nearest(name: str, known: Iterable[str], *, dashes: str = "") -> str:
    """Return "; did you mean x?" for the closest known name, or "" if none is close."""
    return did_you_mean(name, known).replace(" '", f" {dashes}").replace("'", "")


def _joined(words: Sequence[str]) -> list[str]:
    """Join `name = value`, `name= value` and `name =value` into one word."""
    joined: list[str] = []
    for word in words:
        if joined and (word.startswith("=") or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _taken(option: Option, rest: deque[str]) -> str:
    """Take the words that form the value of an option."""
    if _inner(option.hint) is bool:
        return rest.popleft() if rest and rest[0].lower() in _TRUTHS else "true"
    if get_origin(_inner(option.hint)) is tuple:
        numbers = list(takewhile(_NUMBER.fullmatch, rest))
        if numbers:
            return " ".join(rest.popleft() for _ in numbers)
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"--{option.flag}: expected a value after it")
    return rest.popleft()


def _value(option: Option, text: str) -> object:
    if _inner(option.hint) is Path:
        return Path(text).expanduser()
    if option.path.endswith(("image_size", "resize")) and text.isdecimal():
        text = f"{text} {text}"
    return coerce_text(option.hint, text, name=option.path)


def _unnamed_values(
    words: Sequence[str], options: Sequence[Option], *, verb: str
) -> Iterable[object]:
    rest = list(words)
    for option in options:
        if not rest and option.default is Parameter.empty:
            name = option.flag.upper()
            raise ConfigError(f"{verb}: expected {name}; see mae {verb} --help")
        count = len(rest) if option.many else 1
        yield from (_value(option, word) for word in rest[:count])
        del rest[:count]


def show_help(options: Sequence[Option], *, verb: str, about: str | None) -> None:
    """Print the help of a verb, as wide as the terminal."""
    import tyro

    docs = _field_docs()
    fields: list[tuple[str, Any, Any]] = []
    for i, option in enumerate(options):
        metavar = option.flag.upper() if option.positional else None
        marks = [tyro.conf.arg(name=option.flag, metavar=metavar, help=_about(option, docs))]
        marks += [tyro.conf.Positional] * option.positional
        marks += [tyro.conf.FlagCreatePairsOff if option.is_switch else tyro.conf.FlagConversionOff]
        default = dataclasses.field(
            default=dataclasses.MISSING if option.default is Parameter.empty else option.default
        )
        fields.append((f"option{i}", Annotated[option.hint, *marks], default))
    with _plain_output() if os.environ.get("NO_COLOR") else nullcontext(), suppress(SystemExit):
        tyro.cli(
            dataclasses.make_dataclass("Options", fields, kw_only=True),
            prog=f"mae {verb}",
            description=about,
            args=["--help"],
        )


@contextmanager
def _plain_output() -> Iterator[None]:
    """Buffer the output in a non-terminal file of the same encoding, then print it."""
    held = TextIOWrapper(BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace")
    with redirect_stdout(held):
        yield
    held.seek(0)
    sys.stdout.write(held.read())


def _inner(hint: Any) -> Any:
    """Return the type of a value that is not None."""
    options = [option for option in get_args(hint) if option is not NoneType]
    return options[0] if NoneType in get_args(hint) else hint


def _about(option: Option, docs: Mapping[tuple[str, str], str]) -> str:
    if option.owner is None:
        return HELP[option.path]
    name = option.path.rpartition(".")[2]
    return next(docs[c.__name__, name] for c in option.owner.__mro__ if (c.__name__, name) in docs)


def _field_docs() -> dict[tuple[str, str], str]:
    """Read the docstrings of configuration fields from the source; Python does not keep them.

    Returns:
        Docstring by (class name, field name).
    """
    return {
        (node.name, ast.unparse(field.target)): ast.literal_eval(doc.value)
        for module in (config, network)
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
        for field, doc in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }
