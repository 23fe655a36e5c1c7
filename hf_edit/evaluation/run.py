"""Evaluating: a model is asked as it stands, then with a pack attached, and comes back as it was."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit._version import __version__
from hf_edit.compose.adapters import pack_for
from hf_edit.edits import EditSet, Probe
from hf_edit.errors import ComputationError, ConfigError
from hf_edit.evaluation.config import EvaluateConfig, Material
from hf_edit.evaluation.evaluators import chosen
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.evaluators.perplexity import Perplexity, stretches
from hf_edit.evaluation.figures import figure
from hf_edit.evaluation.interference import attached
from hf_edit.evaluation.recall import Recall
from hf_edit.evaluation.subject import Context, Subject, Task
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.models.fingerprint import dtype_name, running_fingerprint
from hf_edit.packs.evaluation import Evaluation, Figure, Generation, Metric, factors_digest
from hf_edit.packs.pack import EditPack
from hf_edit.processes import Processes
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import PromptFormat


def evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pack: EditPack | str | os.PathLike[str] | None = None,
    edits: EditSet | Sequence[Any] | None = None,
    config: EvaluateConfig | None = None,
    *,
    material: Material | None = None,
    context: Context | None = None,
    recall: Recall | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model before and after an edit: by what it says on its own first of all.

    The model is asked everything as it stands, then again with the pack attached. Afterwards it is as it was, bit for
    bit, also when this raises or is interrupted. Several processes, started by `accelerate launch` (on CPUs by
    `torchrun`), share the asking; all of them must call this alike, and each gets the same evaluation. One that
    evaluates by itself does so within `hf_edit.processes.alone()`.

    Args:
        model: the pack's base, without the pack; adapters that are active on it stay so.
        tokenizer: its tokenizer.
        pack: or its folder or id on the Hub; none: the model is measured as it stands, and figures that compare are
            left out.
        edits: what is asked, with all probes; none: those of the pack.
        config: which evaluators run, and how; none: all that there are probes for.
        material: what is known beside the edits, such as old answers, and a text for perplexity.
        context: puts something in front of every question at the second look, such as the fact itself: what reading
            is worth. With a pack or instead of one. Called with the question and the id of the edit that it belongs
            to, None of none.
        recall: what this very model said at the first look of earlier evaluations, so that it is asked nothing twice;
            the figures are the same without.
        progress: who is told how far it is.

    Raises:
        ConfigError: there is nothing to ask, an evaluator is unknown or lacks what it needs, the tokenizer writes
            prompts otherwise than the pack was taught in, or the recall is of another model.
        InvalidEditError: an edit is longer than the model's context.
        ComposeError: the pack is attached to the model.
        PackError, BaseMismatchError, UnsupportedModelError: the pack is not sound, or `model` is not its base.
        ComputationError: what the model puts out is not finite.
    """
    settings, known = config or EvaluateConfig(), material or Material()
    pack = None if pack is None else pack_for(model, pack)
    if edits is None and pack is None:
        raise ConfigError("There is neither a pack nor edits.", "Give one of the two.")
    asked = EditSet.coerce(edits) if edits is not None else pack.edits  # type: ignore[union-attr]
    view = EditableModel.of(model)
    processes = Processes.joined(view.device)
    listener = progress if progress is not None and processes.rank == 0 else Silent()
    prompts = _prompts(pack, settings, tokenizer)
    prompts.check(asked, view.max_length)
    task = Task.of(asked, known, settings, prompts)
    edited = pack is not None or context is not None
    evaluators = chosen(settings.evaluators, task, edited)
    environment = _environment(view, model, settings)
    if recall is not None and recall.base != environment["base_fingerprint"]:
        raise ConfigError("The recall is of another model, or of this one with other adapters.", "Give it a new one.")
    with borrowed(view.model):
        before = _Look.at(Subject(view, task, recall=recall), evaluators, None, "before", listener)
        after = None
        if edited:
            place: AbstractContextManager[None] = attached(model, [pack]) if pack else nullcontext()
            with place:
                subject = Subject(view, task, context, edited=True)
                after = _Look.at(subject, evaluators, before, "after", listener)
    # by the first, when no one reads the pack's files any more: whoever called it may replace them
    return processes.once(
        lambda: Evaluation(
            pack=None if pack is None else factors_digest(pack.deltas),
            metrics=tuple(_metrics(evaluators, before, after, settings.seed)),
            generations=tuple(_generations(before, after)),
            protocol=_protocol(task, evaluators, asked, context is not None, view.max_length),
            environment=environment,
            seconds={"base": before.seconds, **({} if after is None else {"edited": after.seconds})},
        )
    )


class _Look:
    """One model, observed by all evaluators."""

    def __init__(self, subject: Subject, observed: Mapping[str, Observed], seconds: float) -> None:
        self.subject, self.observed, self.seconds = subject, observed, seconds

    @classmethod
    def at(
        cls, subject: Subject, evaluators: Sequence[Evaluator], before: _Look | None, name: str, progress: Progress
    ) -> _Look:
        started = time.perf_counter()
        progress.stage(name, len(evaluators))
        observed = {}
        for one in evaluators:
            observed[one.name] = one.observe(subject, None if before is None else before.observed[one.name])
            progress.step(done=one.name)
        return cls(subject, observed, round(time.perf_counter() - started, 2))


def _metrics(evaluators: Sequence[Evaluator], before: _Look, after: _Look | None, seed: int) -> Iterator[Metric]:
    for one in evaluators:
        looks = [look.observed[one.name] for look in (before, after) if look is not None]
        known: dict[str, About] = {**one.metrics}
        for observed in looks:
            known |= observed.about
        for name, about in known.items():
            found = [_figure(look, name, about, seed) for look in looks]
            if any(found):
                yield Metric(
                    name=f"{one.name}.{name}",
                    protocol=about.protocol,
                    compared=about.compared,
                    higher_is_better=about.higher_is_better,
                    statistic=about.statistic,
                    before=found[0],
                    after=found[1] if after is not None else None,
                )


def _figure(observed: Observed, name: str, about: About, seed: int) -> Figure | None:
    records = observed.scores.get(name, ())
    found = records if isinstance(records, Figure) else figure(records, about.statistic, seed)
    if found is not None and not math.isfinite(found.value):
        raise ComputationError(
            f"The metric {name} is {found.value}: the model's outputs are not finite.",
            "The edit has broken the model, or its dtype is too narrow for it: try float32.",
        )
    return found


def _generations(before: _Look, after: _Look | None) -> Iterator[Generation]:
    for key, (question, answer) in before.subject.asked.items():
        now = None if after is None else after.subject.asked.get(key)
        yield Generation(
            kind=question.kind,
            edit=question.edit,
            prompt=Probe(question.prompt).to_json()["prompt"],
            accepted=question.accepted,
            before=answer,
            after=None if now is None else now[1],
        )


def _prompts(pack: EditPack | None, config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    if pack is not None and config.format in (None, pack.manifest.prompt_format.name):
        return pack.prompts(tokenizer)
    return PromptFormat.of(config.format, tokenizer)


def _protocol(
    task: Task, evaluators: Sequence[Evaluator], edits: EditSet, context: bool, length: int | None
) -> dict[str, Any]:
    """How it was asked, as JSON, without paths.

    Args:
        length: of the model's context.
    """
    config, names = task.config, [one.name for one in evaluators]
    text = task.material.text if Perplexity.name in names else None
    return {
        "evaluators": names,
        "edits": {"count": len(edits), "sha256": sha256(edits.dumps().encode()).hexdigest()},
        "format": task.prompts.name,
        "decoding": "greedy, natural stop",
        "max_new_tokens": task.max_new_tokens,
        "probe_tokens": config.probe_tokens,
        "drift": {"questions": config.drift_questions, "tokens": config.drift_tokens},
        "strangers": "given" if task.material.strangers else "invented by the base",
        "unrelated": len(task.material.unrelated),
        "context": context,
        "text": {"sha256": sha256(text.encode()).hexdigest(), "tokens": len(stretches(task, length)[0])}
        if text
        else None,
        "encoders": {
            "bertscore": _named(config.bertscore_model, config.bertscore_layer),
            "sentence": _named(config.sentence_model, -1),
        },
        "intervals": "95 %: BCa bootstrap over records, Wilson's for shares, lm-eval's by its standard errors",
    }


def _named(encoder: str | None, layer: int) -> str | None:
    """An encoder as the record names it: of a folder its name alone."""
    if encoder is None:
        return None
    return f"{Path(encoder).name if Path(encoder).is_dir() else encoder}, layer {layer}"


def _environment(view: EditableModel, model: PreTrainedModel | PeftModel, config: EvaluateConfig) -> dict[str, Any]:
    return {
        "versions": {
            "hf_edit": __version__,
            **{library.__name__: library.__version__ for library in (peft, torch, transformers)},
        },
        "dtype": dtype_name(view.model.dtype),
        "device": torch.cuda.get_device_name(view.device) if view.device.type == "cuda" else view.device.type,
        "seed": config.seed,
        "base_fingerprint": running_fingerprint(model),
    }
