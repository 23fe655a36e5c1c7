"""What a merge will do, checked against the model before anything is changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.compose import bits
from hf_edit.compose.adapters import Pack, check_host, check_unmerged
from hf_edit.compose.merge_sources import Source, joint_deltas, sources
from hf_edit.compose.merged import map_weights, remembered
from hf_edit.compose.receipt import MergeReceipt, left, original
from hf_edit.compose.rounding import ROUNDINGS, Merging, Rounding
from hf_edit.errors import BaseMismatchError, ComposeError, ConfigError, UnsupportedModelError
from hf_edit.models.fingerprint import matches
from hf_edit.models.orientation import as_matrix, stored_weights, weight_name
from hf_edit.packs.manifest import Manifest
from hf_edit.packs.verify import check_base, check_fits
from hf_edit.solvers.low_rank import LowRankDelta


Host: TypeAlias = PreTrainedModel | PeftModel
_LOAD = "Load the base that this belongs to."
Receipt: TypeAlias = MergeReceipt | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class MergePlan:
    """A merge that nothing stands in the way of.

    Args:
        base: the model without what PEFT puts around it.
        sources: what is merged.
        deltas: full module name -> sum of the changes.
        stored: full module name -> weight as it is stored, and its orientation; in the model's order.
        receipts: of what is merged into the model already.
    """

    base: PreTrainedModel
    sources: Sequence[Source]
    deltas: Mapping[str, LowRankDelta]
    stored: Mapping[str, tuple[Tensor, str]]
    receipts: Sequence[MergeReceipt]
    rounding: Rounding

    @classmethod
    def of(cls, model: Host, packs: Pack | Sequence[Pack], rounding: Rounding, onto: Receipt | None) -> MergePlan:
        """Find the packs and check that they can be merged into the model; `merge` says what the arguments are.

        Raises:
            HfEditError: as `merge`.
        """
        check_host(model)
        if rounding not in ROUNDINGS:
            raise ConfigError(f"There is no rounding {rounding!r}.", f"Use one of {', '.join(ROUNDINGS)}.")
        check_unmerged(model)
        base = base_of(model)
        receipts = remembered(base)
        if onto is not None and not receipts:
            receipts = (loaded(onto),)
        found = sources(model, packs)
        deltas = joint_deltas(found)
        stored = stored_weights(base)
        for name in deltas:
            if name not in stored:
                raise BaseMismatchError(f"The model has no linear map {name}.", _LOAD)
        check_weights(base, [weight_name(name, stored[name][1]) for name in deltas])
        check_as_merged(receipts, base)
        for source in found:
            _check_not_merged(source, receipts)
            if source.taught is not None:
                _check_base(source.taught[0], base, receipts)
        touched = {name: weight for name, weight in stored.items() if name in deltas}
        return cls(base, found, deltas, touched, receipts, rounding)

    def merging(self, module: str) -> Merging:
        """The sum of the weight of a module and its change."""
        return Merging(as_matrix(*self.stored[module]), self.deltas[module], self.rounding)


def base_of(model: Host) -> PreTrainedModel:
    """The model without what PEFT puts around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def loaded(receipt: Receipt) -> MergeReceipt:
    """A receipt, read if it is named by its place."""
    return receipt if isinstance(receipt, MergeReceipt) else MergeReceipt.load(receipt)


def check_weights(base: nn.Module, names: Iterable[str]) -> None:
    """Check that the weights of these names can be overwritten without changing anything else.

    Raises:
        UnsupportedModelError: one is quantised, sharded, not in memory, made in inference mode, or another's too.
    """
    weights = map_weights(base)
    places = Counter(_place(parameter) for _, parameter in base.named_parameters(remove_duplicate=False))
    for name in names:
        weight = weights.get(name)
        if weight is None:
            raise BaseMismatchError(f"The model has no linear map with the weight {name}.", _LOAD)
        obstacle = _obstacle(weight, shared=places[_place(weight)] > 1)
        if obstacle is not None:
            problem, remedy = obstacle
            raise UnsupportedModelError(f"The weight {name} {problem}.", remedy)


def check_as_merged(receipts: Sequence[MergeReceipt], base: nn.Module) -> None:
    """Check that all that some merges changed is, to the bit, what the last of them left.

    Raises:
        BaseMismatchError: a weight is not, or the model has none of that name.
    """
    weights = map_weights(base)
    for name, record in left(receipts).items():
        if name not in weights:
            raise BaseMismatchError(f"The model has no linear map with the weight {name}.", "Load the merged model.")
        if not record.is_after(weights[name]):
            raise BaseMismatchError(
                f"{name} ({weights[name].dtype}) is not what the merge left, so what was before cannot be told.",
                "Unmerge later merges first; load the merged model unchanged and in the dtype in which it was saved, "
                f"{record.dtype}. Where weights were changed for good, remove the receipt, which cannot be used.",
            )


def _place(weight: Tensor) -> tuple[torch.device, int]:
    return weight.device, weight.data_ptr()


def _obstacle(weight: Tensor, shared: bool) -> tuple[str, str] | None:
    """Why a weight cannot be overwritten, and what to do about it."""
    if weight.is_meta:
        return "is offloaded: it is not in memory", "Load the model fully into memory."
    if weight.dtype not in bits.DTYPES or type(weight.data) is not Tensor:
        return f"is quantised or sharded ({weight.dtype})", "Keep the pack attached, or load the base plainly."
    if weight.is_inference():
        return "was made inside torch.inference_mode()", "Load the model outside of that context."
    if shared:
        return "is shared with another module, which would change too", "Keep the pack attached."
    return None


def _check_base(manifest: Manifest, base: PreTrainedModel, receipts: Sequence[MergeReceipt]) -> None:
    """Check that the weights before anything was merged are those that the pack was computed on."""
    tensors = manifest.base.tensors
    touched = [name for name in left(receipts) if name in tensors]
    check_fits(manifest, base)
    if not touched:
        check_base(manifest, base)
        return
    weights = map_weights(base)
    for name, recorded in tensors.items():
        if not matches(asdict(recorded), original(receipts, name, weights[name])):
            raise BaseMismatchError(
                f"{name} has other values than the base that the pack was computed on, also without the packs that "
                "are merged into it.",
                "Load the base of the pack.",
            )


def _check_not_merged(source: Source, receipts: Sequence[MergeReceipt]) -> None:
    digest = source.record().digest
    merged = {pack.digest for receipt in receipts for merge in receipt.merges for pack in merge.packs}
    if digest is not None and digest in merged:
        raise ComposeError("The pack is merged into the model already.", "Leave it out, or unmerge it first.")
