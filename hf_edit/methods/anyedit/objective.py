"""What a chunk's target is optimised for: its own tokens, or with muKE (arXiv 2504.01196) also those that follow.

A target at s_m is asked for nested texts, all of which begin at s_m: [s_m, e_m), [s_m, e_m+1), ..., [s_m, e_L). Later
chunks have no target of their own yet, so that this one learns to prepare them. With nll_j the negative log likelihood
of token j,

    loss_m(delta) = sum_w c_w sum_{s_m <= j < e_w} nll_j(delta) / sum_w c_w (e_w - s_m),          w = m, ..., L
    c_w = 2 - mean_t cos(grad l_w(delta_t), grad l_m(delta_t)),     l_w = mean of nll_j over s_m <= j < e_w

where delta_0 = 0, delta_1, delta_2 are the first steps of Adam on l_m: the less a longer text gains from what the
chunk itself asks for, the more it weighs. With L = m this is the plain mean over the chunk (AnyEdit).

The published code hands out the c_w in reverse order, to the longest text the one of the chunk itself, and divides by
(L - m + 1) (e_L - s_m), a constant factor that Adam does not see; it measures c_w without the targets before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from hf_edit.methods.anyedit.chunks import Chunk
from hf_edit.methods.descent import Adam


AFFINITY_STEPS = 3


def nested_lengths(chunks: Sequence[Chunk], index: int, objective: str, nested_chunks: int | None) -> list[int]:
    """e_w - s_m for the nested texts of chunk m = `index`, ascending.

    Args:
        objective: `chunk` or `nested`.
        nested_chunks: how many texts at most; none: one per chunk to the end of the answer.
    """
    count = 1 if objective == "chunk" else nested_chunks
    last = len(chunks) if count is None else index + count
    return [chunk.end - chunks[index].start for chunk in chunks[index:last]]


def token_weights(
    token_losses: Callable[[Tensor], Tensor],
    start: Tensor,
    lengths: Sequence[Sequence[int]],
    n: int,
    learning_rates: Tensor,
) -> Tensor:
    """Weight of every token's loss in the objectives of R chunks, (R, n); those of a chunk sum to 1.

    Args:
        token_losses: deltas (R, d) -> (R, n), differentiable; chunks know nothing of each other.
        start: delta_0, (R, d)
        lengths: per chunk those of its nested texts in tokens, ascending.
        n: tokens of the longest text of all, or more.
        learning_rates: (R,) Adam's, for the steps along which gradients are compared.
    """
    texts = pad_sequence([torch.tensor(each, device=start.device) for each in lengths], batch_first=True)  # (R, W)
    inside = torch.arange(n, device=start.device) < texts[..., None]  # (R, W, n)
    shares = inside.to(start) / texts[..., None].clamp_min(1)  # of tokens in their text's mean
    if texts.shape[1] == 1:
        return shares[:, 0]
    deltas, adam = start.detach(), Adam(learning_rates, start.shape[1])
    affinities = []
    for _ in range(AFFINITY_STEPS):
        deltas.requires_grad_()
        means = torch.einsum("rwn,rn->wr", shares, token_losses(deltas))
        gradients = torch.stack(
            [torch.autograd.grad(mean.sum(), deltas, retain_graph=True)[0] for mean in means], dim=1
        )  # (R, W, d)
        affinities.append(F.cosine_similarity(gradients, gradients[:, :1], dim=2))
        deltas = deltas.detach() + adam.step(gradients[:, 0])
    coefficients = 2 - torch.stack(affinities).mean(dim=0)  # (R, W): c_w
    weights = torch.einsum("rw,rwn->rn", coefficients, inside.to(coefficients))
    return weights / weights.sum(dim=1, keepdim=True)
