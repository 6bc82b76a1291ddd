import json
import math
import os
import resource

import pytest

from mae.runs.log import BadFiles, LogWriter, final_values, read_columns


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path):
    return LogWriter(tmp_path / "log.jsonl", log=pytest.fail)


def test_each_row_is_a_line_that_can_be_read_at_once(log):
    for step in (50, 100):
        log.append({"step": step, "loss": 0.5})

        assert read(log.path)[-1] == {"step": step, "loss": 0.5}
    assert len(read(log.path)) == 2


def test_rows_after_the_resumed_step_are_dropped(log):
    for step in (10, 20, 30):
        log.append({"step": step})

    log.truncate_after(20)
    log.append({"step": 30, "again": True})

    assert read(log.path) == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 20}', "\n", "\0\0\0", "\0\0\n", "[1]\n"])
def test_a_torn_last_line_is_dropped(log, torn):
    log.append({"step": 10})
    with log.path.open("a") as file:
        file.write(torn)

    log.truncate_after(20)
    log.append({"step": 20})

    assert read(log.path) == [{"step": 10}, {"step": 20}]


def test_truncating_a_log_that_is_not_there_does_nothing(log):
    log.truncate_after(0)

    assert not log.path.exists()


def test_rows_that_find_no_room_are_dropped_whole_and_said_once(tmp_path):
    said = []
    log = LogWriter(tmp_path / "log.jsonl", log=said.append)
    log.append({"step": 1})
    size = log.path.stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, old[1]))
    try:
        log.append({"step": 2})
        log.append({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    log.append({"step": 4})

    assert read(log.path) == [{"step": 1}, {"step": 4}]
    assert len(said) == 1 and "log.jsonl" in said[0]


def test_a_broken_image_is_listed_once(tmp_path):
    bad = BadFiles(tmp_path / "bad-files.tsv")

    assert bad.add("a/1.jpg", "is empty")
    assert not bad.add("a/1.jpg", "is empty")
    assert bad.add("b.png", "ends early")

    assert len(bad) == 2
    assert bad.path.read_text() == "a/1.jpg\tis empty\nb.png\tends early\n"


def test_a_later_start_knows_the_images_listed_before(tmp_path):
    BadFiles(tmp_path / "bad-files.tsv").add("a.jpg", "is empty")

    bad = BadFiles(tmp_path / "bad-files.tsv")

    assert len(bad) == 1
    assert not bad.add("a.jpg", "is empty")
    assert bad.add("b.jpg", "is empty")
    assert bad.path.read_text() == "a.jpg\tis empty\nb.jpg\tis empty\n"


@pytest.mark.parametrize("kept", [0, 3, 7, 14])
def test_a_torn_line_is_dropped_by_the_next_start(tmp_path, kept):
    path = tmp_path / "bad-files.tsv"
    BadFiles(path).add("a.jpg", "is empty")
    os.truncate(path, kept)

    assert BadFiles(path).add("a.jpg", "is empty")

    assert path.read_text() == "a.jpg\tis empty\n"


def test_no_broken_image_makes_no_file(tmp_path):
    bad = BadFiles(tmp_path / "bad-files.tsv")

    assert len(bad) == 0 and not bad.path.exists()


def test_what_was_read_with_a_warning_is_listed_and_not_counted_as_bad(tmp_path):
    path = tmp_path / "bad-files.tsv"
    bad = BadFiles(path)
    bad.add("a.jpg", "is empty")

    assert bad.add("b.jpg", "its head is damaged", read=True)
    assert not bad.add("b.jpg", "its head is damaged", read=True)

    assert path.read_text().splitlines()[1] == "b.jpg\tread with a warning: its head is damaged"
    for found in (bad, BadFiles(path)):
        assert (len(found), found.read) == (1, 1)


def test_columns_are_aligned_by_step_with_nan_where_a_row_says_nothing(tmp_path):
    log, health = tmp_path / "log.jsonl", tmp_path / "health.jsonl"
    log.write_text(
        '{"step": 1, "loss": 2.0, "seconds": 0.5}\n{"step": 2, "skipped": [3]}\n'
        '{"step": 4, "loss": null, "seconds": 0.25}\n'
    )
    health.write_text('{"step": 3, "rank": 7.5, "findings": []}\n{"step": 4, "seconds": 9.0}\n')

    columns = read_columns(log, health, tmp_path / "none.jsonl")

    assert [*columns] == ["step", "loss", "seconds", "rank"]
    assert columns["step"].tolist() == [1, 3, 4]
    assert columns["loss"].tolist() == pytest.approx([2.0, math.nan, math.nan], nan_ok=True)
    assert columns["seconds"].tolist() == pytest.approx([0.5, math.nan, 0.25], nan_ok=True)
    assert columns["rank"].tolist() == pytest.approx([math.nan, 7.5, math.nan], nan_ok=True)
    assert final_values(columns) == {"step": 4, "loss": 2.0, "seconds": 0.75, "rank": 7.5}
