"""What verbs print."""

from __future__ import annotations

import pytest

from hf_edit.cli.output import print_table


def test_titles_columns_and_cells_of_a_table_are_taken_literally(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("zsre\x1b]0;pwned [/x]\nnext", ("n [bold]\x1b[2J",), [("[/y]\x9b" + "x" * 30,)])
    shown = capsys.readouterr().out
    for text in ("zsre\\u001b]0;pwned [/x]\\nnext", "n [bold]\\u001b[2J", "[/y]\\u009b"):
        assert text in shown
    assert not {"\x1b", "\x9b"} & set(shown)
