"""The command: parse, call the job, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

from mae.config import to_dict
from mae.errors import ConfigError, MaeError
from mae.jobs.recipes import configured, recipe_rows, recipe_toml, to_toml
from mae.options import (
    ConvertOptions,
    DemoOptions,
    DoctorOptions,
    EmbedOptions,
    InspectOptions,
    KnnOptions,
    LinearOptions,
    Options,
    PretrainOptions,
    RecipeOptions,
    RecipesOptions,
    ReconstructOptions,
    ReportOptions,
    nearest,
    read_options,
    show_help,
)
from mae.recipes import find_recipe
from mae.train.guard import INTERRUPTED, Stopped
from mae.train.rundir import RunDir


class Verb(NamedTuple):
    """One thing the command does."""

    name: str
    group: str
    options: type[Options]
    run: Callable[[Any], int]
    """Takes the verb's options and gives the exit code; imports its job, and torch with it."""


class Result(Protocol):
    """What a job gives back, as plain values and as the rows of a table."""

    def rows(self) -> Iterable[Sequence[str]]: ...  # noqa: D102
    def _asdict(self) -> dict[str, Any]: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors of the user take one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except MaeError as error:
        if "--traceback" in words or os.environ.get("MAE_TRACEBACK"):
            traceback.print_exc()
        return _say(error, error.exit_code)
    except Stopped as stopped:
        return _say(stopped, stopped.exit_code)
    except KeyboardInterrupt:
        return _say("stopped", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not find that out again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        return _say("this is a mistake in mae, not yours; please report the lines above", 1)


def _say(message: object, code: int) -> int:
    print("mae:", " ".join(str(message).split("\n")), file=sys.stderr)
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in HELP:
        print(_short_help(VERBS))
        return 0
    if words[0] == "--version":
        print(f"mae {metadata.version('mae-vision')}")
        return 0
    among = [verb for verb in VERBS if verb.name.startswith(f"{words[0]} ")]
    if among and len(words) > 1 and words[1] in HELP:
        print(_short_help(among))
        return 0
    verb, rest = _find_verb(words, among)
    if HELP & set(rest):
        show_help(verb.options, rest, verb=verb.name)
        return 0
    return verb.run(read_options(verb.options, rest, verb=verb.name))


def _find_verb(words: list[str], among: Sequence[Verb]) -> tuple[Verb, list[str]]:
    count = 2 if among else 1
    name = " ".join(words[:count])
    for verb in VERBS:
        if verb.name == name:
            return verb, words[count:]
    if among and len(words) == 1:
        names = " or ".join(verb.name.split()[1] for verb in among)
        raise ConfigError(f"{name}: expected {names} after it; see mae --help")
    known = {verb.name if among else verb.name.split()[0] for verb in VERBS}
    raise ConfigError(f"unknown verb {name}{nearest(name, sorted(known)) or '; see mae --help'}")


def _short_help(verbs: Sequence[Verb]) -> str:
    lines = ["usage: mae VERB [NAME] [--option value | option=value]"]
    for group in dict.fromkeys(verb.group for verb in verbs):
        lines += ["", group]
        lines += [f"  {v.name:<16}  {v.options.__doc__}" for v in verbs if v.group == group]
    return "\n".join([*lines, "", "mae VERB --help lists the options of a verb."])


def _show(result: Result, options: Options) -> None:
    _print(result._asdict(), result.rows(), options=options)


def _print(
    values: Mapping[str, object], rows: Iterable[Sequence[str]], *, options: Options
) -> None:
    """Print a result: for machines as one JSON object, for people as an aligned table."""
    if options.json:
        print(json.dumps(values, default=str))
        return
    table = list(rows)
    widths = [max(map(len, column)) for column in zip_longest(*table, fillvalue="")]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print("  ".join(cells).rstrip())


def _demo(options: DemoOptions) -> int:
    from mae.jobs.demo import demo

    result = demo(out=options.out, minutes=options.minutes, quiet=options.quiet)
    _show(result, options)
    return result.exit_code


def _pretrain(options: PretrainOptions) -> int:
    config = configured(options.recipe, file=options.config, fields=options.fields)
    if options.print_config:
        fields = to_dict(config)
        print(json.dumps(fields) if options.json else to_toml(fields).rstrip())
        return 0
    if options.data is None:
        raise ConfigError("pretrain: expected --data, a folder of pictures (or fashion-mnist)")
    from mae.jobs.pretrain import pretrain

    run = pretrain(
        options.recipe if config == find_recipe(options.recipe).config else config,
        data=options.data,
        out=options.out,
        init=options.init,
        quiet=options.quiet,
        command=options.command,
    )
    rundir = RunDir(run.path)
    values = {"run": run.path, "weights": rundir.weights, "report": rundir.report,
              "steps": run.num_steps, "resumed": run.resumed}  # fmt: skip
    _print(values, [(name, str(value)) for name, value in values.items()], options=options)
    return 0


def _knn(options: KnnOptions) -> int:
    from mae.jobs.probe import knn

    result = knn(
        options.weights, k=options.k, temperature=options.temperature, **_probing(options)
    )
    _show(result, options)
    return 0


def _linear(options: LinearOptions) -> int:
    from mae.jobs.probe import linear

    result = linear(options.weights, **_probing(options))
    _show(result, options)
    return 0


def _embed(options: EmbedOptions) -> int:
    from mae.jobs.embed import embed_to_file

    result = embed_to_file(
        options.weights,
        options.data,
        out=options.out,
        pool=options.pool,
        batch=options.batch,
        device=options.device,
        told=_told(options),
        quiet=options.quiet,
    )
    _show(result, options)
    return 0


def _reconstruct(options: ReconstructOptions) -> int:
    from mae.jobs.reconstruct import reconstruct

    result = reconstruct(
        options.weights,
        options.pictures,
        out=options.out,
        mask_ratio=options.mask_ratio,
        seed=options.seed,
        told=_told(options),
        quiet=options.quiet,
    )
    _show(result, options)
    return 0


def _report(options: ReportOptions) -> int:
    from mae.report.page import write_report

    page = str(write_report(*options.runs))
    _print({"report": page}, [("report", page)], options=options)
    return 0


def _list_recipes(options: RecipesOptions) -> int:
    recipes = recipe_rows()
    rows = [(r["name"], r["about"], r["expected"]) for r in recipes]
    _print({"recipes": recipes}, rows, options=options)
    return 0


def _show_recipe(options: RecipeOptions) -> int:
    recipe = find_recipe(options.name)
    print(json.dumps(to_dict(recipe.config)) if options.json else recipe_toml(recipe).rstrip())
    return 0


def _inspect(options: InspectOptions) -> int:
    from mae.weights.inspect import inspect

    _show(inspect(options.weights), options)
    return 0


def _convert(options: ConvertOptions) -> int:
    from mae.weights.convert import convert

    result = convert(options.weights, options.out, to=options.to, told=_told(options))
    _print(result._asdict(), [("written", str(result.path))], options=options)
    return 0


def _doctor(options: DoctorOptions) -> int:
    from mae.jobs.doctor import doctor

    checks = doctor()
    _print({"checks": [c._asdict() for c in checks]}, [c.row() for c in checks], options=options)
    return 0 if all(check.ok for check in checks) else 1


HELP = frozenset(("-h", "--help"))
VERBS = (
    Verb("demo", "train", DemoOptions, _demo),
    Verb("pretrain", "train", PretrainOptions, _pretrain),
    Verb("probe knn", "use", KnnOptions, _knn),
    Verb("probe linear", "use", LinearOptions, _linear),
    Verb("reconstruct", "use", ReconstructOptions, _reconstruct),
    Verb("embed", "use", EmbedOptions, _embed),
    Verb("report", "inspect", ReportOptions, _report),
    Verb("recipes list", "inspect", RecipesOptions, _list_recipes),
    Verb("recipes show", "inspect", RecipeOptions, _show_recipe),
    Verb("weights inspect", "inspect", InspectOptions, _inspect),
    Verb("weights convert", "inspect", ConvertOptions, _convert),
    Verb("doctor", "inspect", DoctorOptions, _doctor),
)
