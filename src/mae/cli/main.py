"""Entry point of the `mae` command: parse the words, call the verb, print the result.

Results go to stdout, everything else to stderr. With --json, stdout always gets exactly one object:
the result, or {"error", "exit_code"} in addition to the line on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from inspect import getdoc
from io import TextIOWrapper

from mae import __version__
from mae.cli.help import help_text
from mae.cli.options import RANKS, is_on, nearest, options_of, read_words
from mae.cli.slurm import OPTIONS, split_words, submit_command
from mae.cli.verbs.every import GROUPS, VERBS, Verb
from mae.cli.verbs.shared import MULTI_PROCESS_VERBS
from mae.errors import INSTALL, INTERRUPTED, ConfigError, MaeError, RankError, Stopped
from mae.parallel.processes import has_launcher, require_single_process, this_process
from mae.report.tables import align, report_of

_HELP = frozenset(("-h", "--help"))
_ERROR_DELAY_S = 1.0
LEAST_RANKS, RANKS_PER_CORE = 8, 2
"""Most ranks of a machine: what is beyond is a slip of the finger, and would fill its memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; user errors are printed as one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):  # escape what cannot be encoded, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run_or_explain(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader closed the pipe; keep Python from raising again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if not has_launcher():
        return code
    from mae.parallel.launch import end_rank

    return end_rank(code)


def _run_or_explain(words: list[str]) -> int:
    try:
        return _run(words)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        message, code = "stopped", INTERRUPTED
    except (MaeError, Stopped) as error:
        message, code = str(error), error.exit_code
        is_asked = is_on("traceback", words) or os.environ.get("MAE_TRACEBACK")
        if is_asked and isinstance(error, MaeError):
            traceback.print_exc()
        if isinstance(error, RankError):
            return _explain_loss(message, words)
    except Exception as error:
        library = (getattr(error, "name", None) or "mae").partition(".")[0]
        if isinstance(error, ImportError) and library != "mae":
            message = f"{library}: cannot be imported ({error}); {INSTALL} installs what is missing"
            message, code = f"{message}, and mae doctor shows it", ConfigError.exit_code
        else:
            traceback.print_exc()
            message, code = "this is a bug in mae; please report the lines above", 1
    return _explain(message, code, words)


def _explain(message: str, code: int, words: list[str]) -> int:
    if _is_main_process():
        line = " ".join(message.splitlines())
        print("mae:", line, file=sys.stderr)
        # An option comes after the verb; the words may be invalid.
        if is_on("json", words[1:]):
            print(json.dumps({"error": line, "exit_code": code}))
    else:
        # torchrun ends all processes of a job as soon as one fails: wait until the main process
        # has printed the reason.
        time.sleep(_ERROR_DELAY_S)
    return code


def _explain_loss(message: str, words: list[str]) -> int:
    """Explain the loss of another rank; `launch` does it better: it knows how that rank ended."""
    if has_launcher():
        from mae.parallel.launch import leave_to_launcher

        if leave_to_launcher(message):
            return RankError.exit_code
    return _explain(message, RankError.exit_code, words)


def _is_main_process() -> bool:
    """Return whether this process prints for the job; if that is unknown, every process does."""
    try:
        return this_process().is_main_process
    except ConfigError:
        return True


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"mae {__version__}")
        return 0
    verb = _find_verb(words)
    if verb is None:
        print(_short_help())
        return 0
    rest = words[len(verb.name.split()) :]
    if has_launcher():
        from mae.parallel.launch import start_rank

        start_rank()
    options = options_of(verb.run, words=rest)
    if _HELP & set(rest):
        shown = [*options, RANKS, *OPTIONS] if verb.name in MULTI_PROCESS_VERBS else options
        print(help_text(verb.run, shown, verb=verb.name))
        return 0
    slurm, others = split_words(rest)
    starts = all(option.path != "ranks" for option in options)  # else, ranks of a plan
    values, named = read_words(others, [*options, *[RANKS] * starts], verb=verb.name)
    if slurm is not None:
        report = submit_command(verb, slurm, others, options, values, named)
        print(json.dumps(report.values) if named.get("json") else align(report.rows))
        return report.exit_code
    if (count := _ranks_to_start(verb, named.pop("ranks", None) if starts else None)) > 1:
        return _launch(words, ranks=count)
    as_json, _ = named.pop("json", False), named.pop("traceback", False)
    report = report_of(verb.run(*values, **named))
    if _is_main_process():
        print(json.dumps(report.values, default=str) if as_json else align(report.rows))
    return report.exit_code


def _ranks_to_start(verb: Verb, asked: int | None) -> int:
    """Return how many ranks this process is to start; 1: it does the work itself."""
    if asked is not None and asked < 1:
        raise ConfigError(f"ranks: got {asked}, expected at least 1")
    if verb.name not in MULTI_PROCESS_VERBS:
        require_single_process(verb.name, ranks=asked or 1)
    started = this_process().world_size
    if asked not in (None, started) and started > 1:
        raise ConfigError(
            f"ranks: got --ranks {asked} in one of {started} processes of torchrun; leave it out"
        )
    return 1 if asked is None or started > 1 else asked


def _launch(words: list[str], *, ranks: int) -> int:
    from mae.parallel.launch import launch
    from mae.planning.hardware import cores

    if ranks > (most := max(LEAST_RANKS, RANKS_PER_CORE * cores())):
        raise ConfigError(f"ranks: got {ranks} for {cores()} cores, expected at most {most}")
    outcome = launch(words, ranks=ranks, threads=max(1, cores() // ranks))
    if outcome.message:
        raise Stopped(outcome.message, exit_code=outcome.exit_code)
    return outcome.exit_code


def _find_verb(words: list[str]) -> Verb | None:
    """Return the verb that the first one or two words name; None: print the general help."""
    for name in (" ".join(words[:2]), *words[:1]):
        if verb := next((verb for verb in VERBS if verb.name == name), None):
            return verb
    longer = [verb.name for verb in VERBS if words and verb.name.startswith(f"{words[0]} ")]
    if not words or _HELP & set(words[: 2 if longer else 1]):
        return None
    if longer and len(words) == 1:
        names = " or ".join(name.split()[1] for name in longer)
        raise ConfigError(f"{words[0]}: expected {names} after it; see mae --help")
    name = " ".join(words[: 2 if longer else 1])
    known = longer or sorted({verb.name.split()[0] for verb in VERBS})
    raise ConfigError(f"unknown verb {name}{nearest(name, known) or '; see mae --help'}")


def _short_help() -> str:
    lines = ["usage: mae VERB [NAME] [--option value | option=value]"]
    for group, verbs in GROUPS.items():
        about = [(f"  {verb.name}", f"{getdoc(verb.run)}".splitlines()[0]) for verb in verbs]
        lines += ["", group, align(about)]
    return "\n".join([*lines, "", "mae VERB --help lists the options of a verb."])
