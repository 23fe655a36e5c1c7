"""Settings of polish: the update itself is optimised."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.methods.rank import RANK_RULE
from hf_edit.methods.support import SupportSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.settings import setting
from hf_edit.statistics.config import MomentWeights, StatisticsConfig
from hf_edit.wordings import KINDS, TEXT_KINDS


@dataclass(frozen=True)
class PolishSettings(SupportSettings, MomentWeights):
    """The update of a few blocks' MLP outputs, trained in coordinates whitened by what must not change."""

    layers: tuple[int, ...] | None = setting(
        None,
        "Blocks whose MLP output is edited, ascending; none: four, from 0.4 to 0.7 of the depth.",
        ascending=True,
    )
    rank: int | None = setting(
        None,
        f"Largest rank per block; none: {RANK_RULE}. On a budget of columns it is their number.",
        at_least=1,
    )
    wordings: int = setting(4, "Rewrites of each prompt that are trained beside it.", at_least=0)
    wording_kinds: tuple[str, ...] = setting(
        TEXT_KINDS,
        "Kinds of rewrites, taken in turn: of the question's text, or in chats the same question with a system prompt "
        "or behind another turn.",
        choices=KINDS,
    )
    wording_tokens: int = setting(
        24, "Answer tokens trained behind a rewrite; the rest follows from them.", at_least=1
    )
    wording_weight: float = setting(0.5, "Weight of a rewrite's loss, and of the chance that it is drawn.", above=0)
    train_paraphrases: bool = setting(
        False, "Train the paraphrases that come with an edit too; they are then no test of it any more."
    )
    answer_weight: float = setting(
        3.0,
        "Share of the moment of their answers' tokens that is added: nearly all that an update does elsewhere it does "
        "to answers.",
        at_least=0,
    )
    stranger_weight: float = setting(
        0.3, "Weight of the moment of strangers' answers: questions that begin like an edit's.", at_least=0
    )
    earlier_weight: float = setting(1.0, "Weight of the moment of edits taught before.", at_least=0)
    conversations: int = setting(
        96, "Most questions of the statistics, with the base's own answers, for the divergence.", at_least=0
    )
    strangers: int = setting(
        8,
        "Questions per edit that the model makes up from its first words, about other names, for the divergence; for "
        "many edits fewer, down to one at 256.",
        at_least=0,
    )
    decoys: int = setting(
        0,
        "Packs made up for training, each teaching other questions wrong answers, beside which the edits must hold "
        "too: for packs that are to be added to others without a solve.",
        at_least=0,
    )
    training: TrainingConfig = setting(TrainingConfig, "How it is trained.")


@dataclass(frozen=True)
class PolishConfig(PolishSettings):
    """Polish on its own, from nothing or from a pack."""

    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    experts: bool = setting(
        False, "Edit the experts' output maps where they are fused into one parameter, not a map beside them."
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)
