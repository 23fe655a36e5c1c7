"""MEMIT (arXiv 2210.07229) and AlphaEdit (arXiv 2410.02355) for short facts about a subject."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, Generic, TypeVar

from torch import Tensor

from hf_edit.edits import EditSet
from hf_edit.errors import HfEditWarning, InvalidEditError
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.methods.checkpoints import key_of
from hf_edit.methods.contexts import invent_prefixes
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.memit.config import AlphaEditConfig, MemitConfig, ShortFactConfig
from hf_edit.methods.memit.facts import Fact, names_subject, prepared
from hf_edit.methods.memit.targets import Targets, in_batches, optimise_targets
from hf_edit.methods.memit.update import spread_update
from hf_edit.methods.training.outcome import warn_of_unreached
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.null_space import null_space, null_space_solve
from hf_edit.solvers.ridge import Columns, penalty
from hf_edit.solvers.support import solve_within
from hf_edit.statistics.moments import SecondMoments


Config = TypeVar("Config", bound=ShortFactConfig)
Solver = Callable[[EditableLinear, Tensor, Columns], LowRankDelta]
"""What becomes of the columns collected for a map, given the second moment (d_in, d_in) of its inputs."""


class ShortFacts(ABC, Generic[Config]):
    """What both methods share: everything but the solve. A method with its settings bound."""

    name: str

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def solve(self, C: Tensor, columns: Columns) -> LowRankDelta:
        """The update of one map from its columns and the second moment C (d_in, d_in) of its inputs."""

    def solver(self, linears: Sequence[EditableLinear]) -> Solver:
        """`solve` of each of the maps that are edited."""
        del linears  # for methods whose solve depends on which there are
        return lambda linear, C, columns: self.solve(C, columns)

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that will be edited; ConfigError for layers that the model does not have or that cannot share."""
        return mlp_outputs(model, self.config.layers_of(model.n_layers, spread=model.writes_residual))

    def compute(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """Teach `edits` jointly: a target per fact, then one solve per layer over all of them.

        Raises:
            InvalidEditError: `without_subject` is refuse, and a prompt names no subject.
        """
        config = self.config
        linears = self.linears(model)
        self._check_subjects(prompts, edits)
        solve = self.solver(linears)
        moments = preserve.moments(linears)
        prefixes = invent_prefixes(model, prompts, config.prefixes, config.prefix_tokens, config.seed)
        facts = [prepared(edit, prompts, prefixes, model.max_length) for edit in edits]

        processes = Processes.joined(model.device)
        progress.stage("targets", -(-len(facts) // processes.count))
        targets = in_batches(
            facts,
            config.batch,
            lambda batch: model.memory.in_parts(
                "targets",
                batch,
                lambda part: self._targets(model, linears[-1], part, checkpoints, progress),
                Fact.tokens,
            ),
            processes,
        )
        deltas, source = spread_update(
            model,
            linears,
            facts,
            targets,
            preserve.earlier if config.earlier_weight else (),
            config.earlier_weight,
            config.batch,
            lambda linear, columns: solve(linear, self._moment(moments, linear).to(model.device), columns),
        )
        receipt = {edit.id: figures for edit, figures in zip(edits, _figures(targets), strict=True)}
        warn_of_unreached({id: figures["loss"] for id, figures in receipt.items()}, "target", config.stop_loss)
        return EditResult(deltas, source, receipt)

    def _check_subjects(self, prompts: PromptFormat, edits: EditSet) -> None:
        nameless = [edit.id for edit in edits if not names_subject(edit, prompts)]
        if not nameless:
            return
        names = ", ".join(nameless[:5])
        message = f"{len(nameless)} of {len(edits)} edits have no subject that their prompt names: {names}."
        if self.config.without_subject == "refuse":
            raise InvalidEditError(
                message, "Give each edit a subject as its prompt spells it, or set without_subject to last_token."
            )
        warnings.warn(
            f"{message} Their key is the last token of the prompt, which is much the same for all questions.",
            HfEditWarning,
            stacklevel=3,
        )

    def _targets(
        self,
        model: EditableModel,
        linear: EditableLinear,
        facts: Sequence[Fact],
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> Targets:
        """Stage 1 for a batch, taken from the checkpoints if a killed run left it there."""
        key = key_of(linear.name, [astuple(fact) for fact in facts], self.config.to_json())
        kept = checkpoints.load(key)
        if kept is not None:
            progress.step(len(facts))
            return Targets(**kept)
        targets = optimise_targets(model, linear, facts, self.config, progress)
        checkpoints.save(key, vars(targets))
        return targets

    def _moment(self, moments: SecondMoments, linear: EditableLinear) -> Tensor:
        return moments.combined(linear.name, moments.collected(self.config.moment_weights()))


class Memit(ShortFacts[MemitConfig]):
    """A ridge solve against the second moment."""

    name = "memit"

    def solve(self, C: Tensor, columns: Columns, most: int | None = None) -> LowRankDelta:
        """R K^T (lambda C + K K^T)^-1, or that on the `most` inputs which serve best."""
        return solve_within(columns, penalty(C, self.config.preservation, self.config.ridge), most)

    def solver(self, linears: Sequence[EditableLinear]) -> Solver:
        """`solve` within the budget of columns."""
        most = self.config.columns_of(linears)
        return lambda linear, C, columns: self.solve(C, columns, most.get(linear.name))


class AlphaEdit(ShortFacts[AlphaEditConfig]):
    """A solve inside the null space of the second moment."""

    name = "alphaedit"

    def solve(self, C: Tensor, columns: Columns) -> LowRankDelta:
        """R K^T P (K K^T P + beta I)^-1"""
        beta = self.config.beta * float(C.diagonal().mean())
        return null_space_solve(columns, null_space(C, self.config.null_share), beta)


def _figures(targets: Targets) -> list[dict[str, Any]]:
    return [
        {
            "loss": round(float(loss), 6),
            "divergence": round(float(divergence), 6),
            "target_norm": round(float(delta.norm()), 4),
            "evaluations": int(evaluations),
        }
        for loss, divergence, delta, evaluations in zip(
            targets.losses, targets.divergences, targets.deltas, targets.evaluations, strict=True
        )
    ]
