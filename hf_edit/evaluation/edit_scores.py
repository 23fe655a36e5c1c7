"""How short facts are answered: the published teacher-forced scores beside exact match, edit by edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeAlias

from transformers import PreTrainedModel

from hf_edit.edits import Edit, Prompt
from hf_edit.evaluation.following import Followed, followed
from hf_edit.prompting import PromptFormat


@dataclass(frozen=True)
class EditScore:
    """One edit under one model: means over its probes of a kind, None where it has none.

    Args:
        id: of the edit.
        es, gs, ls: teacher-forced, as published: share of the answer's tokens that are the likeliest after those
            before them, on the prompt, on paraphrases, and on unrelated questions with the data set's own answers.
        exact, exact_paraphrase: greedy decoding says the answer word for word and stops; share of paraphrases.
        new_likelier, new_likelier_paraphrase: the new answer's log probability exceeds the old one's.
        neighbour_kept: share of unrelated questions whose own answer is likelier than the edit's.
    """

    id: str
    es: float
    gs: float | None
    ls: float | None
    exact: float
    exact_paraphrase: float | None
    new_likelier: float | None = None
    new_likelier_paraphrase: float | None = None
    neighbour_kept: float | None = None


Pair: TypeAlias = tuple[Prompt, str]


def edit_scores(
    model: PreTrainedModel,
    prompts: PromptFormat,
    edits: Sequence[Edit],
    old: Sequence[str] | None = None,
    batch: int = 32,
) -> list[EditScore]:
    """Scores of each edit, in order, from one forward pass over each pair of question and answer.

    Args:
        old: per edit the answer that it replaces; none: the scores that compare answers are left out.
    """
    replaced: Sequence[str | None] = [None] * len(edits) if old is None else old
    asked = dict.fromkeys(p for edit, before in zip(edits, replaced, strict=True) for p in _pairs(edit, before))
    found = dict(zip(asked, followed(model, prompts, list(asked), batch), strict=True))
    return [_score(edit, before, found) for edit, before in zip(edits, replaced, strict=True)]


def _pairs(edit: Edit, old: str | None) -> Iterator[Pair]:
    """All that is asked for one edit."""
    for prompt in (edit.prompt, *edit.paraphrases):
        yield prompt, edit.target
        if old is not None:
            yield prompt, old
    for probe in edit.locality:
        if probe.answer is not None:
            yield probe.prompt, probe.answer
            if old is not None:
                yield probe.prompt, edit.target


def _score(edit: Edit, old: str | None, found: Mapping[Pair, Followed]) -> EditScore:
    own = found[edit.prompt, edit.target]
    reworded = [found[prompt, edit.target] for prompt in edit.paraphrases]
    near = [(probe.prompt, probe.answer) for probe in edit.locality if probe.answer is not None]
    score = EditScore(
        id=edit.id,
        es=own.accuracy,
        gs=_mean([one.accuracy for one in reworded]),
        ls=_mean([found[pair].accuracy for pair in near]),
        exact=float(own.exact),
        exact_paraphrase=_mean([one.exact for one in reworded]),
    )
    if old is None:
        return score

    def likelier(prompt: Prompt, this: str, that: str) -> bool:
        return found[prompt, this].log_probability > found[prompt, that].log_probability

    return replace(
        score,
        new_likelier=float(likelier(edit.prompt, edit.target, old)),
        new_likelier_paraphrase=_mean([likelier(prompt, edit.target, old) for prompt in edit.paraphrases]),
        neighbour_kept=_mean([likelier(prompt, answer, edit.target) for prompt, answer in near]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
