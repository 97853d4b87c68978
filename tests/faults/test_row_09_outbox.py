"""What is damaged in an outbox never reaches MLflow; the rest does, and once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from compressbench.cli.sync import sync
from compressbench.core.errors import UserError
from compressbench.tracking.outbox import CURSOR, RECORDS, Outbox
from tests.faults.tracked_run import METRICS, append_run, metrics_in, rows, runs_in

OPERATIONS = ["start", "metrics", "files", "finish"]


def kinds(outbox):
    return [operation["do"] for operation in outbox.read()]


def test_row_09_any_flipped_bit_is_noticed(tmp_path):
    """400 of them, anywhere: an operation is as it was written, or it is not there."""
    outbox = append_run(tmp_path / "a", tmp_path)
    sound, content, chance = outbox.read(), outbox.records.read_bytes(), random.Random(0)
    for _ in range(400):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        outbox.records.write_bytes(changed)
        lines = outbox.lines()
        assert lines.damaged
        assert all(operation in sound for operation in lines.operations)
        assert {"start", "finish"} <= set(kinds(outbox)), "they are written twice"
        assert len(lines.operations) >= 3


def test_row_09_a_torn_tail_goes_with_the_next_line(tmp_path):
    outbox = append_run(tmp_path / "a", tmp_path)
    whole = outbox.records.read_bytes()
    with outbox.records.open("ab") as file:
        file.write(b'{"do": "note", "te')
    assert kinds(outbox) == OPERATIONS
    assert outbox.lines().complaint == "damaged lines were left out: 9"
    outbox.append({"do": "note", "text": "größe \\udcff"})
    assert outbox.records.read_bytes().startswith(whole)
    assert kinds(outbox) == [*OPERATIONS, "note"]
    assert outbox.lines().complaint == ""


@pytest.mark.parametrize("foreign", [b"notes of somebody", b"\\x00" * 999, b'{"do": "finish"}\n'])
def test_row_09_what_is_not_ours_stays_and_is_not_used(tmp_path, foreign):
    path = tmp_path / RECORDS
    path.write_bytes(foreign)
    outbox = Outbox(tmp_path)
    outbox.append({"do": "note", "text": "a"})
    assert path.read_bytes().startswith(foreign)
    assert kinds(outbox) == ["note"]
    assert outbox.lines().damaged == [1]


def test_row_09_an_outbox_that_is_no_file_is_refused(tmp_path):
    (tmp_path / RECORDS).symlink_to("/dev/zero")
    for use in (Outbox(tmp_path).read, lambda: Outbox(tmp_path).append({"do": "note"})):
        with pytest.raises(UserError, match=r"outbox\.jsonl: not the outbox of a run"):
            use()


def damaged(line):
    return line.replace(b"0.75", b"0.85")


@pytest.mark.parametrize(
    ("change", "logged", "code"),
    [
        (lambda lines: [*lines, *lines[:3]], METRICS, 0),
        (lambda lines: [lines[0], b"garbage\n", *lines[1:]], METRICS, 1),
        (lambda lines: [damaged(line) for line in lines], [], 1),
        (lambda lines: [b"damage\n", *lines[1:]], METRICS, 1),
    ],
    ids=["repeated", "garbage between", "a figure changed", "start damaged"],
)
def test_row_09_the_sound_lines_are_logged_once(home, capsys, change, logged, code):
    """Before anything is logged, and again when all has been logged."""
    outbox = append_run(home / "runs" / "a", home)
    lines = outbox.records.read_bytes().splitlines(keepends=True)
    for content in (change(lines), lines, change(lines)):
        outbox.records.write_bytes(b"".join(content))
        expected = code if content is not lines else 0
        assert sync([str(outbox.folder)]) == expected
        said = capsys.readouterr().err
        assert ("damaged lines were left out" in said) == bool(expected)
        if content is lines:
            logged = METRICS
        assert metrics_in(home) == [tuple(m) for m in logged]
        assert len(runs_in(home)) == 1
    files = home.glob("mlartifacts/*/artifacts/*")
    assert [file.name for file in files] == ["a.json"]


def test_row_09_a_run_whose_start_is_lost_is_named(home):
    outbox = append_run(home / "a", home)
    lines = outbox.records.read_bytes().splitlines(keepends=True)
    outbox.records.write_bytes(b"".join(lines[3:]))
    with pytest.raises(UserError, match="the start of the run is damaged"):
        sync([str(outbox.folder)])


@pytest.mark.parametrize("content", ["", "{}", "garbage", '{"done": 99}', None])
def test_row_09_a_damaged_cursor_costs_a_repetition(home, content):
    outbox = append_run(home / "a", home)
    assert sync([str(outbox.folder)]) == 0
    cursor = outbox.folder / CURSOR
    before = cursor.read_text()
    cursor.write_text(before.replace('"done": 6', '"done": 5') if content is None else content)
    assert sync([str(outbox.folder)]) == 0
    assert metrics_in(home) == [tuple(m) for m in METRICS]
    assert runs_in(home) == [("n", "FINISHED")]
    assert json.loads(cursor.read_text())["servers"]


def test_row_09_only_files_of_the_run_are_uploaded(home, capsys):
    (home / "secret.txt").write_text("secret")
    outbox = append_run(home / "a", home)
    (outbox.folder / "link").symlink_to(home / "secret.txt")
    outbox.append({"do": "files", "paths": ["../secret.txt", "link", str(home / "secret.txt")]})
    assert sync([str(outbox.folder)]) == 0
    assert capsys.readouterr().err.count("is outside of the run folder") == 3
    assert {p.name for p in home.glob("mlartifacts/*/artifacts/*")} == {"a.json"}


def test_row_09_texts_of_files_are_uploaded_without_credentials(home):
    outbox = append_run(home / "a", home)
    recipe = outbox.folder / "recipe.yaml"
    recipe.write_text("tracking:\n  url: https://ann:s3cret@logs.example\n")
    outbox.append({"do": "files", "paths": ["recipe.yaml"]})
    assert sync([str(outbox.folder)]) == 0
    (logged,) = home.glob("mlartifacts/*/artifacts/recipe.yaml")
    assert logged.read_text() == "tracking:\n  url: https://***@logs.example\n"
    assert "s3cret" in recipe.read_text()


@pytest.mark.parametrize("name", ["größe und maß", "50%", "a%20b", "who?", "x#y", "a;b 'c'"])
def test_row_09_paths_with_odd_characters_are_tracked(tmp_path, empty_database, name):
    home = tmp_path / name
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    outbox = append_run(home / "runs" / "a?b%20", home)
    assert sync([str(outbox.folder)]) == 0
    assert runs_in(home) == [("n", "FINISHED")]
    assert len(list(home.glob("mlartifacts/*/artifacts/a.json"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_row_09_a_read_only_database_is_named(home):
    from tests.faults.disks import make_read_only, small_disk

    with small_disk(home / "disk", "4m") as disk:
        (disk / "mlflow.db").write_bytes((home / "mlflow.db").read_bytes())
        (disk / ".mlflow.lock").touch()
        outbox = append_run(home / "a", disk)
        make_read_only(disk)
        assert sync([str(outbox.folder)]) == 1
    assert "a.json" in {p.name for p in Path(outbox.folder).iterdir()}
    assert rows(home / "mlflow.db", "select count(*) from runs") == [(0,)]
