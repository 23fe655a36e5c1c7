"""Causal tracing (ROME, arXiv 2202.05262): which states of which tokens carry what a model knows.

The subject's token embeddings are drowned in noise, so that the model no longer gives its answer. Then clean states
are put back at one token and layer at a time; what brings the answer back carries it.

- Tracing needs something the model knows. The answer traced is therefore always the base's own: the first tokens of
  its greedy answer to the edit's prompt, never the edit's target, which it does not know yet.
- An answer's score is the geometric mean of its tokens' probabilities, exp(mean log likelihood): for one token its
  probability, for several a figure that their number does not shrink.
- An effect is the score with clean states put back minus the score without, the mean over draws of the noise (ROME's
  indirect effect). Tokens before the noise see nothing of it and have no effect; they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError
from hf_edit.methods.locating.tracing import Case, case_of, spread_of_embeddings, trace_case
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat


CLASSES = ("first subject token", "middle subject tokens", "last subject token", "later tokens", "last token")
"""Classes of prompt tokens, in order. Where an edit names no subject, its whole question stands for it; a subject of
one token has only a last token, and one that ends the prompt leaves no last token beside it."""
RESTORED = ("mlp", "stream")


@dataclass(frozen=True, eq=False)
class EditEffects:
    """What was traced for one edit.

    Args:
        id: of the edit.
        subject: what the noise was put on; None: the whole question.
        answer: the traced answer, by the base itself.
        tokens: the prompt's tokens as text, from the first one under noise on; special tokens are empty.
        classes: of these tokens, indices into `CLASSES`.
        clean: the answer's score without noise.
        corrupted: its score under noise, the mean over the draws.
        effects: (tokens, layers).
    """

    id: str
    subject: str | None
    answer: str
    tokens: tuple[str, ...]
    classes: tuple[int, ...]
    clean: float
    corrupted: float
    effects: Tensor


@dataclass(frozen=True, eq=False)
class Effects:
    """What was traced for a set of edits.

    Args:
        restored: `mlp` or `stream`.
        window: how many layers were put back together.
        edits: per edit.
    """

    restored: str
    window: int
    edits: tuple[EditEffects, ...]

    @cached_property
    def mean(self) -> Tensor:
        """(classes, layers) the mean effect over edits, each edit's tokens of a class averaged first; else NaN."""
        rows = []
        for index in range(len(CLASSES)):
            of_class = [torch.tensor(e.classes) == index for e in self.edits]
            means = [e.effects[own].mean(dim=0) for e, own in zip(self.edits, of_class, strict=True) if own.any()]
            nothing = torch.full_like(self.edits[0].effects[0], torch.nan)
            rows.append(torch.stack(means).mean(dim=0) if means else nothing)
        return torch.stack(rows)

    def to_json(self) -> dict[str, Any]:
        """JSON values; a class without tokens is null."""
        mean = {
            name: None if row.isnan().any() else _rounded(row) for name, row in zip(CLASSES, self.mean, strict=True)
        }
        edits = [
            {
                "id": e.id,
                "subject": e.subject,
                "answer": e.answer,
                "clean": round(e.clean, 6),
                "corrupted": round(e.corrupted, 6),
                "tokens": list(e.tokens),
                "classes": [CLASSES[index] for index in e.classes],
                "effects": [_rounded(row) for row in e.effects],
            }
            for e in self.edits
        ]
        return {"restored": self.restored, "window": self.window, "mean": mean, "edits": edits}


def trace_effects(
    model: EditableModel,
    prompts: PromptFormat,
    edits: EditSet,
    progress: Progress,
    *,
    restored: str = "mlp",
    window: int | None = None,
    noise: float = 3.0,
    samples: int = 3,
    answer_tokens: int = 8,
    seed: int = 0,
) -> Effects:
    """Trace every layer and every token from the noise on; the model is left as it was.

    Args:
        edits: their prompts and subjects count, not their targets.
        restored: `mlp`: the outputs of the MLPs of a window of layers at one token; the rest goes on from the noise.
            `stream`: the residual stream leaving one layer there, and with it all that came before.
        window: layers around each whose MLP outputs are put back together; none: a fifth of the depth.
        noise: standard deviation of the Gaussian noise, in units of that of the embeddings it is put on.
        samples: draws of the noise; the same ones for every edit.
        answer_tokens: longest part of the base's answer that is scored, its end of turn included.

    Raises:
        ConfigError: a number out of its range, an unknown `restored`, or a tokenizer that tells no offsets.
        InvalidEditError: a prompt that leaves no room for the answer, or that the template does not show as it is.
    """
    _check(restored, window, noise, samples, answer_tokens)
    width = 0 if restored == "stream" else window or max(1, round(0.2 * model.n_layers))
    with borrowed(model.model), torch.no_grad():
        cases = [case_of(model, prompts, edit, answer_tokens) for edit in edits]
        scale = noise * spread_of_embeddings(model, cases)
        progress.stage("tracing", len(cases) * model.n_layers)
        found = tuple(
            EditEffects(
                case.edit.id,
                case.subject,
                prompts.decode(case.answer_ids),
                tuple(prompts.pieces(case.prompt_ids)[case.first :]),
                _classes(case),
                *trace_case(model, case, width, scale, samples, seed, progress),
            )
            for case in cases
        )
    return Effects(restored, max(1, width), found)


def propose_layers(effects: Effects, count: int, token: str | None = None) -> tuple[int, ...]:
    """The `count` neighbouring layers of the largest summed mean effect, ascending; of equal ones the lowest.

    Args:
        token: the class of `CLASSES` at which to look, the one where the edit will be written; none: the last subject
            token if every edit names its subject, else the prompt's last token.

    Raises:
        ConfigError: more layers than there are, or a class that no token belongs to.
    """
    check_choice(effects.mean.shape[1], count, token)
    present = [name for name, row in zip(CLASSES, effects.mean, strict=True) if not row.isnan().any()]
    if token is None:
        named = all(edit.subject is not None for edit in effects.edits) or CLASSES[-1] not in present
        token = "last subject token" if named else CLASSES[-1]
    if token not in present:
        raise ConfigError(f"No token traced is of the class {token!r}.", f"Choose one of {', '.join(present)}.")
    sums = effects.mean[CLASSES.index(token)].unfold(0, count, 1).sum(dim=1)
    first = int(sums.argmax())
    return tuple(range(first, first + count))


def check_choice(n_layers: int, count: int, token: str | None) -> None:
    """Refuse what `propose_layers` could not find in any effects: ConfigError. Worth asking before tracing."""
    if not 1 <= count <= n_layers:
        raise ConfigError(f"{count} layers were asked for.", f"Ask for 1 to {n_layers}.")
    if token is not None and token not in CLASSES:
        raise ConfigError(f"There is no class of tokens {token!r}.", f"Choose one of {', '.join(CLASSES)}.")


def _check(restored: str, window: int | None, noise: float, samples: int, answer_tokens: int) -> None:
    if restored not in RESTORED:
        raise ConfigError(f"{restored!r} cannot be restored.", f"Choose one of {', '.join(RESTORED)}.")
    if restored == "stream" and window is not None:
        raise ConfigError(f"window = {window} has no meaning for the stream.", "Leave it out, or restore mlp.")
    for name, value in (("window", window), ("samples", samples), ("answer_tokens", answer_tokens)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} is below 1.", "Give 1 or more.")
    if not noise > 0:
        raise ConfigError(f"noise = {noise:g} is not above 0.", "Without noise there is nothing to trace.")


def _classes(case: Case) -> tuple[int, ...]:
    """Of the prompt's tokens from the noise on; later rules give way to earlier ones."""
    end = len(case.prompt_ids) - 1
    return tuple(
        2 if t == case.last else 0 if t == case.first else 1 if t < case.last else 4 if t == end else 3
        for t in range(case.first, end + 1)
    )


def _rounded(row: Tensor) -> list[float]:
    return [round(value, 6) for value in row.tolist()]
