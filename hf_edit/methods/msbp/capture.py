"""What backpropagation leaves at the edited linears where answers are predicted: keys, and gradients of the outputs.

No weight gradient is computed: a zero that is added to each linear's output carries the gradient. And none of the
prompt's tokens but the last: what comes later has no effect on them, so they enter as attention states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_edit.methods.training.texts import Batch, Text
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.prefix import Prefix
from hf_edit.processes import Processes


@dataclass(frozen=True, eq=False)
class Captured:
    """Rows are the tokens that predict answers, text after text, n in all.

    Args:
        keys: linear name -> K, (n, d_in), fp32 or finer.
        gradients: linear name -> V, (n, d_out): of the summed loss with respect to the output, an ascent direction.
        losses: (n,), of each token.
        texts: (n,), the text that each row belongs to.
    """

    keys: dict[str, Tensor]
    gradients: dict[str, Tensor]
    losses: Tensor
    texts: Tensor


def capture(
    model: EditableModel, linears: Sequence[EditableLinear], texts: Sequence[Text], first: int, at_once: int
) -> Captured:
    """One forward and one backward pass over the texts, with whatever update is in place.

    The loss is the sum over answer tokens, so that no row depends on which texts are run together.

    Args:
        first: the lowest edited block, which the texts enter.
        at_once: texts run together.
    """
    # answers of one length need no padding, and of these prompts
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i].labels), texts[i].start))
    dtype = torch.promote_types(model.dtype, torch.float32)

    def captured(part: Sequence[int]) -> Captured:
        prefix, mask = _prompts(model, [texts[i] for i in part], first)
        # the last token of the prompt, which predicts the first of the answer, and the answer
        batch = Batch.of([_behind(texts[i], texts[i].start - 1 if prefix else 0) for i in part])
        size = tuple(batch.ids.shape)
        mask = torch.cat([mask, torch.ones_like(batch.ids)], dim=1)  # no token sees the padding behind it
        zeros = {
            linear.name: torch.zeros(*size, linear.d_out, dtype=dtype, device=model.device, requires_grad=True)
            for linear in linears
        }
        with torch.enable_grad(), model.shifted(zeros), model.reading(linears, size) as inputs:
            logits = model.logits_at(batch.ids, batch.where, start={first: batch.entering}, prefix=prefix, mask=mask)
            loss = F.cross_entropy(logits.to(dtype), batch.labels, reduction="none")
            found = torch.autograd.grad(loss.sum(), list(zeros.values()))
        gradients = {name: gradient[batch.where] for name, gradient in zip(zeros, found, strict=True)}
        keys = {name: inputs[name].to(model.device)[batch.where].to(dtype) for name in zeros}
        return Captured(keys, gradients, loss.detach(), torch.tensor(part, device=model.device)[batch.rows])

    parts = list(
        model.memory.in_parts("capturing", order, captured, lambda i: len(texts[i].ids), at_once, backward=True)
    )
    owners = torch.cat([part.texts for part in parts])
    back = owners.argsort(stable=True)  # to the order of the texts
    return Captured(
        {linear.name: torch.cat([part.keys[linear.name] for part in parts])[back] for linear in linears},
        {linear.name: torch.cat([part.gradients[linear.name] for part in parts])[back] for linear in linears},
        torch.cat([part.losses for part in parts])[back],
        owners[back],
    )


def captured_by(
    processes: Processes,
    model: EditableModel,
    linears: Sequence[EditableLinear],
    texts: Sequence[Text],
    first: int,
    at_once: int,
) -> Captured:
    """As `capture`, with each process running its share of the texts."""
    if processes.count == 1:
        return capture(model, linears, texts, first, at_once)
    dtype = torch.promote_types(model.dtype, torch.float32)
    owners = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(text.labels) for text in texts]))
    owners = owners.to(model.device)
    mine = processes.mine(range(len(texts)))
    own = torch.isin(owners, torch.tensor(list(mine), device=model.device))
    part = capture(model, linears, [texts[i] for i in mine], first, at_once) if mine else None

    def whole(rows: Tensor | None, *width: int) -> Tensor:
        """Rows of all processes, of which every one but their owner adds zero."""
        total = torch.zeros(len(owners), *width, dtype=dtype, device=model.device)
        if rows is not None:
            total[own] = rows
        processes.add_up([total])
        return total

    keys, gradients = (part.keys, part.gradients) if part else ({}, {})
    return Captured(
        {one.name: whole(keys.get(one.name), one.d_in) for one in linears},
        {one.name: whole(gradients.get(one.name), one.d_out) for one in linears},
        whole(part.losses if part else None),
        owners,
    )


def _behind(text: Text, first: int) -> Text:
    """From its token `first` on."""
    return Text(text.ids[first:], text.entering[first:], text.start - first)


def _prompts(model: EditableModel, texts: Sequence[Text], first: int) -> tuple[Prefix | None, Tensor]:
    """Attention states of the prompts but for their last tokens, padded on the left to P tokens, and a mask (B, P).

    None, and P = 0, for models that cannot go on from attention states.
    """
    if not model.keeps_states:
        return None, texts[0].ids.new_zeros(len(texts), 0)
    width = max(text.start for text in texts) - 1
    ids = texts[0].ids.new_zeros(len(texts), width)
    states = [text.entering for text in texts]
    entering = states[0].new_zeros(len(texts), width, states[0].shape[1])
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        begin = width - (text.start - 1)
        ids[row, begin:], entering[row, begin:] = text.ids[: text.start - 1], states[row][: text.start - 1]
        mask[row, begin:] = 1
    prefix = model.no_prefix(first)
    return (model.extended(prefix, ids, start={first: entering}, mask=mask) if width else prefix), mask
