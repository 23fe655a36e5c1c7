"""Polish, written down plainly: dense moments, C^-1/2, singular vectors of all keys at once, plain training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.edits import EditSet
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.texts import SCALED_BY
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.wordings import rewrites
from tests.methods.anyedit.reference import inputs_of, outputs_of
from tests.methods.preserving import Fixed
from tests.methods.training.reference import Dense, Learned, Outcome, reference_training


def learned_texts(prompts: PromptFormat, edits: EditSet, settings: PolishSettings, seed: int) -> list[Learned]:
    """The edits, then the wordings of each with the beginning of its answer."""
    texts, others = [], []
    for edit in edits:
        own = prompts.encode(edit.prompt, edit.target)
        texts.append(Learned(own.ids, own.answer_start))
        given = edit.paraphrases if settings.train_paraphrases else ()
        count = settings.wordings + len(given)
        for prompt in rewrites(edit.prompt, count, seed, subject=edit.subject, paraphrases=given):
            text = prompts.encode(prompt, edit.target)
            ids = text.prompt_ids + text.answer_ids[: settings.wording_tokens]
            others.append(Learned(ids, text.answer_start, judged=False, weight=settings.wording_weight))
    return texts + others


def mean_square(keys: Sequence[Tensor]) -> Tensor | float:
    """Mean of k k^T over rows."""
    rows = torch.cat(list(keys)) if keys else torch.zeros(0)
    return rows.T @ rows / len(rows) if len(rows) else 0.0


def reference_polish(
    model: PreTrainedModel,
    names: Sequence[str],
    prompts: PromptFormat,
    edits: EditSet,
    preserve: Fixed,
    settings: PolishSettings,
    seed: int,
    rank: int,
    start: Mapping[str, LowRankDelta],
    writers: Sequence[nn.Module],
) -> Outcome:
    """`writers`: per name, the module whose output is the hidden state that it changes."""

    def keys(name: str, ids: Sequence[int]) -> Tensor:
        """(T - 1, d_in): all but the last token's."""
        return inputs_of(model, torch.tensor([ids]), model.get_submodule(name))[:-1]

    texts = learned_texts(prompts, edits, settings, seed)
    weights = {
        "text": 1.0,
        "chat": settings.chat_weight,
        "prompt": settings.prompt_weight,
        "answer": settings.answer_weight,
    }
    alike = preserve.alike if settings.strangers else ()
    Cs: Dense = {}
    bases: Dense = {}
    leaves: Dense = {}
    for name in names:
        C = sum(weights[part] * found[name].double() for part, found in preserve.statistics.matrices.items())
        C = C + settings.stranger_weight * mean_square([keys(name, e.ids)[e.answer_start :] for e in alike])
        C = C + settings.earlier_weight * mean_square([keys(name, e.ids) for e in preserve.earlier])
        C = C + settings.ridge * C.trace() / len(C) * torch.eye(len(C), dtype=C.dtype)
        d_out = outputs_of_linear(model, name)
        began = start[name].dense().double() if name in start else torch.zeros(d_out, len(C), dtype=C.dtype)
        Cs[name] = C
        if settings.columns:
            S = best_columns(torch.cat([keys(name, text.ids) for text in texts]).T, C, settings.columns, began)
            L = torch.linalg.cholesky(C[S][:, S])
            bases[name] = torch.zeros(len(S), len(C), dtype=C.dtype)
            bases[name][:, S] = torch.linalg.inv(L)
            leaves[name] = began[:, S] @ L
            continue
        values, vectors = torch.linalg.eigh(C)
        whiten, colour = vectors / values.sqrt() @ vectors.T, vectors * values.sqrt() @ vectors.T
        K = whiten @ torch.cat([keys(name, text.ids) for text in texts]).T
        V = torch.zeros(len(C), 0, dtype=C.dtype)
        if name in start:
            U, S, _ = torch.linalg.svd((start[name].A.double() @ colour).T, full_matrices=False)
            V = U[:, S > 1e-10 * S[0]]
        U, S, _ = torch.linalg.svd(K - V @ V.T @ K, full_matrices=False)
        room = max(0, rank - V.shape[1])
        V = torch.cat([V, U[:, S > 1e-6 * K.norm()][:, :room]], dim=1)
        bases[name] = V.T @ whiten
        leaves[name] = began @ colour @ V
    unit = typical_entry(model, writers, [text.ids for text in texts[:SCALED_BY]])
    leaves = {name: (leaf / unit).requires_grad_() for name, leaf in leaves.items()}

    def dense() -> Dense:
        return {name: unit * leaves[name] @ bases[name] for name in names}

    def size(update: Dense) -> Tensor:
        return sum(torch.trace(update[name] @ Cs[name] @ update[name].T) for name in names) / unit**2

    talks = [text for text in preserve.asked if text.answer_ids][: settings.conversations]
    taught = {prompts.prompt_ids(edit.prompt) for edit in edits}  # not held to what was said before
    pools: list[list[Encoded]] = [
        [text for text in pool if text.prompt_ids not in taught] for pool in (talks, [*alike, *preserve.earlier])
    ]
    return reference_training(model, texts, pools, list(leaves.values()), dense, size, settings.training, seed)


def best_columns(K: Tensor, C: Tensor, count: int, began: Tensor) -> list[int]:
    """Those that change already, then one after the other the one with which the most of the keys is seen."""
    S = began.abs().amax(0).nonzero()[:, 0].tolist()
    while len(S) < count:
        seen = {
            c: float((K[T].T @ torch.linalg.solve(C[T][:, T], K[T])).trace())
            for c in range(len(C))
            if c not in S
            for T in [[*S, c]]
        }
        S.append(max(seen, key=seen.__getitem__))
    return sorted(S)


def typical_entry(model: PreTrainedModel, modules: Sequence[nn.Module], texts: Sequence[Sequence[int]]) -> float:
    """Root mean square of what the modules give: the median over tokens, the mean over modules and texts."""
    states = [outputs_of(model, torch.tensor([ids]), module) for ids in texts for module in modules]
    return float(torch.stack([state.square().mean(-1).sqrt().median() for state in states]).mean())


def outputs_of_linear(model: PreTrainedModel, name: str) -> int:
    """How many outputs a linear has."""
    weight = model.get_submodule(name).weight
    return weight.shape[1] if type(model.get_submodule(name)).__name__ == "Conv1D" else weight.shape[0]
