"""From prompts and answers to token ids: the one place that tokenises.

- A prompt's ids are those that a served model sees; an answer's ids are put behind them and never change them.
- An answer ends in the token with which the model ends its turn, so that it learns to stop.
- No template is known by name: where a turn ends and where a user's text begins is read off renderings of the
  tokenizer's own chat template. A template that prints today's date gives other ids tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, pairwise, takewhile
from os.path import commonprefix

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_edit.edits import Edit, Message, Prompt
from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.validation import shown


FORMATS = ("chat", "plain", "qa")
QUESTION, ANSWER = "Qhfedit", "Ahfedit"  # stand for a question and an answer where only the template is of interest
CLOSING = frozenset(",.;:!?%)]}»”’…，。、；：！？）")  # no space goes in front of these


@dataclass(frozen=True)
class Encoded:
    """The token ids of a prompt and its answer; the answer, end-of-turn token included, begins at `answer_start`."""

    ids: tuple[int, ...]
    answer_start: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids before the answer."""
        return self.ids[: self.answer_start]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The ids of the answer, of which the last one ends the turn."""
        return self.ids[self.answer_start :]


@dataclass(frozen=True)
class Prompting:
    """What manifests say of a prompt format: its name, and the digest of all that decides which ids a text becomes."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are put to a model.

    Args:
        name: `chat` renders the tokenizer's chat template. `plain` takes text as it is, with the special tokens that
            the tokenizer puts in front, and continues it. `qa` wraps text in `Question: ... Answer:`, then like plain.
        tokenizer: of the model; not changed.

    Raises:
        ConfigError: a format of another name, or a chat template that is missing or does not show the user's text.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise ConfigError(f"There is no prompt format {self.name!r}.", f"Use one of {', '.join(FORMATS)}.")
        if self.name != "chat":
            return
        if not self.tokenizer.chat_template:
            raise ConfigError("The tokenizer has no chat template.", "Use the format plain or qa.")
        if QUESTION not in self.text(QUESTION):
            raise ConfigError(
                "The chat template leaves out the text of the user's message.", "Use the format plain or qa."
            )

    @classmethod
    def of(cls, name: str | None, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
        """The format of that name; `None` is chat where the tokenizer has a chat template and plain elsewhere."""
        return cls(name or ("chat" if tokenizer.chat_template else "plain"), tokenizer)

    def text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it, before it becomes tokens; ConfigError where the format cannot put it."""
        if self.name == "chat":
            messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            return self._rendered(*messages, generation=True)
        if not isinstance(prompt, str):
            if len(prompt) != 1:
                raise ConfigError(
                    f"The format {self.name} takes one question, and a prompt has {len(prompt)} messages.",
                    "Use the format chat, or make the prompt one text.",
                )
            prompt = prompt[0].content
        return prompt if self.name == "plain" else f"Question: {prompt}\nAnswer:"

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids that a served model sees before it answers."""
        return self._ids(self.text(prompt))

    def last_token_of(self, prompt: Prompt, part: str) -> int | None:
        """Where in `prompt_ids(prompt)` the last occurrence of `part` is complete: the token of its last character.

        None where the prompt does not hold `part`. The words that a template puts around the prompt do not count.

        Raises:
            ConfigError: the tokenizer does not tell which characters its tokens stand for.
        """
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if not any(part in message.content for message in messages):
            return None
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} does not tell which characters its tokens stand for.",
                "Load the tokenizer with use_fast=True.",
            )
        text = self.text(prompt)
        spans = (self._span(messages, i, text) for i in reversed(range(len(messages))) if part in messages[i].content)
        found = next((place for span in spans if (place := text.rfind(part, *span)) >= 0), None)
        if found is None:  # a template that changes what it is given
            return None
        last = found + len(part) - 1
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        # several byte tokens may share a character: the last of them completes it
        holding = [i for i, (start, end) in enumerate(tokens["offset_mapping"]) if start <= last < end]
        return len(self._leading) + holding[-1] if holding else None

    def encode(self, prompt: Prompt, answer: str) -> Encoded:
        """The ids of the prompt, exactly `prompt_ids(prompt)`, then those of the answer and the end of the turn.

        In chat the white space stands between them that the template puts there. Else it is a space, unless one of
        them has white space there or the answer begins with closing punctuation.
        """
        text = self.text(prompt)
        if self.name == "chat":
            answer = self._template_space + answer
        elif not (text[-1].isspace() or answer[:1].isspace() or answer[:1] in CLOSING):
            answer = f" {answer}"
        prompt_ids = self._ids(text)
        answer_ids = self._continuation(text, answer)
        if not answer_ids:
            raise InvalidEditError(f"The answer {shown(answer)} has no tokens.", "Give it characters that show.")
        return Encoded((*prompt_ids, *answer_ids, self.end_id), len(prompt_ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of an answer's ids: special tokens, and the space that `encode` puts in front, are left out."""
        return self._decoded_behind_prompt(ids).removeprefix(self._separator)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each id of an answer adds; joined they are `decode(ids)`.

        An id that ends inside a character adds nothing of it; the one that completes the character adds it whole.
        """
        whole = self.decode(ids)
        ends = (len(commonprefix([self.decode(ids[:count]), whole])) for count in range(1, len(ids)))
        cuts = [0, *accumulate(ends, max), len(whole)] if ids else []
        return [whole[start:end] for start, end in pairwise(cuts)]

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer: what the chat template puts behind one, or the end-of-sequence token."""
        if self.name == "chat":
            conversation = self._rendered(Message("user", QUESTION), Message("assistant", ANSWER), generation=False)
            for token in self._ids(conversation.rpartition(ANSWER)[2]):
                if token in self._markers:
                    return token
                if self.tokenizer.decode([token]).strip():
                    break
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                "No token ends an answer: the chat template puts none behind one and the tokenizer has no eos_token.",
                "Set tokenizer.eos_token to the token with which the model stops.",
            )
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens at which generation stops."""
        return frozenset({self.end_id, self.tokenizer.eos_token_id} - {None})

    def text_ids(self, text: str) -> tuple[int, ...]:
        """The ids of running text, such as an article, without special tokens."""
        return self._bare_ids(text)

    def plain_tokens(self) -> tuple[int, ...]:
        """Every token that is text, ascending."""
        return tuple(sorted(set(self.tokenizer.get_vocab().values()) - self._special))

    @cached_property
    def turns(self) -> PromptFormat | None:
        """The chat format of the same tokenizer, where a user's turn can be begun in it."""
        try:
            chat = self if self.name == "chat" else PromptFormat("chat", self.tokenizer)
            chat.user_turn_ids()
        except ConfigError:
            return None
        return chat

    def user_turn_ids(self) -> tuple[int, ...]:
        """The ids up to where a user's text begins: from here a chat model invents questions of its own.

        Raises:
            ConfigError: the format is not chat, or its template puts nothing in front of a user's text.
        """
        if self.name != "chat":
            raise ConfigError(f"The format {self.name} has no user turns.", "Use the format chat.")
        # what two texts without a common character share; a space that would merge with the text is not among it
        one, other = (self._ids(self._rendered(Message("user", text), generation=False)) for text in ("Who", "7"))
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        ids = tuple(token for token, _ in shared)
        if not ids:
            raise ConfigError("The chat template puts nothing in front of a user's text.", "Give questions as text.")
        return ids

    def fingerprint(self) -> str:
        """sha256 of all that decides which ids a text becomes: format, template, end of turn and vocabulary."""
        template = self.tokenizer.get_chat_template() if self.name == "chat" else None
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        parts = [self.name, template, self.end_id, self._leading, vocabulary]
        if self.name == "chat" and self._template_space:  # without any the digests are those of before it counted
            parts.append(self._template_space)
        return sha256(json.dumps(parts).encode()).hexdigest()

    def described(self) -> Prompting:
        """What a manifest says of it."""
        return Prompting(self.name, self.fingerprint())

    def check(self, edits: Iterable[Edit], max_length: int | None) -> None:
        """Refuse edits that cannot be taught.

        Args:
            edits: to look through.
            max_length: how many tokens the model's context holds, if that is known.

        Raises:
            InvalidEditError: prompt and target exceed the context, or the target holds text that becomes a special
                token, such as the end-of-turn marker or the token for unknown characters.
            ConfigError: the format cannot put a prompt.
        """
        for edit in edits:
            encoded = self.encode(edit.prompt, edit.target)
            if max_length is not None and len(encoded) > max_length:
                raise InvalidEditError(
                    f"Edit {edit.id!r} takes {len(encoded)} tokens ({encoded.answer_start} of them for the prompt), "
                    f"and the model's context holds {max_length}.",
                    "Shorten its prompt or its target.",
                )
            special = [token for token in encoded.answer_ids[:-1] if token in self._special]
            if special:
                raise InvalidEditError(
                    f"The target of edit {edit.id!r} holds the special token "
                    f"{self.tokenizer.convert_ids_to_tokens(special[0])!r}, which the model cannot answer as text.",
                    "Reword the target.",
                )

    def _rendered(self, *messages: Message, generation: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [message.to_json() for message in messages], tokenize=False, add_generation_prompt=generation
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"The chat template refuses messages of the roles {roles}: {error}.",
                "Use messages that it takes (many take no system message), or the format plain or qa.",
            ) from error

    def _bare_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _leading(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of text; a chat template brings its own."""
        if self.name == "chat":
            return ()
        bare = self._bare_ids("a")
        whole = tuple(self.tokenizer("a")["input_ids"])
        return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare)

    @cached_property
    def _template_space(self) -> str:
        """The white space that the chat template puts between the prompt and the assistant's text, and that alone."""
        prompt = self.text(QUESTION)
        conversation = self._rendered(Message("user", QUESTION), Message("assistant", ANSWER), generation=False)
        if not conversation.startswith(prompt):
            return ""
        between = conversation[len(prompt) :].partition(ANSWER)[0]
        return "" if between.strip() else between

    def _span(self, messages: Sequence[Message], i: int, text: str) -> tuple[int, int]:
        """Where message `i` stands in `text`, as all of them are rendered: what another text in its place changes."""
        swapped = (*messages[:i], Message(messages[i].role, QUESTION), *messages[i + 1 :])
        before, _, behind = self.text(swapped).rpartition(QUESTION)
        return len(commonprefix([before, text])), len(text) - len(behind)

    def _ids(self, text: str) -> tuple[int, ...]:
        return (*self._leading, *self._bare_ids(text))

    def _continuation(self, text: str, answer: str) -> tuple[int, ...]:
        """The ids that `answer` adds behind `text`.

        Where the two merge into one token, the ids are those behind a character that does not merge with the answer:
        a tokenizer that marks the beginning of text then sets no mark, as it would in front of the answer alone.
        """
        cuts = ((self._ids(head), self._ids(head + answer)) for head in (text, "\n", "a", ""))
        return next(joint[len(head) :] for head, joint in cuts if joint[: len(head)] == head)

    def _decoded_behind_prompt(self, ids: Iterable[int]) -> str:
        """The exact text of ids that follow others: at the beginning of text, tokenizers may swallow a space."""
        anchor = self._bare_ids("a")
        head, whole = (
            self.tokenizer.decode(list(part), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for part in (anchor, (*anchor, *ids))
        )
        return whole[len(head) :]

    @cached_property
    def _separator(self) -> str:
        """The space that stands in front of an answer: put there by `encode`, or by the tokenizer after a marker."""
        return self._decoded_behind_prompt(self.encode(QUESTION, ANSWER).answer_ids).removesuffix(ANSWER)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Tokens that are no text."""
        added = self.tokenizer.added_tokens_decoder
        return self.stop_ids | {*self.tokenizer.all_special_ids, *(id for id in added if added[id].special)}

    @cached_property
    def _markers(self) -> frozenset[int]:
        """Tokens that can end a turn; some models have theirs as an added token that is not declared special."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset({*self.tokenizer.all_special_ids, *(id for id in added if added[id].content.strip())})
