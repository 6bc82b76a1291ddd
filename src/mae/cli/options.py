"""Command-line parser: the options of a verb are the parameters of its function.

Text is converted to values by the same rules for every verb, and every error is one line.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter
from itertools import pairwise, takewhile
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints, is_typeddict

from mae.config.run import FitConfig
from mae.config.serialize import FORMER_SWITCHES, RENAMED, coerce_text, did_you_mean, field_types
from mae.errors import ConfigError
from mae.recipes.catalogue import RECIPES
from mae.recipes.custom import field_names

_NAMED = re.compile(r"(?P<dashes>--?)?(?P<flag>[A-Za-z][\w.-]*)(=(?P<text>.*))?", re.DOTALL)
_NUMBER = re.compile(r"[-+.\d][-+.\dex,]*", re.IGNORECASE)
_TRUTHS = ("true", "false", "yes", "no")


class Common:
    """Parameters with the same meaning in every verb; each docstring is a help text."""

    recipe: str
    """Recipe to start from (mae recipes list); its fields are the options below."""
    weights: Path
    """Folder or file of weights, a run, or hf:OWNER/NAME of the Hugging Face Hub."""
    model: str | None
    """Size and patch, as in vit-b/16, for the network of the recipe; its image size stays."""
    data: str
    """Folder of images, pack, list (.csv .tsv .txt), .tar, .npy or image; or fashion-mnist."""
    config: Path | None
    """TOML file of the same fields, or run.json of a run; options override it."""
    print_config: bool
    """Print the configuration as --config reads it, and exit."""
    crop_pct: float | None
    """Fraction of the resized image that is used, cut at its centre; none: as in training."""
    device: str
    """cpu, cuda, mps, or auto: the best available."""
    ranks: int
    """Processes that share the work on this machine: one per GPU, or a part of the CPU's cores."""
    slurm: str
    """KEY=VALUE words: submit the command as a SLURM job, as in nodes=2 gpus=8 cpus=12
    partition=NAME; tasks=N instead of gpus= on CPUs, other keys go to sbatch (docs/cluster.md)."""
    slurm_print: bool
    """With --slurm: print the batch script, and submit nothing."""
    quiet: bool
    """Print no progress and no notes."""
    json: bool
    """Print the result as one JSON object; of an error, its text and the exit code."""
    traceback: bool
    """Print the traceback of an error (also MAE_TRACEBACK=1)."""


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
    owner: type = Common
    """Class with the docstring of the option, where the verb's docstring has none."""
    group: str = ""
    """Parameter of the verb that takes several options as one dictionary, as `Given`."""


RANKS = Option("ranks", "ranks", int, 1)
"""Option of the verbs that may run as several processes; the command starts them."""


def options_of(run: Callable[..., object], *, words: Sequence[str] = ()) -> list[Option]:
    """Return the options of a verb.

    Args:
        run: its function; `**fields` stands for every field of a recipe, a `TypedDict` for one
            option per key.
        words: words typed by the user; a recipe named there sets the defaults of its fields.
    """
    hints, parameters, options = get_type_hints(run), inspect.signature(run).parameters, []
    for name, parameter in parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            configs = {recipe.name: recipe.config for recipe in RECIPES}
            base = configs[parameters["recipe"].default]
            named = (configs[w] for w in words if isinstance(configs.get(w), type(base)))
            options += _recipe_options(next(named, base))
            continue
        if is_typeddict(owner := hints[name]):
            keys = get_type_hints(owner).items()
            options += [
                Option(key, _dashed(key), hint, None, owner=owner, group=name) for key, hint in keys
            ]
            continue
        positional = parameter.kind is not Parameter.KEYWORD_ONLY
        many = parameter.kind is Parameter.VAR_POSITIONAL
        default = parameter.default
        options.append(Option(name, _dashed(name), hints[name], default, positional, many))
    switches = (Option(name, name, bool, default=False) for name in ("json", "traceback"))
    return [*options, *switches]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _recipe_options(config: FitConfig) -> list[Option]:
    options = [Option("model", "model", str | None, None)]
    types = field_types(type(config))
    for path, name in field_names(type(config)).items():
        group = path.rpartition(".")[0]
        owner = type(attrgetter(group)(config) if group else config)
        value = attrgetter(path)(config)
        options.append(Option(path, _dashed(name), types[path], value, owner=owner))
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
    known = {_dashed(o.path): o for o in flags} | {o.flag: o for o in flags}
    for old, new in RENAMED.items():
        if option := known.get(_dashed(new)):
            hint = bool if old in FORMER_SWITCHES else option.hint
            known[_dashed(old)] = option._replace(path=old, hint=hint)
    named: dict[str, Any] = {}
    grouped: dict[str, Any] = {option.group: {} for option in flags if option.group}
    unnamed: list[str] = []
    rest = deque(_joined(words))
    while rest:
        word = rest.popleft()
        match = _NAMED.fullmatch(word)
        if match is None or (not match["dashes"] and match["text"] is None):
            unnamed.append(word)
            continue
        flag = _dashed(match["flag"])
        if flag not in known:
            unknown = f"unknown option {match['dashes'] or '--'}{flag}"
            raise ConfigError(unknown + _instead(flag, options, known, verb=verb))
        option = known[flag]
        text = _take_value(option, rest) if match["text"] is None else match["text"]
        grouped.get(option.group, named)[option.path] = _value(option, text)
    values = list[object]()
    for option in (option for option in options if option.positional):
        if not unnamed and option.default is Parameter.empty:
            name = option.flag.upper()
            raise ConfigError(f"{verb}: expected {name}; see mae {verb} --help")
        count = len(unnamed) if option.many else 1
        values += [_value(option, word) for word in unnamed[:count]]
        del unnamed[:count]
    if unnamed:
        word = unnamed[0]
        is_data = "data" in known and "data" not in named and Path(word).expanduser().exists()
        hint = f"did you mean --data {shlex.quote(word)}?" if is_data else f"see mae {verb} --help"
        raise ConfigError(f"unexpected {word!r}; {hint}")
    needed = [f"--{o.flag}" for o in flags if o.default is Parameter.empty and o.path not in named]
    if needed:
        raise ConfigError(f"{verb}: expected {' and '.join(needed)}; see mae {verb} --help")
    return values, named | grouped


def _instead(flag: str, options: Sequence[Option], known: Iterable[str], *, verb: str) -> str:
    """Return what to do instead of giving an unknown option."""
    asked = [option.flag.upper() for option in options if option.positional]
    if flag == "data" and "IMAGES" in asked:
        return f"; give the images without it: mae {verb} {' '.join(asked)}"
    return nearest(flag, known, dashes="--") or f"; see mae {verb} --help"


def without_options(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Drop options that take one value from the words of a command."""
    kept, rest = list[str](), deque(_joined(words))
    while rest:
        word = rest.popleft()
        match = _NAMED.fullmatch(word)
        is_option = match and (match["dashes"] or match["text"] is not None)
        if not match or not is_option or _dashed(match["flag"]) not in flags:
            kept.append(word)
        elif match["text"] is None and rest:
            rest.popleft()
    return kept


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


def _take_value(option: Option, rest: deque[str]) -> str:
    """Take the words that form the value of an option."""
    hint = _inner_type(option.hint)
    if hint is bool:
        return rest.popleft() if rest and rest[0].lower() in _TRUTHS else "true"
    if get_origin(hint) is tuple and (numbers := list(takewhile(_NUMBER.fullmatch, rest))):
        return " ".join(rest.popleft() for _ in numbers)
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"--{option.flag}: expected a value after it")
    return rest.popleft()


def _value(option: Option, text: str) -> object:
    if _inner_type(option.hint) is Path:
        return Path(text).expanduser()
    if option.path.endswith(("image_size", "resize")) and text.isdecimal():
        text = f"{text} {text}"
    return coerce_text(option.hint, text, name=option.path)


def _inner_type(hint: Any) -> Any:
    """Return the type of a value that is not None."""
    options = [option for option in get_args(hint) if option is not NoneType]
    return options[0] if NoneType in get_args(hint) else hint
