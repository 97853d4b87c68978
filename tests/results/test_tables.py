from __future__ import annotations

import csv

from compressbench.results.tables import markdown_table, write_csv


def test_a_cell_of_markdown_keeps_its_bars_and_its_words_together():
    head, rule, row = markdown_table([{"stage": "a|b", "val accuracy": "91.2 %"}])
    assert head == "| stage | val\N{NO-BREAK SPACE}accuracy |"
    assert rule == "| --- | --- |"
    assert row == "| a\\|b | 91.2\N{NO-BREAK SPACE}% |"
    assert markdown_table([]) == []


def test_a_csv_file_has_a_column_for_each_name_of_any_row(tmp_path):
    rows = [{"layer": "conv, first", "bits": 8}, {"layer": "größe", "reason": None}]
    path = write_csv(tmp_path / "rows.csv", rows)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"layer": "conv, first", "bits": "8", "reason": ""},
            {"layer": "größe", "bits": "", "reason": ""},
        ]
