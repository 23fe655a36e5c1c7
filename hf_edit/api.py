"""From a model and a list of edits to an edit pack."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit._version import __version__
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import ConfigError
from hf_edit.methods import method_for
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.base import Checkpoints
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.preserved import Preserved


def edit(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: EditSet | Iterable[Edit | Mapping[str, Any]] | str | os.PathLike[str],
    config: AnyEditConfig | None = None,
    *,
    progress: Progress | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
) -> EditPack:
    """Compute the pack that teaches `edits` to `model`.

    The model is only read: every tensor, hook, flag and random state is afterwards as it was, also when this raises
    or is interrupted.

    Args:
        model: a causal language model of transformers, plain or inside a PeftModel.
        tokenizer: its tokenizer.
        edits: an edit set, edits or mappings, or the path of a JSONL file.
        config: settings of a method, which also choose it; none: AnyEdit's defaults.
        progress: who is told how far it is.
        resume_dir: a folder for intermediate results. A run that was killed goes on from there and gives the same
            pack. The caller removes it when the pack is saved.

    Raises:
        InvalidEditError: an edit that cannot be taught, or is longer than the model's context.
        ConfigError: settings that do not fit the model or its tokenizer.
        UnsupportedModelError: the model has no parts that hf_edit can change.
        StatisticsError, ComputationError: second moments or targets that could not be computed.
    """
    edit_set = EditSet.coerce(edits)
    settings = config or AnyEditConfig()
    listener = progress or Silent()
    method = method_for(settings)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"{type(tokenizer).__name__} is not a transformers tokenizer.",
            "Load it with AutoTokenizer.from_pretrained.",
        )
    prompts = PromptFormat.of(settings.format, tokenizer)
    view = EditableModel.of(model)
    _check_vocabulary(view, prompts)
    if view.max_length is not None:
        prompts.check(edit_set, view.max_length)

    preserve = Preserved(view, prompts, settings.statistics, settings.seed, listener)
    checkpoints: Checkpoints = NoCheckpoints()
    if resume_dir is not None:
        context = f"{__version__} {torch.__version__} {running_fingerprint(view.model)} {prompts.fingerprint()}"
        checkpoints = FolderCheckpoints(resume_dir, context)
    with borrowed(view.model):
        result = method.compute(view, prompts, edit_set, preserve, checkpoints, listener)
        return EditPack.build(
            model,
            deltas=result.deltas,
            edits=edit_set,
            source=result.source,
            method=method.name,
            config=settings.to_json(),
            seed=settings.seed,
            prompt_format=prompts,
            receipt=result.receipt,
        )


def _check_vocabulary(model: EditableModel, prompts: PromptFormat) -> None:
    """Refuse a tokenizer with text tokens that the model has no embedding for: it is another model's."""
    largest, embeddings = max(prompts.plain_tokens()), model.model.get_input_embeddings().weight.shape[0]
    if largest >= embeddings:
        raise ConfigError(
            f"The tokenizer has a token {largest}, and the model's embeddings end at {embeddings - 1}.",
            "Use the model's own tokenizer, or resize the model's embeddings.",
        )
