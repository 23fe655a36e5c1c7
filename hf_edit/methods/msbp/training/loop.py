"""Training a hypernetwork: batches of edits are learned with it, and it is improved by what came of them.

For each sequence the model starts anew. For each batch: the steps, each through the model as the one before left it;
then the losses on paraphrases (and unrelated questions) and their gradient (`outer`); the update stays while the
sequence lasts, with the batch's keys protected from those that follow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import safetensors
import torch
import transformers

from hf_edit._version import __version__
from hf_edit.batching import batched
from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError
from hf_edit.hypernets.manifest import FORMAT, Manifest
from hf_edit.methods.base import Checkpoints, Preservation
from hf_edit.methods.checkpoints import key_of
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.msbp.hypernet import Hypernet, base_of, copied, linears_of, new_set, per_step
from hf_edit.methods.msbp.probe import Probe
from hf_edit.methods.msbp.proposal import Normaliser
from hf_edit.methods.msbp.protection import protected_by_moments
from hf_edit.methods.msbp.stream import Stream, Transformer
from hf_edit.methods.msbp.training.beginning import untrained
from hf_edit.methods.msbp.training.config import TRAINED, HypernetConfig
from hf_edit.methods.msbp.training.examples import Example, Prepared, split, unrelated_of
from hf_edit.methods.msbp.training.outer import Link, Losses, Objective, differentiate, linked
from hf_edit.methods.msbp.training.state import State
from hf_edit.methods.msbp.training.validation import validated
from hf_edit.methods.training.teacher import Known, Teacher, answered, untaught
from hf_edit.methods.training.texts import Text
from hf_edit.models.editable import EditableLinear, EditableModel, check_finite
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat


CHECKPOINT_SECONDS = 60.0
"""A run that is killed loses about that; when it is written does not change what is computed."""


def train_hypernet(
    model: EditableModel,
    prompts: PromptFormat,
    edits: EditSet,
    validation: EditSet | None,
    preserve: Preservation,
    config: HypernetConfig,
    checkpoints: Checkpoints,
    progress: Progress,
) -> Hypernet:
    """A hypernetwork trained on `edits`, which are best given with paraphrases.

    Args:
        validation: edits to validate on, of which as many are used as a sequence has; none: a share of `edits`, which
            are then not trained on.
        preserve: asked for the base's own answers where the edits have no unrelated questions with answers.
        checkpoints: a killed run goes on from the last one kept there, to the same bits.

    Raises:
        ConfigError: a layer that the model does not have, or no edits.
        ComputationError: no step size lowers the loss of the first batch, or a loss that is not finite.
    """
    return _Training(model, prompts, edits, validation, preserve, config, checkpoints, progress).run()


class _Training:
    """One run: what it works on. What it has come to is in its `State`."""

    def __init__(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        validation: EditSet | None,
        preserve: Preservation,
        config: HypernetConfig,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> None:
        if not len(edits):
            raise ConfigError("There are no edits to train on.", "Give at least one.")
        self.model, self.prompts, self.config, self.preserve = model, prompts, config, preserve
        self.processes = Processes.joined(model.device)
        self.progress = progress
        self.checkpoints = checkpoints
        self.taught = [*edits, *(validation or ())]
        self.key = key_of(
            "hypernet",
            config.to_json(),
            [edit.to_json() for edit in edits],
            None if validation is None else [edit.to_json() for edit in validation],
        )
        self.linears: list[EditableLinear] = mlp_outputs(model, config.layers_of(model.n_layers), together=False)
        self.first = self.linears[0].layer
        self.rule = TRAINED[config.method].rule
        kept = config.preservation if self.rule.solve else 0.0
        self.protected = protected_by_moments(model, self.linears, preserve, kept, config.moments)
        self.ranks = config.ranks(min(linear.d_in + linear.d_out for linear in self.linears))
        self.examples, held_out = [Example.of(edit, prompts) for edit in edits], []
        most = config.horizon * config.batch
        if validation is not None:
            held_out = [Example.of(edit, prompts) for edit in validation[:most]]
        else:
            self.examples, held_out = split(self.examples, config.validation, most, config.seed)
        self.validation = list(batched(held_out, config.batch))
        self.teacher, self.probed = self._teachers(held_out)

    def _teachers(self, held_out: Sequence[Example]) -> tuple[Teacher, list[Known]]:
        """Of unrelated questions for training, and those of the validation; both empty where they do not count."""
        if not self.config.locality:
            return Teacher(self.model, [], self.first), []
        ours, theirs = unrelated_of(self.examples), unrelated_of(held_out)
        if not ours or (held_out and not theirs):
            pools = [answered(self.preserve.conversations())]
            (invented,) = untaught(pools, self.prompts, self.taught, ())
            ours, theirs = ours or invented, theirs or invented
        probing = Teacher(self.model, [theirs], self.first)
        known = probing.drawn(self.config.batch, torch.Generator().manual_seed(self.config.seed)) if held_out else []
        return Teacher(self.model, [ours], self.first), known

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> Hypernet:
        config, processes = self.config, self.processes
        kept = processes.first(self.checkpoints.load(self.key) if processes.rank == 0 else None)
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(self.examples), generator=generator)
        self.progress.stage("calibration", 1)
        sizes, unit = ([1.0] * len(self.ranks), 1.0) if kept else self._untrained(order)
        self.progress.step(1, **{f"eta {i}": size for i, size in enumerate(sizes, start=1)})
        state = State(self._new_sets(sizes), config, order, generator)
        if kept:
            state.resume(kept)
        else:
            state.counters.unit = unit
            self._validate(state)
        self._epochs(state)
        return self._hypernet(state)

    def _new_sets(self, step_sizes: Sequence[float]) -> list[Transformer]:
        """Untrained networks: one set for all steps, or one for each."""
        generator = torch.Generator().manual_seed(self.config.seed)
        modules = Counter((linear.d_out, linear.d_in) for linear in self.linears)
        dtype, device = torch.promote_types(self.model.dtype, torch.float32), self.model.device
        return [
            new_set(modules, rank, self.config.blocks, step_size, generator, device, dtype)
            for rank, step_size in zip(self.ranks, step_sizes, strict=True)
        ]

    def _epochs(self, state: State) -> None:
        counters, config = state.counters, self.config
        saved = time.monotonic()
        while counters.epoch < config.epochs and counters.stale < config.patience:
            batches = list(batched([self.examples[i] for i in state.order.tolist()], config.batch))
            sequences = list(batched(batches, config.horizon))
            self.progress.stage(f"epoch {counters.epoch + 1}", len(batches))
            self.progress.step(min(counters.position * config.horizon, len(batches)))
            for sequence in sequences[counters.position :]:
                self._sequence(state, sequence)
                counters.position += 1
                last = counters.position == len(sequences)
                if last:
                    state.update(self.processes)
                if last or counters.position % config.validate_every == 0:
                    self._validate(state)
                if last:
                    counters.epoch, counters.position = counters.epoch + 1, 0
                    state.order = torch.randperm(len(self.examples), generator=state.generator)
                if not state.pending and time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    self._save(state)
                    saved = time.monotonic()
                if counters.stale >= config.patience:
                    break

    def _sequence(self, state: State, batches: Sequence[Sequence[Example]]) -> None:
        """Batches one after the other, from the model as it is."""
        config = self.config
        stream = self._stream(state.sets)
        recent: list[Sequence[Text]] = []
        for examples in batches:
            batch = Prepared.of(self.model, examples, self.first)
            recent = [batch.paraphrases, *recent][: len(config.weights)]
            total = sum(config.weights[: len(recent)])
            answers = [(texts, weight / total) for texts, weight in zip(recent, config.weights, strict=False)]
            known = self.teacher.drawn(len(examples), state.generator) if config.locality else []
            objective = Objective(answers, known, config.locality, config.size / state.counters.unit)
            for numbers in [range(config.steps)] if config.chained else [range(i, i + 1) for i in range(config.steps)]:
                found = self._pass(state, stream, batch.edits, numbers, objective)
            if len(batches) > 1:
                stream.protect(batch.edits, config.protect_earlier)
            state.counters.batches += 1
            self.progress.step(loss=found.answers, norm=(found.squared_norm / state.counters.unit) ** 0.5)

    def _pass(
        self, state: State, stream: Stream, texts: Sequence[Text], numbers: Sequence[int], objective: Objective
    ) -> Losses:
        """Steps of one batch and the gradient of what they lead to; they stand afterwards where they are chained."""
        before = stream.deltas
        links: list[Link] = []
        for number in numbers:
            links.append(linked(stream, number, texts))
            stream.take(links[-1].step)
        found = differentiate(stream, before, links, objective, self.processes)
        check_finite(torch.tensor(found.total), f"The loss of batch {state.counters.batches + 1}")
        if not self.config.chained:
            stream.deltas = before
        state.pending += 1
        if state.pending == self.config.gradients_per_update:
            state.update(self.processes)
        return found

    def _stream(self, sets: Sequence[Transformer]) -> Stream:
        each, at_once = per_step(sets, self.config.steps), self.config.at_once
        return Stream(self.model, self.linears, self.rule, each, 1.0, at_once, self.protected, self.processes)

    def _untrained(self, order: torch.Tensor) -> tuple[list[float], float]:
        """eta of every set of networks to begin with, and the squared norm of the first batch's update."""
        stream = self._stream([Transformer(Normaliser.empty(self.linears, self.model.device))])
        texts = Prepared.of(self.model, [self.examples[i] for i in order[: self.config.batch].tolist()], self.first)
        config = self.config
        probe = Probe(stream, self.prompts, self.taught, self.preserve, config.calibration, config.seed)
        sizes = untrained(stream, texts.edits, config, probe)
        mean = sum(sizes) / len(sizes)
        squared = sum(delta.norm() ** 2 for delta in stream.deltas.values())
        return (sizes if len(self.ranks) > 1 else [mean]), squared

    # ---- what comes of it --------------------------------------------------------------------------------------

    def _validate(self, state: State) -> None:
        """Take the figures of the networks as they are, and keep these if they are the best so far.

        Normalisers are copied, so that validation does not teach them.
        """
        if not self.validation:
            return
        counters, config = state.counters, self.config
        stream = self._stream([Transformer(copied(one.normaliser), one.networks) for one in state.sets])
        figures = validated(
            stream,
            self.validation,
            config.steps,
            config.protect_earlier,
            self.probed,
            config.locality,
            config.size / (counters.unit * len(self.validation)),  # it grows with the batches, the others do not
            self.processes,
        )
        check_finite(torch.tensor(figures.losses.total), f"The validation loss after {counters.batches} batches")
        counters.history.append(figures.to_json(counters.batches, counters.unit))
        if counters.best is None or figures.losses.total < counters.best:
            counters.best, counters.stale = figures.losses.total, 0
            state.keep_as_best()
        else:
            counters.stale += 1
        scores = {"ES": figures.ES, "GS": figures.GS} | ({} if figures.LS is None else {"LS": figures.LS})
        self.progress.step(0, **scores)

    def _save(self, state: State) -> None:
        if self.processes.rank == 0:
            self.checkpoints.save(self.key, state.snapshot())

    def _hypernet(self, state: State) -> Hypernet:
        config, counters = self.config, state.counters
        manifest = Manifest(
            format=FORMAT,
            hf_edit_version=__version__,
            method=config.method,
            steps=config.steps,
            ranks=self.ranks,
            blocks=config.blocks,
            base=base_of(self.model),
            prompt_format=self.prompts.described(),
            linears=linears_of(self.linears),
            config=config.to_json(),
            figures={
                "edits": len(self.examples),
                "validation_edits": sum(map(len, self.validation)),
                "batches": counters.batches,
                "updates": counters.updates,
                "validation": counters.history,
            },
            versions={library.__name__: library.__version__ for library in (safetensors, torch, transformers)},
        )
        return Hypernet(manifest, state.tensors())
