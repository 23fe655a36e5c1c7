"""Edits as training and validation see them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from hf_edit.edits import Edit
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat


@dataclass(frozen=True)
class Example:
    """One edit in tokens.

    Args:
        edit: its prompt and answer.
        paraphrases: other prompts with that answer; the edit itself where it has none.
        unrelated: unrelated questions with the data's answers.
    """

    edit: Encoded
    paraphrases: tuple[Encoded, ...]
    unrelated: tuple[Encoded, ...]

    @classmethod
    def of(cls, edit: Edit, prompts: PromptFormat) -> Example:
        """The tokens of an edit."""
        own = prompts.encode(edit.prompt, edit.target)
        others = tuple(prompts.encode(paraphrase, edit.target) for paraphrase in edit.paraphrases)
        unrelated = tuple(prompts.encode(probe.prompt, probe.answer) for probe in edit.locality if probe.answer)
        return cls(own, others or (own,), unrelated)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch of examples as the edited blocks see them."""

    edits: Sequence[Text]
    paraphrases: Sequence[Text]

    @classmethod
    def of(cls, model: EditableModel, examples: Sequence[Example], first: int) -> Prepared:
        """The batch, with what enters block `first`."""
        edits = prepared(model, [example.edit for example in examples], first)
        others = prepared(model, [text for example in examples for text in example.paraphrases], first)
        return cls(edits, others)


def unrelated_of(examples: Iterable[Example]) -> list[Encoded]:
    """Every unrelated question of the examples, once."""
    return list(dict.fromkeys(text for example in examples for text in example.unrelated))


def split(examples: Sequence[Example], share: float, most: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and a share of them, at most `most` and never all, to validate on; in their order."""
    count = min(most, round(share * len(examples)), len(examples) - 1)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]
