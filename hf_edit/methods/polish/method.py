"""Polish: the low-rank update itself is optimised, for all edits at once, on the answers that it is to give.

The closed form asks one vector of one layer per chunk and must then move every other token as little as it can. Here
the loss is that of the answers themselves, and gradients reach every prompt and answer token through its keys. What
must not change enters three times: the coordinates are whitened by its second moment, in which the size of the update
is the mean square by which it moves anything else; the update is kept to the leading directions of the edits' own
keys; and the base's own answers to other questions are held by a divergence.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from hf_edit.edits import EditSet, prompt_key
from hf_edit.errors import ConfigError, HfEditWarning
from hf_edit.methods.base import Checkpoints, EditResult, Preservation
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.layers import mlp_outputs
from hf_edit.methods.polish.config import PolishConfig, PolishSettings
from hf_edit.methods.rank import default_rank
from hf_edit.methods.training.answering import answers
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.methods.training.course import Course, Trained, Trainee
from hf_edit.methods.training.factors import Factors, KeyBasisFactors
from hf_edit.methods.training.loop import objective, train
from hf_edit.methods.training.outcome import result_of
from hf_edit.methods.training.teacher import Known, Teacher, answered, strangers_of, untaught
from hf_edit.methods.training.texts import hidden_scale, inputs_along, moments_over, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.key_basis import Keys, key_basis
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import penalty
from hf_edit.solvers.support import as_columns, support_of_keys, touched_columns, whitened_on
from hf_edit.wordings import CHAT_KINDS, rewrites


DEPTHS = (0.4, 0.5, 0.6, 0.7)
"""Where the edited blocks lie by default, as shares of the depth."""
SPARE_WORDINGS = 4
"""Rewrites that are looked at beyond those that are wanted, as some may be another edit's too."""
DECOY_EDITS = 4
DECOY_TRAINING = TrainingConfig(max_steps=20, stop_loss=0.1, drift_weight=0.0, shrink=False)


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
    chosen = {linear.name for linear in mlp_outputs(model, layers, together=False)}
    return model.linears_named(chosen | set(start or {}))


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
    """The optimised update of all edits together.

    Args:
        start: an update to begin with, of the same model; none: zero.

    Warns:
        HfEditWarning: names the edits that are not answered as asked when the steps are used up; `start` is a worse
            beginning than nothing, and was not taken.
    """
    polishing = Polishing(model, prompts, preserve, settings, seed, start)
    factors, trained = polishing.optimised(edits, checkpoints, progress)
    deltas = factors.detached()
    if settings.is_sparse:  # as the layout sparse has them, so that all layouts are the same to the bit
        deltas = {name: as_columns(delta) for name, delta in deltas.items()}
    return result_of(edits, trained, deltas)


class Polishing:
    """What is the same whichever edits are polished: the linears, what must not change, what the base says.

    Args: as for `polished`.
    """

    def __init__(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        preserve: Preservation,
        settings: PolishSettings,
        seed: int,
        start: Mapping[str, LowRankDelta] | None = None,
    ) -> None:
        self.linears = polished_linears(model, settings, start)
        self.first = self.linears[0].layer
        self._columns = settings.columns_of(self.linears)
        self._model, self._prompts, self._preserve = model, prompts, preserve
        self._settings, self._seed, self._start = settings, seed, start or {}
        self._talks = answered(preserve.conversations())[: settings.conversations]
        self._heard: dict[Encoded, Known] = {}
        self._collected = preserve.moments(self.linears)
        self._earlier = moments_over(
            model, self.linears, prepared(model, preserve.earlier, self.first), self.first, answers=False
        )

    @cached_property
    def moments_digest(self) -> dict[str, list[float]]:
        """Linear name -> figures by which other moments are told, for what is found again under them."""
        return {
            linear.name: [float(C.sum()), float(torch.linalg.vector_norm(C)), float(C.trace())]
            for linear in self.linears
            for C in [self._moment(linear)]
        }

    def rewritten(self, edits: EditSet, every: EditSet) -> list[Encoded]:
        """The questions in other words that are trained beside these edits, of all that are taught."""
        settings = self._settings
        return rewritten(
            self._prompts,
            edits,
            settings.wordings,
            settings.wording_kinds,
            settings.wording_tokens,
            self._seed,
            longest=self._model.max_length,
            given=settings.train_paraphrases,
            every=every,
        )

    def optimised(
        self, edits: EditSet, checkpoints: Checkpoints, progress: Progress, every: EditSet | None = None
    ) -> tuple[KeyBasisFactors, Trained]:
        """The update of these edits, and how its training ended.

        Args:
            every: all edits that are taught, where these are a part of them.
        """
        settings, every = self._settings, every or edits
        own = [self._prompts.encode(edit.prompt, edit.target) for edit in edits]
        reworded = self.rewritten(edits, every)
        trainees = [
            Trainee(text, judged=place < len(own), weight=1.0 if place < len(own) else settings.wording_weight)
            for place, text in enumerate(prepared(self._model, [*own, *reworded], self.first))
        ]
        asked = strangers_of(self._preserve, edits, settings.strangers)
        rank = settings.rank or default_rank([len(one.text.labels) for one in trainees if one.judged])
        texts = [trainee.text for trainee in trainees]
        pools = untaught([self._talks, [*asked, *self._preserve.earlier]], self._prompts, every, texts)
        held = Teacher(self._model, pools, self.first, self._heard)
        factors = self._factors(trainees, rank, asked, self._start)
        if self._start and not self._helps(factors, trainees, held):
            warnings.warn(
                "The update to polish moves so much else that training is better begun with nothing, and was.",
                HfEditWarning,
                stacklevel=5,
            )
            factors, training = self._factors(trainees, rank, asked, {}), train
        else:
            training = _improved if self._start else train
        course = self._course(trainees, held, settings.training, self._decoys)
        return factors, training(course, factors, checkpoints, progress)

    def _helps(self, start: KeyBasisFactors, trainees: Sequence[Trainee], teacher: Teacher) -> bool:
        """Whether the update that is there is a better beginning than nothing, in what training makes small.

        A stack of many packs may answer most questions and yet move so much else that getting there from nothing is
        the shorter way: training from it takes what it has apart, long before it is small.
        """
        training = self._settings.training
        there, none = (
            objective(self._course(trainees, teacher, config), factors)
            for factors, config in (
                (start, training),
                (KeyBasisFactors({}, {}), replace(training, drift_weight=0.0)),  # nothing drifts nowhere
            )
        )
        return there < none

    @cached_property
    def _decoys(self) -> list[dict[str, LowRankDelta]]:
        """Updates that teach some of the statistics' questions the answers of others."""
        if not self._settings.decoys:
            return []
        if len(self._talks) < 2:
            raise ConfigError(
                f"Decoys are made of the statistics' questions, of which there are {len(self._talks)}.",
                "Set conversations to 2 or more, or decoys to 0.",
            )
        nothing = Teacher(self._model, [], self.first)
        decoys, count = [], min(DECOY_EDITS, len(self._talks))
        for begin in range(0, self._settings.decoys * count, count):
            some = [self._talks[place % len(self._talks)] for place in range(begin, begin + count)]
            wrong = [
                Encoded((*one.prompt_ids, *other.answer_ids), one.answer_start)
                for one, other in zip(some, [*some[1:], some[0]], strict=True)
            ]
            trainees = [Trainee(text, judged=True, weight=1.0) for text in prepared(self._model, wrong, self.first)]
            factors = self._factors(trainees, default_rank([len(one.answer_ids) for one in wrong]), (), {})
            train(self._course(trainees, nothing, DECOY_TRAINING), factors, NoCheckpoints(), Silent())
            decoys.append(factors.detached())
        return decoys

    def _course(
        self,
        trainees: Sequence[Trainee],
        teacher: Teacher,
        config: TrainingConfig,
        decoys: Sequence[Mapping[str, LowRankDelta]] = (),
    ) -> Course:
        return Course(self._model, self.first, trainees, teacher, config, self._seed, decoys)

    def _factors(
        self,
        trainees: Sequence[Trainee],
        rank: int,
        strangers: Sequence[Encoded],
        start: Mapping[str, LowRankDelta],
    ) -> KeyBasisFactors:
        """Where training begins: in the leading directions of the texts' keys, whitened by what must not change."""
        model, first, texts = self._model, self.first, [trainee.text for trainee in trainees]
        alike = prepared(model, strangers, first)
        dtype = torch.promote_types(model.dtype, torch.float32)
        bases, coordinates = {}, {}
        for linears in self._traced_together():
            strange = moments_over(model, linears, alike, first, answers=True)
            keys = {linear.name: Keys(linear.d_in) for linear in linears}
            for _, inputs in inputs_along(model, linears, texts, first):
                for name, k in inputs.items():
                    keys[name].add(k.T)
            for linear in linears:
                A, B = self._directions(linear, keys.pop(linear.name), strange.pop(linear.name, None), rank, start)
                bases[linear.name], coordinates[linear.name] = A.to(dtype), B.to(dtype)
        return KeyBasisFactors(bases, coordinates, hidden_scale(model, self.linears, texts, first))

    def _traced_together(self) -> list[list[EditableLinear]]:
        """The linears in groups whose keys are summed up in one pass over the texts: all where there is room."""
        sums = sum(2 * torch.float64.itemsize * linear.d_in**2 for linear in self.linears)
        return [self.linears] if self._model.memory.keeps(sums) else [[linear] for linear in self.linears]

    def _directions(
        self,
        linear: EditableLinear,
        keys: Keys,
        strange: Tensor | None,
        rank: int,
        start: Mapping[str, LowRankDelta],
    ) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and the B (d_out, r) with which training begins.

        Args:
            strange: the moment of strangers' answers.
        """
        settings, there = self._settings, start.get(linear.name)
        C = self._moment(linear)
        if strange is not None:
            C += settings.stranger_weight * strange
        G = penalty(C, 1.0, settings.ridge)
        del C, strange  # each the size of a weight or more
        if not self._columns:
            return _coordinates(keys, G.factor, min(rank, linear.d_out), there, linear.d_out)
        return _on_columns(linear.name, keys, G.matrix(), self._columns[linear.name], there, linear.d_out)

    def _moment(self, linear: EditableLinear) -> Tensor:
        """C without strangers, (d_in, d_in) float64: what an update of this linear must not move.

        Combined anew each time: those of all linears, held throughout, would be what most memory goes to.
        """
        weights, device = self._settings.moment_weights(), self._model.device
        ((_, C),) = self._collected.combined_each([linear.name], weights, device)
        if linear.name in self._earlier:
            C += self._settings.earlier_weight * self._earlier[linear.name]
        return C


def _improved(course: Course, factors: Factors, checkpoints: Checkpoints, progress: Progress) -> Trained:
    """As `train`, of an update that is there; it is left as it was if training loses more answers than it wins."""
    texts = [trainee.text for trainee in course.trainees if trainee.judged]
    losses, margins = answers(course.model, course.first, texts, factors.deltas())
    there = Trained(0, losses.tolist(), (margins > 0).tolist(), 1.0)
    begun = [leaf.detach().clone() for leaf in factors.parameters()]
    trained = train(course, factors, checkpoints, progress)
    fewer = sum(there.right) - sum(trained.right)
    if fewer <= 0:
        return trained
    warnings.warn(
        f"Polishing lost {fewer} of the {sum(there.right)} answers that the update gave, which is therefore left "
        "as it was. Raise max_steps of the training, or lower its size_weight or drift_weight.",
        HfEditWarning,
        stacklevel=6,
    )
    with torch.no_grad():
        for leaf, before in zip(factors.parameters(), begun, strict=True):
            leaf.copy_(before)
    return there


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


def _on_columns(
    name: str, keys: Keys, C: Tensor, count: int, start: LowRankDelta | None, d_out: int
) -> tuple[Tensor, Tensor]:
    """The same of an update of `count` columns: those that carry the keys, and those of the update that is there.

    Raises:
        ConfigError: the update that is there changes more of them.
    """
    if start is None:
        A, _ = whitened_on(C, support_of_keys(keys.root(), C, count))
        return A, A.new_zeros(d_out, A.shape[0])
    there, values = touched_columns(start.to(torch.float64, C.device))
    if len(there) > count:
        raise ConfigError(
            f"The update to polish changes {len(there)} columns of {name}, and the budget is {count}.",
            "Raise columns, or hf_edit.sparsify the pack first.",
        )
    support = support_of_keys(keys.root(), C, count, fixed=there)
    A, L = whitened_on(C, support)
    dW = values.new_zeros(d_out, len(support))
    dW[:, torch.searchsorted(support, there)] = values
    return A, dW @ L


def rewritten(
    prompts: PromptFormat,
    edits: EditSet,
    count: int,
    kinds: Sequence[str],
    tokens: int,
    seed: int,
    *,
    longest: int | None,
    given: bool = False,
    every: EditSet | None = None,
) -> list[Encoded]:
    """The edits' questions in other words, `count` for each, with the first `tokens` of the answer.

    Left out is a rewrite that the model's context of `longest` tokens does not hold, that its template does not take,
    as one with a system message, or that says no more which of two edits is asked for: of "When was X born?" and
    "Where was X born?" the content words are the same.

    Args:
        kinds: of rewrites; those of a chat only in the format chat.
        given: the paraphrases that come with an edit, too.
        every: all edits that are taught, where these are a part of them.
    """
    found: list[Encoded] = []
    kinds = [kind for kind in kinds if prompts.name == "chat" or kind not in CHAT_KINDS]
    candidates = {}
    for edit in every or edits:
        known = edit.paraphrases if given else ()
        candidates[edit.id] = rewrites(
            edit.prompt, count + len(known) + SPARE_WORDINGS, seed, kinds, subject=edit.subject, paraphrases=known
        )
    times = Counter(prompt_key(edit.prompt) for edit in every or edits)
    times.update(prompt_key(prompt) for some in candidates.values() for prompt in some)
    for edit in edits:
        known = edit.paraphrases if given else ()
        clear = [prompt for prompt in candidates[edit.id] if times[prompt_key(prompt)] == 1]
        for prompt in clear[: count + len(known)]:
            try:
                encoded = prompts.encode(prompt, edit.target)
            except ConfigError:
                continue
            ids = encoded.ids[: encoded.answer_start + tokens]
            if longest is None or len(ids) <= longest:
                found.append(Encoded(ids, encoded.answer_start))
    return found
