from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_edit.datasets.records import Record, read_edits
from hf_edit.edits import Edit
from hf_edit.errors import ConfigError, InvalidEditError
from tests.datasets.published import written


def to_edit(record: Record) -> Edit:
    return Edit(record.text("q"), record.record("a").texts("all")[0], id=f"r-{record.number('n')}")


def row(number: Any, question: Any, *answers: Any) -> dict[str, Any]:
    return {"n": number, "q": question, "a": {"all": list(answers)}}


def test_limit_counts_the_edits_that_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, row(0, "a?", "x"), row(1, " a?", "y"), row(2, "b?", "x"), "never looked at")
    assert read_edits(path, to_edit, limit=2).ids == ("r-0", "r-2")
    with pytest.raises(ConfigError, match="The limit of edits is 0, less than 1"):
        read_edits(path, to_edit, limit=0)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("text", "record 1: the record is of type str, not an object"),
        ({"q": "b?"}, "record 1: the record lacks the field 'a'; it has 'q'"),
        (row(1, 3, "x"), "record 1: field 'q' of the record is of type int, not text"),
        (row("one", "b?", "x"), "record 1: field 'n' of the record is of type str, not a whole number"),
        (row(1, "b?", "x", None), "record 1: item 1 of field 'all' of field 'a' of the record is null, not text"),
        ({**row(1, "b?"), "a": ["x"]}, "record 1: field 'a' of the record is of type list, not an object"),
        (row(1, "b?", "b?"), "record 1: The target equals the prompt"),
        (row(0, "b?", "x"), "records.json: The id 'r-0' is given to two edits"),
    ],
)
def test_errors_name_file_record_and_field(tmp_path: Path, record: Any, expected: str) -> None:
    path = written(tmp_path, row(0, "a?", "x"), record)
    with pytest.raises(InvalidEditError) as caught:
        read_edits(path, to_edit)
    assert caught.value.message.startswith(str(path))
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "not JSON at column 1"), ("[\n{]", "not JSON at line 2, column 2"), ("{}", "The file is of type dict")],
)
def test_files_that_hold_no_list(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(InvalidEditError, match=f"records.json: {expected}"):
        read_edits(path, to_edit)


def test_an_empty_list_is_no_edit_set(tmp_path: Path) -> None:
    with pytest.raises(InvalidEditError, match="records.json: There are no edits"):
        read_edits(written(tmp_path), to_edit)
