"""Settings of the hypernetwork family: MEND, MALMEN, RLEdit, UltraEdit and EMSEdit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass

from hf_edit.errors import ConfigError
from hf_edit.settings import Settings, setting
from hf_edit.statistics.config import MomentWeights, StatisticsConfig


DEPTHS = (0.6, 0.97)
"""Where the edited blocks begin and end by default, as shares of the depth."""
DEFAULT_PRESERVATION = 300.0
OF_THE_RIDGE = ("ridge", "protect_earlier", "strangers", "stranger_weight")
"""Settings that a method without a solve has no use for."""
OF_THE_METRIC = ("preservation", "moments")
"""The same, unless its update is cut to a rank, so that its outputs change least."""


@dataclass(frozen=True)
class KeyWeights(MomentWeights):
    """How much each part of the statistics counts beside the keys of a batch.

    What edits disturb first is how other questions begin to be answered: their last tokens count more than all text,
    and the tokens before them, which no answer is read from, do not.
    """

    chat_weight: float = setting(0.0, "Weight of the moment of all tokens of invented questions.", at_least=0)
    prompt_weight: float = setting(3.0, "Weight of the moment of their last tokens.", at_least=0)
    answer_weight: float = setting(1.0, "Weight of the moment of their answers' tokens.", at_least=0)


@dataclass(frozen=True)
class Preserving(Settings):
    """What a network is trained with and used with."""

    preservation: float = setting(
        DEFAULT_PRESERVATION, "Weight of the second moment of what must not change in the ridge.", at_least=0
    )
    moments: KeyWeights = setting(KeyWeights, "What that second moment is made of.")


@dataclass(frozen=True)
class CalibrationConfig(Settings):
    """How a step's size is found by forward passes where none is given."""

    target_loss: float = setting(
        0.005, "Loss per answer token that is enough: no step goes further than it needs for that.", above=0
    )
    share: float = setting(
        0.7, "Share of the loss that every step but the last of a batch is to take away.", above=0, at_most=1
    )
    drift_weight: float = setting(
        0.0, "Weight of the KL divergence to the base on its own answers, added to the loss.", at_least=0
    )
    conversations: int = setting(16, "Questions with the base's own answers that drift is measured on.", at_least=1)
    probes: int = setting(24, "Most edits of a batch that are run to judge a step size.", at_least=1)


@dataclass(frozen=True)
class MultiStepConfig(Settings):
    """What the family shares: a few backward passes per batch, each followed by one shift of all edited linears."""

    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "Blocks whose MLP output is edited, ascending; none: those from 0.6 to 0.97 of the depth.",
        ascending=True,
    )
    steps: int | None = setting(
        None,
        "Backward passes per batch, each through the model as the ones before left it (MSBP); none: 6, or as many as "
        "the network was trained for.",
        at_least=1,
    )
    step_size: float | None = setting(
        None,
        "eta of every step, a factor on the network's own if there is one; none: found by forward passes, or 1 with "
        "a network.",
        above=0,
    )
    batch: int | None = setting(None, "Edits learned at once, one batch after the other; none: all.", at_least=1)
    at_once: int = setting(8, "Texts run together.", at_least=1)
    ridge: float = setting(1.0, "lambda of the least squares; a hypernetwork brings its own.", above=0)
    protect_earlier: float = setting(
        1.0, "Weight of the keys of earlier batches, and of packs given as earlier, in the ridge.", at_least=0
    )
    preservation: float | None = setting(
        None,
        "Weight of the second moment of what must not change in the ridge; none: 300, or what the network was trained "
        "with.",
        at_least=0,
    )
    contexts: int = setting(0, "Texts by the model itself, in front of which every prompt is also taught.", at_least=0)
    strangers: int = setting(
        0, "Questions of the same kind per edit, made up by the model, whose keys are kept in the ridge.", at_least=0
    )
    stranger_weight: float = setting(1.0, "Weight of each of these keys in the ridge.", at_least=0)
    rank: int | None = setting(
        None, "Largest rank of the finished update, cut so that its outputs change least; none: exact.", at_least=1
    )
    moments: KeyWeights = setting(KeyWeights, "What that second moment is made of; a hypernetwork brings its own.")
    calibration: CalibrationConfig = setting(CalibrationConfig, "How step sizes are found.")
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where what must not change comes from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """The edited layers of a model of that depth."""
        if self.layers is not None:
            return self.layers
        first, end = (round(depth * n_layers) for depth in DEPTHS)
        first = min(first, n_layers - 1)
        return tuple(range(first, max(end, first + 1)))


@dataclass(frozen=True)
class HyperConfig(MultiStepConfig):
    """Methods that can use a trained hypernetwork."""

    hypernet: str | None = setting(
        None, "Hypernetwork trained for this base, a folder or an id on the Hub; none: no training is needed."
    )


@dataclass(frozen=True)
class MendConfig(HyperConfig):
    """MEND (arXiv 2110.11309): every token's rank-one update, added up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_for_mend(self, OF_THE_RIDGE if self.rank is not None else (*OF_THE_RIDGE, *OF_THE_METRIC))


def refuse_for_mend(settings: MultiStepConfig | Preserving, names: Iterable[str]) -> None:
    """Raise a ConfigError for a setting that would do nothing; 0 is what MEND does."""
    for name in names:
        field, value = settings.__dataclass_fields__[name], getattr(settings, name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value and value != default:
            what = f"Settings that begin with {name} do" if isinstance(value, Settings) else f"{name} = {value!r} does"
            raise ConfigError(
                f"{what} not go with mend, which adds updates up and solves nothing.",
                "Leave it out, or use another method.",
            )


@dataclass(frozen=True)
class MalmenConfig(HyperConfig):
    """MALMEN (arXiv 2311.04661): the tokens' updates aggregated by least squares."""


@dataclass(frozen=True)
class RLEditConfig(HyperConfig):
    """RLEdit (arXiv 2502.05759): MALMEN's shift, its network trained along a sequence of batches."""


@dataclass(frozen=True)
class UltraEditConfig(MultiStepConfig):
    """UltraEdit (arXiv 2505.14679): standardised gradients without a network."""


@dataclass(frozen=True)
class EMSEditConfig(HyperConfig):
    """EMSEdit (arXiv 2508.04012): several backward passes, the shift held small instead of the answers."""
