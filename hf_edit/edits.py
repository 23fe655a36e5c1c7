"""Edits: what a model shall answer to what, checked at the door.

- Everything is frozen, and normalised on construction: lists become tuples, mappings become messages and probes.
- Every error names the value that is wrong; in a file also the line.
- The readers of benchmark formats stand above this module and are looked up only when called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, overload

from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.validation import (
    checked_fields,
    checked_items,
    checked_text,
    kind,
    located,
    parse_json,
    read_text,
    shown,
)


ROLES = ("system", "user", "assistant")
MAX_ID_LENGTH = 200


@dataclass(frozen=True)
class Message:
    """One message of a chat; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidEditError(f"A message has the role {self.role!r}.", f"Use one of {', '.join(ROLES)}.")
        checked_text(self.content, f"The content of a message of the {self.role}")

    def to_json(self) -> dict[str, str]:
        """The message as chat templates and JSON files write it."""
        return {"role": self.role, "content": self.content}


Prompt: TypeAlias = str | tuple[Message, ...]
"""Text, or chat messages of which the last is the user's."""


@dataclass(frozen=True)
class Probe:
    """A question asked to see what an edit did; `answer` is the right one, where it is known."""

    prompt: Prompt
    answer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _prompt(self.prompt, "The prompt of a probe"))
        if self.answer is not None:
            checked_text(self.answer, "The answer of a probe")

    def to_json(self) -> dict[str, Any]:
        """The probe as JSON values."""
        prompt = _prompt_to_json(self.prompt)
        return {"prompt": prompt} if self.answer is None else {"prompt": prompt, "answer": self.answer}


@dataclass(frozen=True)
class Edit:
    """Asked `prompt`, the model shall answer `target`.

    Args:
        prompt: text or chat messages; lists of `{"role", "content"}` are accepted.
        target: the whole answer, without an end-of-turn marker.
        subject: what the fact is about, for methods that need to know; without outer white space.
        paraphrases: other prompts that shall get the same answer. Held out: only the training of hypernetworks takes
            its loss on them, and polish where `train_paraphrases` says so.
        locality: unrelated probes, whose answers shall not change.
        portability: probes whose answers follow from the edit; each has an answer.
        id: names the edit in files, reports and errors; made from prompt and target when empty.
        source: where the fact comes from.

    Raises:
        InvalidEditError: a field is empty, of the wrong type or makes no sense.
    """

    prompt: Prompt
    target: str
    subject: str | None = None
    paraphrases: tuple[Prompt, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    id: str = ""
    source: str | None = None

    def __post_init__(self) -> None:
        prompt = _prompt(self.prompt, "The prompt")
        checked_text(self.target, "The target")
        if self.target.strip() == question_of(prompt).strip():
            raise InvalidEditError(
                f"The target equals the prompt ({shown(self.target)}).", "Give the answer that the model shall learn."
            )
        if self.subject is not None:
            given = checked_text(self.subject, "The subject")
            if given != given.strip():  # written again as it was: the digests of packs that are there are over it
                object.__setattr__(self, "_subject_as_given", given)
                object.__setattr__(self, "subject", given.strip())
        if self.source is not None:
            checked_text(self.source, "The source")
        normalised = {
            "prompt": prompt,
            "paraphrases": tuple(
                _prompt(item, f"Paraphrase {i}")
                for i, item in checked_items(self.paraphrases, "The field paraphrases")
            ),
            "locality": _probes(self.locality, "locality"),
            "portability": _probes(self.portability, "portability"),
            "id": _derived_id(prompt, self.target) if self.id == "" else _checked_id(self.id),
        }
        for name, value in normalised.items():
            object.__setattr__(self, name, value)
        for i, probe in enumerate(self.portability):
            if probe.answer is None:
                raise InvalidEditError(
                    f"Portability probe {i} ({shown(question_of(probe.prompt))}) has no answer.",
                    "Give the answer that follows from the edit, or make it a locality probe.",
                )

    def to_json(self) -> dict[str, Any]:
        """The edit as JSON values, in a fixed order and without empty fields."""
        values = {
            "id": self.id,
            "prompt": _prompt_to_json(self.prompt),
            "target": self.target,
            "subject": vars(self).get("_subject_as_given", self.subject),
            "paraphrases": [_prompt_to_json(prompt) for prompt in self.paraphrases],
            "locality": [probe.to_json() for probe in self.locality],
            "portability": [probe.to_json() for probe in self.portability],
            "source": self.source,
        }
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Edit:
        """The edit that `to_json` wrote; `null` counts as absent.

        Raises:
            InvalidEditError: no object, a field that no edit has, or one missing that every edit needs.
        """
        optional = [field.name for field in fields(cls)][2:]
        return cls(**checked_fields(value, "The edit", required=("prompt", "target"), optional=optional))


class EditSet(Sequence[Edit]):
    """An immutable, non-empty sequence of edits that can be taught together: ids and prompts are unique.

    Args:
        edits: in the order in which they are to be kept.

    Raises:
        InvalidEditError: no edits, an id twice, or a prompt twice (with the same answer or with another).
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, edits: Iterable[Edit]) -> None:
        unique = _Unique()
        for edit in edits:
            unique.add(edit)
        if not unique.by_id:
            raise InvalidEditError("There are no edits.", "Give at least one edit with a prompt and a target.")
        self._by_id = unique.by_id
        self._edits = tuple(unique.by_id.values())

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> EditSet: ...
    def __getitem__(self, index: int | slice) -> Edit | EditSet:
        return EditSet(self._edits[index]) if isinstance(index, slice) else self._edits[index]

    def __len__(self) -> int:
        return len(self._edits)

    def __eq__(self, other: object) -> bool:
        return self._edits == other._edits if isinstance(other, EditSet) else NotImplemented

    def __repr__(self) -> str:
        return f"EditSet({len(self)} edits: {self._some_ids(3)})"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in the order of the edits."""
        return tuple(self._by_id)

    def by_id(self, id: str) -> Edit:
        """The edit of that id; InvalidEditError when there is none."""
        if id not in self._by_id:
            raise InvalidEditError(f"No edit has the id {id!r}.", f"The {len(self)} ids are: {self._some_ids(10)}.")
        return self._by_id[id]

    def _some_ids(self, count: int) -> str:
        return ", ".join(self.ids[:count]) + (", ..." if len(self) > count else "")

    @classmethod
    def coerce(cls, edits: EditSet | Iterable[Edit | Mapping[str, Any]] | str | os.PathLike[str]) -> EditSet:
        """An edit set from whatever a caller has: one already, edits, JSON objects, or the path of a JSONL file."""
        if isinstance(edits, EditSet):
            return edits
        if isinstance(edits, (str, os.PathLike)):
            return cls.from_jsonl(edits)
        if isinstance(edits, Mapping) or not isinstance(edits, Iterable):
            raise InvalidEditError(
                f"The edits are {kind(edits)}.", "Give a list of edits, an EditSet or the path of a JSONL file."
            )
        items = ((f"edit {i}", item) for i, item in enumerate(edits))
        return cls._read(items, lambda item: item if isinstance(item, Edit) else Edit.from_json(item), "edits")

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> EditSet:
        """Read a UTF-8 file of one JSON object a line; blank lines are skipped.

        Raises:
            InvalidEditError: with `path:line: ` in front wherever a line is to blame.
        """
        name = os.fspath(path)
        # only a line feed ends a line: JSON strings may hold U+2028 and its like as they are
        lines = enumerate(read_text(path).split("\n"), start=1)
        items = ((f"{name}:{number}", line) for number, line in lines if line.strip())
        return cls._read(items, lambda line: Edit.from_json(parse_json(line)), name)

    @classmethod
    def _read(cls, items: Iterable[tuple[str, Any]], to_edit: Callable[[Any], Edit], whole: str) -> EditSet:
        """Edits from items that each come with the place that their errors name."""
        unique = _Unique()
        for where, item in items:
            with located(where):
                unique.add(to_edit(item))
        with located(whole):
            return cls(unique.by_id.values())

    def dumps(self) -> str:
        """The edits as JSONL text: the same edits give the same text."""
        return "".join(json.dumps(edit.to_json(), ensure_ascii=False) + "\n" for edit in self)

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write `dumps()` to a UTF-8 file; ConfigError where that is not possible."""
        try:
            Path(path).write_text(self.dumps(), encoding="utf-8", newline="\n")
        except OSError as error:
            message = f"{os.fspath(path)}: cannot be written ({error.strerror})."
            raise ConfigError(message, "Choose a path in an existing folder that you may write to.") from None

    @classmethod
    def from_unke(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read UnKEBench's JSON file: long answers, a paraphrase and sub-questions."""
        return _reader("unke").read(path, limit)

    @classmethod
    def from_editeverything(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read EditEverything's JSON file: long answers of many kinds."""
        return _reader("editeverything").read(path, limit)

    @classmethod
    def from_zsre(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read a zsRE JSON file of MEND's or MALMEN's: short answers, a paraphrase and an unrelated question."""
        return _reader("zsre").read(path, limit)

    @classmethod
    def from_counterfact(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read CounterFact's JSON file, whole or in the form with one paraphrase and one neighbour."""
        return _reader("counterfact").read(path, limit)

    @classmethod
    def from_mquake(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read MQuAKE-CF's JSON file with AKEW's long-form facts."""
        return _reader("mquake").read(path, limit)

    @classmethod
    def from_akew(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read AKEW's CounterFact or WikiUpdate JSON file: facts told in a paragraph, with sub-questions."""
        return _reader("akew").read(path, limit)

    @classmethod
    def from_ripple(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read RippleEdits' training or evaluation rows: facts, and questions on what follows from them."""
        return _reader("ripple").read(path, limit)

    @classmethod
    def from_fever(cls, path: str | os.PathLike[str], *, limit: int | None = None) -> EditSet:
        """Read FEVER's JSON file in MEND's format: claims to be called true or false."""
        return _reader("fever").read(path, limit)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        mapping: Mapping[str, Any],
        split: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        limit: int | None = None,
    ) -> EditSet:
        """Read a data set of the Hub, a `datasets.Dataset` or a list of rows; see `hf_edit.datasets.hub.read`."""
        return _reader("hub").read(
            dataset, mapping=mapping, split=split, config=config, revision=revision, limit=limit
        )


def question_of(prompt: Prompt) -> str:
    """What the user asks: the text, or the last message's."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


def prompt_key(prompt: Prompt) -> str:
    """Equal for two prompts that ask the same: text counts as a user message, white space around it as nothing."""
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return json.dumps([[message.role, message.content.strip()] for message in messages])


class _Unique:
    """Edits so far, by id; refuses one whose id or prompt was there before."""

    def __init__(self) -> None:
        self.by_id: dict[str, Edit] = {}
        self._by_prompt: dict[str, Edit] = {}

    def add(self, edit: Edit) -> None:
        key = prompt_key(edit.prompt)
        if key in self._by_prompt:
            earlier = self._by_prompt[key]
            names, question = f"Edits {earlier.id!r} and {edit.id!r}", shown(question_of(edit.prompt))
            if earlier.target == edit.target:
                message = f"{names} teach the same answer to {question}."
            else:
                answers = f"{shown(earlier.target)} and {shown(edit.target)}"
                message = f"{names} teach two answers to {question}: {answers}."
            raise InvalidEditError(message, "Keep one of the two.")
        if edit.id in self.by_id:
            raise InvalidEditError(f"The id {edit.id!r} is given to two edits.", "Give each edit an id of its own.")
        self._by_prompt[key] = self.by_id[edit.id] = edit


def _reader(name: str) -> Any:
    """A module of `hf_edit.datasets`; it builds on this module, so it is looked up only when it is needed."""
    return import_module(f"hf_edit.datasets.{name}")  # upward: readers are offered as constructors of EditSet


def _prompt(value: object, what: str) -> Prompt:
    if isinstance(value, str):
        return checked_text(value, what)
    with located(what):
        messages = tuple(_message(item, i) for i, item in checked_items(value, "A prompt that is not text"))
        if not messages:
            raise InvalidEditError("There are no messages.", "Give text, or messages of which the last is the user's.")
        if messages[-1].role != "user":
            raise InvalidEditError(
                f"The last message is of the role {messages[-1].role!r}.",
                "End with the user message that the target answers.",
            )
    return messages


def _message(value: object, i: int) -> Message:
    if isinstance(value, Message):
        return value
    return Message(**checked_fields(value, f"Message {i}", required=("role", "content"), optional=()))


def _probes(values: object, field: str) -> tuple[Probe, ...]:
    return tuple(_probe(item, f"{field} probe {i}") for i, item in checked_items(values, f"The field {field}"))


def _probe(value: object, where: str) -> Probe:
    if isinstance(value, Probe):
        return value
    with located(where):
        return Probe(**checked_fields(value, "The probe", required=("prompt",), optional=("answer",)))


def _checked_id(value: object) -> str:
    text = checked_text(value, "The id")
    if len(text) > MAX_ID_LENGTH:
        raise InvalidEditError(
            f"The id {shown(text)} has {len(text)} characters, more than {MAX_ID_LENGTH}.", "Shorten it."
        )
    if not text.isprintable() or text != text.strip():
        raise InvalidEditError(
            f"The id {shown(text)} holds control characters, line breaks or outer white space.", "Leave them out."
        )
    return text


def _derived_id(prompt: Prompt, target: str) -> str:
    return "edit-" + sha256(json.dumps([prompt_key(prompt), target]).encode()).hexdigest()[:12]


def _prompt_to_json(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [message.to_json() for message in prompt]
