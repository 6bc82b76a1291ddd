"""Offline HTML report of one run, or of several runs side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from PIL import Image

from mae.atomic import write_atomic
from mae.config.detect import DetectConfig
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.evaluation.findings import findings
from mae.report.figures import Series, element, image_element, line_chart
from mae.report.finetuned import commands, scores, test_sections
from mae.report.html import facts_list, html_page, html_table, section
from mae.report.reconstruction import EXTREMES, STAGES, caption_of, evenly, read_stages
from mae.report.run import RunFacts, headline, read_run
from mae.report.transferred import (
    transfer_commands,
    transfer_facts,
    transfer_results,
    transfer_sections,
)
from mae.runs.log import read_rows

MOST_DRAWINGS = 8
MOST_BAD_NAMED = 20
HEALTH_CURVES = {
    "gain over in-fill in dB": {"training images": "gain", "held out": "held_out_gain"},
    "effective rank of the features": {"all images of the check": "rank"},
}
HEALTH_FIGURES = {
    "gain over in-fill, dB": "gain",
    "over mean colour, dB": "gain_over_mean",
    "held out, over in-fill, dB": "held_out_gain",
    "effective rank": "rank",
    "dead directions": "dead",
    "mean cosine": "cosine",
    "gradient norm": "grad_norm",
}
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
        path, title = first.files.report, f"{first.kind} run {run.resolve().name}"
        content = html_page(title, _story(first))
    write_atomic(out or path, content)
    return out or path


def _story(run: RunFacts) -> Iterable[Element]:
    """Build the body of the report of one run."""
    tuned, results = isinstance(run.config, FinetuneConfig), transfer_results(run)
    yield element("p", _status(run))
    if found := transfer_facts(run, results) if results else tuned and scores(run):
        yield facts_list(found.items())
    yield facts_list(headline(run).items())
    yield from section("Training curves", _charts([run]))
    if tuned:
        yield from test_sections(run)
    if results:
        yield from transfer_sections(run, results)
    yield from section("Health", _health(run))
    yield from section("Reconstructions during training", _film(run))
    yield from section("Evaluation", _evaluation(run))
    yield from section("Unreadable images", _bad_files(run))
    yield from section("Next commands", _commands(run))
    fields = json.dumps(run.record["config"], indent=1)
    details = element("details", element("summary", "every field"), element("pre", fields))
    yield from section("Configuration", [details])
    yield from section("Software", [element("p", _versions(run), class_="quiet")])


def _comparison(runs: Sequence[RunFacts]) -> Iterable[Element]:
    """Build the body of the comparison of several runs."""
    facts = [headline(run) for run in runs]
    rows = [(name, *(each[name] for each in facts)) for name in facts[0]]
    yield html_table("", ["", *(run.name for run in runs)], rows)
    yield from section("Training curves", _charts(runs))


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
    labels = {
        PretrainConfig: "mean squared error on hidden patches",
        DetectConfig: "sum of the losses of proposals, classes, boxes and masks",
    }
    found = {labels.get(type(run.config), "cross-entropy") for run in runs}
    return f"loss, running mean: {' or '.join(sorted(found, reverse=True))}"


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
    assert isinstance(run.config, PretrainConfig)
    yield element("p", caption_of(run.config.model, run.config.objective), class_="quiet")
    yield _filmed(rows)


def _health(run: RunFacts) -> Iterable[Element]:
    """Show what the health checks found, their curves, and the worst and best images."""
    rows = read_rows(run.files.health)
    if not rows:
        return
    last, earlier = rows[-1], {name: row["step"] for row in rows for name in row["findings"]}
    for finding in findings(rows, num_steps=run.record["num_steps"]):
        yield element("p", finding.text, class_="behind")
        earlier.pop(finding.name, None)
    for name, step in earlier.items():
        yield element("p", f"{name} at step {step:,}, not any more.")
    charts = []
    for y_label, lines in HEALTH_CURVES.items():
        points = {
            name: [
                (row["step"] * run.config.batch, row[field])
                for row in rows
                if row.get(field) is not None
            ]
            for name, field in lines.items()
        }
        if series := [Series(name, own) for name, own in points.items() if own]:
            charts.append(element("figure", line_chart(series, "images seen", y_label)))
    yield element("div", *charts, class_="charts")
    caption = (
        f"At step {last['step']:,}, on {last['images']} training images and {last['held_out']} "
        "held-out ones; docs/health.md says what the figures mean"
    )
    yield element("p", caption, class_="quiet")
    known = {name: last.get(field) for name, field in HEALTH_FIGURES.items()}
    yield facts_list((name, f"{v:.3g}") for name, v in known.items() if v is not None)
    if (path := run.files.images / EXTREMES).exists():
        stages = read_stages(path)
        shown = ("original", "pasted")
        cells = [(STAGES[stage], stages[stage]) for stage in shown]
        worst, best = (", ".join(name for name, _ in last[side]) for side in ("worst", "best"))
        yield element("p", f"Images by their loss, from the largest ({worst}) to the smallest "
                      f"({best}):", class_="quiet")  # fmt: skip
        yield _filmed(cells)


def _filmed(images: Iterable[tuple[str, Image.Image]]) -> Element:
    """Lay out images with their labels, reduced to the width of the page."""
    cells = []
    for label, image in images:
        reduced = image.reduce(-(-image.width // FILM_WIDTH))
        cells += [element("span", label), image_element(reduced, label)]
    return element("div", *cells, class_="film")


def _evaluation(run: RunFacts) -> Iterable[Element]:
    """Show the shortfalls and every table of results.json."""
    path = run.files.results
    results = json.loads(path.read_bytes()) if path.exists() else {}
    for line in results.get("shortfalls", []):
        yield element("p", line, class_="behind")
    blocks = (block for block in results.values() if isinstance(block, Mapping))
    yield from (results_table(block) for block in blocks if "about" in block)


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
    verbs = {
        "Fine-tuning": "finetune",
        "Segmentation": "segment_train",
        "Detection": "detect_train",
    }
    verb = verbs.get(run.kind, "pretrain")
    made_by = shlex.join(record.get("command", [])) or f"mae.{verb}(...)  # in Python"
    yield element("p", "Command of this run; it resumes an unfinished run:")
    yield element("pre", made_by)
    if isinstance(run.config, FinetuneConfig):
        yield element("p", "To score it on labelled images, classify others, and use it elsewhere:")
        yield element("pre", commands(run))
        return
    if not isinstance(run.config, PretrainConfig):
        yield from transfer_commands(run)
        return
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
