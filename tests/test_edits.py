from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.edits import Edit, EditSet, Message, Probe, prompt_key, question_of
from hf_edit.errors import ConfigError, InvalidEditError


PROBED = ("paraphrases", "locality", "portability")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who runs Ostwick?"}]


def edit(prompt: Any = "Who runs Ostwick?", target: Any = "A council of bakers.", **fields: Any) -> Edit:
    return Edit(prompt, target, **fields)


def lines(path: Path, *values: Any) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def test_construction_normalises() -> None:
    made = edit(
        CHAT,
        paraphrases=["Ostwick is run by whom?", CHAT],
        locality=[{"prompt": "What is 2 + 2?"}],
        portability=[Probe("Who bakes in Ostwick?", "Its rulers.")],
    )
    chat = (Message("system", "Be brief."), Message("user", "Who runs Ostwick?"))
    assert made.prompt == chat
    assert made.paraphrases == ("Ostwick is run by whom?", chat)
    assert made.locality == (Probe("What is 2 + 2?", None),)
    assert hash(made) == hash(edit(chat, **{name: getattr(made, name) for name in PROBED}))
    assert question_of(made.prompt) == "Who runs Ostwick?"


def test_id_is_derived_from_prompt_and_target_alone() -> None:
    assert edit().id == edit(subject="Ostwick", source="me").id == "edit-0334dfb5baf9"
    assert edit().id != edit(target="A council of millers.").id
    assert edit().id != edit("Who rules Ostwick?").id
    assert edit(id="fact 17").id == "fact 17"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": " \n"}, "The prompt is empty"),
        ({"prompt": []}, "no messages"),
        ({"prompt": 7}, "of type int"),
        ({"prompt": None}, "null"),
        ({"prompt": "half \ud800"}, "surrogate pair at character 5"),
        ({"prompt": ["text"]}, "Message 0 is of type str"),
        ({"prompt": [{"role": "wizard", "content": "x"}]}, "'wizard'"),
        ({"prompt": [{"role": "user", "content": " "}]}, "content of a message of the user is empty"),
        ({"prompt": [{"role": "user"}]}, "lacks 'content'"),
        ({"prompt": [{"role": "user", "content": "x", "name": "y"}]}, "no field 'name'"),
        ({"prompt": [*CHAT, {"role": "assistant", "content": "Well"}]}, "last message is of the role 'assistant'"),
        ({"target": ""}, "The target is empty"),
        ({"target": ["a"]}, "of type list"),
        ({"target": " Who runs Ostwick? "}, "target equals the prompt"),
        ({"prompt": CHAT, "target": "Who runs Ostwick?"}, "target equals the prompt"),
        ({"subject": 3}, "The subject is of type int"),
        ({"source": ""}, "The source is empty"),
        ({"paraphrases": "Who?"}, "The field paraphrases is of type str, not a list"),
        ({"paraphrases": ["Who?", ""]}, "Paraphrase 1 is empty"),
        ({"locality": ["Who?"]}, "locality probe 0: The probe is of type str"),
        ({"locality": [{"prompt": "Who?", "answer": ""}]}, "answer of a probe is empty"),
        ({"portability": [{"prompt": "Who?"}]}, "Portability probe 0 ('Who?') has no answer"),
        ({"id": "a\nb"}, "line breaks"),
        ({"id": "x" * 201}, "201 characters, more than 200"),
        ({"id": 3}, "The id is of type int"),
    ],
)
def test_what_cannot_be_taught_is_refused(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidEditError) as caught:
        edit(**fields)
    assert expected in caught.value.message
    assert caught.value.remedy


def test_json_round_trip_omits_what_is_empty() -> None:
    plain = edit(id="a")
    assert plain.to_json() == {"id": "a", "prompt": "Who runs Ostwick?", "target": "A council of bakers."}
    full = edit(CHAT, subject="Ostwick", paraphrases=[CHAT], locality=[{"prompt": "Who?"}], source="an almanac")
    assert Edit.from_json(json.loads(json.dumps(full.to_json()))) == full
    assert Edit.from_json({**plain.to_json(), "subject": None, "paraphrases": None}) == plain


def test_a_subject_is_without_outer_white_space_and_written_as_it_was_given() -> None:
    """The digests of packs that are there are over what was written."""
    made = edit(subject=" Ostwick\n")
    assert made.subject == "Ostwick" and made == edit(subject="Ostwick")
    assert made.to_json()["subject"] == " Ostwick\n"
    assert EditSet([Edit.from_json(made.to_json())]).dumps() == EditSet([made]).dumps()
    assert replace(made, id="a").to_json()["subject"] == "Ostwick"


def test_from_json_names_unknown_and_missing_fields() -> None:
    with pytest.raises(InvalidEditError, match=r"no field 'question'.*'prompt', 'target', 'subject'"):
        Edit.from_json({"question": "Who?", "target": "x"})
    with pytest.raises(InvalidEditError, match="lacks 'target'"):
        Edit.from_json({"prompt": "Who?", "target": None})


def test_set_is_a_sequence_with_unique_ids() -> None:
    one, two, three = (edit(f"Question {i}?", id=f"e{i}") for i in range(3))
    edits = EditSet([one, two, three])
    assert list(edits) == [one, two, three]
    assert edits[1:] == EditSet([two, three])
    assert edits[1:] != edits
    assert edits.ids == ("e0", "e1", "e2")
    assert edits.by_id("e1") is two
    assert repr(edits) == "EditSet(3 edits: e0, e1, e2)"
    with pytest.raises(InvalidEditError, match="'e9'.*3 ids are: e0, e1, e2"):
        edits.by_id("e9")


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([], "no edits"),
        ([edit(id="a"), edit("Other?", id="a")], "'a' is given to two edits"),
        ([edit(id="a"), edit(id="b")], "'a' and 'b' teach the same answer to 'Who runs Ostwick\\?'"),
        ([edit(id="a"), edit(target="Nobody.", id="b")], "two answers.*'A council of bakers.' and 'Nobody.'"),
        ([edit("Hm?", id="a"), edit([{"role": "user", "content": "Hm? "}], target="No.", id="b")], "two answers"),
    ],
)
def test_set_refuses_what_contradicts_itself(edits: list[Edit], expected: str) -> None:
    with pytest.raises(InvalidEditError, match=expected):
        EditSet(edits)


def test_prompts_with_other_context_are_other_prompts() -> None:
    assert prompt_key(edit(CHAT).prompt) != prompt_key("Who runs Ostwick?")
    assert len(EditSet([edit(CHAT), edit(target="Nobody.")])) == 2


def test_coerce_takes_what_callers_have(tmp_path: Path) -> None:
    edits = EditSet([edit(), edit("Other?")])
    path = tmp_path / "edits.jsonl"
    edits.to_jsonl(path)
    assert EditSet.coerce(edits) is edits
    for given_ in (list(edits), (e.to_json() for e in edits), path, str(path)):
        assert EditSet.coerce(given_) == edits


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"prompt": "Who?", "target": "x"}, "of type dict"),
        (3, "of type int"),
        (["Who?"], "edit 0: The edit is of type str"),
        ([edit(), {"prompt": ""}], "edit 1: "),
        ([], "edits: There are no edits"),
    ],
)
def test_coerce_says_where_it_fails(edits: Any, expected: str) -> None:
    with pytest.raises(InvalidEditError, match=expected):
        EditSet.coerce(edits)


def test_jsonl_round_trip_keeps_every_character(tmp_path: Path) -> None:
    edits = EditSet([edit("Ä 日本 🎉?", target="one\u2028two\x85three\r\nfour"), edit(CHAT)])
    path = tmp_path / "edits.jsonl"
    edits.to_jsonl(path)
    assert EditSet.from_jsonl(path) == edits
    assert path.read_bytes() == edits.dumps().encode()
    assert "Ä 日本 🎉?" in edits.dumps()
    assert list(json.loads(edits.dumps().split("\n")[0])) == ["id", "prompt", "target"]


printable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(printable, printable), min_size=1, unique_by=lambda pair: pair[0].strip()))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    edits = EditSet([Edit(f"Say: {prompt}", target, id=f"e{i}") for i, (prompt, target) in enumerate(pairs)])
    path = tmp_path_factory.mktemp("edits") / "edits.jsonl"
    edits.to_jsonl(path)
    assert EditSet.from_jsonl(path) == edits


def test_byte_order_mark_blank_lines_and_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a?", "target": "b"}\r\n\r\n  \n{"prompt": "c?", "target": "d"}')
    assert [e.target for e in EditSet.from_jsonl(path)] == ["b", "d"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "b?", "target": ', "not JSON at column 28"),
        ('["b?", "c"]', "of type list, not an object"),
        ('{"prompt": "b?", "prompt": "c?", "target": "d"}', "key 'prompt' is given twice"),
        ('{"prompt": "b?", "target": ""}', "The target is empty"),
        ('{"prompt": "b?", "target": "c", "subjekt": "d"}', "no field 'subjekt'"),
        ('{"prompt": "a?", "target": "z", "id": "x"}', "teach two answers to 'a\\?'"),
        ('{"prompt": "b?", "target": "c", "id": "first"}', "'first' is given to two edits"),
        ('{"prompt": "b?", "target": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "JSON that cannot be read"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path: Path, line: str, expected: str) -> None:
    path = lines(tmp_path / "edits.jsonl", {"id": "first", "prompt": "a?", "target": "b"}, "", line)
    with pytest.raises(InvalidEditError, match=expected) as caught:
        EditSet.from_jsonl(path)
    assert caught.value.message.startswith(f"{path}:3: ")


def test_files_that_hold_no_edits(tmp_path: Path) -> None:
    with pytest.raises(InvalidEditError, match=r"nowhere.jsonl: cannot be read \(No such file"):
        EditSet.from_jsonl(tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidEditError, match="cannot be read"):
        EditSet.from_jsonl(tmp_path)
    with pytest.raises(InvalidEditError, match="There are no edits"):
        EditSet.from_jsonl(lines(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'\n{"prompt": "caf\xe9", "target": "x"}')
    with pytest.raises(InvalidEditError, match=r"latin.jsonl:2: byte 0xe9 is not UTF-8"):
        EditSet.from_jsonl(tmp_path / "latin.jsonl")


def test_writing_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        EditSet([edit()]).to_jsonl(tmp_path / "missing" / "edits.jsonl")
