"""AnyEdit: long, free-form answers, taught chunk by chunk (arXiv 2502.05628)."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

from torch import Tensor

from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError, HfEditWarning
from hf_edit.methods.anyedit.chunks import windows
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.targets import Targets, optimise_targets
from hf_edit.methods.anyedit.update import spread_update
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.ridge import penalty


MISSED_LOSS = 0.5


class AnyEdit:
    """The method with its settings bound."""

    name = "anyedit"

    def __init__(self, config: AnyEditConfig) -> None:
        self.config = config

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that will be edited.

        Raises:
            ConfigError: a layer the model does not have, or several where a norm makes spreading meaningless.
        """
        layers = self.config.layers
        if layers is None:
            layers = (round(0.6 * model.n_layers),)
        for layer in layers:
            if not 0 <= layer < model.n_layers:
                raise ConfigError(
                    f"Layer {layer} does not exist: the model has {model.n_layers} blocks.",
                    f"Choose layers from 0 to {model.n_layers - 1}.",
                )
        if len(layers) > 1 and not model.writes_residual:
            raise ConfigError(
                f"{len(layers)} layers were given, but in this model ({model.family.name}) a norm stands between the "
                "MLP's output map and the residual stream, so a target cannot be spread over layers.",
                "Choose one layer.",
            )
        return [model.linears[layer] for layer in layers]

    def compute(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """Teach `edits` jointly: targets per edit and chunk, then one solve per layer over all of them."""
        config = self.config
        linears = self.linears(model)
        encoded = [prompts.encode(edit.prompt, edit.target) for edit in edits]
        second_moments = preserve.moments(linears)
        # formats without turns, and models that invent no question, have plain text only
        weights = {part: w for part, w in config.moment_weights(len(edits)).items() if part in second_moments.tokens}

        progress.stage("targets", sum(len(windows(len(e.answer_ids), config.window, config.overlap)) for e in encoded))
        targets = [self._targets(model, linears[-1], e, len(edits), checkpoints, progress) for e in encoded]
        deltas, source = spread_update(
            model,
            linears,
            encoded,
            targets,
            lambda linear: penalty(
                second_moments.combined(linear.name, weights).to(model.device),
                config.preservation,
                config.ridge,
            ),
            config.own_weight,
        )
        receipt = {edit.id: _figures(t) for edit, t in zip(edits, targets, strict=True)}
        _warn_of_missed(receipt, config)
        return EditResult(deltas, source, receipt)

    def _targets(
        self,
        model: EditableModel,
        linear: EditableLinear,
        encoded: Encoded,
        n_edits: int,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> Targets:
        """Stage 1 for one edit, taken from the checkpoints if a killed run left it there."""
        config = self.config
        chunks = windows(len(encoded.answer_ids), config.window, config.overlap)
        key = _digest(linear.name, encoded.ids, encoded.answer_start, n_edits, config.to_json())
        kept = checkpoints.load(key)
        if kept is not None:
            progress.step(len(chunks))
            return Targets(**kept)
        targets = optimise_targets(model, linear, encoded, chunks, config, n_edits, progress)
        checkpoints.save(key, vars(targets))
        return targets


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _figures(targets: Targets) -> dict[str, Any]:
    norms: Tensor = targets.deltas.norm(dim=1)
    return {
        "chunks": len(targets.positions),
        "loss": round(float(targets.losses.mean()), 6),
        "worst_chunk_loss": round(float(targets.losses.max()), 6),
        "target_norm": round(float(norms.mean()), 4),
        "evaluations": int(targets.evaluations.sum()),
    }


def _warn_of_missed(receipt: dict[str, dict[str, Any]], config: AnyEditConfig) -> None:
    """Name the edits whose targets stayed far from the stopping loss: they will hardly be answered as asked."""
    missed = [i for i, figures in receipt.items() if figures["worst_chunk_loss"] > MISSED_LOSS]
    if missed:
        warnings.warn(
            f"{len(missed)} of {len(receipt)} edits have a chunk whose loss stayed above {MISSED_LOSS:g} (stop_loss "
            f"is {config.stop_loss:g}): {', '.join(missed[:5])}. Raise max_evaluations or clamp.",
            HfEditWarning,
            stacklevel=2,
        )
