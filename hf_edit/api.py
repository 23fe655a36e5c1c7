"""From a model and a list of edits to an edit pack."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit._version import __version__
from hf_edit.compose.adapters import pack_for
from hf_edit.edits import Edit, EditSet, prompt_key
from hf_edit.errors import ConfigError
from hf_edit.methods import default_config, method_for
from hf_edit.methods.base import Checkpoints, EditMethod
from hf_edit.methods.checkpoints import FolderCheckpoints, NoCheckpoints
from hf_edit.methods.msbp.hypernet import Hypernet
from hf_edit.methods.msbp.training.config import HypernetConfig
from hf_edit.methods.msbp.training.loop import train_hypernet
from hf_edit.methods.polish.config import PolishConfig
from hf_edit.methods.polish.method import Polish
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import running_fingerprint
from hf_edit.models.memory import parse_bytes
from hf_edit.packs.pack import EditPack
from hf_edit.processes import Processes, is_first
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat
from hf_edit.settings import Settings
from hf_edit.statistics.preserved import Preserved


Earlier: TypeAlias = EditPack | EditSet | str | os.PathLike[str]
Edits: TypeAlias = EditSet | Iterable[Edit | Mapping[str, Any]] | str | os.PathLike[str]


def edit(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Edits,
    config: Settings | None = None,
    *,
    earlier: Earlier | Iterable[Earlier] = (),
    progress: Progress | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
    memory_budget: int | str | None = None,
) -> EditPack:
    """Compute the pack that teaches `edits` to `model`.

    The model is only read: every tensor, hook, flag and random state is afterwards as it was, also when this raises
    or is interrupted. Several processes, started by `accelerate launch` (on CPUs by `torchrun`), share the edits
    where the method computes them one by one; each of them gets the pack, and one is to save it.

    Args:
        model: a causal language model of transformers, plain or inside a PeftModel.
        tokenizer: its tokenizer.
        edits: an edit set, edits or mappings, or the path of a JSONL file.
        config: settings of a method (such as AnyEditConfig or MemitConfig), which also choose it; none: AnyEdit with
            the backend direct.
        earlier: edits that were taught before and are to stay as they are: packs (or their folders) attached to the
            model, or edits in its weights. What the model says to their prompts, and the inputs at all of their
            tokens, is preserved, but for questions that are taught anew. The pack says what it was made beside.
        progress: who is told how far it is.
        resume_dir: a folder for intermediate results. A run that was killed goes on from there and gives the same
            pack. The caller removes it when the pack is saved.
        memory_budget: the most that may be taken beside the model, in bytes or as "2GB"; none: what the device has.
            Less runs at once to keep it, which is slower and comes to the same up to rounding. The pack's
            `peak_memory` says what was taken.

    Raises:
        InvalidEditError: an edit that cannot be taught, or is longer than the model's context.
        ConfigError: settings that do not fit the model or its tokenizer.
        UnsupportedModelError: the model has no parts that hf_edit can change.
        MemoryBudgetError: the budget is too small, or the device.
        StatisticsError, ComputationError: second moments or targets that could not be computed.
    """
    method = method_for(config or default_config())
    return _computed(model, tokenizer, EditSet.coerce(edits), method, earlier, progress, resume_dir, memory_budget)


def polish(
    pack: EditPack | str | os.PathLike[str],
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PolishConfig | None = None,
    earlier: Earlier | Iterable[Earlier] = (),
    progress: Progress | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
    memory_budget: int | str | None = None,
) -> EditPack:
    """Refine the update of a pack on the answers of all its edits at once, whatever method it came from.

    Args:
        pack: where the refinement starts, or its folder or id on the Hub; it is not changed.
        model: the pack's base, without the pack. Only read.
        config: settings of polish; none: its defaults. Without a format it is the pack's own.
        tokenizer, earlier, progress, resume_dir, memory_budget: as for `edit`.

    Returns:
        A pack of the same edits, with the given one named as its parent.

    Raises:
        PackError, BaseMismatchError: the pack is not sound, or `model` is not its base.
        ConfigError: `config` are settings of something else.
        HfEditError: as for `edit`.
    """
    pack = pack_for(model, pack)
    pack.prompts(tokenizer)
    if config is not None and not isinstance(config, PolishConfig):
        raise ConfigError(f"{type(config).__name__} are no settings of polish.", "Give a PolishConfig, or none.")
    settings = config or PolishConfig(format=pack.manifest.prompt_format.name)
    if settings.format is None:
        settings = replace(settings, format=pack.manifest.prompt_format.name)
    method = Polish(settings, pack.deltas)
    return _computed(
        model, tokenizer, pack.edits, method, earlier, progress, resume_dir, memory_budget, parents=[pack]
    )


def train(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Edits,
    config: HypernetConfig | None = None,
    *,
    validation: Edits | None = None,
    progress: Progress | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
) -> Hypernet:
    """Train a hypernetwork that turns gradients of this base into edits; `hypernet=` of a method's settings uses it.

    The model is only read, as by `edit`. Started by `accelerate launch`, several processes share the work on every
    batch; each of them gets the network, and they must see the same `resume_dir`, which the first of them uses.

    Args:
        edits: to train on, best with paraphrases, on which the loss is taken.
        config: the method, and how it is trained; none: EMSEdit for batches of 50.
        validation: edits to validate on; none: a share of `edits`, which are then not trained on.
        model, tokenizer, progress, resume_dir: as for `edit`.

    Raises:
        HfEditError: as for `edit`.
    """
    settings, listener = config or HypernetConfig(), _listener(progress)
    sets = [EditSet.coerce(edits), *([] if validation is None else [EditSet.coerce(validation)])]
    view, prompts = _opened(model, tokenizer, settings, [one for edit_set in sets for one in edit_set])
    preserve = Preserved(view, prompts, settings.statistics, settings.seed, listener)
    checkpoints = _checkpoints(resume_dir, view, prompts)
    with borrowed(view.model):
        held_out = sets[1] if validation is not None else None
        return train_hypernet(view, prompts, sets[0], held_out, preserve, settings, checkpoints, listener)


def _computed(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: EditSet,
    method: EditMethod,
    earlier: Earlier | Iterable[Earlier],
    progress: Progress | None,
    resume_dir: str | os.PathLike[str] | None,
    memory_budget: int | str | None = None,
    parents: Sequence[EditPack] = (),
) -> EditPack:
    """The pack that `method` computes of `edits`."""
    settings, listener = method.config, _listener(progress)
    before = _earlier(earlier)
    taught = {prompt_key(edit.prompt) for edit in edits}  # anew: the earlier answer is the one to be replaced
    every = [edit for one in before for edit in (one.edits if isinstance(one, EditPack) else one)]
    kept = [edit for edit in every if prompt_key(edit.prompt) not in taught]
    view, prompts = _opened(model, tokenizer, settings, [*edits, *kept], memory_budget)
    preserve = Preserved(
        view,
        prompts,
        settings.statistics,
        settings.seed,
        listener,
        [prompts.encode(edit.prompt, edit.target) for edit in kept],
    )
    checkpoints = _checkpoints(resume_dir, view, prompts)
    with borrowed(view.model):
        with view.memory.watched():
            result = method.compute(view, prompts, edits, preserve, checkpoints, listener)
        Processes.joined(view.device).wait()  # before anyone takes away what others may still read
        pack = EditPack.build(
            model,
            deltas=result.deltas,
            edits=edits,
            source=result.source,
            method=method.name,
            config={**settings.to_json(), **result.settings},
            seed=settings.seed,
            prompt_format=prompts,
            receipt=result.receipt,
            parents=parents,
            earlier=before,
        )
        return replace(pack, peak_memory=view.memory.peak)


def _earlier(given: Earlier | Iterable[Earlier]) -> list[EditPack | EditSet]:
    """Packs and edits taught before, also where there is one, or the folder of one."""
    some = [given] if isinstance(given, (EditPack, EditSet, str, os.PathLike)) else list(given)
    return [one if isinstance(one, EditSet) else EditPack.coerce(one) for one in some]


def _listener(progress: Progress | None) -> Progress:
    """Of several processes only the first tells how far it is."""
    return progress if progress is not None and is_first() else Silent()


def _opened(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Any,
    edits: Sequence[Edit],
    memory_budget: int | str | None = None,
) -> tuple[EditableModel, PromptFormat]:
    """The view on the model and the format of its prompts, once all of them and the edits are known to fit."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"{type(tokenizer).__name__} is not a transformers tokenizer.",
            "Load it with AutoTokenizer.from_pretrained.",
        )
    prompts = PromptFormat.of(settings.format, tokenizer)
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    view = EditableModel.of(model, budget, experts=getattr(settings, "experts", False))
    _check_vocabulary(view, prompts)
    prompts.check(edits, view.max_length)
    return view, prompts


def _checkpoints(
    resume_dir: str | os.PathLike[str] | None, model: EditableModel, prompts: PromptFormat
) -> Checkpoints:
    """Intermediate results in that folder, of this very base and these prompts."""
    if resume_dir is None:
        return NoCheckpoints()
    context = f"{__version__} {torch.__version__} {running_fingerprint(model.model)} {prompts.fingerprint()}"
    return FolderCheckpoints(resume_dir, context)


def _check_vocabulary(model: EditableModel, prompts: PromptFormat) -> None:
    """Refuse a tokenizer with text tokens that the model has no embedding for: it is another model's."""
    largest, embeddings = max(prompts.plain_tokens()), model.model.get_input_embeddings().weight.shape[0]
    if largest >= embeddings:
        raise ConfigError(
            f"The tokenizer has a token {largest}, and the model's embeddings end at {embeddings - 1}.",
            "Use the model's own tokenizer, or resize the model's embeddings.",
        )
