"""Packs into a model's weights for good, and out again bit for bit: `merge` and `unmerge`.

Receipts of one model stand on each other: a merge can be undone while the weights that it changed are as it left them.
To undo an earlier one of several that share weights, undo the later ones first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_edit.compose.adapters import Pack, check_host, check_unmerged
from hf_edit.compose.attach import detach
from hf_edit.compose.merge_plan import Host, MergePlan, Receipt, base_of, check_as_merged, check_weights, loaded
from hf_edit.compose.merge_report import advice_on
from hf_edit.compose.merged import map_weights, remember, remembered, still_merged
from hf_edit.compose.receipt import Merge, MergeReceipt, coded
from hf_edit.compose.rounding import MergeLoss, Rounding
from hf_edit.compose.structure import Structure
from hf_edit.errors import ComputationError, HfEditWarning
from hf_edit.models.orientation import as_stored, weight_name
from hf_edit.progress import Progress, Silent


Write = Callable[[Tensor, Tensor], None]


def merge(
    model: Host,
    packs: Pack | Sequence[Pack],
    *,
    rounding: Rounding = "nearest",
    onto: Receipt | None = None,
    progress: Progress | None = None,
) -> MergeReceipt:
    """Add packs to the weights of a model, so that it needs no adapters for them.

    Several packs are added up and rounded once, to the weights' dtype. Those that are attached are taken off; other
    adapters stay. The model remembers the receipt, and its `save_pretrained` writes it beside the weights, so that
    `unmerge` can be called now or in another process. All or nothing, also on Ctrl-C.

    Args:
        packs: one or several, each a pack, its folder, its id on the Hub, or the name of an attached adapter, which
            is merged at the strength that it is set to.
        rounding: `nearest`, or `compensated`, which in a coarse dtype keeps nearly all of a small change of which
            `nearest` loses much; `merge_report` says how much.
        onto: the receipt of what is merged into the model already, or the folder or Hub id where it lies. Only for a
            model that was merged in another process and so does not know it.
        progress: who is told how far it is.

    Returns:
        What gives the model back as it was.

    Raises:
        PackError, BaseMismatchError: a pack is not sound, or the model is not its base.
        UnsupportedModelError: weights are quantised, offloaded, or shared by two modules.
        ComposeError: adapters stand in the way, or the pack is merged already.
        ComputationError: a sum is too large for the weights' dtype.
    """
    plan = MergePlan.of(model, packs, rounding, onto)
    listener = progress or Silent()
    listener.stage("merge", len(plan.deltas))
    weights, backup, losses = {}, {}, {}
    with _all_or_nothing(model) as write:
        for source in plan.sources:
            if source.adapter is not None:
                detach(model, source.adapter)
        for name, (weight, orientation) in plan.stored.items():
            after, losses[name] = _merged(plan, name, weight, orientation)
            key = weight_name(name, orientation)
            weights[key], backup[key] = coded(weight, after)
            write(weight, after)
            listener.step()
        total = MergeLoss.total(losses.values())
        loss = {"all": total.to_json(), "modules": {name: one.to_json() for name, one in losses.items()}}
        made = Merge(tuple(source.record() for source in plan.sources), rounding, loss)
        receipt = MergeReceipt((made,), weights, backup)
        remember(plan.base, [*plan.receipts, receipt])
        if advice := advice_on(total, rounding):
            warnings.warn(advice, HfEditWarning, stacklevel=2)  # made an error, it undoes the merge like any other
    return receipt


def unmerge(model: Host, receipt: Receipt, *, progress: Progress | None = None) -> None:
    """Give a model back the weights that it had before a merge, bit for bit. All or nothing, also on Ctrl-C.

    Args:
        receipt: what `merge` returned, or the folder or Hub id where the merged model was saved. Of a model into
            which packs were merged one after the other, the saved receipt undoes all of it.
        progress: who is told how far it is.

    Raises:
        PackError: there is no receipt, or it is damaged.
        BaseMismatchError: the model's weights are not those that the merge left. The model is then as before.
    """
    check_host(model)
    check_unmerged(model)
    receipt, base = loaded(receipt), base_of(model)
    check_as_merged([receipt], base)
    check_weights(base, receipt.weights)
    listener = progress or Silent()
    listener.stage("unmerge", len(receipt.weights))
    weights = map_weights(base)
    with _all_or_nothing(model) as write:
        for name in receipt.weights:
            weight = weights[name]
            write(weight, receipt.before(name, weight))
            listener.step()
        now = {name: record.before for name, record in receipt.weights.items()}
        # what rounded away entirely left no weight by which it could be told
        others = [one for one in remembered(base) if not all(made in receipt.merges for made in one.merges)]
        remember(base, still_merged(others, now))


def _merged(plan: MergePlan, name: str, weight: Tensor, orientation: str) -> tuple[Tensor, MergeLoss]:
    """The weight of a map with its change, as the model stores it, and what is lost."""
    after, loss = plan.merging(name).rounded()
    if not torch.isfinite(after).all():
        raise ComputationError(
            f"The weight of {name} with its change is beyond the range of {after.dtype}.",
            "Keep the pack attached, or load the base in bfloat16 or float32.",
        )
    return as_stored(after, orientation, weight.shape), loss


@contextmanager
def _all_or_nothing(model: Host) -> Iterator[Write]:
    """Gives a function that overwrites a weight; whatever fails, modules and weights are as before."""
    structure, written = Structure(model), []

    def write(weight: Tensor, values: Tensor) -> None:
        written.append((weight, weight.detach().to("cpu", copy=True)))
        with torch.no_grad():
            weight.copy_(values)

    try:
        yield write
    except BaseException:
        structure.restore()
        with torch.no_grad():
            for weight, before in written:
                weight.copy_(before)
        raise
