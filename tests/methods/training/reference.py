"""The training engine, written down plainly: one text at a time, whole forwards, dense updates really in the weights.

No cached blocks, no batches, no side paths, no factors beyond the leaves; Adam by hand. The same draws as the fast
path, which must equal it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.ending import SCALES, UNSURE_LOSS
from hf_edit.methods.training.loop import WARM_UP
from hf_edit.methods.training.state import FORGOTTEN, UNSEEN
from hf_edit.methods.training.teacher import LIKELIEST
from hf_edit.prompting import Encoded


Dense = dict[str, Tensor]
"""Linear name -> dW (d_out, d_in)."""


@dataclass
class Learned:
    """A text to learn, cut to what is trained of its answer."""

    ids: tuple[int, ...]
    start: int
    judged: bool = True
    weight: float = 1.0


@dataclass
class Outcome:
    """What the training came to; losses and verdicts of the judged texts."""

    dense: Dense
    losses: list[float]
    right: list[bool]
    steps: int
    scale: float


def logits_with(model: PreTrainedModel, ids: Sequence[int], dense: Dense) -> Tensor:
    """(T, V), with the updates added to the weights."""
    weights = {}
    for name, update in dense.items():
        module = model.get_submodule(name)
        weights[f"{name}.weight"] = module.weight + (update.T if isinstance(module, Conv1D) else update)
    rows = torch.tensor([ids])
    inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "use_cache": False}
    return functional_call(model, weights, kwargs=inputs).logits[0]


def answered(model: PreTrainedModel, text: Learned, dense: Dense) -> tuple[Tensor, list[float]]:
    """The loss of each token of the answer, and by how much its logit exceeds the largest other one."""
    logits = logits_with(model, text.ids, dense)[text.start - 1 : -1]
    labels = torch.tensor(text.ids[text.start :])
    margins = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        margins.append(row[label] - max(row[:label] + row[label + 1 :]))
    return F.cross_entropy(logits, labels, reduction="none"), margins


def focused_loss(loss: Tensor, margins: list[float], focus: float) -> Tensor:
    """The mean, in which what is not right by half a logit counts more."""
    unclear = [i for i, margin in enumerate(margins) if margin < 0.5]
    return (1 - focus) * loss.mean() + (focus * loss[unclear].mean() if unclear else 0.0)


def joined_kl(model: PreTrainedModel, texts: Sequence[Encoded], dense: Dense) -> Tensor:
    """Mean KL(base || model) along the answers, with all but the base's likeliest tokens as one event."""
    places = []
    for text in texts:
        with torch.no_grad():
            base = logits_with(model, text.ids, {})[text.answer_start - 1 : -1].softmax(-1)
        now = logits_with(model, text.ids, dense)[text.answer_start - 1 : -1].softmax(-1)
        for p, q in zip(base, now, strict=True):
            order = p.argsort(descending=True)
            likeliest, others = order[:LIKELIEST], order[LIKELIEST:]
            kl = (p[likeliest] * (p[likeliest] / q[likeliest]).log()).sum()
            places.append(kl + p[others].sum() * (p[others].sum() / q[others].sum()).log())
    return torch.stack(places).mean()


def in_turn(pools: Sequence[Sequence[Encoded]], count: int, generator: torch.Generator) -> list[Encoded]:
    """The first of a random pool, of the next one, and so on round, each in random order; an empty one passes."""
    shuffled = [[pool[i] for i in torch.randperm(len(pool), generator=generator)] for pool in pools if pool]
    if not shuffled:
        return []
    turn = int(torch.randint(len(shuffled), (1,), generator=generator))
    turns = [shuffled[(turn + i) % len(shuffled)] for i in range(count)]
    return [pool.pop(0) for pool in turns if pool]


def adam_step(leaf: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, rate: float) -> None:
    m.mul_(0.9).add_(0.1 * grad)
    v.mul_(0.99).add_(0.01 * grad * grad)
    leaf.data -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)


def drift(
    model: PreTrainedModel,
    pools: Sequence[Sequence[Encoded]],
    count: int,
    dense: Dense,
    config: TrainingConfig,
    generator: torch.Generator,
) -> Tensor | float:
    """The weighted divergence of one step."""
    heard = in_turn(pools, max(1, round(config.drift_share * count)), generator) if config.drift_weight else []
    return config.drift_weight * joined_kl(model, heard, dense) if heard else 0.0


@torch.no_grad()
def smallest_scale(model: PreTrainedModel, texts: Sequence[Learned], dense: Dense, stop_loss: float) -> float:
    """At which all of these texts stay right, and sure enough; and by half a logit, if they were."""
    scale = 1.0
    least = [0.5 if min(answered(model, text, dense)[1]) >= 0.5 else 0.0 for text in texts]
    for smaller in SCALES if texts else ():
        seen = [answered(model, text, scaled(dense, smaller)) for text in texts]
        if any(loss.mean().item() > UNSURE_LOSS * stop_loss for loss, _ in seen):
            break
        if any(min(margins) <= wanted for (_, margins), wanted in zip(seen, least, strict=True)):
            break
        scale = smaller
    return scale


def scaled(dense: Dense, by: float) -> Dense:
    return {name: by * update for name, update in dense.items()}


def reference_training(
    model: PreTrainedModel,
    texts: Sequence[Learned],
    pools: Sequence[Sequence[Encoded]],
    leaves: Sequence[Tensor],
    dense: Callable[[], Dense],
    size: Callable[[Dense], Tensor],
    config: TrainingConfig,
    seed: int,
) -> Outcome:
    """Train the leaves, of which `dense` makes the updates."""
    generator = torch.Generator().manual_seed(seed)
    judged = [i for i, text in enumerate(texts) if text.judged]
    count = min(config.batch, 2 * len(judged), len(texts))
    budget = round(config.max_steps * len(texts) / count)
    losses, margins = [UNSEEN] * len(texts), [0.0] * len(texts)
    moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves]

    def ask(indices: Sequence[int], update: Dense, focus: float = 0.0) -> list[Tensor]:
        found = [answered(model, texts[i], update) for i in indices]
        for i, (loss, by) in zip(indices, found, strict=True):
            losses[i], margins[i] = loss.mean().item(), min(by)
        return [focused_loss(loss, by, focus) for loss, by in found]

    def mean() -> float:
        seen = [losses[i] for i in judged if losses[i] < UNSEEN]
        return sum(seen) / len(seen) if seen else UNSEEN

    def done(unsure: float = 1.0) -> bool:
        return all(margins[i] > 0 for i in judged) and mean() < unsure * config.stop_loss

    def clear() -> bool:
        return all(margins[i] >= 0.5 for i in judged)

    pace, held, asked_at, latest = 1.0, 0, 0, float("inf")
    for step in range(1, budget + 1):
        ending = mean() < config.stop_loss
        chances = [
            text.weight * max(loss, FORGOTTEN) * (10.0 if ending and text.judged and margin <= 0 else 1.0)
            for text, loss, margin in zip(texts, losses, margins, strict=True)
        ]
        drawn = torch.multinomial(torch.tensor(chances), count, generator=generator).tolist()
        update = dense()
        focus = config.focus if ending else 0.0
        asked, weights = ask(drawn, update, focus), [texts[i].weight for i in drawn]
        focused, loss = (
            sum(weight * each for weight, each in zip(weights, values, strict=True)) / sum(weights)
            for values in (asked, [losses[i] for i in drawn])
        )
        weight = (0.7 if len(judged) <= 4 else 0.35) if config.size_weight is None else config.size_weight
        objective = focused + weight * min(1.0, 16 / len(judged)) * loss * size(update)
        objective = objective + drift(model, pools, count, update, config, generator)
        rate = pace * config.step_size(len(judged)) * min(1.0, step / WARM_UP, (mean() / 0.3) ** 0.5)
        for leaf, grad, (m, v) in zip(leaves, torch.autograd.grad(objective, leaves), moments, strict=True):
            adam_step(leaf, grad, m, v, step, rate)
        asked_at = asked_at if mean() < config.stop_loss and len(texts) > count else step
        first_or_last = clear() or latest == float("inf") or step >= latest
        waited = step - asked_at >= max(12, 0.5 * len(texts) / count)
        if (done() and first_or_last) or waited or step == budget:  # as far as was last seen
            ask(judged, dense())
            latest = min(latest, 1.25 * step) if done(UNSURE_LOSS) else latest
            if done(UNSURE_LOSS) and (clear() or step >= latest):
                break
            now = sum(margins[i] > 0 for i in judged)
            pace, held, asked_at = pace if now > held else pace / 2, max(now, held), step
    final = {name: update.detach() for name, update in dense().items()}
    kept = [i for i in judged if margins[i] > 0]
    scale = smallest_scale(model, [texts[i] for i in kept], final, config.stop_loss) if config.shrink else 1.0
    ask(judged, scaled(final, scale))
    return Outcome(scaled(final, scale), [losses[i] for i in judged], [margins[i] > 0 for i in judged], step, scale)
