"""AnyEdit: long, free-form answers, taught chunk by chunk (arXiv 2502.05628)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_edit.batching import evenly
from hf_edit.edits import EditSet
from hf_edit.methods.anyedit.chunking import chunks_of
from hf_edit.methods.anyedit.chunks import Chunk
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.targets import Targets, in_lockstep, optimise_targets
from hf_edit.methods.anyedit.unke import train_block
from hf_edit.methods.anyedit.update import solver, spread_update
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.methods.checkpoints import key_of
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.polish.apart import polished_apart
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.polish.method import polished, polished_linears
from hf_edit.methods.training.outcome import told_right, warn_of_missed, warn_of_unheld, warn_of_unreached
from hf_edit.methods.training.texts import prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.moments import SecondMoments


class AnyEdit:
    """The method with its settings bound."""

    name = "anyedit"

    def __init__(self, config: AnyEditConfig) -> None:
        self.config = config

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps whose second moments are needed: those that a solve changes, none where a block is trained.

        Raises:
            ConfigError: a layer the model does not have, or several where a norm makes spreading meaningless.
        """
        if self.config.backend == "direct":
            return polished_linears(model, self._direct())
        return [] if self.config.backend == "unke" else self._edited(model)

    def compute(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """Teach `edits` jointly: targets per edit and chunk, then one update for all of them."""
        config = self.config
        if config.backend == "direct":
            return self._optimised(model, prompts, edits, preserve, checkpoints, progress)
        edited = self._edited(model)
        most = config.columns_of(edited)
        second_moments = None if config.backend == "unke" else preserve.moments(edited)
        encoded = [prompts.encode(edit.prompt, edit.target) for edit in edits]
        chunks = [chunks_of(model, prompts, e, config) for e in encoded]

        processes = Processes.joined(model.device)
        # those with alike many chunks together, so that batches stay as large as they began
        order = sorted(range(len(edits)), key=lambda i: -len(encoded[i].answer_ids))
        batches = processes.batches(order, config.at_once)
        progress.stage("targets", sum(len(chunks[i]) for batch in processes.mine(batches) for i in batch))
        found = processes.map(
            lambda batch: self._targets(
                model,
                edited[-1],
                [encoded[i] for i in batch],
                [chunks[i] for i in batch],
                len(edits),
                checkpoints,
                progress,
            ),
            batches,
        )
        by_edit = dict(zip(order, (each for batch in found for each in batch), strict=True))
        targets = [by_edit[i] for i in range(len(edits))]
        receipt = {edit.id: _figures(t) for edit, t in zip(edits, targets, strict=True)}
        worst = {id: figures["worst_chunk_loss"] for id, figures in receipt.items()}
        warn_of_unreached(worst, "chunk", config.stop_loss)

        if second_moments is None:
            preserved = self._preserved(preserve)
            layer = edited[-1].layer
            deltas, block = train_block(model, layer, encoded, targets, preserved, config.unke, config.seed, progress)
            shared = {name: round(value, 6) for name, value in block.items()}
            receipt = {id: {**figures, "block": shared} for id, figures in receipt.items()}
            return EditResult(deltas, [{} for _ in edits], receipt)
        weights = config.moment_weights(len(edits))
        deltas, source = spread_update(
            model,
            edited,
            encoded,
            targets,
            preserve.earlier,
            solver(config, _moment_of(second_moments, weights, model.device), most),
            config.own_weight,
            config.earlier_weight,
        )
        return EditResult(deltas, source, receipt)

    def _preserved(self, preserve: Preservation) -> list[Encoded]:
        """The texts over which unke keeps a block's outputs."""
        earlier = preserve.earlier if self.config.earlier_weight else ()
        if self.config.unke.preserved_weight:
            return [*preserve.conversations(), *earlier]
        warn_of_unheld(earlier, "unke.preserved_weight is 0", "Raise it, or set earlier_weight = 0.")
        return []

    def _optimised(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """By the backend `direct`: all edits together, or in parts that are joined, and polished if so wanted.

        Warns:
            HfEditWarning: names the edits that are not answered as asked.
        """
        config, start = self.config, None
        if config.together is not None and len(edits) > config.together:
            joined = polished_apart(
                model,
                prompts,
                evenly(edits, -(-len(edits) // config.together)),
                preserve,
                self._direct(),
                config.join,
                config.seed,
                checkpoints,
                progress,
            )
            if not config.polish:
                right = told_right(joined.receipt, edits.ids)
                warn_of_missed(right, "are not answered as asked once joined", "Set polish, or raise join.rank.")
                return joined
            start = joined.deltas
        return polished(model, prompts, edits, preserve, self._direct(), config.seed, checkpoints, progress, start)

    def _direct(self) -> PolishSettings:
        """How the update is optimised, in the layers and columns chosen for AnyEdit, if any are."""
        config, direct = self.config, self.config.direct
        settings = replace(direct, layers=config.layers or direct.layers)
        if config.is_sparse:
            settings = replace(settings, columns=config.columns, column_bytes=config.column_bytes)
        return settings

    def _edited(self, model: EditableModel) -> list[EditableLinear]:
        """The MLP output maps of the chosen layers: the last has the targets. Errors as for `linears`."""
        layers = self.config.layers
        return mlp_outputs(
            model, (min(round(0.6 * model.n_layers), model.n_layers - 1),) if layers is None else layers
        )

    def _targets(
        self,
        model: EditableModel,
        linear: EditableLinear,
        encoded: Sequence[Encoded],
        chunks: Sequence[Sequence[Chunk]],
        n_edits: int,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> list[Targets]:
        """Stage 1 for a batch, of which an earlier run, also of another backend, may have left some edits.

        Those run in lockstep are taken from there together or not at all: sums are rounded otherwise in other company.
        """
        settings = self.config.target_settings(n_edits)
        keys = [key_of(linear.name, e.ids, e.answer_start, settings) for e in encoded]
        texts = prepared(model, encoded, linear.layer)
        found: list[Targets] = []
        for part in in_lockstep(model, linear, texts):
            kept = [known for i in part if (known := checkpoints.load(keys[i])) is not None]
            if len(kept) == len(part):
                found += [Targets(**known) for known in kept]
                progress.step(sum(len(chunks[i]) for i in part))
                continue
            run, cuts = [texts[i] for i in part], [chunks[i] for i in part]
            targets = optimise_targets(model, linear, run, cuts, self.config, n_edits, progress)
            for i, one in zip(part, targets, strict=True):
                checkpoints.save(keys[i], vars(one))
            found += targets
        return found


class UnKE(AnyEdit):
    """The method with its settings bound."""

    name = "unke"


def _moment_of(
    second_moments: SecondMoments, weights: Mapping[str, float], device: torch.device
) -> Callable[[EditableLinear], Tensor]:
    """The second moment C of a linear's inputs over the parts that were collected."""
    collected = second_moments.collected(weights)
    return lambda linear: second_moments.combined(linear.name, collected).to(device)


def _figures(targets: Targets) -> dict[str, Any]:
    norms: Tensor = targets.deltas.norm(dim=1)
    return {
        "chunks": len(targets.positions),
        "loss": round(float(targets.losses.mean()), 6),
        "worst_chunk_loss": round(float(targets.losses.max()), 6),
        "target_norm": round(float(norms.mean()), 4),
        "evaluations": int(targets.evaluations.sum()),
    }
