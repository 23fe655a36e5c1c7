"""A pack solved anew on a few input columns of each of its linear maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit.compose.adapters import pack_for
from hf_edit.compose.asked import taught_by
from hf_edit.methods.joining.asked import keys_of
from hf_edit.methods.support import columns_each
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.settings import setting
from hf_edit.solvers.ridge import Columns, penalty
from hf_edit.solvers.support import solve_within
from hf_edit.statistics.config import MomentWeights, StatisticsConfig
from hf_edit.statistics.preserved import Preserved


@dataclass(frozen=True)
class SparsifyConfig(MomentWeights):
    """What the solve on few columns weighs against the edits."""

    preservation: float = setting(
        10.0, "lambda: weight of the second moment of everything else in the solve.", above=0
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)


def sparsify(
    pack: EditPack | str | os.PathLike[str],
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    columns: int | None = None,
    bytes: int | None = None,
    config: SparsifyConfig | None = None,
    progress: Progress | None = None,
) -> EditPack:
    """Solve a pack anew so that it changes only a few whole columns of each of its weights.

    At every token of the edits' prompts and answers the new update is to add what the pack adds there; which columns
    serve that best, at the least cost to everything else, is found along with their values (`solvers.support`). The
    result can be saved in the layout `sparse`, and as plain LoRA without loss.

    Args:
        pack: what to solve anew, or its folder or id on the Hub; it is not changed.
        model: its base, without it. Only read.
        tokenizer: the base's tokenizer.
        columns: of each weight.
        bytes: instead of `columns`: the size that the sparse adapter's tensors may have in all.
        config: settings of the solve; none: its defaults.
        progress: who is told how far it is.

    Returns:
        A pack of the same edits, with the given one as its parent.

    Raises:
        PackError, BaseMismatchError: the pack is not sound, or `model` is not its base.
        ConfigError: not one of `columns` and `bytes`, one that leaves no column or is more than a weight has, or a
            tokenizer that the pack was not made with.
        StatisticsError, ComputationError: second moments or a solve that could not be computed.
    """
    pack = pack_for(model, pack)
    settings, listener = config or SparsifyConfig(), progress or Silent()
    view, prompts = EditableModel.of(model), pack.prompts(tokenizer)
    linears = view.linears_named(pack.deltas)
    counts = columns_each(linears, columns, bytes)
    with borrowed(view.model), torch.no_grad():
        moments = _moments(view, prompts, linears, settings, listener)
        solves = {linear.name: Columns(linear.d_out, linear.d_in) for linear in linears}
        listener.stage("keys and values", len(pack.edits))
        for taught in taught_by(view, prompts, pack, linears):
            inputs = keys_of(view, taught.asked, linears, linears[0].layer)
            for linear in linears:
                keys = inputs[linear.name].T
                asked = taught.asked.values.get(linear.name)
                values = keys.new_zeros(linear.d_out, keys.shape[1]) if asked is None else asked.T
                solves[linear.name].add(keys, values, keys.new_zeros(len(keys), 0))
            listener.step()
        deltas = {}
        listener.stage("columns", len(linears))
        for linear in linears:
            G = penalty(moments[linear.name], settings.preservation, settings.ridge)
            deltas[linear.name] = solve_within(solves[linear.name], G, counts[linear.name])
            listener.step()
        return EditPack.build(
            model,
            deltas=deltas,
            edits=pack.edits,
            source=pack.source,
            method="sparsify",
            config={**settings.to_json(), "columns": max(counts.values())},
            seed=settings.seed,
            prompt_format=prompts,
            receipt={"columns": {name: delta.rank for name, delta in deltas.items()}},
            parents=[pack],
        )


def moments_for(
    pack: EditPack,
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    config: SparsifyConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Module name -> second moment (d_in, d_in) of what else enters the weights that a pack changes.

    Arguments and errors as for `sparsify`.
    """
    pack.verify(model)
    view, prompts = EditableModel.of(model), pack.prompts(tokenizer)
    with borrowed(view.model):
        linears = view.linears_named(pack.deltas)
        return _moments(view, prompts, linears, config or SparsifyConfig(), progress or Silent())


def _moments(
    view: EditableModel,
    prompts: PromptFormat,
    linears: Sequence[EditableLinear],
    settings: SparsifyConfig,
    progress: Progress,
) -> dict[str, Tensor]:
    moments = Preserved(view, prompts, settings.statistics, settings.seed, progress).moments(linears)
    return dict(moments.combined_each([linear.name for linear in linears], settings.moment_weights(), view.device))
