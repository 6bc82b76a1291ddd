"""One offline HTML page of a run, or of several side by side."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, tostring

from mae.config import PretrainConfig, field_types, from_dict, size_name
from mae.errors import ConfigError
from mae.recipes import RECIPES
from mae.report.figures import Series, element, line_chart, number, png_data_uri, write_whole
from mae.report.reconstruction import STAGES, caption_of, read_stages
from mae.train.rundir import RunDir, read_record

MOST_DRAWINGS = 8
MOST_BAD_NAMED = 20
FILM_WIDTH = 928  # pixels; wider drawings are reduced, the page has no room for more


class RunFacts(NamedTuple):
    """What a run directory says about its run."""

    path: Path
    record: dict[str, Any]
    config: PretrainConfig
    rows: list[dict[str, Any]]
    """Logged steps, without the skipped ones."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.resolve().name

    @property
    def step(self) -> int:
        """Last logged step."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def seconds(self) -> float:
        """Time spent in logged steps."""
        return float(sum(row["seconds"] for row in self.rows))

    def curve(self, field: str, *, per_step: int = 1) -> list[tuple[float, float]]:
        """Give (step times `per_step`, value) where the value is a finite number."""
        return [
            (row["step"] * per_step, row[field])
            for row in self.rows
            if row.get(field) is not None and math.isfinite(row[field])
        ]


def read_run(path: Path) -> RunFacts:
    """Read what a run directory holds at this moment.

    Raises:
        ConfigError: if it is no run, or its record cannot be read.
    """
    record = read_record(path)
    if record is None:
        raise ConfigError(f"{path}: is not a run: it holds no run.json; name a run's folder")
    config = from_dict(PretrainConfig, record["config"], where=str(RunDir(path).record))
    return RunFacts(path, record, config, _read_rows(RunDir(path).log))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the logged steps; a line that is being written is left for the next time."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [row for row in map(json.loads, lines) if "skipped" not in row]


def write_report(run: Path, *more: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not, or of several compared.

    Args:
        run: a run directory.
        more: others to compare it with.
        out: where to; by default the run's report.html, `comparison.html` for several.

    Returns:
        The path written.

    Raises:
        ConfigError: for a folder that is no run, or a page that cannot be written.
    """
    runs = [read_run(path) for path in (run, *more)]
    if more:
        title, body = f"{len(runs)} runs compared", _comparison(runs)
        out = out or Path("comparison.html")
    else:
        title, body = f"Pre-training run {runs[0].name}", _story(runs[0])
        out = out or RunDir(run).report
    write_whole(out, html_page(title, body))
    return out


def html_page(title: str, body: Iterable[Element | None]) -> bytes:
    """Put elements into a page that needs no other file."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", resources.files("mae.report").joinpath("page.css").read_text("utf-8")),
    )
    page = element(
        "html", head, element("body", element("h1", title), *body), lang="en"
    )
    text = "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
    # File names may hold what is no text; the rest of the page should not be lost over it.
    return text.encode("utf-8", errors="replace")


def _story(run: RunFacts) -> Iterable[Element | None]:
    """Tell one run from top to bottom."""
    yield element("p", _status(run))
    yield element(
        "dl",
        *(element("div", element("dt", k), element("dd", v)) for k, v in headline(run).items()),
        class_="facts",
    )
    yield from _section("How it learnt", _charts([run], step_label="optimiser step"))
    yield from _section("The same pictures through the run", *_film(run))
    yield from _section("Evidence", *_evidence(run))
    yield from _section("Pictures that could not be read", *_bad_files(run))
    yield from _section("How to go on", *_commands(run))
    yield from _section("Recipe", *_recipe(run))
    yield from _section("Made with", _versions(run))


def _section(title: str, *content: Element | None) -> Iterable[Element]:
    found = [part for part in content if part is not None]
    if found:
        yield element("section", element("h2", title), *found)


def _status(run: RunFacts) -> str:
    planned = run.record.get("num_steps")
    if run.record.get("finished"):
        return f"Finished: all {planned:,} steps."
    if not planned:
        return "Unfinished: no step has been made yet."
    return f"Unfinished: at step {run.step:,} of {planned:,} ({run.step / planned:.0%})."


def headline(run: RunFacts) -> dict[str, str]:
    """Give the numbers one asks for first, as text by name."""
    config, data = run.config, run.record["data"]
    model = config.model
    size = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
    H, W = model.image_size
    images, losses = run.step * config.batch, run.curve("loss")
    return {
        "recipe": str(run.record.get("recipe", "unknown")),
        "pictures": f"{data['count']:,} in {Path(str(data.get('path', 'memory'))).name}",
        "model": size,
        "input": f"{H} x {W} x {model.channels} {model.pixels.dtype}",
        "steps": f"{run.step:,} x {config.batch:,} pictures",
        "epochs": f"{images / data['count']:.3g}",
        "training time": _duration(run.seconds),
        "pictures per second": number(images / run.seconds) if run.seconds else "not known yet",
        "loss at the end": number(losses[-1][1]) if losses else "not known yet",
    }


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"


def _charts(runs: Sequence[RunFacts], *, step_label: str) -> Element | None:
    """Draw loss and learning rate, each run a line; over pictures seen where there are several."""
    charts = []
    for field, title, y_label in (
        ("loss", "Loss", "mean squared error on hidden patches"),
        ("lr", "Learning rate", "learning rate"),
    ):
        lines = [
            Series(run.name, curve)
            for run in runs
            if (curve := run.curve(field, per_step=run.config.batch if len(runs) > 1 else 1))
        ]
        if lines:
            chart = line_chart(lines, title=title, x_label=step_label, y_label=y_label)
            charts.append(element("figure", chart))
    return element("div", *charts, class_="charts") if charts else None


def _film(run: RunFacts) -> Iterable[Element]:
    """Show the fixed pictures: what they are, what is seen, and the prediction as it grew."""
    paths = _evenly(sorted(RunDir(run.path).pictures.glob("step-*.png")), MOST_DRAWINGS)
    if not paths:
        return
    drawings = [
        (f"step {int(path.stem.removeprefix('step-')):,}", read_stages(path)) for path in paths
    ]
    last, final = drawings[-1]
    rows = [(STAGES[stage], final[stage]) for stage in ("original", "masked")]
    rows += [(f"prediction, {step}", stages["prediction"]) for step, stages in drawings]
    rows += [(f"{STAGES['pasted']}, {last}", final["pasted"])]
    cells = []
    for label, image in rows:
        small = image.reduce(-(-image.width // FILM_WIDTH)) if image.width > FILM_WIDTH else image
        cells += [
            element("span", label),
            element(
                "img", src=png_data_uri(small), alt=label, width=small.width, height=small.height
            ),
        ]
    yield element("p", caption_of(run.config.model), class_="quiet")
    yield element("div", *cells, class_="film")


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Choose at most so many, evenly spread, with the first and the last."""
    count = min(most, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Element | str]]) -> Element:
    """Lay out rows whose first cell names them."""
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", text, scope="col") for text in head))),
        element("tbody", *body),
    )
    return element("div", table, class_="wide")


def _bad_files(run: RunFacts) -> Iterable[Element]:
    path = RunDir(run.path).bad_files
    lines = path.read_text(errors="replace").splitlines()[1:] if path.exists() else []
    if lines:
        shown = [line.split("\t", 1) for line in lines[:MOST_BAD_NAMED]]
        said = f"{len(lines):,} of {run.record['data']['count']:,}; others stood in for them"
        note = f"{len(shown)} are named here, all of them in {path.name}." if lines[MOST_BAD_NAMED:] else ""
        table = _table(note, ["file", "reason"], shown)
        yield element("details", element("summary", said), table)


def _commands(run: RunFacts) -> Iterable[Element]:
    """Give the commands that go on from here, as they can be typed."""
    here, record = shlex.quote(str(run.path)), run.record
    command = shlex.join(record.get("command") or [])
    if record.get("finished"):
        data = shlex.quote(str(record["data"].get("path", "PICTURES")))
        recipe = record["recipe"] if any(record["recipe"] == r.name for r in RECIPES) else ""
        again = f"mae pretrain {recipe} --data {data} --init {here} --out {here}-more"
        yield element("p", "Train on from these weights, as a new run:")
    else:
        again = command or f"mae.pretrain(...)  # the same call, with out={str(run.path)!r}"
        yield element("p", "The same command goes on where this run stopped:")
    yield element("pre", again)
    yield element("p", "Try it on pictures of your own:")
    yield element(
        "pre",
        f"mae reconstruct {here} PICTURES --out reconstructions.html\n"
        f"mae embed {here} --data PICTURES --out features.npy\n"
        f"mae probe knn {here} --data FOLDER-WITH-A-FOLDER-PER-CLASS",
    )
    if command and record.get("finished"):
        yield element("p", "This run was made by:")
        yield element("pre", command)


def _fields(config: PretrainConfig) -> dict[str, str]:
    return {name: _plain(attrgetter(name)(config)) for name in field_types(PretrainConfig)}


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def _recipe(run: RunFacts) -> Iterable[Element]:
    """List every field, and what the named recipe has where the run has something else."""
    named = [recipe for recipe in RECIPES if recipe.name == run.record.get("recipe")]
    usual = _fields(named[0].config) if named else {}
    fields = _fields(run.config)
    changed = [name for name in usual if usual[name] != fields[name]]
    rows = [
        (name, value, f"changed; the recipe has {usual[name]}" if name in changed else "")
        for name, value in fields.items()
    ]
    said = (
        f"{named[0].name}, {len(changed)} of {len(fields)} fields changed"
        if named
        else "a configuration without a name"
    )
    table = _table("", ["field", "value", "in the recipe"], rows)
    yield element("details", element("summary", said), table)


def _versions(run: RunFacts) -> Element:
    record, git = run.record, run.record.get("git")
    commit = f"{git['commit'][:12]}{' with changes' if git['changed'] else ''}" if git else "none"
    facts = record.get("versions", {}) | {"git": commit}
    facts |= {"threads": record.get("threads", "unknown"), "seed": run.config.seed}
    return element("p", "; ".join(f"{k} {v}" for k, v in facts.items()), class_="quiet")


def _comparison(runs: Sequence[RunFacts]) -> Iterable[Element | None]:
    """Show several runs side by side."""
    names = [run.name for run in runs]
    facts = [headline(run) for run in runs]
    yield _table("", ["", *names], [(key, *(f[key] for f in facts)) for key in facts[0]])
    yield from _section("How they learnt", _charts(runs, step_label="pictures seen"))
    fields = [_fields(run.config) for run in runs]
    differing = [
        (name, *(f[name] for f in fields))
        for name in fields[0]
        if len({f[name] for f in fields}) > 1
    ]
    if differing:
        yield from _section("Where their recipes differ", _table("", ["", *names], differing))


def _evidence(run: RunFacts) -> Iterable[Element]:
    return ()
