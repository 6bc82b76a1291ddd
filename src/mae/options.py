"""The options of each verb, as fields of dataclasses, and how a command line is read into them.

A text becomes a value by the same rules everywhere, and whatever is wrong is said in one line.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass
from functools import reduce
from itertools import pairwise, takewhile
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
)

from mae.config import PretrainConfig, coerce_text, did_you_mean, field_types
from mae.errors import ConfigError
from mae.recipes import RECIPES, Recipe, find_recipe

Pool = Literal["mean", "cls", "grid"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every verb takes."""

    positional: ClassVar[tuple[str, ...]] = ()

    command: tuple[str, ...] = ()
    """The words as typed; no option."""
    json: bool = False
    """Print the result as one JSON object."""
    quiet: bool = False
    """Show no progress and no notes."""
    traceback: bool = False
    """Show where an error came from (also MAE_TRACEBACK=1)."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Pre-train on built-in pictures in minutes, and show what was learnt."""

    out: Path = Path("runs/demo")
    """Folder of the run; an interrupted one goes on."""
    minutes: float | None = None
    """Pre-train for so long, without the verdict; none: the whole demo."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(Options):
    """Pre-train on a folder of pictures; goes on where an unfinished run stopped."""

    positional = ("recipe",)

    recipe: str = "folder"
    """Recipe to start from (mae recipes list); its fields are the options below."""
    data: str | None = None
    """Folder of pictures, nested as it likes; or fashion-mnist, the built-in pictures."""
    out: Path | None = None
    """Folder of the run; none: runs/ and the name of the data."""
    init: Path | None = None
    """Weights or run to start anew from."""
    config: Path | None = None
    """TOML file of the same fields, or run.json of a run; options win over it."""
    print_config: bool = False
    """Print the configuration, as --config takes it back, and do nothing."""
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Fields of the recipe that were given, by dotted name; each is an option."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Options):
    """What a verb takes that reads weights."""

    positional = ("weights",)

    weights: Path
    """Folder or file of weights, or a run."""
    heads: int | None = None
    """Encoder heads, for published-layout files of unusual width."""
    decoder_heads: int | None = None
    """Decoder heads, for such files."""
    image_size: tuple[int, int] | None = None
    """Height and width, for such files whose patch grid is not square."""
    normalize_target: bool | None = None
    """Whether the decoder predicts pixels normalised by their patch, for such files."""


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(WeightsOptions):
    """What a verb takes that computes features."""

    data: str
    """Folder of pictures; or fashion-mnist, the built-in pictures."""
    pool: Pool = "mean"
    """Mean of the patch tokens, cls token, or means over a 3 x 3 grid."""
    batch: int = 64
    """Pictures encoded at a time."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best there is."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(FeatureOptions):
    """What every probe takes."""

    data: str
    """Folder of one folder per class, or with train/ and val/ of such; or fashion-mnist."""
    seed: int = 0
    """Key of the held-out pictures and of the random encoder."""


@dataclass(frozen=True, kw_only=True)
class KnnOptions(ProbeOptions):
    """Classify by nearest neighbours in feature space, beside raw pixels."""

    k: int = 20
    """Neighbours."""
    temperature: float = 0.07
    """The smaller, the more the nearest neighbours decide."""


@dataclass(frozen=True, kw_only=True)
class LinearOptions(ProbeOptions):
    """Classify by logistic regression on features, beside raw pixels."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(FeatureOptions):
    """Write the features of every picture; goes on where it was stopped."""

    out: Path
    """File to write: .npy (with the names beside it in .tsv), or .parquet."""


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(WeightsOptions):
    """Draw pictures masked, rebuilt, and pasted together."""

    positional = ("weights", "pictures")

    pictures: tuple[Path, ...]
    """Picture files, or folders of them."""
    out: Path = Path("reconstruction.png")
    """File to write: .png or .html."""
    mask_ratio: float | None = None
    """Share of the patches that is hidden; none: as in training."""
    seed: int = 0
    """Key of the masks."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Write the offline page of a run: curves, pictures, numbers."""

    positional = ("runs",)

    runs: tuple[Path, ...]
    """Folders of runs."""


@dataclass(frozen=True, kw_only=True)
class RecipesOptions(Options):
    """List the recipes: what they are, and what was published of them."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """Print the fields of a recipe, as --config takes them back."""

    positional = ("name",)

    name: str
    """Name of the recipe."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """Say what a file or folder of weights holds."""

    positional = ("weights",)

    weights: Path
    """Folder or file of weights, or a run."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(WeightsOptions):
    """Write weights in another layout, and prove that the model is the same."""

    positional = ("weights", "out")

    out: Path
    """File or folder to make."""
    to: Literal["facebook", "mae"]
    """facebook: the published PyTorch layout; mae: a folder of this library."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """Say whether this machine is ready: torch, device, decoders, disk."""


OptionsT = TypeVar("OptionsT", bound=Options)


class Option(NamedTuple):
    """One option of a verb, or one word without a name."""

    path: str
    """Dotted name of the field."""
    flag: str
    """As typed, without the leading dashes."""
    hint: Any
    default: object
    """`MISSING` where a value must be given."""
    owner: type
    """Class whose docstrings describe the field."""
    positional: bool = False
    switch: bool = False
    """Takes no value."""


_LAST = tuple(field.name for field in dataclasses.fields(Options))
_NO_OPTIONS = ("command", "fields")
# Fields of a recipe that are changed most stand at the top.
_SHORT = {"optim.lr": "lr", "model.image_size": "image-size", "model.mask_ratio": "mask-ratio"}
# What follows from the pictures: --channels and --measure-pixels say what to do with those.
_DERIVED = ("model.channels", "model.pixels.")


def options_of(cls: type[Options], *, recipe: str = "folder") -> list[Option]:
    """Give what a verb takes; `pretrain` every field of a recipe, whose values are the defaults."""
    types = field_types(cls)
    own = [
        Option(
            path=field.name,
            flag=field.name.replace("_", "-"),
            hint=types[field.name],
            default=field.default,
            owner=cls,
            positional=field.name in cls.positional,
            switch=types[field.name] is bool,
        )
        for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in _LAST)
        if field.name not in _NO_OPTIONS
    ]
    return own + (_recipe_options(find_recipe(recipe)) if cls is PretrainOptions else [])


def _recipe_options(recipe: Recipe) -> list[Option]:
    options = []
    for path, hint in field_types(PretrainConfig).items():
        if not path.startswith(_DERIVED):
            *groups, name = path.split(".")
            value: Any = reduce(getattr, groups, recipe.config)
            flag = _SHORT.get(path, path.replace("_", "-"))
            options.append(Option(path, flag, hint, getattr(value, name), type(value)))
    return sorted(options, key=lambda option: "." in option.flag)


def read_options(cls: type[OptionsT], words: Sequence[str], *, verb: str) -> OptionsT:
    """Read the words after a verb; `--a x`, `--a=x`, `a=x` and `a = x` are the same.

    Raises:
        ConfigError: for an unknown option, a word too many or missing, or a value that is none.
    """
    options = options_of(cls)
    given = _read(words, options, verb=verb)
    needed = [o for o in options if o.default is MISSING and o.path not in given]
    if needed:
        names = " and ".join(o.flag.upper() if o.positional else f"--{o.flag}" for o in needed)
        raise ConfigError(f"{verb}: expected {names}; see mae {verb} --help")
    own = {option.path for option in options if option.owner is cls}
    made: dict[str, Any] = {name: given[name] for name in given.keys() & own}
    if cls is PretrainOptions:
        made["fields"] = {name: given[name] for name in given.keys() - own}
    return cls(**made, command=("mae", *verb.split(), *words))


def _read(words: Sequence[str], options: Sequence[Option], *, verb: str) -> dict[str, object]:
    named = [option for option in options if not option.positional]
    known = {option.path.replace("_", "-"): option for option in named}
    known |= {option.flag: option for option in named}
    given: dict[str, object] = {}
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
            near = nearest(flag, known, dashes="--")
            raise ConfigError(f"unknown option --{flag}{near or f'; see mae {verb} --help'}")
        text = _taken(known[flag], rest) if match["text"] is None else match["text"]
        given[known[flag].path] = _value(known[flag], text)
    return given | _unnamed_values(unnamed, [o for o in options if o.positional], verb=verb)


def nearest(name: str, known: Iterable[str], *, dashes: str = "") -> str:
    """Give "; did you mean x?" for the nearest known name, or nothing where none is near."""
    return did_you_mean(name, known).replace(" '", f" {dashes}").replace("'", "")


_NAMED = re.compile(r"(?P<dashes>--?)?(?P<flag>[A-Za-z][\w.-]*)(=(?P<text>.*))?", re.DOTALL)
_NUMBER = re.compile(r"[-+.\d][-+.\dex,]*", re.IGNORECASE)
_TRUTHS = ("true", "false", "yes", "no")


def _joined(words: Sequence[str]) -> list[str]:
    """Join `name = value`, `name= value` and `name =value` to one word."""
    joined: list[str] = []
    for word in words:
        if joined and (word.startswith("=") or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _taken(option: Option, rest: deque[str]) -> str:
    """Take the words after a name that are its value."""
    if _inner(option.hint) is bool:
        lone = option.switch or not rest or rest[0].lower() not in _TRUTHS
        return "true" if lone else rest.popleft()
    if get_origin(_inner(option.hint)) is tuple:
        taken = list(takewhile(_NUMBER.fullmatch, rest))
        for _ in taken:
            rest.popleft()
        if taken:
            return " ".join(taken)
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"--{option.flag}: expected a value after it")
    return rest.popleft()


def _value(option: Option, text: str) -> object:
    if _inner(option.hint) is Path:
        return Path(text).expanduser()
    if option.path.endswith("image_size") and text.isdecimal():
        text = f"{text} {text}"
    return coerce_text(option.hint, text, name=option.path)


def _unnamed_values(
    words: Sequence[str], options: Sequence[Option], *, verb: str
) -> dict[str, object]:
    given: dict[str, object] = {}
    rest = list(words)
    for option in options:
        if rest and get_origin(option.hint) is tuple:
            given[option.path], rest = tuple(Path(word).expanduser() for word in rest), []
        elif rest:
            given[option.path] = _value(option, rest.pop(0))
    if rest:
        raise ConfigError(f"unexpected {rest[0]!r}; see mae {verb} --help")
    return given


def show_help(cls: type[Options], words: Sequence[str], *, verb: str) -> None:
    """Print the options of a verb, as wide as the terminal; of a recipe that is named, its values.

    Source of the layout: tyro, which is imported for this alone.
    """
    import tyro

    recipe = next((r.name for r in RECIPES if r.name in words), "folder")
    options = options_of(cls, recipe=recipe)
    docs = {owner: _field_docs(owner) for owner in {o.owner for o in options}}
    fields = [
        (f"option{i}", _tyro_type(o, docs[o.owner][o.path.rpartition(".")[2]]), None)
        for i, o in enumerate(options)
    ]
    with suppress(SystemExit):
        tyro.cli(
            dataclasses.make_dataclass("Options", fields),
            prog=f"mae {verb}",
            description=cls.__doc__,
            args=["--help"],
        )


def _tyro_type(option: Option, about: str) -> Any:
    import tyro

    default = "" if option.switch else f"(default: {_text(option.default)})"
    named = tyro.conf.arg(
        name=option.flag,
        metavar=option.flag.upper() if option.positional else _metavar(option.hint),
        help=about,
        help_behavior_hint="(required)" if option.default is MISSING else default,
    )
    if option.switch:
        return Annotated[bool, tyro.conf.FlagCreatePairsOff, named]
    return Annotated[tyro.conf.Positional[str] if option.positional else str, named]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return {None: "none", True: "true", False: "false"}.get(value, f"{value}")  # type: ignore[call-overload]


def _metavar(hint: Any) -> str:
    hint, options = _inner(hint), get_args(_inner(hint))
    if get_origin(hint) is tuple:
        return " ".join(map(_metavar, options))
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, options)) + "}"
    return {bool: "{true,false}", int: "INT", float: "FLOAT", Path: "PATH"}.get(hint, "TEXT")


def _inner(hint: Any) -> Any:
    """Give the type of a value that is not None."""
    options = [option for option in get_args(hint) if option is not NoneType]
    return options[0] if NoneType in get_args(hint) else hint


def _field_docs(cls: type) -> dict[str, str]:
    """Read the docstrings below the fields of a dataclass, which Python does not keep."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        tree = ast.parse(inspect.getsource(sys.modules[owner.__module__]))
        body = next(n.body for n in tree.body if getattr(n, "name", "") == owner.__name__)
        for field, doc in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                docs[ast.unparse(field.target)] = ast.literal_eval(doc.value)
    return docs
