from __future__ import annotations

import json
from hashlib import sha256
from os.path import commonprefix
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_edit.edits import Edit, Message, Prompt
from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.prompting import Encoded, PromptFormat
from tests.tiny import CHAT_TEMPLATE, SPECIAL, tiny_tokenizer


KINDS = ("byte_level", "sentencepiece")
FORMATS = ("chat", "plain", "qa")
TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in KINDS}

WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] | trim + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WITH_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] + m['content'] }}</s>\n{% endfor %}"
)
HEADER_ENDS_IN_MARKER = (
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>{% endif %}"
)
WITHOUT_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
TEMPLATES = (WITH_BOS, WITH_DEFAULT_SYSTEM, WITHOUT_SYSTEM, HEADER_ENDS_IN_MARKER, WITHOUT_END)

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.text("ab The.,'?!\n\t ▁é日🎉1", min_size=1, max_size=30),
).filter(lambda text: text.strip() and not any(mark in text for mark in SPECIAL))


def prompts(name: str | None, kind: str = "byte_level", template: str | None = None) -> PromptFormat:
    tokenizer = tiny_tokenizer(kind, chat_template=template) if template else TOKENIZERS[kind]
    return PromptFormat.of(name, tokenizer)


def tokens(format_: PromptFormat, ids: tuple[int, ...]) -> list[str]:
    return list(format_.tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None)
@given(prompt=texts, answer=texts)
def test_encoding_is_exact(kind: str, name: str, prompt: str, answer: str) -> None:
    # the mark by which SentencePiece stands for a space is lost to it, and only there
    assume(kind == "byte_level" or "▁" not in prompt + answer)
    format_ = prompts(name, kind)
    encoded = format_.encode(prompt, answer)
    assert encoded.prompt_ids == format_.prompt_ids(prompt)
    assert encoded.ids == encoded.prompt_ids + encoded.answer_ids
    assert encoded.answer_ids[-1] == format_.end_id
    bos = 1 if kind == "sentencepiece" and name != "chat" else 0
    assert encoded.ids.count(format_.tokenizer.bos_token_id) == bos
    assert encoded.ids[0] == format_.tokenizer.bos_token_id or not bos
    # in plain and qa an answer's own leading space takes the place of the one that would be put there
    assert format_.decode(encoded.answer_ids) == (answer if name == "chat" else answer.removeprefix(" "))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=50)
@given(prompt=texts, answer=texts)
def test_the_pieces_of_an_answer_join_to_it(kind: str, name: str, prompt: str, answer: str) -> None:
    format_ = prompts(name, kind)
    ids = format_.encode(prompt, answer).answer_ids
    pieces = format_.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == format_.decode(ids)
    assert pieces[-1] == ""  # the end of the turn


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_of_several_tokens_belongs_to_the_last_of_them(kind: str) -> None:
    format_ = prompts("plain", kind)
    ids = format_.encode("a", "b日c").answer_ids
    assert [piece for piece in format_.pieces(ids) if piece] == ["b", "日", "c"]
    assert len(ids) == 1 + 3 + 1 + 1  # the character's three bytes, and the end of the turn
    assert format_.pieces([]) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None, max_examples=25)
@given(prompt=texts, answer=texts)
def test_any_template_encodes_exactly(kind: str, template: str, prompt: str, answer: str) -> None:
    assume("▁" not in prompt + answer)
    format_ = prompts("chat", kind, template)
    encoded = format_.encode(prompt, answer)
    assert encoded.prompt_ids == served(format_, [{"role": "user", "content": prompt}])
    assert encoded.ids.count(format_.tokenizer.bos_token_id) == (1 if template is WITH_BOS else 0)
    assert format_.decode(encoded.answer_ids) == answer


AS_LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% else %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [AS_LLAMA_2, WITH_BOS, WITH_DEFAULT_SYSTEM, WITHOUT_END, CHAT_TEMPLATE])
def test_an_answer_begins_as_in_the_templates_own_conversation(kind: str, template: str) -> None:
    """Where that puts a space in front of the assistant's text, too."""
    format_ = prompts("chat", kind, template)
    encoded = format_.encode("Who wrote it?", "Paris is it")
    turns = [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "Paris is it"}]
    whole = format_.tokenizer.apply_chat_template(turns, return_dict=False)
    assert tuple(whole[: len(encoded) - 1]) == encoded.ids[:-1]
    assert format_.decode(encoded.answer_ids) == "Paris is it"
    assert format_.decode(format_.encode("Who?", " Paris").answer_ids) == " Paris"


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, HEADER_ENDS_IN_MARKER])
def test_only_white_space_is_taken_from_between_prompt_and_answer(template: str) -> None:
    format_ = prompts("chat", "byte_level", template)
    assert format_.tokenizer.decode(list(format_.encode("Who?", "Me").answer_ids[:-1])) == "Me"


def served(format_: PromptFormat, messages: list[dict[str, str]]) -> tuple[int, ...]:
    return tuple(format_.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def test_encoded_is_cut_where_the_answer_begins() -> None:
    encoded = Encoded((7, 8, 9), answer_start=1)
    assert (encoded.prompt_ids, encoded.answer_ids, len(encoded)) == ((7,), (8, 9), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_chat_gives_what_a_served_model_sees(kind: str) -> None:
    format_ = prompts("chat", kind)
    chat = (
        Message("system", "Be brief."),
        Message("user", "Who?"),
        Message("assistant", "I."),
        Message("user", "Why?"),
    )
    assert format_.prompt_ids(chat) == served(format_, [message.to_json() for message in chat])
    assert format_.prompt_ids("Who?") == format_.prompt_ids((Message("user", "Who?"),))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_gives_what_the_tokenizer_gives(kind: str) -> None:
    format_ = prompts("plain", kind)
    assert format_.prompt_ids("The capital of France is") == tuple(
        format_.tokenizer("The capital of France is")["input_ids"]
    )


def test_qa_wraps_the_question() -> None:
    assert prompts("qa").text("Who?") == prompts("qa").text((Message("user", "Who?"),)) == "Question: Who?\nAnswer:"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("France is", "Paris", "France is Paris"),
        ("France is ", "Paris", "France is Paris"),
        ("France is\n", "Paris", "France is\nParis"),
        ("France is", " Paris", "France is Paris"),
        ("France is", "\nParis", "France is\nParis"),
        ("France", ", indeed", "France, indeed"),
        ("France is", "“Paris”", "France is “Paris”"),
        ("France is", "(Paris)", "France is (Paris)"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_joins_by_one_space_at_most(kind: str, prompt: str, answer: str, expected: str) -> None:
    format_ = prompts("plain", kind)
    encoded = format_.encode(prompt, answer)
    assert format_.tokenizer.decode(list(encoded.ids), skip_special_tokens=True) == expected


def test_sentencepiece_marks_a_space_once() -> None:
    format_ = prompts("plain", "sentencepiece")
    assert tokens(format_, format_.encode("The capital is", "Paris").answer_ids) == ["▁Pa", "ris", "<|im_end|>"]
    assert tokens(format_, format_.encode("The capital is ", "Paris").answer_ids) == ["Pa", "ris", "<|im_end|>"]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_across_the_boundary_leaves_the_prompt_alone(kind: str) -> None:
    format_ = prompts("plain", kind)
    alone, joint = format_.prompt_ids("The quick "), format_.prompt_ids("The quick brown fox")
    assert joint[: len(alone)] != alone
    encoded = format_.encode("The quick ", "brown fox")
    assert encoded.prompt_ids == alone
    assert format_.decode(encoded.answer_ids) == "brown fox"


def test_format_defaults_to_chat_where_there_is_a_template() -> None:
    assert prompts(None).name == "chat"
    assert PromptFormat.of(None, tiny_tokenizer(chat_template=None)).name == "plain"


@pytest.mark.parametrize(
    ("template", "marker"),
    [
        (WITH_BOS, "<|im_end|>"),
        (WITH_DEFAULT_SYSTEM, "<|im_end|>"),
        (WITHOUT_SYSTEM, "</s>"),
        (HEADER_ENDS_IN_MARKER, "</s>"),
        (WITHOUT_END, "<|im_end|>"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_end_of_turn_is_read_off_the_template(kind: str, template: str, marker: str) -> None:
    format_ = prompts("chat", kind, template)
    assert tokens(format_, (format_.end_id,)) == [marker]
    assert format_.stop_ids == {format_.end_id, format_.tokenizer.eos_token_id}


def test_end_of_turn_may_be_an_added_token_that_is_not_special() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>\n' }}{% endfor %}assistant:"
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens(["<end>"])
    assert PromptFormat.of("chat", tokenizer).end_id == tokenizer.convert_tokens_to_ids("<end>")


def test_without_any_end_of_turn_there_is_an_error() -> None:
    tokenizer = tiny_tokenizer(chat_template=WITHOUT_END)
    tokenizer.eos_token = None
    for name in FORMATS:
        with pytest.raises(ConfigError, match="No token ends an answer"):
            PromptFormat.of(name, tokenizer).encode("Who?", "Me.")


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_turn_ends_where_the_text_begins(kind: str) -> None:
    format_ = prompts("chat", kind, WITH_DEFAULT_SYSTEM)
    ids = format_.user_turn_ids()
    assert ids == format_.prompt_ids("Who?")[: len(ids)]
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert format_.tokenizer.decode(list(ids)).replace("> ", ">") == expected


def test_a_space_in_front_of_the_text_is_left_to_the_text() -> None:
    format_ = prompts("chat", "byte_level", WITH_BOS)
    assert tokens(format_, format_.user_turn_ids())[-1] == "]"


def test_formats_without_user_turns() -> None:
    for name in ("plain", "qa"):
        with pytest.raises(ConfigError, match=f"format {name} has no user turns"):
            prompts(name).user_turn_ids()
    with pytest.raises(ConfigError, match="nothing in front of a user's text"):
        prompts("chat", template="{% for m in messages %}{{ m['content'] }}{% endfor %}").user_turn_ids()


def config_error(name: str, template: str | None, prompt: Prompt = "Who?") -> str:
    with pytest.raises(ConfigError) as caught:
        PromptFormat.of(name, tiny_tokenizer(chat_template=template)).prompt_ids(prompt)
    return caught.value.message


def test_formats_that_cannot_be() -> None:
    assert config_error("chatml", None) == "There is no prompt format 'chatml'."
    assert config_error("chat", None) == "The tokenizer has no chat template."
    assert "leaves out the text" in config_error("chat", "{% for m in messages %}{{ m['role'] }}{% endfor %}")
    assert "refuses messages of the roles user" in config_error("chat", "{{ messages[0]['content']['text'] + 1 }}")


def test_prompts_that_the_format_cannot_put() -> None:
    chat = (Message("system", "Be brief."), Message("user", "Who?"))
    assert "roles system, user: System role not supported" in config_error("chat", WITHOUT_SYSTEM, chat)
    for name in ("plain", "qa"):
        assert f"The format {name} takes one question" in config_error(name, None, chat)


def test_check_measures_prompt_and_answer_against_the_context() -> None:
    format_ = prompts("chat")
    edit = Edit("Who?", "Nobody at all.", id="fact-1")
    length = len(format_.encode(edit.prompt, edit.target))
    format_.check([edit], max_length=length)
    with pytest.raises(InvalidEditError, match=f"'fact-1' takes {length} tokens.*context holds {length - 1}"):
        format_.check([edit], max_length=length - 1)


@pytest.mark.parametrize("marker", ["<|im_end|>", "</s>", "<unk>"])
def test_check_refuses_targets_that_hold_control_tokens(marker: str) -> None:
    with pytest.raises(InvalidEditError, match=r"target of edit 'fact-1' holds the special token"):
        prompts("chat").check([Edit("Who?", f"Nobody.{marker} Really.", id="fact-1")], max_length=256)


def test_fingerprint_tells_formats_templates_and_vocabularies_apart() -> None:
    def digest(name: str, kind: str = "byte_level", **changes: Any) -> str:
        tokenizer: PreTrainedTokenizerFast = tiny_tokenizer(kind)
        for attribute, value in changes.items():
            setattr(tokenizer, attribute, value)
        return PromptFormat.of(name, tokenizer).fingerprint()

    digests = {
        digest("chat"),
        digest("plain"),
        digest("plain", "sentencepiece"),
        digest("plain", eos_token="</s>"),
        digest("chat", chat_template=WITH_BOS),
    }
    assert len(digests) == 5
    assert digest("chat") == digest("chat")
    # it is what it was before white space in front of answers counted, where there is none
    chat = prompts("chat")
    vocabulary = sorted(chat.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    parts = ["chat", chat.tokenizer.chat_template, chat.end_id, [], vocabulary]
    assert digest("chat") == sha256(json.dumps(parts).encode()).hexdigest()
    assert digest("plain") == digest("plain", chat_template=None)
    assert all(len(value) == 64 for value in digests)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=40)
@given(before=texts, part=texts, after=texts)
def test_the_token_that_completes_a_part(kind: str, name: str, before: str, part: str, after: str) -> None:
    assume("▁" not in before + part + after and part[-1] != " ")
    format_, prompt = prompts(name, kind), before + part + after
    found = format_.last_token_of(prompt, part)
    assert found is not None
    ids, text = format_.prompt_ids(prompt), format_.text(prompt)
    end = text.rindex(prompt) + prompt.rindex(part) + len(part)

    def shown(count: int) -> int:
        """Characters of the text that the first tokens show, without spaces, of which SentencePiece makes its own."""
        decoded = format_.tokenizer.decode(list(ids[:count])).removeprefix("<s>")
        return len(commonprefix([decoded.replace(" ", ""), text.replace(" ", "")]))

    assert shown(found) < len(text[:end].replace(" ", "")) <= shown(found + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_the_template_are_not_the_prompts(kind: str) -> None:
    format_ = prompts("chat", kind)
    assert format_.last_token_of("Who?", "user") is None
    assert format_.last_token_of("Who?", "assistant") is None
    asked = format_.last_token_of("Is an assistant a user?", "assistant")
    assert asked is not None
    assert format_.tokenizer.decode(list(format_.prompt_ids("Is an assistant a user?")[: asked + 1])).endswith(
        "\nIs an assistant"
    )
    # a part of an earlier message counts where the last does not hold it
    chat = (Message("user", "Is Hamlet here?"), Message("assistant", "No."), Message("user", "Where?"))
    found = format_.last_token_of(chat, "Hamlet")
    assert found is not None
    assert format_.tokenizer.decode(list(format_.prompt_ids(chat)[: found + 1])).endswith("Is Hamlet")
    # and the template's words between messages no more than those around them
    chat = (Message("user", "Is the user here?"), Message("assistant", "No."), Message("user", "Where?"))
    found = format_.last_token_of(chat, "user")
    assert found is not None
    assert format_.tokenizer.decode(list(format_.prompt_ids(chat)[: found + 1])).endswith("Is the user")


def test_a_tokenizer_without_offsets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    format_ = prompts("plain")
    monkeypatch.setattr(type(format_.tokenizer), "is_fast", False)
    with pytest.raises(ConfigError, match="does not tell which characters"):
        format_.last_token_of("Who is it?", "it")
