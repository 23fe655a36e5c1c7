"""What a model remembers of the packs merged into it, and how that gets beside its weights when it is saved.

A merged model carries two attributes of its own: its receipts, and a `save_pretrained` that calls the class's and then
writes them. Both survive copying and pickling, and both are gone when nothing is merged any more.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.compose.receipt import MergeReceipt, joined, left
from hf_edit.errors import HfEditWarning
from hf_edit.models.orientation import stored_weights, weight_name


_RECEIPTS = "_hf_edit_merge_receipts"


def remembered(base: nn.Module) -> tuple[MergeReceipt, ...]:
    """The receipts of what is merged into a base, oldest first."""
    return getattr(base, _RECEIPTS, ())


def remember(base: PreTrainedModel, receipts: Sequence[MergeReceipt]) -> None:
    """Make these the receipts of a base."""
    for attribute in (_RECEIPTS, "save_pretrained"):
        vars(base).pop(attribute, None)
    if receipts:
        setattr(base, _RECEIPTS, tuple(receipts))
        base.save_pretrained = partial(_save_pretrained, base)


def still_merged(receipts: Sequence[MergeReceipt], now: Mapping[str, str]) -> list[MergeReceipt]:
    """Those of the receipts that are merged once the weights `now` have these digests."""
    digests, kept = dict(now), []
    for receipt in reversed(receipts):
        if all(digests.get(name, weight.after) == weight.after for name, weight in receipt.weights.items()):
            digests |= {name: weight.before for name, weight in receipt.weights.items()}
            kept.append(receipt)
    return kept[::-1]


def receipt_beside(
    base: PreTrainedModel, id_or_path: str | os.PathLike[str], revision: str | None = None
) -> MergeReceipt | None:
    """The receipt beside a model loaded from there; None where there is none, or none of these weights.

    A folder keeps its receipt when the model is unmerged and saved into it again: then all weights are as before.

    Raises:
        PackError, HubError: as `MergeReceipt.load`.
    """
    receipt = MergeReceipt.beside(id_or_path, revision)
    if receipt is None:
        return None
    weights = map_weights(base)
    undone = all(name in weights and record.is_before(weights[name]) for name, record in receipt.weights.items())
    return None if undone else receipt


def map_weights(base: nn.Module) -> dict[str, Tensor]:
    """Name in the base -> weight of every map, as it is stored."""
    return {weight_name(name, orientation): weight for name, (weight, orientation) in stored_weights(base).items()}


def _save_pretrained(base: PreTrainedModel, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
    type(base).save_pretrained(base, save_directory, *args, **kwargs)
    if getattr(base, "_hf_peft_config_loaded", False) or not kwargs.get("is_main_process", True):
        return  # only adapters were saved, or another process saves the model
    receipts, weights = remembered(base), map_weights(base)
    if not all(name in weights and record.is_after(weights[name]) for name, record in left(receipts).items()):
        MergeReceipt.remove(save_directory)
        _warn("The merged weights were changed or cast since, so the model was saved without a way to unmerge it.")
        return
    joined(receipts, weights).save(save_directory)
    if kwargs.get("push_to_hub", False):
        _warn("The model was pushed without the receipt of its merge: push it with model.push_to_hub instead.")


def _warn(message: str) -> None:
    warnings.warn(message, HfEditWarning, stacklevel=3)
