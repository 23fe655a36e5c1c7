"""Fine-tuning with LoRA on a few blocks, and preservation on: the simple, strong baseline.

Batches follow the last loss rather than one edit after the other, which is what makes fine-tuning hold many edits at
once (LocFT-BF; FT-UKE, arXiv 2506.09672), and the base's own answers to other questions are held by a divergence.
"""

from __future__ import annotations

import torch

from hf_edit.edits import EditSet
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.methods.finetune.config import FinetuneConfig
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.training.course import Course, Trainee
from hf_edit.methods.training.factors import LoraFactors
from hf_edit.methods.training.loop import train
from hf_edit.methods.training.outcome import result_of, warn_of_unheld
from hf_edit.methods.training.teacher import Teacher, answered, strangers_of, untaught
from hf_edit.methods.training.texts import prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat


DEPTHS = (0.45, 0.8)


class Finetune:
    """The method with its settings bound."""

    name = "finetune"

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that will be edited.

        Raises:
            ConfigError: a layer the model does not have.
        """
        layers = self.config.layers
        if layers is None:
            first, last = (min(round(depth * model.n_layers), model.n_layers - 1) for depth in DEPTHS)
            layers = tuple(range(first, last + 1))
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
        """Train factors on all of `edits` at once."""
        config, linears = self.config, self.linears(model)
        first = linears[0].layer
        asked = [prompts.encode(edit.prompt, edit.target) for edit in edits]
        texts = prepared(model, asked, first)
        trainees = [Trainee(text, judged=True, weight=1.0) for text in texts]
        dtype = torch.promote_types(model.dtype, torch.float32)
        factors = LoraFactors(linears, config.rank, dtype, torch.Generator().manual_seed(config.seed), model.device)
        teacher = Teacher(model, untaught(self._held(edits, preserve), prompts, edits, texts), first)
        course = Course(model, first, trainees, teacher, config.training, config.seed)
        trained = train(course, factors, checkpoints, progress)
        return result_of(edits, trained, factors.detached())

    def _held(self, edits: EditSet, preserve: Preservation) -> list[list[Encoded]]:
        """Questions whose answers are to stay, by kind; none where the divergence does not count."""
        config = self.config
        if not config.training.drift_weight:
            warn_of_unheld(preserve.earlier, "training.drift_weight is 0", "Raise it, or leave earlier out.")
            return []
        talks = answered(preserve.conversations())[: config.conversations] if config.conversations else []
        return [talks, [*strangers_of(preserve, edits, config.strangers), *preserve.earlier]]
