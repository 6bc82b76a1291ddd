"""The options --slurm and --slurm-print: submit a command as a job instead of running it."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Sequence
from inspect import Parameter
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from mae.cli.options import Option
from mae.cli.verbs.every import Verb
from mae.cli.verbs.shared import MULTI_PROCESS_VERBS
from mae.errors import ConfigError
from mae.report.tables import Report

OPTIONS = (
    Option("slurm", "slurm", str, Parameter.empty, many=True),
    Option("slurm_print", "slurm-print", bool, default=False),
)
"""For the help of a verb; `split_words` parses them."""


class SlurmWords(NamedTuple):
    """What --slurm and --slurm-print say."""

    words: list[str]
    """KEY=VALUE words after --slurm."""
    only_print: bool


def split_words(words: Sequence[str]) -> tuple[SlurmWords | None, list[str]]:
    """Separate --slurm, with the key=value words after it, and --slurm-print from other words."""
    asked: list[str] | None = None
    others, rest = list[str](), deque(words)
    while rest:
        word = rest.popleft()
        if word == "--slurm" or word.startswith("--slurm="):
            asked = [*(asked or []), *shlex.split(word.removeprefix("--slurm").removeprefix("="))]
            asked += [rest.popleft() for _ in list(takewhile(_is_assignment, rest))]
        elif word != "--slurm-print":
            others.append(word)
    if asked is None and "--slurm-print" not in words:
        return None, others
    return SlurmWords(asked or [], "--slurm-print" in words), others


def _is_assignment(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def submit_command(
    verb: Verb,
    slurm: SlurmWords,
    words: Sequence[str],
    options: Sequence[Option],
    values: Sequence[Any],
    named: dict[str, Any],
) -> Report:
    """Submit `mae VERB WORDS` as a SLURM job, or only print its batch script.

    The script is OUT.sbatch, beside what the job writes to, and the log OUT-JOB.log.

    Args:
        verb: one that may run as several processes.
        slurm: what the job asks SLURM for.
        words: the other words after the verb.
        options: those of the verb.
        values: values of its positional arguments.
        named: values of its options.

    Raises:
        ConfigError: if SLURM or the verb will not take the words, or there is no SLURM.
    """
    from mae.parallel.launch import this_python
    from mae.parallel.slurm import FORM, parse_request, script_of, submit

    if verb.name not in MULTI_PROCESS_VERBS:
        verbs = ", ".join(sorted(MULTI_PROCESS_VERBS))
        raise ConfigError(f"slurm: {verb.name} takes one process; --slurm goes with {verbs}")
    if "ranks" in named:
        raise ConfigError("ranks: got --ranks with --slurm, which starts them; leave it out")
    if not slurm.words:
        raise ConfigError(f"slurm: expected KEY=VALUE words after --slurm, as in {FORM}")
    paths = {option.flag: option for option in options}
    for word in slurm.words:
        if (flag := word.partition("=")[0].replace("_", "-")) in paths:
            raise ConfigError(
                f"slurm: got {word}, an option of mae; put --{flag} before --slurm, "
                "after which SLURM's own stand"
            )
    request = parse_request(slurm.words)
    _check_config(verb, options, values, named)
    name = Path(named.get("out") or Path("runs", verb.name)).absolute()
    command = [*this_python(), "-m", "mae", *verb.name.split(), *words]
    script = script_of(request, command, name=name, folder=Path.cwd())
    file = name.with_name(f"{name.name}.sbatch")
    if slurm.only_print:
        return Report({"script": script}, [(script.rstrip("\n"),)])
    number = submit(script, file)
    log = request.others.get("output", f"{name}-{number}.log")
    rows = [("job", number), ("script", str(file)), ("log", log)]
    rows += [("watch", f"squeue -j {number}; tail -F {shlex.quote(log)}")]
    resumes = "; the same command resumes from the last checkpoint" * ("resume-from" in paths)
    rows += [("cancel", f"scancel {number}{resumes}")]
    if request.gpus and request.cpus is None:
        rows += [("", "without cpus= a rank often has one core; mae plan: how many reading takes")]
    return Report({"job": number, "script": str(file), "log": log}, rows)


def _check_config(
    verb: Verb, options: Sequence[Option], values: Sequence[Any], named: dict[str, Any]
) -> None:
    """Build the configuration now: its errors should not wait in the queue."""
    if "print_config" not in {option.path for option in options}:
        return
    if named.get("data") is None:
        raise ConfigError(f"{verb.name}: expected --data")
    asked = {name: value for name, value in named.items() if name not in ("json", "traceback")}
    verb.run(*values, **{**asked, "data": None, "print_config": True})
