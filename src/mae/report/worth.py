"""The verdict of `mae worth`: one sentence, a table of the starts, and an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from mae.evaluation.comparison import Comparison, StartScore
from mae.evaluation.label_free import Unlabelled
from mae.evaluation.paired import Interval
from mae.progress import minutes_in_words
from mae.report.figures import Series, element, line_chart
from mae.report.html import html_page, html_table

HEAD = ("", "accuracy in %", "over raw pixels", "over a random encoder", "verdict",
        "labels needed", "minutes")  # fmt: skip


def worth_sentence(found: Comparison | Unlabelled) -> str:
    """State the verdict: which start, by how much, and how many labels it saves."""
    if isinstance(found, Unlabelled):
        return UNLABELLED
    best, bar, count = found.best, found.bar, found.labels[-1]
    assert best.verdict is not None
    gain = best.verdict.gain
    side = "ahead of" if gain.mean >= 0 else "behind"
    over = (
        f"{abs(100 * gain.mean):.1f} points {side} {bar.name} with {count:,.0f} labels (95 % "
        f"interval {_range(gain)})"
    )
    if found.answer == "do not bother":
        return f"Do not bother: the best start, {best.name}, is {over}"
    if found.answer == "cannot tell":
        missing = f"; {best.missing}" if best.missing else ""
        return f"Cannot tell: {best.name} is {over}{missing}"
    text = f"{best.name} helps: it is {over}"
    if (reached := found.reached(best)) is None:
        return text
    most, least = ("at most ", "at least ") if reached.at_most else ("about ", "about ")
    saved = f"it saves {least}{count - reached.labels:,.0f}"
    return (
        f"{text}, and needs {most}{reached.labels:,.0f} to be as accurate as {bar.name} "
        f"with all, so {saved}"
    )


def worth_rows(found: Comparison | Unlabelled) -> Iterator[tuple[str, ...]]:
    """Yield the table of the starts, the head first."""
    if isinstance(found, Unlabelled):
        yield from _unlabelled_rows(found)
        return
    yield HEAD
    for each in (*found.baselines, *found.starts):
        accuracy = f"{100 * each.accuracy:.1f} ± {100 * each.spread:.1f}"
        minutes = f"{each.minutes:.1f}" if each.minutes else ""
        if each.verdict is None:
            yield each.name, accuracy, "", "", "", "", minutes
            continue
        gains = (f"{_points(g)} ({_range(g)})" for g in each.verdict.gains.values())
        yield each.name, accuracy, *gains, each.verdict.answer, _needs(found, each), minutes


def _needs(found: Comparison, start: StartScore) -> str:
    if (reached := found.reached(start)) is None:
        return ""
    return f"{'at most ' * reached.at_most}{reached.labels:,.0f}"


def _points(gain: Interval) -> str:
    return f"{100 * gain.mean:+.1f}"


def _range(gain: Interval) -> str:
    return f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"


def worth_page(found: Comparison | Unlabelled) -> bytes:
    """Make the self-contained HTML page of a comparison."""
    if isinstance(found, Unlabelled):
        return _unlabelled_page(found)
    head, *rows = worth_rows(found)
    caption = (
        f"Accuracy in % on {found.test:,} test images after learning from {found.labels[-1]:,.0f} "
        f"labels, mean ± std of {found.draws} draws; gains in points, with their 95 % intervals "
        "(Student's t, Holm over the starts). Labels needed: to be as accurate as the better "
        "baseline with all of them."
    )
    body = [
        element("p", element("strong", f"{worth_sentence(found)}.")),
        html_table(caption, head, rows),
    ]
    lines = [
        Series(each.name, [*zip(found.labels, (100 * a for a in each.curve), strict=True)])
        for each in (*found.baselines, *found.starts)
        if len(each.curve) == len(found.labels)
    ]
    chart = line_chart(lines, "labels", "accuracy in %")
    figure = element("figure", chart, style="max-width: 34rem")
    body += [element("h2", "With fewer labels"), figure]
    if open_ones := [each for each in found.starts if each.missing]:
        missing = (element("li", f"{each.name}: {each.missing}.") for each in open_ones)
        body += [element("h2", "What would settle it"), element("ul", *missing)]
    body += [element("h2", "How it was compared"), *map(_paragraph, _protocol(found))]
    return html_page(f"Is pre-training worth it on {found.data}?", body)


def _paragraph(text: str) -> Element:
    return element("p", text)


def _protocol(found: Comparison) -> Sequence[str]:
    trained = [f"{s.name} {s.passes:.3g}" for s in found.starts if s.passes is not None]
    return (
        f"{found.classes} classes. MAE was trained on {found.images:,} images without labels. "
        f"Labels are drawn {found.draws} times from {found.train:,} images; every start learns "
        "from the same draws and is tested on the same images, which no training saw. Each draw is "
        f"repeated with {found.seeds} seeds, whose results are averaged before anything else.",
        "Raw pixels (at most 32 x 32), the random encoder and each encoder are frozen: features "
        f"(encoders: pool {found.pool}) are standardised, and classified by logistic regression "
        "whose regularisation is chosen within the drawn labels. The random encoder and what is "
        f"trained from scratch are the same network: {found.network}. {found.supervised}",
        f"The time, {minutes_in_words(found.minutes)}, was divided equally between the starts that "
        f"train. Passes over the images: {', '.join(trained)}.",
        "Helps: more than one point over raw pixels and over the random encoder, and both "
        "intervals above zero. Do not bother: the interval over one of them ends below one point. "
        "Otherwise nobody can tell from these labels. The intervals cover the draws of labels and "
        "the test images, not the randomness of one pre-training.",
    )


UNLABELLED = (
    "Cannot tell: without labels there are only figures of health, weaker evidence than a few "
    "labels of each class (docs/health.md); give --labels a list of path,label"
)
"""The sentence on images without labels."""
UNLABELLED_HEAD = ("", "effective rank", "dead directions", "mean cosine", "dB over in-fill",
                   "health", "minutes")  # fmt: skip


def _unlabelled_rows(found: Unlabelled) -> Iterator[tuple[str, ...]]:
    """Yield the table of the figures, the head first."""
    yield UNLABELLED_HEAD
    for each in found.starts:
        gain = "" if each.gain is None else f"{each.gain:+.1f}"
        health = ", ".join(each.findings) or ("nothing found" if each.passes else "")
        minutes = f"{each.minutes:.1f}" if each.minutes else ""
        yield (each.name, f"{each.rank:.1f}", f"{each.dead:.0%}", f"{each.cosine:.2f}", gain,
               health, minutes)  # fmt: skip


def _unlabelled_page(found: Unlabelled) -> bytes:
    """Make the self-contained HTML page of figures without labels."""
    head, *rows = _unlabelled_rows(found)
    caption = (
        f"Features of {found.sample:,} images, patch tokens averaged; the rank is at most the "
        "smaller of images and features. dB over in-fill: on hidden pixels, of a run's last check."
    )
    about = (
        f"MAE was trained on {found.images:,} images; the time, "
        f"{minutes_in_words(found.minutes)}, was divided equally between the starts that train. "
        f"The random encoder and MAE from scratch are the same network: {found.network}."
    )
    return html_page(
        f"Is pre-training worth it on {found.data}?",
        [
            element("p", element("strong", f"{UNLABELLED}.")),
            html_table(caption, head, rows),
            element("p", about),
        ],
    )
