"""Polish: the low-rank update itself is optimised, for all edits at once, on the answers that it is to give.

The closed form asks one vector of one layer per chunk and must then move every other token as little as it can. Here
the loss is that of the answers themselves, and gradients reach every prompt and answer token through its keys. What
must not change enters three times: the coordinates are whitened by its second moment, in which the size of the update
is the mean square by which it moves anything else; the update is kept to the leading directions of the edits' own
keys; and the base's own answers to other questions are held by a divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_edit.edits import EditSet
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.polish.config import PolishConfig, PolishSettings
from hf_edit.methods.training.factors import KeyBasisFactors
from hf_edit.methods.training.loop import Trainee, train
from hf_edit.methods.training.outcome import result_of
from hf_edit.methods.training.teacher import Teacher, answered
from hf_edit.methods.training.texts import inputs_along, moments_over, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.key_basis import Keys, key_basis
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import penalty
from hf_edit.wordings import rewrites


DEPTHS = (0.4, 0.5, 0.6, 0.7)
"""Where the edited blocks lie by default, as shares of the depth."""


class Polish:
    """The method with its settings bound."""

    name = "polish"

    def __init__(self, config: PolishConfig, start: Mapping[str, LowRankDelta] | None = None) -> None:
        self.config = config
        self.start = start

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that will be edited."""
        return polished_linears(model, self.config, self.start)

    def compute(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """Optimise the update for all of `edits`, from nothing or from the update that is there."""
        return polished(
            model, prompts, edits, preserve, self.config, self.config.seed, checkpoints, progress, self.start
        )


def polished_linears(
    model: EditableModel, settings: PolishSettings, start: Mapping[str, LowRankDelta] | None = None
) -> list[EditableLinear]:
    """The maps that polish edits: those chosen, and those that the update which it starts from changes.

    Raises:
        ConfigError: a layer the model does not have.
    """
    layers = settings.layers
    if layers is None:
        layers = tuple(sorted({round(depth * model.n_layers) for depth in DEPTHS} & set(range(model.n_layers))))
    wanted = {linear.name for linear in mlp_outputs(model, layers, together=False)} | set(start or {})
    every = {
        linear.name: linear
        for layer, mlp_output in enumerate(model.linears)
        for linear in (mlp_output, *model.block_linears(layer))  # other methods change more than MLP outputs
    }
    return [linear for name, linear in every.items() if name in wanted]


def polished(
    model: EditableModel,
    prompts: PromptFormat,
    edits: EditSet,
    preserve: Preservation,
    settings: PolishSettings,
    seed: int,
    checkpoints: Checkpoints,
    progress: Progress,
    start: Mapping[str, LowRankDelta] | None = None,
) -> EditResult:
    """The optimised update.

    Args:
        start: an update to begin with, of the same model; none: zero.

    Warns:
        HfEditWarning: names the edits that are not answered as asked when the steps are used up.
    """
    linears = polished_linears(model, settings, start)
    first = linears[0].layer
    trainees = _trainees(model, prompts, edits, settings, seed, first)
    asked = preserve.strangers(edits, settings.strangers) if settings.strangers else ()
    talks = answered(preserve.conversations())[: settings.conversations]
    moments = _second_moments(model, linears, preserve, settings, asked, first)
    keys = {linear.name: Keys(linear.d_in) for linear in linears}
    for _, inputs in inputs_along(model, linears, [trainee.text for trainee in trainees], first):
        for name, k in inputs.items():
            keys[name].add(k.T)
    dtype = torch.promote_types(model.dtype, torch.float32)
    rank = settings.rank or default_rank(len(edits))
    bases, coordinates = {}, {}
    for linear in linears:
        L = penalty(moments[linear.name], 1.0, settings.ridge).factor
        A, B = _coordinates(
            keys[linear.name], L, min(rank, linear.d_out), (start or {}).get(linear.name), linear.d_out
        )
        bases[linear.name], coordinates[linear.name] = A.to(dtype), B.to(dtype)
    factors = KeyBasisFactors(bases, coordinates)
    teacher = Teacher(model, [talks, [*asked, *preserve.earlier]], first)
    trained = train(model, first, trainees, factors, teacher, settings.training, seed, checkpoints, progress)
    return result_of(edits, trained, factors)


def _second_moments(
    model: EditableModel,
    linears: Sequence[EditableLinear],
    preserve: Preservation,
    settings: PolishSettings,
    strangers: Sequence[Encoded],
    first: int,
) -> dict[str, Tensor]:
    """Linear name -> C, (d_in, d_in) float64: what an update of this linear must not move."""
    moments = preserve.moments(linears)
    weights = {
        "text": 1.0,
        "chat": settings.chat_weight,
        "prompt": settings.prompt_weight,
        "answer": settings.answer_weight,
    }
    collected = moments.collected(weights)
    total = {linear.name: moments.combined(linear.name, collected).to(model.device) for linear in linears}
    for weight, encoded, answers in (
        (settings.stranger_weight, strangers, True),
        (settings.earlier_weight, preserve.earlier, False),
    ):
        texts = prepared(model, encoded, first)
        for name, moment in moments_over(model, linears, texts, first, answers=answers).items():
            total[name] += weight * moment
    return total


def _coordinates(keys: Keys, L: Tensor, rank: int, start: LowRankDelta | None, d_out: int) -> tuple[Tensor, Tensor]:
    """The directions A of an update, and the factor B with which training begins.

    Args:
        L: Cholesky factor of what must not change, C = L L^T.
    """
    if start is None:
        A = key_basis(keys, L, rank)
        return A, A.new_zeros(d_out, A.shape[0])
    start = start.to(torch.float64, L.device)
    A = key_basis(keys, L, rank, fixed=start.A)
    return A, start.B @ (start.A @ L @ (A @ L).T)  # A C A^T = I, so dW = B A has B = dW C A^T


def default_rank(n_edits: int) -> int:
    """32 for each edit up to 256 in all; beyond 64 edits 4 for each."""
    return max(min(32 * n_edits, 256), 4 * n_edits)


def _trainees(
    model: EditableModel, prompts: PromptFormat, edits: EditSet, settings: PolishSettings, seed: int, first: int
) -> list[Trainee]:
    """Every edit, then its rewrites, of whose answers only the beginning is trained.

    A rewrite may be longer than the question; one that the model's context does not hold is left out.
    """
    asked: list[tuple[Encoded, int | None]] = [(prompts.encode(edit.prompt, edit.target), None) for edit in edits]
    for edit in edits:
        given = edit.paraphrases if settings.train_paraphrases else ()
        count = settings.wordings + len(given)
        for prompt in rewrites(edit.prompt, count, seed, subject=edit.subject, paraphrases=given):
            encoded = prompts.encode(prompt, edit.target)
            length = encoded.answer_start + min(len(encoded.answer_ids), settings.wording_tokens)
            if model.max_length is None or length <= model.max_length:
                asked.append((encoded, settings.wording_tokens))
    texts = prepared(model, [encoded for encoded, _ in asked], first, [limit for _, limit in asked])
    return [
        Trainee(text, judged=limit is None, weight=1.0 if limit is None else settings.wording_weight)
        for text, (_, limit) in zip(texts, asked, strict=True)
    ]
