"""Questions whose answers follow from edits (portability, several hops), answered freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from hf_edit.edits import Prompt
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.evaluation.matching import mentions
from hf_edit.prompting import PromptFormat


@dataclass(frozen=True)
class Hop:
    """A question, and every answer to it that counts, aliases among them."""

    prompt: Prompt
    accepted: tuple[str, ...]

    def given(self, facts: str) -> Hop:
        """The same question with facts told in front of it: what reading them would be worth."""
        return replace(self, prompt=preceded(self.prompt, facts))


@dataclass(frozen=True)
class Reply:
    """What was said, verbatim, and whether its first sentence mentions an accepted answer."""

    answer: str
    right: bool


def replies(
    model: PreTrainedModel, prompts: PromptFormat, hops: Sequence[Hop], max_new_tokens: int = 32, batch: int = 32
) -> list[Reply]:
    """Greedy answers with a natural stop, cut at `max_new_tokens`, in order."""
    said = greedy_answers(model, prompts, [hop.prompt for hop in hops], max_new_tokens, batch)
    return [Reply(answer, mentions(answer, hop.accepted)) for answer, hop in zip(said, hops, strict=True)]


def preceded(prompt: Prompt, text: str) -> Prompt:
    """A question with text in front of it."""
    if isinstance(prompt, str):
        return f"{text}\n{prompt}"
    *before, last = prompt
    return (*before, replace(last, content=f"{text}\n{last.content}"))
