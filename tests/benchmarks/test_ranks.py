"""Ranks and one process run the same case, and their logged rates are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import ranks

RATES = {1: [900.0, 100.0, 120.0, 110.0], 2: [900.0, 80.0, 100.0, 120.0]}
"""Images a second by number of ranks, log row by row; the first is not counted."""


def test_the_ratio_is_that_of_the_logged_rates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = list[list[str]]()

    def run(words: list[str], **_: str) -> str:
        if ranks.PROFILED in words:
            return "a table"
        started.append(words)
        out, count = Path(words[words.index("--out") + 1]), int(words[-1])
        out.mkdir()
        rows = [json.dumps({"images_per_second": rate}) for rate in RATES[count]]
        (out / "log.jsonl").write_text("\n".join(rows))
        return ""

    monkeypatch.setattr(ranks, "SIDES", {"one process": 1, "two ranks": 2})
    monkeypatch.setattr(ranks, "run", run)
    monkeypatch.setattr(ranks, "draw_images", lambda _: None)
    monkeypatch.setattr(ranks, "print_processor", dict)

    ranks.main(2)

    assert [words[-1] for words in started] == ["1", "2", "2", "1"] * 2  # in turn
    without = [[word for word in words if "run" not in word][:-1] for words in started[:4]]
    assert all(words == without[0] for words in without)
    said = capsys.readouterr().out
    assert "  one process: 110.0 (110.0 to 110.0) images/s\n" in said
    assert said.count("time of the ranks over that of the process: 1.10 (1.10 to 1.10)") == 2
    assert said.count("a table") == 4


def test_a_run_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(RuntimeError, match=r"^-c .*: exit code 3: made up"):
        ranks.run(["-c", "import sys; sys.stderr.write('made up'); sys.exit(3)"])
