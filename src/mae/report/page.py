"""Offline HTML report of one run, or of several runs side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from mae.atomic import write_atomic
from mae.config.run import PretrainConfig
from mae.report.figures import Series, element, image_element, line_chart
from mae.report.reconstruction import STAGES, caption_of, evenly, read_stages
from mae.report.run import RunFacts, headline, read_run

MOST_DRAWINGS = 8
MOST_BAD_NAMED = 20
FILM_WIDTH = 928  # pixels, the width of the page; wider images are reduced


def write_report(run: Path, *more: Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, or the comparison of several.

    Args:
        run: a run directory.
        more: other run directories to compare it with.
        out: path to write; none: the run's report.html, or for several runs `comparison.html` in
            the working directory.

    Returns:
        The path written.

    Raises:
        ConfigError: for a folder that is not a run, or a page that cannot be written.
    """
    first, *others = (read_run(path) for path in (run, *more))
    if others:
        path, title = Path("comparison.html"), f"{1 + len(others)} runs compared"
        content = html_page(title, _comparison([first, *others]))
    else:
        path, title = first.files.report, f"Pre-training run {run.resolve().name}"
        content = html_page(title, _story(first))
    write_atomic(out or path, content)
    return out or path


def html_page(title: str, body: Iterable[Element]) -> bytes:
    """Make a self-contained HTML page of elements."""
    style = resources.files("mae.report").joinpath("page.css").read_text("utf-8")
    content = element("body", element("h1", title), *body)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"{tostring(content, encoding='unicode', method='html')}</html>\n"
    )
    # A file name may hold bytes that cannot be encoded; it must not prevent the page.
    return text.encode("utf-8", errors="replace")


def facts_list(facts: Iterable[tuple[str, str]]) -> Element:
    """Lay out (name, text) pairs as cards."""
    cards = (element("div", element("dt", name), element("dd", text)) for name, text in facts)
    return element("dl", *cards, class_="facts")


def _story(run: RunFacts) -> Iterable[Element]:
    """Build the body of the report of one run."""
    yield element("p", _status(run))
    yield facts_list(headline(run).items())
    yield from _section("Training curves", _charts([run]))
    yield from _section("Reconstructions during training", _film(run))
    yield from _section("Evaluation", _evaluation(run))
    yield from _section("Unreadable images", _bad_files(run))
    yield from _section("Next commands", _commands(run))
    fields = json.dumps(run.record["config"], indent=1)
    details = element("details", element("summary", "every field"), element("pre", fields))
    yield from _section("Configuration", [details])
    yield from _section("Software", [element("p", _versions(run), class_="quiet")])


def _comparison(runs: Sequence[RunFacts]) -> Iterable[Element]:
    """Build the body of the comparison of several runs."""
    facts = [headline(run) for run in runs]
    rows = [(name, *(each[name] for each in facts)) for name in facts[0]]
    yield html_table("", ["", *(run.name for run in runs)], rows)
    yield from _section("Training curves", _charts(runs))


def _section(title: str, content: Iterable[Element]) -> Iterable[Element]:
    """Put content under a title; yield nothing without content."""
    if found := list(content):
        yield element("section", element("h2", title), *found)


def _status(run: RunFacts) -> str:
    planned = run.record.get("num_steps")
    if planned and run.step >= planned:
        return f"Finished: all {planned:,} steps."
    if not planned:
        return "Unfinished: no step has been made yet."
    return f"Unfinished: at step {run.step:,} of {planned:,} ({run.step / planned:.0%})."


def _charts(runs: Sequence[RunFacts]) -> Iterable[Element]:
    """Plot loss and learning rate over images seen, comparable across batch sizes."""
    charts = []
    for field, y_label in (("loss", _loss_label(runs)), ("lr", "learning rate")):
        lines = [Series(run.name, points) for run in runs if (points := run.curve(field))]
        if lines:
            charts.append(element("figure", line_chart(lines, "images seen", y_label)))
    if charts:
        yield element("div", *charts, class_="charts")


def _loss_label(runs: Sequence[RunFacts]) -> str:
    tuned = {"class_names" in run.record for run in runs}
    labels = {False: "mean squared error on hidden patches", True: "cross-entropy"}
    return f"loss, running mean: {' or '.join(labels[kind] for kind in sorted(tuned))}"


def _film(run: RunFacts) -> Iterable[Element]:
    """Show the fixed images: original, masked, and the prediction during training."""
    paths = evenly(sorted(run.files.images.glob(f"step-{'[0-9]' * 8}.png")), MOST_DRAWINGS)
    if not paths:
        return
    drawings = [(f"step\u00a0{int(path.stem[5:]):,}", read_stages(path)) for path in paths]
    last, final = drawings[-1]
    rows = [(STAGES[stage], final[stage]) for stage in ("original", "masked")]
    rows += [(f"prediction, {step}", stages["prediction"]) for step, stages in drawings]
    rows += [(f"{STAGES['pasted']}, {last}", final["pasted"])]
    cells = []
    for label, image in rows:
        reduced = image.reduce(-(-image.width // FILM_WIDTH))
        cells += [element("span", label), image_element(reduced, label)]
    assert isinstance(run.config, PretrainConfig)
    yield element("p", caption_of(run.config.model, run.config.objective), class_="quiet")
    yield element("div", *cells, class_="film")


def _evaluation(run: RunFacts) -> Iterable[Element]:
    """Show the shortfalls and every table of results.json."""
    path = run.files.results
    results = json.loads(path.read_bytes()) if path.exists() else {}
    for line in results.get("shortfalls", []):
        yield element("p", line, class_="behind")
    yield from (results_table(block) for block in results.values() if isinstance(block, Mapping))


def results_table(results: Mapping[str, Any]) -> Element:
    """Lay out results: rows of scores in columns, rows of one number, or named scores."""
    columns: Sequence[str] = results.get("columns", [])
    if columns:
        rows = [(row["name"], *row["scores"]) for row in results["rows"]]
    elif "rows" in results:
        rows, columns = [(row["name"], row["psnr"]) for row in results["rows"]], ["PSNR in dB"]
    else:
        rows = [(name, value) for name, value in results.items() if isinstance(value, Mapping)]
        columns = ["accuracy in %"]
    cells = [(name, *map(_score, scores)) for name, *scores in rows]
    return html_table(results["about"], ["", *columns], cells)


def _score(score: Any) -> Element | str:
    """Format a number, or an accuracy with its spread, marked if behind raw pixels."""
    if not isinstance(score, Mapping):
        return f"{score:.1f}"
    spread = f"\u00a0±\u00a0{100 * score['spread']:.1f}" if score["spread"] else ""
    text = f"{100 * score['mean']:.1f}{spread}"
    behind = element("small", "behind raw pixels", class_="behind") if score["behind"] else None
    return element("span", text, behind)


def _bad_files(run: RunFacts) -> Iterable[Element]:
    path = run.files.bad_files
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    if lines:
        head = f"The first {MOST_BAD_NAMED}; all are in {path.name}:"
        count = f"{len(lines):,} of {run.record['data']['count']:,}"
        yield element("p", f"{count}; each was replaced by another image")
        yield element("pre", "\n".join([head, *lines[:MOST_BAD_NAMED]]))


def _commands(run: RunFacts) -> Iterable[Element]:
    """Show the command of the run, and commands to continue with."""
    here, record = shlex.quote(run.name), run.record
    made_by = shlex.join(record.get("command", [])) or "mae.pretrain(...)  # in Python"
    yield element("p", "Command of this run; it resumes an unfinished run:")
    yield element("pre", made_by)
    yield element("p", "To use it on images of your own, or to train further from its weights:")
    yield element(
        "pre",
        f"mae reconstruct {here} IMAGES --out reconstructions.html\n"
        f"mae embed {here} --data IMAGES --out features.npy\n"
        f"mae probe knn {here} --data FOLDER-WITH-A-FOLDER-FOR-EACH-CLASS\n"
        f"mae pretrain --config {shlex.quote(str(run.files.record))} --data IMAGES "
        f"--init {here} --out {here}-more",
    )


def _versions(run: RunFacts) -> str:
    git = run.record.get("git") or {"commit": "none", "changed": False}
    commit = git["commit"][:12] + " with changes" * git["changed"]
    settings = {"git": commit, "threads": run.record.get("threads"), "seed": run.config.seed}
    facts = run.record.get("versions", {}) | settings
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def html_table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Element | str]]
) -> Element:
    """Build a table; the first cell of each row is its header."""
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    )
    table = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *(element("th", text, scope="col") for text in head))),
        element("tbody", *body),
    )
    return element("div", table, class_="wide")
