"""MEND, MALMEN, RLEdit, UltraEdit and EMSEdit: gradients in, one shift of several linears out, a few times over.

| method | coefficient of a row | aggregation | source |
|---|---|---|---|
| mend | 1 | sum of v~ k~^T | arXiv 2110.11309 |
| malmen | <k, k~> | ridge | arXiv 2311.04661 |
| rledit | <k, k~> | ridge | arXiv 2502.05759 |
| ultraedit | <k^, k^> | ridge | arXiv 2505.14679 |
| emsedit | <k, k~> | ridge | arXiv 2508.04012 |

k is the raw key, k^ the standardised one, k~ and v~ what the hypernetwork makes of key and gradient; without one they
are the standardised rows. `steps` is multi-step backpropagation for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from hf_edit.batching import batched
from hf_edit.edits import EditSet
from hf_edit.methods.base import Checkpoints, EditResult, KeyValues, Preservation
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.msbp.config import MultiStepConfig
from hf_edit.methods.msbp.probe import Probe
from hf_edit.methods.msbp.proposal import Normaliser, Rule
from hf_edit.methods.msbp.stream import Step, Stream, Transformer
from hf_edit.methods.training.outcome import warn_of_missed
from hf_edit.methods.training.texts import Text, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat


class MultiStep:
    """One method of the family with its settings bound."""

    name: ClassVar[str]
    rule: ClassVar[Rule]

    def __init__(self, config: MultiStepConfig) -> None:
        self.config = config

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that will be edited; ConfigError for a layer that the model does not have."""
        return mlp_outputs(model, self.config.layers_of(model.n_layers), together=False)

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

        Warns:
            HfEditWarning: names the edits that are not answered as asked at the end.
        """
        config, linears = self.config, self.linears(model)
        del checkpoints
        texts = prepared(model, [prompts.encode(e.prompt, e.target) for e in edits], linears[0].layer)
        stream = Stream(model, linears, self.rule, self.transformers(model), config.ridge, config.at_once)
        self._protect(stream, edits, preserve)
        probe = Probe(stream, preserve, config.calibration, config.seed)
        source: list[dict[str, KeyValues]] = []
        sizes: list[list[float]] = []
        progress.stage("edits", len(texts))
        for part in batched(range(len(texts)), config.batch or len(texts)):
            batch = [texts[i] for i in part]
            steps = [self.step(stream, number, batch, probe) for number in range(config.steps)]
            source += _source(batch, steps)
            sizes += [[float(f"{step.size:.6g}") for step in steps]] * len(batch)
            if len(texts) > len(batch):
                stream.protect(stream.keys(batch), config.protect_earlier)
            progress.step(len(batch))
        return self._result(stream, edits, texts, source, sizes)

    def transformers(self, model: EditableModel) -> list[Transformer]:
        """What serves each step."""
        return [Transformer(Normaliser.empty(self.linears(model), model.device))] * self.config.steps

    def step(self, stream: Stream, number: int, batch: Sequence[Text], probe: Probe) -> Step:
        """One backward pass of a batch and its shift, which stands from then on."""
        captured = stream.captured(batch)
        proposals = stream.proposals(number, captured)
        if self.config.step_size is not None:
            size = self.config.step_size
        else:
            size = probe.step_size(batch, captured, proposals, last=number == self.config.steps - 1)
        step = Step(captured, proposals, size)
        stream.take(step)
        return step

    def _protect(self, stream: Stream, edits: EditSet, preserve: Preservation) -> None:
        """What no step may move: the second moment, strangers' keys, earlier edits' keys, by their weights."""
        config, model = self.config, stream.model
        if config.preservation:
            moments = preserve.moments(stream.linears)
            for name, protected in stream.protected.items():
                C = moments.combined(name, moments.collected(config.moments.moment_weights()))
                protected.add_moment(C.to(model.device), config.preservation)
        strangers = preserve.strangers(list(edits), config.strangers) if config.strangers else ()
        for encoded, weight in ((strangers, config.stranger_weight), (preserve.earlier, config.protect_earlier)):
            if encoded and weight:
                stream.protect(stream.keys(prepared(model, encoded, stream.first)), weight)

    def _result(
        self,
        stream: Stream,
        edits: EditSet,
        texts: Sequence[Text],
        source: Sequence[Mapping[str, KeyValues]],
        sizes: Sequence[Sequence[float]],
    ) -> EditResult:
        losses, right = stream.judged(texts)
        receipt = {
            edit.id: {"loss": round(loss, 6), "right": ok, "step_sizes": list(size)}
            for edit, loss, ok, size in zip(edits, losses, right, sizes, strict=True)
        }
        how = f"as asked after {self.config.steps} steps"
        warn_of_missed(dict(zip(receipt, right, strict=True)), how, "Take more steps, or smaller batches.")
        return EditResult(stream.deltas, source, receipt)


def _source(batch: Sequence[Text], steps: Sequence[Step]) -> list[dict[str, KeyValues]]:
    """Per text what its steps asked of each linear, where its answer is predicted."""
    counts = [len(text.labels) for text in batch]
    source: list[dict[str, KeyValues]] = [{} for _ in batch]
    for name in steps[0].proposals:
        asked = torch.stack([step.size * step.proposals[name].changes for step in steps]).sum(dim=0)  # (n, d_out)
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
    rule = Rule(raw_keys=False)


class EMSEdit(MultiStep):
    """Several chained backward passes; its network is held to small shifts."""

    name = "emsedit"
    rule = Rule()
