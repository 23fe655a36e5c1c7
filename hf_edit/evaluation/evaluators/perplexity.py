"""How well the model still predicts running text: the cheap alarm for collapse."""

from __future__ import annotations

from itertools import chain

from hf_edit.batching import batched
from hf_edit.errors import ConfigError
from hf_edit.evaluation.drift import SEQUENCE, sequence_losses
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.packs.evaluation import FIXED


class Perplexity(Evaluator):
    """Of the beginning of the text that is given."""

    name = "perplexity"
    metrics = {
        "text": About(
            f"Perplexity of running text, in stretches of up to {SEQUENCE} tokens.",
            FIXED,
            higher_is_better=False,
            statistic="exp_mean",
        )
    }
    needs = "a text (--text, or Material(text=))"

    def applies(self, task: Task) -> bool:
        return bool(task.material.text)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        ids, length = stretches(subject.task, subject.view.max_length)
        losses = subject.shared(
            "losses",
            list(batched(ids, length)),
            lambda some: sequence_losses(subject.model, [*chain.from_iterable(some)], length),
        )
        return Observed({"text": losses})


def stretches(task: Task, context: int | None) -> tuple[tuple[int, ...], int]:
    """The tokens of the text that are scored, and how many of them are run together.

    Args:
        context: the model's.

    Raises:
        ConfigError: the text has a token at most.
    """
    ids = task.prompts.text_ids(task.material.text or "")[: task.config.perplexity_tokens]
    length = min(SEQUENCE, context or SEQUENCE, len(ids))
    if length < 2:
        raise ConfigError(f"The text for perplexity has {len(ids)} tokens.", "Give a longer one.")
    return ids[: len(ids) // length * length], length
