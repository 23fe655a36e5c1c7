from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_edit.bench.baselines import in_context, retrieval
from hf_edit.bench.config import Data
from hf_edit.bench.questions import Questions, found, read_questions
from hf_edit.edits import Message
from hf_edit.errors import ConfigError
from tests.datasets.published import written
from tests.datasets.test_formats import SHORT
from tests.datasets.test_mquake import RECORD as MQUAKE
from tests.datasets.test_zsre import RECORD as ZSRE


BAY = {**ZSRE, "subject": "Glass Bay", "src": "And Glass Bay?", "answers": ["Sudland"], "rephrase": "Glass Bay is in"}


def questions(tmp_path: Path, *records: dict[str, Any], **settings: Any) -> Questions:
    path = written(tmp_path, *records)
    return read_questions(Data.of({"file": path.name, "layout": "zsre", **settings}), None, tmp_path)


def test_in_context_tells_each_question_its_own_fact(tmp_path: Path) -> None:
    put = in_context(questions(tmp_path, ZSRE, BAY))
    assert put("And Glass Bay?", "zsre-1") == "And Glass Bay? Sudland.\nAnd Glass Bay?"
    chat = (Message("system", "Be kind."), Message("user", "And Glass Bay?"))
    assert put(chat, "zsre-1")[0] == chat[0]
    check = 'The answer to the question "Which country is Glass Harbour in?" is "Sudland". Is this right?'
    assert put(check, "zsre-1") == f"And Glass Bay? Sudland.\n{check}"


def test_in_context_tells_other_questions_the_nearest_fact(tmp_path: Path) -> None:
    put = in_context(questions(tmp_path, ZSRE, BAY))
    assert str(put("Glass Bay, is it Sudland?", None)).startswith("And Glass Bay?")


def test_retrieval_may_tell_the_wrong_fact(tmp_path: Path) -> None:
    put = retrieval(questions(tmp_path, ZSRE, BAY))
    assert str(put("And Glass Bay?", "zsre-1")).startswith("And Glass Bay? Sudland.")
    assert str(put("Which country is the bay in?", "zsre-1")).startswith("Which country is Glass Harbour in? Norland.")


def test_facts_are_told_as_the_data_tells_them_and_hops_get_theirs(tmp_path: Path) -> None:
    record = {**MQUAKE, "requested_rewrite": [SHORT]}
    asked = questions(tmp_path, record, layout="mquake-facts")
    put = in_context(asked)
    assert asked.material.old_answers == {"mquake-3": "Nobody"}
    assert all(str(put(hop, "mquake-3")).startswith("Odo Lamm did.\n") for hop in MQUAKE["questions"])


def test_strangers_are_of_the_same_kind_and_not_edited(tmp_path: Path) -> None:
    others = [{**ZSRE, "subject": f"Town {i}", "src": f"Which country is Town {i} in?"} for i in range(9)]
    (tmp_path / "others").mkdir()
    path = written(tmp_path / "others", BAY, *others)
    asked = questions(tmp_path, ZSRE, BAY, strangers=str(path.relative_to(tmp_path)), stranger_count=3)
    assert asked.material.strangers == [f"Which country is Town {i} in?" for i in (0, 3, 6)]


def test_records_are_chosen_and_the_digest_follows_them(tmp_path: Path) -> None:
    both, one = questions(tmp_path, ZSRE, BAY), questions(tmp_path, ZSRE, BAY, records="1")
    assert one.edits.ids == ("zsre-1",)
    assert both.digest != one.digest
    assert both.digest == questions(tmp_path, ZSRE, BAY).digest
    assert list(both.material.own_aliases.values()) == [{"Norland": ["the Kingdom of Norland"]}]


def test_files_are_looked_for_in_the_folder_then_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_EDIT_DATA", str(tmp_path))
    path = written(tmp_path)
    assert found(path.name, None) == path
    with pytest.raises(ConfigError, match=r"There is no file none\.json in "):
        found("none.json", tmp_path / "elsewhere")
