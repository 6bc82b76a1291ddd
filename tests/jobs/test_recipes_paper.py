from __future__ import annotations

import json

from mae.jobs.recipes_paper import published_results
from mae.recipes.published import read_published
from mae.report.tables import report_of

PUBLISHED = read_published()
REPORT = report_of(published_results())
ROWS = list(REPORT.rows)
LINES = [row[0] for row in ROWS if len(row) == 1]


def test_the_table_fits_a_terminal_of_a_hundred_columns() -> None:
    from mae.report.tables import align

    assert max(map(len, align(ROWS).splitlines())) <= 100


def test_every_result_is_shown_with_its_commands() -> None:
    text = " ".join("\n".join(LINES).replace(" \\\n", " ").split())

    assert all(command in text for score in PUBLISHED.scores for command in score.commands)


def test_a_command_broken_over_lines_keeps_options_with_their_values() -> None:
    assert any(line.endswith(" \\") for line in LINES)
    assert not [line for line in LINES if line.removesuffix(" \\").split()[-1:] == ["--out"]]


def test_every_result_says_that_it_was_not_run_here() -> None:
    rows = [row for row in ROWS if len(row) > 1]

    assert sum(row[-1] == "not run" for row in rows) == len(PUBLISHED.scores)


def test_the_hours_of_others_are_shown_where_they_are_known() -> None:
    lines = [line.strip() for line in LINES]

    assert "took others: 7 h 11 min on 32 V100, a seed" in lines
    assert "took others: about 42 h on 64 V100" in lines
    assert "took others: 34.5 h on 128 TPU-v3 cores" in lines


def test_machines_get_numbers_by_unit() -> None:
    values = json.loads(json.dumps(REPORT.values))

    assert values.keys() == {"about", "scores"}
    seed = next(s for s in values["scores"] if s["where"] == "mmselfsup 0.x")
    assert seed["values"] == {"% fine-tuned": 83.1} and seed["measured"] == "not run"
    assert len(seed["commands"]) == 2
