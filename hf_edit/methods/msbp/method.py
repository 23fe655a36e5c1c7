"""MEND, MALMEN, RLEdit, UltraEdit and EMSEdit: gradients in, one shift of several linears out, a few times over.

| method | coefficient of a row | aggregation | source |
|---|---|---|---|
| mend | 1 | sum of v~ k~^T | arXiv 2110.11309 |
| malmen | <k, k~> | ridge | arXiv 2311.04661 |
| rledit | <k, k~> | ridge | arXiv 2502.05759 |
| ultraedit | <k^, k^> | ridge | arXiv 2505.14679 |
| emsedit | <k, k~> | ridge | arXiv 2508.04012 |

k is the raw key, k^ the normalised one, k~ and v~ what the hypernetwork makes of key and gradient; without one they
are the normalised rows themselves. UltraEdit's rows are centred and scaled, as published; the others' are only scaled,
which measured better and works for a single token. `steps` is multi-step backpropagation for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import cycle, islice
from typing import ClassVar

import torch
from torch import Tensor

from hf_edit.batching import batched
from hf_edit.edits import EditSet
from hf_edit.errors import ComputationError, ConfigError
from hf_edit.methods.base import Checkpoints, EditResult, KeyValues, Preservation
from hf_edit.methods.contexts import behind, invent_prefixes
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.msbp.config import DEFAULT_PRESERVATION, HyperConfig, KeyWeights, MultiStepConfig
from hf_edit.methods.msbp.hypernet import Hypernet
from hf_edit.methods.msbp.probe import Probe
from hf_edit.methods.msbp.proposal import Normaliser, Rule
from hf_edit.methods.msbp.protection import protected_by_moments
from hf_edit.methods.msbp.stream import Step, Stream, Transformer
from hf_edit.methods.training.outcome import warn_of_missed, warn_of_unheld
from hf_edit.methods.training.teacher import untaught
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.truncation import truncated


DEFAULT_STEPS = 6
CONTEXTS, CONTEXT_TOKENS = 32, 10
"""Different texts that are put in front of prompts, and their length."""


class MultiStep:
    """One method of the family with its settings bound."""

    name: ClassVar[str]
    rule: ClassVar[Rule]

    def __init__(self, config: MultiStepConfig) -> None:
        self.config = config

    @cached_property
    def hypernet(self) -> Hypernet | None:
        """The trained network that the settings name, read when it is first needed."""
        name = self.config.hypernet if isinstance(self.config, HyperConfig) else None
        return None if name is None else Hypernet.from_pretrained(name)

    @property
    def steps(self) -> int:
        """Backward passes per batch."""
        return self.config.steps or (DEFAULT_STEPS if self.hypernet is None else self.hypernet.manifest.steps)

    @property
    def preservation(self) -> float:
        """Weight of the second moment of what must not change."""
        if self.config.preservation is not None:
            return self.config.preservation
        return DEFAULT_PRESERVATION if self.hypernet is None else self.hypernet.preserving.preservation

    @property
    def moments(self) -> KeyWeights:
        """What that second moment is made of."""
        return self.config.moments if self.hypernet is None else self.hypernet.preserving.moments

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that will be edited: with a network those that it knows.

        Raises:
            ConfigError: a layer that the model does not have, or that the network was not trained for.
            BaseMismatchError: the network was trained for another base.
        """
        if self.hypernet is None:
            return mlp_outputs(model, self.config.layers_of(model.n_layers), together=False)
        self.hypernet.check_base(model)
        layers = self.hypernet.layers
        if self.config.layers not in (None, layers):
            raise ConfigError(
                f"The hypernetwork edits the layers {list(layers)}, not {list(self.config.layers)}.",
                "Leave layers out: a network brings its own.",
            )
        return mlp_outputs(model, layers, together=False)

    def compute(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """Learn `edits` batch by batch; what a batch taught is protected from those after it.

        Nothing is kept in `checkpoints`: a run costs less than a few forward passes per edit.

        Raises:
            ComputationError: every step was refused.

        Warns:
            HfEditWarning: names the edits that are not answered as asked at the end.
        """
        config, linears = self.config, self.linears(model)
        del checkpoints
        transformers = self.transformers(model, prompts)  # first: a network for something else is refused before work
        texts = prepared(model, [prompts.encode(e.prompt, e.target) for e in edits], linears[0].layer)
        beside = self._in_contexts(model, prompts, edits, linears[0].layer)
        weight = self.preservation if self.rule.solve else 0.0
        protected = protected_by_moments(model, linears, preserve, weight, self.moments)
        processes = Processes.joined(model.device)
        stream = Stream(model, linears, self.rule, transformers, config.ridge, config.at_once, protected, processes)
        self._protect(stream, prompts, edits, preserve)
        probe = Probe(stream, prompts, edits, preserve, config.calibration, config.seed)
        source: list[dict[str, KeyValues]] = []
        sizes: list[list[float]] = []
        progress.stage("edits", len(texts))
        for part in batched(range(len(texts)), config.batch or len(texts)):
            batch = [texts[i] for i in part]
            taught = [*batch, *(text for i in part for text in beside[i])]
            steps = [self.step(stream, number, taught, probe) for number in range(self.steps)]
            source += _source(batch, [asked for _, asked in steps])
            sizes += [[float(f"{size:.6g}") for size, _ in steps]] * len(batch)
            if part[-1] + 1 < len(texts):
                stream.protect(batch, config.protect_earlier)
            progress.step(len(batch))
        if not stream.deltas:
            raise ComputationError(
                f"None of the {self.steps} steps of any batch lowered the loss of its edits.",
                "Leave out edits that are answered already, teach more edits together, or give step_size.",
            )
        lost = self._truncate(stream, preserve)
        return self._result(stream, edits, texts, source, sizes, lost)

    def _in_contexts(
        self, model: EditableModel, prompts: PromptFormat, edits: EditSet, first: int
    ) -> list[list[Text]]:
        """Per edit its prompt behind other text, where that fits the model's context; texts take turns.

        Args:
            first: the block that texts enter.
        """
        count = self.config.contexts
        if count == 0:
            return [[] for _ in edits]
        invented = cycle(invent_prefixes(model, prompts, CONTEXTS, CONTEXT_TOKENS, self.config.seed))
        beside = []
        for edit in edits:
            encoded = [
                prompts.encode(behind(context, edit.prompt), edit.target) for context in islice(invented, count)
            ]
            fitting = [one for one in encoded if model.max_length is None or len(one) <= model.max_length]
            beside.append(prepared(model, fitting, first))
        return beside

    def transformers(self, model: EditableModel, prompts: PromptFormat) -> list[Transformer]:
        """What serves each step; ConfigError for a network that was trained for other prompts, steps or method."""
        if self.hypernet is not None:
            self.hypernet.check(prompts, self.name, self.steps)
            return self.hypernet.transformers(model)
        return [Transformer(Normaliser.empty(self.linears(model), model.device))] * self.steps

    def step(
        self, stream: Stream, number: int, batch: Sequence[Text], probe: Probe
    ) -> tuple[float, dict[str, Tensor]]:
        """One backward pass of a batch and its shift, which stands from then on.

        Returns the step size, and by linear name the changes of outputs that were asked for, (n, d_out).
        """
        captured = stream.captured(batch)
        proposals = stream.proposals(number, captured)
        if self.config.step_size is not None:
            size = self.config.step_size
        elif self.hypernet is not None:
            size = 1.0  # the network has its own eta
        else:
            size = probe.step_size(batch, captured, proposals, last=number == self.steps - 1)
        size = stream.processes.first(size)  # rounding must not part those whose machines differ
        stream.take(Step(captured, proposals, size))
        return size, {name: size * proposal.changes for name, proposal in proposals.items()}

    def _protect(self, stream: Stream, prompts: PromptFormat, edits: EditSet, preserve: Preservation) -> None:
        """Keep the keys of strangers and of earlier edits, by their weights, in the solve if there is one."""
        config, model = self.config, stream.model
        if not self.rule.solve:
            earlier = preserve.earlier if config.protect_earlier else ()
            warn_of_unheld(
                earlier, f"{self.name} has no solve to hold them in", "Set protect_earlier = 0 to accept it."
            )
            return
        strangers = preserve.strangers(list(edits), config.strangers) if config.strangers else ()
        (earlier,) = untaught([preserve.earlier], prompts, edits, ())
        for encoded, weight in ((strangers, config.stranger_weight), (earlier, config.protect_earlier)):
            if encoded and weight:
                stream.protect(prepared(model, encoded, stream.first), weight)

    def _truncate(self, stream: Stream, preserve: Preservation) -> float | None:
        """Cut the update to the rank asked for; the largest share that a linear loses of its outputs or weights."""
        config = self.config
        if config.rank is None:
            return None
        moments: dict[str, Tensor] = {}
        if self.preservation:
            weights = self.moments.moment_weights()
            moments = dict(preserve.moments(stream.linears).combined_each(stream.deltas, weights, stream.model.device))
        lost = 0.0
        for name, delta in stream.deltas.items():
            stream.deltas[name], error = truncated(delta, config.rank, moments.get(name))
            lost = max(lost, error.weights if error.outputs is None else error.outputs)
        return lost

    def _result(
        self,
        stream: Stream,
        edits: EditSet,
        texts: Sequence[Text],
        source: Sequence[Mapping[str, KeyValues]],
        sizes: Sequence[Sequence[float]],
        lost: float | None,
    ) -> EditResult:
        losses, right = stream.judged(texts)
        receipt = {
            edit.id: {"loss": round(loss, 6), "right": ok, "step_sizes": list(size)}
            | ({} if lost is None else {"truncation_error": round(lost, 6)})
            for edit, loss, ok, size in zip(edits, losses, right, sizes, strict=True)
        }
        what = f"are not answered as asked after {self.steps} steps"
        warn_of_missed(dict(zip(receipt, right, strict=True)), what, "Take more steps, or smaller batches.")
        # where a network lay says nothing elsewhere; which one it was does
        used = {} if self.hypernet is None else {"hypernet": self.hypernet.identity()}
        return EditResult(stream.deltas, source if self.rule.solve else None, receipt, used)


def _source(batch: Sequence[Text], steps: Sequence[Mapping[str, Tensor]]) -> list[dict[str, KeyValues]]:
    """Per text what its steps asked of each linear in all, where its answer is predicted; its rows come first."""
    counts = [len(text.labels) for text in batch]
    source: list[dict[str, KeyValues]] = [{} for _ in batch]
    for name in steps[0]:
        asked = torch.stack([step[name][: sum(counts)] for step in steps]).sum(dim=0)  # (n, d_out)
        for text, values, into in zip(batch, asked.split(counts), source, strict=True):
            positions = torch.arange(text.start - 1, len(text.ids) - 1)
            into[name] = KeyValues(positions, values.float().cpu())
    return source


class Mend(MultiStep):
    """The rows' rank-one updates, added up."""

    name = "mend"
    rule = Rule(solve=False)


class Malmen(MultiStep):
    """The rows' updates, aggregated by least squares."""

    name = "malmen"
    rule = Rule()


class RLEdit(MultiStep):
    """MALMEN's shift; its network is trained along sequences of batches."""

    name = "rledit"
    rule = Rule()


class UltraEdit(MultiStep):
    """Standardised keys and gradients, without a network."""

    name = "ultraedit"
    rule = Rule(raw_keys=False, centred=True)


class EMSEdit(MultiStep):
    """Several chained backward passes; its network is held to small shifts."""

    name = "emsedit"
    rule = Rule()
