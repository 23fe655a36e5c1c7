"""What can be merged: packs, wherever they are, and adapters that are attached."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.compose.adapters import Origin, Pack, adapter_configs, adapter_layers, holds, origin_of
from hf_edit.compose.receipt import MergedPack
from hf_edit.errors import ComposeError
from hf_edit.packs.layout import experts_delta
from hf_edit.packs.pack import EditPack
from hf_edit.solvers.low_rank import LowRankDelta, summed
from hf_edit.solvers.support import on_columns
from hf_edit.sparse.layer import SparseLinear


_SAME = 0.01
"""Relative difference up to which an adapter is taken for a pack attached: its factors may be in 16 bits."""


@dataclass(frozen=True, eq=False)
class Source:
    """One thing to merge.

    Args:
        deltas: full module name -> its change.
        adapter: the name under which it is attached; None where it is not.
        taught: of what pack it is; None of an adapter that hf_edit did not attach.
    """

    deltas: Mapping[str, LowRankDelta]
    adapter: str | None
    taught: Origin | None

    def record(self) -> MergedPack:
        """What the receipt says of it."""
        if self.taught is None:
            return MergedPack(None, self.adapter, (), None)
        manifest, edits = self.taught
        taught = tuple(edit.to_json() for edit in edits)
        return MergedPack(manifest.identity(), self.adapter, taught, manifest.lineage())


def sources(model: PreTrainedModel | PeftModel, packs: Pack | Sequence[Pack]) -> list[Source]:
    """What `packs` names: each the name of an attached adapter, a pack, its folder or its id on the Hub.

    Raises:
        ComposeError: there are none, one is named twice, or an adapter is of a kind that cannot be merged.
        PackError: a pack cannot be read, or is not sound.
    """
    named = [packs] if isinstance(packs, (str, os.PathLike, EditPack)) else list(packs)
    if not named:
        raise ComposeError("There is nothing to merge.", "Name at least one pack.")
    found = [_source(model, pack) for pack in named]
    records = [source.record() for source in found]
    for what, names in (("adapter", [one.adapter for one in records]), ("pack", [one.digest for one in records])):
        given = [name for name in names if name is not None]
        if len(set(given)) < len(given):
            raise ComposeError(f"The same {what} is given twice.", "Name each once.")
    return found


def joint_deltas(found: Sequence[Source]) -> dict[str, LowRankDelta]:
    """Full module name -> the sum of the changes."""
    return dict(sorted(summed([source.deltas for source in found]).items()))


def _source(model: PreTrainedModel | PeftModel, named: Pack) -> Source:
    if isinstance(named, str) and named in adapter_configs(model):
        attached = _attached(model, named)
        deltas = {module: _scaled(delta, scale) for module, (delta, scale) in attached.items()}
        return Source(deltas, named, origin_of(model, named))
    pack = EditPack.coerce(named)
    pack.check()
    taught = pack.manifest, pack.edits
    for adapter in adapter_configs(model):
        attached = _attached(model, adapter, strict=False)
        if _same(pack.deltas, {module: delta for module, (delta, _) in attached.items()}):
            deltas = {module: _scaled(delta, attached[module][1]) for module, delta in pack.deltas.items()}
            return Source(deltas, adapter, taught)
    return Source(pack.deltas, None, taught)


def _attached(model: nn.Module, name: str, strict: bool = True) -> dict[str, tuple[LowRankDelta, float]]:
    """Full module name -> an adapter's change and what it is multiplied with; empty if not `strict` and no such.

    Raises:
        ComposeError: the adapter is not a sum B A added to linear maps.
    """
    found = {}
    for module, layer in adapter_layers(model):
        if holds(layer, name):
            delta = _layer_delta(layer, name)
            if delta is None:
                if not strict:
                    return {}
                raise ComposeError(
                    f"What the adapter {name!r} does to {module}, a {type(layer.get_base_layer()).__name__}, is more "
                    "than to add a matrix to its weight.",
                    "Merge plain LoRA and sparse adapters of unquantised linear maps only; keep this one attached.",
                )
            found[module] = delta, float(layer.scaling[name])
    return found


def _layer_delta(layer: BaseTunerLayer, name: str) -> LowRankDelta | None:
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):
        A, B = (factors[name].weight.detach().cpu() for factors in (layer.lora_A, layer.lora_B))
        return experts_delta(A, B, layer.num_experts) if layer.num_experts > 1 else None
    if not isinstance(base, (nn.Linear, Conv1D)):
        return None
    if isinstance(layer, SparseLinear):
        values = layer.hf_edit_sparse_values[name].detach()
        d_in = base.nx if isinstance(base, Conv1D) else base.in_features
        return on_columns(values, layer.hf_edit_sparse_columns[name], d_in).to(device="cpu")
    if not isinstance(layer, LoraLayer) or name in layer.lora_variant or layer.lora_bias.get(name):
        return None  # a variant, such as DoRA, does more than add B A
    return LowRankDelta(layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach()).to(device="cpu")


def _same(first: Mapping[str, LowRankDelta], second: Mapping[str, LowRankDelta]) -> bool:
    if first.keys() != second.keys():
        return False
    pairs = [(d.to(second[name].B.dtype).to(d.B.dtype), second[name].to(d.B.dtype)) for name, d in first.items()]
    return all(a.minus(b).norm() <= _SAME * a.norm() for a, b in pairs)


def _scaled(delta: LowRankDelta, scale: float) -> LowRankDelta:
    return delta if scale == 1 else LowRankDelta(delta.B.double() * scale, delta.A.double())
