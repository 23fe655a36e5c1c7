"""Causal tracing of one edit: noise on the subject's embeddings, clean states put back, and the answer's score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.edits import Edit, question_of
from hf_edit.errors import InvalidEditError
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import continuations
from hf_edit.models.prefix import States
from hf_edit.models.trace import Trace
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat


BATCH_TOKENS = 2048  # tokens that run together


@dataclass(frozen=True, eq=False)
class Case:
    """One edit's prompt with the base's own answer behind it.

    Args:
        edit: whose prompt and subject count, not its target.
        subject: what stands at the tokens under noise; None: the whole question.
        prompt_ids: as a served model sees them.
        answer_ids: the first tokens of the base's greedy answer, its end of turn included where it comes.
        first, last: the prompt's tokens under noise, both included.
        repeats: tokens, counted over prompt and answer, where the answer says the subject again. They are put under
            noise as well, since the rest of the answer could be read off them.
    """

    edit: Edit
    subject: str | None
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    first: int
    last: int
    repeats: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads: all but the last token of the answer."""
        return (*self.prompt_ids, *self.answer_ids[:-1])

    @property
    def disturbed(self) -> list[int]:
        """Positions of all tokens under noise."""
        return [*range(self.first, self.last + 1), *(t for t in self.repeats if t < len(self.ids))]


def case_of(model: EditableModel, prompts: PromptFormat, edit: Edit, answer_tokens: int) -> Case:
    """What is to be traced for an edit; where its subject is not in the prompt, the whole question is disturbed.

    Raises:
        InvalidEditError: prompt and answer exceed the context, or the question is not found in the rendered prompt.
        ConfigError: the tokenizer tells no offsets.
    """
    ids = prompts.prompt_ids(edit.prompt)
    if model.max_length is not None and len(ids) + answer_tokens > model.max_length:
        raise InvalidEditError(
            f"The prompt of edit {edit.id!r} takes {len(ids)} tokens and its answer {answer_tokens}, and the model's "
            f"context holds {model.max_length}.",
            "Shorten the prompt, or trace fewer tokens of the answer.",
        )
    subject, span = edit.subject, None
    if subject is not None:
        span = _span(prompts, edit, ids, subject)
    if span is None:
        subject, span = None, _span(prompts, edit, ids, question_of(edit.prompt).strip())
    if span is None:
        raise InvalidEditError(
            f"The question of edit {edit.id!r} is not to be found in what its prompt becomes.",
            "Use a prompt format that leaves the text as it is.",
        )
    (written,) = continuations(model.model, [ids], (), answer_tokens)
    stop = next((i for i, token in enumerate(written) if token in prompts.stop_ids), answer_tokens)
    answer = tuple(written[: stop + 1])
    repeats = [] if subject is None else _holding(prompts.pieces(answer), subject)
    return Case(edit, subject, ids, answer, *span, tuple(len(ids) + index for index in repeats))


def _span(prompts: PromptFormat, edit: Edit, ids: tuple[int, ...], part: str) -> tuple[int, int] | None:
    """First and last token of the last occurrence of `part` in the prompt, None if it has none."""
    last = prompts.last_token_of(edit.prompt, part)
    if last is None:
        return None
    # the fewest tokens up to there that say it; what a tokenizer writes otherwise counts as one token
    holding = (first for first in range(last, -1, -1) if part in prompts.decode(ids[first : last + 1]))
    return next(holding, last), last


def _holding(pieces: Sequence[str], part: str) -> list[int]:
    """The pieces of a text in which an occurrence of `part` lies, or some of it."""
    bounds = list(pairwise(accumulate(map(len, pieces), initial=0)))
    found = [match.span() for match in re.finditer(re.escape(part), "".join(pieces))]
    return [i for i, (start, end) in enumerate(bounds) if any(start < b and a < end for a, b in found)]


def spread_of_embeddings(model: EditableModel, cases: Iterable[Case]) -> float:
    """Standard deviation of all coordinates of the embeddings of the tokens that are put under noise."""
    ids = [case.ids[position] for case in cases for position in case.disturbed]
    embeddings = model.model.get_input_embeddings()(torch.tensor([ids], device=model.device))
    return float(embeddings.float().std())


def trace_case(
    model: EditableModel, case: Case, width: int, scale: float, samples: int, seed: int, progress: Progress
) -> tuple[float, float, Tensor]:
    """All layers of one edit and all its prompt tokens from the noise on. Run it without gradients.

    For each layer the blocks below those concerned are not run again: their states under noise are kept.

    Args:
        width: layers around each whose MLP outputs are put back together; 0: the stream leaving that layer instead.
        scale: standard deviation of the noise.
        samples: draws of the noise.

    Returns:
        The answer's score without noise, under noise, and (tokens, layers) what putting back adds to the latter.
    """
    row = torch.tensor([case.ids], device=model.device)  # (1, T)
    clean = model.trace(row, entering=[0], outputs=model.linears, leaving=range(model.n_layers))
    noise = _noise(model, case, scale, samples, seed)
    with model.embeddings_shifted(noise):
        disturbed = model.trace(row.expand(samples, -1), entering=range(model.n_layers)).entering
    answer = _Answer(model, case)
    corrupted = answer.scores(0, disturbed[0]).mean()

    tokens = torch.arange(case.first, len(case.prompt_ids))
    pairs = torch.cartesian_prod(tokens, torch.arange(samples))  # (N, 2)
    effects = torch.empty(len(tokens), model.n_layers, dtype=corrupted.dtype)
    for layer in range(model.n_layers):
        lowest, values = _put_back(model, clean, layer, width)
        scores = []
        for token, sample in (part.T for part in pairs.split(max(1, BATCH_TOKENS // row.shape[1]))):
            where = F.one_hot(token, row.shape[1]).bool().to(model.device)  # (B, T)
            states = disturbed[lowest]
            with model.replaced(_from(answer.begin, values), where[:, answer.begin :]):
                scores.append(answer.scores(lowest, states[sample.to(states.device)]))
        effects[:, layer] = torch.cat(scores).reshape(len(tokens), samples).mean(dim=1) - corrupted
        progress.step()
    return float(answer.scores(0, clean.entering[0])), float(corrupted), effects


def _noise(model: EditableModel, case: Case, scale: float, samples: int, seed: int) -> Tensor:
    """(S, T, width of the embeddings), zero where no noise is put."""
    width = model.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.zeros(samples, len(case.ids), width)
    noise[:, case.disturbed] = scale * torch.randn(samples, len(case.disturbed), width, generator=generator)
    return noise.to(model.device)


def _put_back(model: EditableModel, clean: Trace, layer: int, width: int) -> tuple[int, Trace]:
    """The lowest block concerned, and what replaces the states under noise."""
    if width == 0:
        return layer, Trace(leaving={layer: clean.leaving[layer]})
    lowest, end = layer - width // 2, layer - width // 2 + width
    linears = model.linears[max(0, lowest) : end]
    return linears[0].layer, Trace(outputs={linear.name: clean.outputs[linear.name] for linear in linears})


def _from(first: int, values: Trace) -> Trace:
    """Of the tokens from `first` on."""
    return Trace(
        outputs={name: value[:, first:] for name, value in values.outputs.items()},
        leaving={layer: value[:, first:] for layer, value in values.leaving.items()},
    )


class _Answer:
    """Scores a case's answer; what comes before the noise runs once, as its attention states."""

    def __init__(self, model: EditableModel, case: Case) -> None:
        self.model, self.case = model, case
        row = torch.tensor([case.ids], device=model.device)
        self.begin = case.first if model.keeps_states else 0
        self.tail = row[:, self.begin :]
        self.prefix = model.extended(model.no_prefix(0), row[:, : self.begin]) if self.begin else None
        self.answering = torch.arange(self.begin, row.shape[1], device=model.device) >= len(case.prompt_ids) - 1

    def scores(self, layer: int, states: Tensor) -> Tensor:
        """Geometric means of the probabilities of the answer's tokens, (B,) on the CPU.

        Args:
            states: (B, T, d), entering block `layer`.
        """
        B, prefix = states.shape[0], self.prefix
        logits = self.model.logits_at(
            self.tail.expand(B, -1),
            self.answering.expand(B, -1),
            start={layer: states[:, self.begin :]},
            prefix=prefix.above(layer).rows(torch.zeros(B, dtype=torch.long)) if isinstance(prefix, States) else None,
        )  # (B n, V)
        labels = torch.tensor(self.case.answer_ids, device=logits.device).repeat(B)
        accumulate = torch.promote_types(logits.dtype, torch.float32)
        losses = F.cross_entropy(logits.to(accumulate), labels, reduction="none")
        return losses.reshape(B, -1).mean(dim=1).neg().exp().cpu()
