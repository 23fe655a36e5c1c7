"""What an evaluation is to do, and what is asked beside the edits' own probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_edit.datasets.records import Case
from hf_edit.edits import Probe, Prompt
from hf_edit.evaluation.hops import Hop
from hf_edit.evaluation.unrelated import unrelated_prompts
from hf_edit.settings import Settings, setting
from hf_edit.validation import checked_fields, checked_items, checked_object, checked_text


SHORTEST_LIMIT = 64


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Which evaluators run, and how questions are put."""

    evaluators: tuple[str, ...] | None = setting(None, "Evaluators by name. None: all that there are probes for.")
    format: str | None = setting(
        None,
        "Prompt format; None is the pack's, or chat where the tokenizer has a template.",
        choices=("chat", "plain", "qa"),
    )
    max_new_tokens: int | None = setting(
        None,
        f"Where answers to the edits' questions are cut off, one limit for all. None: twice the longest target, and "
        f"{SHORTEST_LIMIT} at least.",
        at_least=1,
    )
    probe_tokens: int = setting(48, "Where answers to all other questions are cut off.", at_least=1)
    drift_questions: int = setting(32, "Most questions of a kind whose answers' divergence is taken.", at_least=1)
    drift_tokens: int = setting(32, "Tokens of each such answer.", at_least=1)
    strangers: int = setting(
        2, "Questions of the same kind to invent for each edit, where none are given.", at_least=1
    )
    perplexity_tokens: int = setting(8192, "How much of the text is scored.", at_least=2)
    retention: int = setting(100, "How many of the first edits are looked at apart from the others.", at_least=1)
    bertscore_model: str | None = setting(None, "An encoder for BERTScore: folder, or id in the local cache.")
    bertscore_layer: int = setting(-1, "Which of its hidden states is compared; -1 is the last.")
    sentence_model: str | None = setting(
        None, "An encoder for the sentence cosine of anyedit_compat: folder, or id in the local cache."
    )
    tasks: tuple[str, ...] = setting((), "Tasks of lm-eval, for the evaluator general.")
    task_limit: int | None = setting(None, "Records of each task. None: all.", at_least=1)
    batch: int = setting(32, "Questions answered at a time.", at_least=1)
    seed: int = setting(0, "Of intervals and of invented questions.", at_least=0)


@dataclass(frozen=True)
class Material:
    """What is known beyond the edits themselves.

    Args:
        old_answers: edit id -> the answer that the edit replaces.
        aliases: an answer -> other ways to say it, which count as well, whatever the question.
        hops: edit id -> questions several steps away.
        strangers: questions of the same kind as the edits', about things that are not edited. None given: the base
            invents some.
        unrelated: questions that have nothing to do with any edit.
        text: running text for perplexity.
        own_aliases: edit id -> an answer to its questions -> what else counts there.
        layout: how the file of the edits is written, where that is known: some figures as published depend on it.
    """

    old_answers: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hops: Mapping[str, Sequence[Hop]] = field(default_factory=dict)
    strangers: Sequence[Prompt] = ()
    unrelated: Sequence[Prompt] = field(default_factory=unrelated_prompts)
    text: str | None = None
    own_aliases: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    layout: str | None = None

    def accepted(self, answer: str, edit: str | None = None) -> tuple[str, ...]:
        """The answer and its aliases, to a question of an edit."""
        own = self.own_aliases.get(edit, {}) if edit is not None else {}
        return tuple(dict.fromkeys((answer, *self.aliases.get(answer, ()), *own.get(answer, ()))))

    @classmethod
    def of(cls, cases: Iterable[Case], layout: str | None = None) -> Material:
        """What records of a data set know beside their edits."""
        old: dict[str, str] = {}
        aliases: dict[str, Mapping[str, Sequence[str]]] = {}
        hops: dict[str, list[Hop]] = {}
        for case in cases:
            if case.old is not None:
                old[case.edit.id] = case.old
            if case.aliases:
                aliases[case.edit.id] = case.aliases
            if case.hops:
                hops[case.edit.id] = [Hop(prompt, tuple(some)) for prompt, some in case.hops]
        return cls(old, own_aliases=aliases, hops=hops, layout=layout)

    def with_json(self, value: Mapping[str, Any]) -> Material:
        """With JSON values in place of its own: `old_answers`, `aliases`, `strangers`, `unrelated`, all optional.

        Raises:
            InvalidEditError: a field is unknown or of the wrong type.
        """
        given = checked_fields(
            value, "The material", required=(), optional=("old_answers", "aliases", "strangers", "unrelated")
        )
        plain: dict[str, Any] = {}
        for name in set(given) & {"strangers", "unrelated"}:
            plain[name] = [Probe(item).prompt for _, item in checked_items(given[name], f"The field {name}")]
        if "old_answers" in given:
            plain["old_answers"] = {
                id: checked_text(answer, f"The old answer of {id!r}")
                for id, answer in checked_object(given["old_answers"], "The field old_answers").items()
            }
        if "aliases" in given:
            plain["own_aliases"] = {}
            plain["aliases"] = {
                answer: [checked_text(one, f"An alias of {answer!r}") for _, one in checked_items(some, "The aliases")]
                for answer, some in checked_object(given["aliases"], "The field aliases").items()
            }
        return replace(self, **plain)
