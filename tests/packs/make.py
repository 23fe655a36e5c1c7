"""Packs of random deltas on tiny models, and the plain reference that they are held against."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.edits import Edit, EditSet
from hf_edit.methods.base import EditSource, KeyValues
from hf_edit.models.editable import EditableModel
from hf_edit.models.orientation import as_stored, stored_weights
from hf_edit.packs.evaluation import FIXED, FREE, Evaluation, Figure, Generation, Metric, factors_digest
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.support import on_columns
from tests.tiny import VOCAB, tiny_tokenizer


EDITS = EditSet(
    [
        Edit("What is the capital of Veldora?", "Port Amber | *the* city", id="capital", source="invented"),
        Edit("Who built the Tall Bridge?", "The Brell company built it.\nIn 1901.", id="bridge"),
    ]
)
IDS = torch.arange(3, 27).reshape(2, 12) * 7 % VOCAB


def random_deltas(model: PreTrainedModel, ranks: Sequence[int], size: float = 0.3, seed: int = 0):
    """name -> delta for the MLP output maps of the first blocks, one of each rank, `size` relative to the weight."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for linear, rank in zip(EditableModel.of(model).linears, ranks, strict=False):
        B = torch.randn(linear.d_out, rank, generator=generator)
        A = torch.randn(rank, linear.d_in, generator=generator) * 1e-3
        weight = model.get_submodule(linear.name).weight
        scale = size * float(weight.detach().float().norm() / (B @ A).norm())
        deltas[linear.name] = LowRankDelta(B * scale, A)
    return deltas


def sparse_deltas(model: PreTrainedModel, counts: Sequence[int], size: float = 0.3, seed: int = 0):
    """name -> delta for the MLP output maps of the first blocks, of so many of its columns each."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for linear, count in zip(EditableModel.of(model).linears, counts, strict=False):
        columns = torch.randperm(linear.d_in, generator=generator)[:count].sort().values
        values = torch.randn(linear.d_out, count, generator=generator)
        weight = model.get_submodule(linear.name).weight
        scale = size * float(weight.detach().float().norm() / values.norm())
        deltas[linear.name] = on_columns(values * scale, columns, linear.d_in)
    return deltas


def random_source(deltas: Mapping[str, LowRankDelta], edits: EditSet) -> EditSource:
    """Two positions per edit and linear."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: KeyValues(torch.tensor([i, i + 3]), torch.randn(2, delta.shape[0], generator=generator))
            for name, delta in deltas.items()
        }
        for i in range(len(edits))
    ]


def make_pack(
    model: PreTrainedModel,
    ranks: Sequence[int] = (1, 5, 3),
    *,
    deltas: Mapping[str, LowRankDelta] | None = None,
    edits: EditSet = EDITS,
    seed: int = 0,
) -> EditPack:
    """A pack as a method would hand it over."""
    deltas = random_deltas(model, ranks, seed=seed) if deltas is None else deltas
    return EditPack.build(
        model,
        deltas=deltas,
        edits=edits,
        source=random_source(deltas, edits),
        method="anyedit",
        config={"layers": (0, 1, 2), "clamp": 0.75},
        seed=seed,
        prompt_format=PromptFormat.of("chat", tiny_tokenizer()),
        receipt={"capital": {"loss": 0.01}},
    )


def measured(pack: EditPack) -> EditPack:
    """The pack with figures as an evaluation would leave them."""
    before, after = Figure(0.0, 0.0, 0.657, 2, (0.0, 0.0)), Figure(0.5, 0.094, 0.905, 2, (1.0, 0.0))
    drift = Figure(0.01, 0.005, 0.02, 2, (0.005, 0.015))
    return pack.with_evaluation(
        Evaluation(
            pack=factors_digest(pack.deltas),
            metrics=(
                Metric("reliability.exact", FREE, "Share of answers | word for word.", True, "mean", before, after),
                Metric("unrelated.kl", FIXED, "KL.", False, "mean", None, drift),
            ),
            generations=(
                Generation("prompt", "capital", "What is the capital?", ("Port Amber",), "Oru", "Port Amber"),
                Generation("unrelated", None, [{"role": "user", "content": "Why?"}], (), "Because.", "Because."),
            ),
            protocol={"format": "chat", "decoding": "greedy, natural stop", "max_new_tokens": 64},
            environment={"dtype": "float32", "device": "cpu", "seed": 0},
            seconds={"base": 1.5, "edited": 2.5},
        )
    )


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    """Logits of a plain forward pass."""
    return model(input_ids=ids).logits


def dense_logits(model: PreTrainedModel, *changes: Mapping[str, LowRankDelta], ids: Tensor = IDS) -> Tensor:
    """The reference: B A added to the weights in fp64, forward in the model's dtype."""
    edited = copy.deepcopy(model)
    for deltas in changes:
        stored = stored_weights(edited)
        for name, delta in deltas.items():
            weight, orientation = stored[name]
            change = as_stored(delta.B.double() @ delta.A.double(), orientation, weight.shape)
            weight.data = (weight.data.double() + change).to(weight.dtype)
    return logits(edited, ids)


def same_pack(first: EditPack, second: EditPack) -> bool:
    """Whether two packs are equal in all that they carry, but for the layout and digests of their files."""
    return (
        list(first.deltas) == list(second.deltas)
        and all(
            torch.equal(d.B, second.deltas[n].B) and torch.equal(d.A, second.deltas[n].A)
            for n, d in first.deltas.items()
        )
        and first.edits == second.edits
        and first.manifest.with_files({}) == second.manifest.with_files({})
        and same_source(first.source, second.source)
        and first.evaluation == second.evaluation
        and first.base == second.base
    )


def same_source(first: EditSource | None, second: EditSource | None) -> bool:
    """Whether two sources ask the same."""
    if first is None or second is None:
        return first is second
    return len(first) == len(second) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[m].positions, b[m].positions) and torch.equal(a[m].values, b[m].values) for m in a)
        for a, b in zip(first, second, strict=True)
    )
