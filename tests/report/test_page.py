"""The page of a run: whole, offline, and honest about what is missing or behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.errors import ConfigError
from mae.report.page import write_report
from tests.report.runs import draw_images, make_run, results, row


class Page(HTMLParser):
    """The text of a page and the attributes of its elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(path.read_text("utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.words += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def page_of(run: Path, *more: Path) -> Page:
    return Page(write_report(run, *more))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_needs_nothing_but_itself(here: Path) -> None:
    run = make_run(here / "run")
    (run / "results.json").write_text(json.dumps(results()))

    path = write_report(run)

    page = Page(path)
    text = re.sub(r"base64,[\w+/=]+", "", path.read_text("utf-8"))
    assert path == run / "report.html"
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", text)
    sources = [v for _, name, v in page.attributes if name in ("src", "href", "srcset", "data")]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(page.values("img", "alt"))


def test_a_page_tells_the_run_from_top_to_bottom(here: Path) -> None:
    page = page_of(make_run(here / "run"))

    for words in (
        "Pre-training run run",
        "Finished: all 200 steps.",
        "100 in my images",
        "ViT of width 24, 2 blocks, patch 4",
        "12 x 20 x 3 uint8",
        "200 x 8 images",
        "epochs 16",
        "training time 0:00:20",
        "images per second 80",
        "loss 0.2, mean over the last tenth of the steps",
        "python 3.11.0; torch 2.14.1; git 0123456789ab with changes; threads 2; seed 0",
    ):
        assert words in page.text, words


def test_a_run_without_a_step_has_a_page(here: Path) -> None:
    run = make_run(here / "run", rows=0, images=0, finished=False)
    (run / "log.jsonl").unlink()
    record = json.loads((run / "run.json").read_text())
    del record["num_steps"]
    (run / "run.json").write_text(json.dumps(record))

    page = page_of(run)

    assert "Unfinished: no step has been made yet." in page.text
    assert "loss not known yet" in page.text


def test_an_unfinished_run_says_how_far_it_is(here: Path) -> None:
    page = page_of(make_run(here / "run", rows=2, finished=False))

    assert "Unfinished: at step 80 of 200 (40%)." in page.text


def test_a_run_names_what_made_it_and_what_to_do_next(here: Path) -> None:
    run = make_run(here / "a run")

    text = page_of(run).text

    quoted = f"'{run}'"
    assert f"mae pretrain --data 'my images' --out {quoted}" in text
    assert f"mae pretrain --config '{run}/run.json' --data IMAGES --init {quoted}" in text
    assert f"mae reconstruct {quoted} IMAGES" in text
    assert f"mae embed {quoted} --data IMAGES --out features.npy" in text
    assert f"mae probe knn {quoted} --data" in text


def test_rows_that_are_torn_skipped_or_without_a_loss_do_no_harm(here: Path) -> None:
    run = make_run(here / "run", rows=0)
    rows = [row(1), {"step": 41, "skipped": [3, 4]}, row(2, loss=None), row(3, loss=float("nan"))]
    log = "".join(json.dumps(r) + "\n" for r in rows)
    (run / "log.jsonl").write_text(log + '{"step": 160, "lo')

    page = page_of(run)

    assert "loss 1, mean over" in page.text
    assert "120 x 8 images" in page.text


def test_names_are_shown_as_they_are_and_never_run(here: Path) -> None:
    name = """<script>alert("1") & 'é' №\t"""
    run = make_run(here / "<b>run", data={"path": name, "count": 100})
    (run / "bad-files.tsv").write_bytes(
        b"</table><img src=x>.jpg\tcut <short>\nb\xffd.jpg\tempty\n"
    )

    path = write_report(run)

    page = Page(path)
    assert "<script" not in path.read_text()
    assert name.strip() in page.text
    assert "</table><img src=x>.jpg" in page.text
    assert "cut <short>" in page.text
    assert "b\ufffdd.jpg" in page.text
    assert "x" not in page.values("img", "src")


def test_a_name_that_is_no_text_does_not_cost_the_page(here: Path) -> None:
    run = make_run(here / "run", data={"path": "images \udcff", "count": 100})

    assert "100 in images ?" in page_of(run).text


def test_the_film_shows_the_first_the_last_and_few_between(here: Path) -> None:
    run = make_run(here / "run", images=0)
    draw_images(run, count=20)

    labels = page_of(run).values("img", "alt")

    assert labels[:3] == ["original", "what the model sees", "prediction, step\u00a00"]
    assert labels[-2:] == ["prediction, step\u00a0760",
                           "prediction, visible patches pasted, step\u00a0760"]  # fmt: skip
    assert len(labels) == 2 + 8 + 1


def test_the_film_says_what_it_draws(here: Path) -> None:
    assert "normalised by their own patch" in page_of(make_run(here / "run")).text


def test_a_row_behind_raw_pixels_says_so_in_words(here: Path) -> None:
    run = make_run(here / "run")
    (run / "results.json").write_text(json.dumps(results()))

    text = page_of(run).text.replace("\u00a0", " ")

    assert "accuracy in % on 10 test images k-NN 10 a class raw pixels 83.1 70.0 ± 1.2" in text
    assert "trained 82.8 behind raw pixels 75.0" in text
    assert text.count("behind raw pixels") == 1
    assert "given to all PSNR in dB model 21.4 mean colour 15.1" in text
    assert "k-NN: trained 82.8, not ahead of random 83.0" in text
    assert "after training on 10 labels accuracy in % scratch 61.0" in text


def test_broken_images_are_counted_and_the_first_named(here: Path) -> None:
    run = make_run(here / "run")
    lines = "".join(f"{n:02}.jpg\tempty\n" for n in range(30))
    (run / "bad-files.tsv").write_text(lines)

    text = page_of(run).text

    assert "30 of 100; each was replaced by another image" in text
    assert "The first 20; all are in bad-files.tsv:" in text
    assert "19.jpg empty" in text
    assert "20.jpg" not in text


def test_every_field_of_the_run_is_shown(here: Path) -> None:
    text = page_of(make_run(here / "run", lr=0.0123)).text

    assert '"lr": 0.0123' in text


def test_several_runs_are_compared_on_one_page(here: Path) -> None:
    first = make_run(Path("first"))
    second = make_run(Path("second"), rows=3, finished=False)

    path = write_report(first, second)

    text = Page(path).text
    assert path == Path("comparison.html")
    assert not (first / "report.html").exists()
    assert "2 runs compared first second recipe custom custom" in text
    mean = "mean over the last tenth of the steps"
    assert f"loss 0.2, {mean} 0.3333, {mean}" in text
    assert "first: 0.2 at the end second: 0.3333 at the end" in text
    assert "images seen" in text


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_folder_that_is_no_run_is_named(here: Path, content: str | None) -> None:
    if content is not None:
        (here / "run.json").write_text(content)

    with pytest.raises(ConfigError, match=r"is not a run|is not the record of a run"):
        write_report(here)

    assert not (here / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no browser to look with")
def test_a_browser_shows_the_page(here: Path) -> None:
    run = make_run(here / "run")
    (run / "results.json").write_text(json.dumps(results()))
    page, shot = write_report(run), here / "shot.png"

    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-background-networking", f"--user-data-dir={here / 'browser'}",
         "--window-size=900,1500", f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip

    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    rows_with_ink = (np.abs(pixels - pixels[0, 0]).max(axis=(1, 2)) > 40).mean()
    saturated = (np.ptp(pixels, axis=2) > 100).sum()
    assert pixels.shape == (1500, 900, 3)
    assert rows_with_ink > 0.5
    assert saturated > 1000  # the coloured lines and images were drawn


def test_a_page_shows_what_the_checks_found_and_found_no_more(here: Path) -> None:
    run = make_run(here / "run", held_out=["a.jpg"])
    check = {"step": 40, "loss": 1.5, "gain": -5.0, "gain_over_mean": -2.0, "held_out_gain": -5.5,
             "rank": 6.5, "dead": 0.25, "cosine": 0.5, "duplicates": 0.0, "images": 11,
             "held_out": 7, "worst": [["a&b.jpg", 2.0]], "best": [["c.jpg", 1.0]],
             "findings": ["diverging"]}  # fmt: skip
    last = check | {"step": 200, "gain": -3.0, "gain_over_mean": 0.1, "rank": 7.125, "findings": []}
    (run / "health.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (check, last)))
    (run / "images" / "step-00000040.png").rename(run / "images" / "extremes.png")

    page = page_of(run)

    assert "Health not learning: the reconstruction is 3.0 dB behind in-fill" in page.text
    assert "diverging at step 40, not any more." in page.text
    assert "At step 200, on 11 training images and 7 held-out ones" in page.text
    assert "held out: -5.5 at the end" in page.text and "7.125 at the end" in page.text
    assert "from the largest (a&b.jpg) to the smallest (c.jpg)" in page.text


def test_a_page_of_a_run_without_checks_has_no_section_on_health(here: Path) -> None:
    assert "Health" not in page_of(make_run(here / "run")).words
