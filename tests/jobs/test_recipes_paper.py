from __future__ import annotations

import json

from mae.jobs.recipes_paper import SCORES, not_built, paper_rows, paper_values


def test_the_table_fits_a_terminal_of_a_hundred_columns() -> None:
    from mae.cli.main import _table

    lines = _table(paper_rows(["pretrain"])).splitlines()

    assert max(map(len, lines)) <= 100


def test_every_result_is_shown_with_its_commands() -> None:
    lines = [row[0] for row in paper_rows(["pretrain"]) if len(row) == 1]
    text = " ".join("\n".join(lines).replace(" \\\n", " ").split())

    assert all(command in text for score in SCORES for command in score.commands)


def test_a_command_broken_over_lines_keeps_options_with_their_values() -> None:
    lines = [row[0] for row in paper_rows([]) if len(row) == 1]

    assert any(line.endswith(" \\") for line in lines)
    assert not [line for line in lines if line.removesuffix(" \\").split()[-1:] == ["--out"]]


def test_verbs_that_this_version_lacks_are_said() -> None:
    built = ["pretrain", "finetune", "probe", "evaluate", "segment"]

    assert not_built(built) == ["detect"]
    assert ("Not built in this version: mae detect.",) in list(paper_rows(built))
    assert not any("Not built" in row[0] for row in paper_rows([*built, "detect"]))


def test_every_result_says_that_it_was_not_run_here() -> None:
    rows = [row for row in paper_rows([]) if len(row) > 1]

    assert sum(row[-1] == "not run" for row in rows) == len(SCORES)


def test_the_hours_of_others_are_shown_where_they_are_known() -> None:
    lines = [row[0].strip() for row in paper_rows([]) if len(row) == 1]

    assert "took others: 7 h 11 min on 32 V100, a seed" in lines
    assert "took others: about 42 h on 64 V100" in lines
    assert "took others: 34.5 h on 128 TPU-v3 cores" in lines


def test_machines_get_numbers_by_unit() -> None:
    values = json.loads(json.dumps(paper_values(["pretrain"])))

    seed = next(s for s in values["scores"] if s["where"] == "mmselfsup 0.x")
    assert seed["values"] == {"% fine-tuned": 83.1} and seed["measured"] == "not run"
    assert len(seed["commands"]) == 2 and "finetune" in values["not_built"]
