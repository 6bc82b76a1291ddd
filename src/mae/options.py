"""The options of each verb, as fields of dataclasses, and how a command line is read into them.

tyro splits the command line and writes the help. Every text becomes a value here, by the same
rules as in `--config` files, so that whatever is wrong is said in one line.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from mae.config import PretrainConfig, coerce_text, did_you_mean, field_types
from mae.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Pool = Literal["mean", "cls", "grid"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every verb takes."""

    positional: ClassVar[tuple[str, ...]] = ()

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


# Fields of a recipe that are changed most stand at the top.
_SHORT = {"optim.lr": "lr", "model.image_size": "image-size", "model.mask_ratio": "mask-ratio"}
# What follows from the pictures: --channels and --measure-pixels say what to do with those.
_DERIVED = ("model.channels", "model.pixels.")


def options_of(cls: type[Options]) -> list[Option]:
    """Give what a verb takes itself."""
    types = field_types(cls)
    return [
        Option(
            path=field.name,
            flag=field.name.replace("_", "-"),
            hint=types[field.name],
            default=field.default,
            owner=cls,
            positional=field.name in cls.positional,
            switch=types[field.name] is bool,
        )
        for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in _COMMON)
    ]


def recipe_options(config: PretrainConfig) -> list[Option]:
    """Give an option for every field of a recipe, with the values of one as defaults."""
    options = []
    for path, hint in field_types(PretrainConfig).items():
        if path.startswith(_DERIVED):
            continue
        value: Any = config
        *groups, name = path.split(".")
        for group in groups:
            value = getattr(value, group)
        flag = _SHORT.get(path, path.replace("_", "-"))
        options.append(Option(path, flag, hint, getattr(value, name), type(value)))
    return sorted(options, key=lambda option: "." in option.flag)


def read_words(words: Sequence[str], options: Sequence[Option], *, verb: str) -> dict[str, Any]:
    """Read a command line into values by dotted name; what was not given is left out.

    Raises:
        ConfigError: for an unknown option, or a value that is missing or no such value.
        SystemExit: after showing the help that `--help` asks for.
    """
    import tyro

    spelled = _spell(words, options)
    helping = bool({"-h", "--help"} & set(spelled))
    try:
        parsed, unknown = tyro.cli(
            _tyro_class(options, helping=helping),
            prog=f"mae {verb}",
            description=_about(options[-1].owner) if helping else None,
            args=spelled,
            return_unknown_args=True,
            console_outputs=helping,
        )
    except SystemExit:
        if helping:
            raise
        raise ConfigError(_missing_value(spelled, options)) from None
    _refuse_unknown(unknown, options, verb=verb)
    given = {o: texts for o in options if (texts := getattr(parsed, _identifier(o))) is not None}
    return {option.path: _value(option, texts) for option, texts in given.items()}
