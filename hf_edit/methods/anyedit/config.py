"""Settings of AnyEdit."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from hf_edit.errors import ConfigError
from hf_edit.methods.anyedit.chunks import CHUNKERS
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.methods.joining.config import JoinSettings
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.support import SupportSettings
from hf_edit.settings import Settings, setting
from hf_edit.statistics.config import StatisticsConfig


BACKENDS = ("memit", "alphaedit", "unke", "direct")
OBJECTIVES = ("chunk", "nested")
OF_TARGETS = (
    *("chunker", "window", "min_chunk", "overlap", "objective", "nested_chunks"),
    *("learning_rate", "max_evaluations", "stop_loss", "clamp", "weight_decay"),
)
"""Settings that a target depends on; the others say where it is put and what is made of it."""
OF_BACKENDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("direct", "together", "join", "polish"), ("direct",)),
    **dict.fromkeys(("preservation", "ridge"), ("memit",)),
    **dict.fromkeys(("null_share", "beta"), ("alphaedit",)),
    **dict.fromkeys(("prompt_weight", "answer_weight", "own_weight"), ("memit", "alphaedit")),
    "unke": ("unke",),
}
"""Settings of some backends: with another they would do nothing."""
OF_PARTS = ("join", "polish")
"""Settings that say something only where edits are optimised in parts."""


@dataclass(frozen=True)
class AnyEditConfig(SupportSettings):
    """AnyEdit (arXiv 2502.05628): how answers are cut, how targets are found, and what makes weights of them.

    Lengths of vectors are relative to the hidden state at the key position and penalties to the second moment, so
    that one set of values serves models of any width and scale. The published absolute values are in brackets.
    """

    backend: str = setting(
        "memit",
        "How the targets become weights: memit, a ridge solve against the second moment; alphaedit, one in the "
        "moment's null space; unke, training one block; direct, without targets: the update itself is optimised.",
        choices=BACKENDS,
    )
    format: str | None = setting(
        None, "Prompt format; none: chat if the tokenizer has a template.", choices=("chat", "plain", "qa")
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "Blocks whose MLP output is edited, ascending; none: the one at 0.6 of the depth. [five, a quarter up]",
        ascending=True,
    )
    chunker: str = setting(
        "window",
        "How an answer is cut: window, every so many tokens; sentence; surprisal, before the tokens that the model "
        "expects least; none, one chunk, the baseline without AnyEdit.",
        choices=CHUNKERS,
    )
    window: int = setting(
        20,
        "Answer tokens per chunk: of sentences the most, by surprisal about the mean, without chunks unused. [40]",
        at_least=1,
    )
    min_chunk: int = setting(8, "Sentences below so many tokens are joined to the next.", at_least=1)
    overlap: int = setting(0, "Tokens shared by neighbouring windows. [0]", at_least=0)
    objective: str = setting(
        "chunk",
        "What a target is optimised for: chunk, the tokens of its chunk; nested, also those behind it (muKE).",
        choices=OBJECTIVES,
    )
    nested_chunks: int | None = setting(
        None, "Most chunks that a nested target is optimised for, its own counted; none: all to the end.", at_least=1
    )
    learning_rate: float = setting(
        0.3, "Adam's first step, as a share of the hidden state's norm. [0.5 per coordinate]", above=0
    )
    max_evaluations: int = setting(40, "Most forward passes per chunk. [25]", at_least=1)
    stop_loss: float = setting(0.02, "A chunk is done below this loss. [0.01]", at_least=0)
    clamp: float = setting(1.0, "Longest target, as a multiple of the hidden state's norm. [4]", above=0)
    first_clamp: float = setting(
        0.5, "The clamp of the first half of the evaluations; from there it grows to clamp. [4]", above=0
    )
    overshoot: bool | None = setting(
        None,
        "Whether an answer's first chunk has the full clamp from the start, which carries over to other wordings; "
        "none: for one edit, not for several.",
    )
    at_once: int = setting(16, "Edits whose targets are optimised together.", at_least=1)
    weight_decay: float = setting(1e-3, "Weight of |delta| / |h|^2 in the loss. [0.001]", at_least=0)
    preservation: float = setting(
        10.0, "lambda: weight of the second moment in the solve. [15000, of another scale]", above=0
    )
    prompt_weight: float | None = setting(
        None,
        "Share of the moment of invented questions' last tokens that is added to plain text's; none: 0.01 for one "
        "edit, so that other wordings still reach it, and 1 for several, which would otherwise disturb each other. "
        "[0]",
        at_least=0,
    )
    answer_weight: float = setting(0.3, "The same for their answers' tokens. [0]", at_least=0)
    null_share: float = setting(
        0.1,
        "alphaedit: share of the second moment's trace that its null space may hold. [eigenvalues below 0.02]",
        above=0,
        at_most=1,
    )
    beta: float = setting(
        1.0,
        "alphaedit: penalty of the update, relative to the moment's mean eigenvalue. [10, of another scale]",
        above=0,
    )
    own_weight: float = setting(0.1, "Weight of the edits' own other tokens, K_p. [1]", at_least=0)
    earlier_weight: float = setting(
        1.0,
        "Weight of the tokens of edits taught before; unke: they count like any preserved text, or at 0 not. [0]",
        at_least=0,
    )
    ridge: float = setting(1e-4, "Added to the moment's diagonal, relative to its mean eigenvalue. [0]", at_least=0)
    unke: UnKESettings = setting(UnKESettings, "unke: how the block is trained.")
    direct: PolishSettings = setting(PolishSettings, "direct: how the update is optimised.")
    together: int | None = setting(
        None,
        "direct: edits that one update is optimised for; more are optimised in parts of so many, which a solve joins. "
        "1: each alone; none: all.",
        at_least=1,
    )
    join: JoinSettings = setting(JoinSettings, "direct: how parts are joined.")
    polish: bool = setting(False, "direct: optimise what was joined of parts once more, for all edits.")
    experts: bool = setting(
        False, "Edit the experts' output maps where they are fused into one parameter, not a map beside them."
    )
    statistics: StatisticsConfig = setting(StatisticsConfig, "Where second moments come from.")
    seed: int = setting(0, "Seed of everything random.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_chunks()
        if self.backend == "direct":
            self._check_direct()
        elif self.is_sparse and self.backend != "memit":
            raise ConfigError(
                f"A budget of columns does not go with backend = {self.backend}, whose update needs all of them.",
                "Leave it out, use the backend memit or direct, or hf_edit.sparsify the pack.",
            )
        self._check_backend()
        if self.backend == "unke" and self.experts:
            raise ConfigError(
                "experts = True does not go with backend = unke, which trains the linear maps of a block.",
                "Leave it out, or use another backend.",
            )
        if self.backend == "unke" and self.layers is not None and len(self.layers) > 1:
            raise ConfigError(
                f"layers = {list(self.layers)} are {len(self.layers)}, and unke trains one.", "Give one."
            )
        if self.first_clamp > self.clamp:
            raise ConfigError(f"first_clamp = {self.first_clamp:g} is above clamp = {self.clamp:g}.", "Lower it.")

    def _check_chunks(self) -> None:
        """Refuse settings of chunks that make no sense together."""
        if self.overlap >= self.window:
            raise ConfigError(f"overlap = {self.overlap} is not below window = {self.window}.", "Lower the overlap.")
        if self.overlap and self.chunker != "window":
            raise ConfigError(
                f"overlap = {self.overlap} does not go with chunker = {self.chunker}, whose chunks never overlap.",
                "Leave it out, or use chunker = window.",
            )
        if self.chunker != "sentence" and self._is_given("min_chunk"):
            raise ConfigError(
                f"min_chunk = {self.min_chunk} does not go with chunker = {self.chunker}, which joins no sentences.",
                "Leave it out, or use chunker = sentence.",
            )
        if self.chunker == "sentence" and self.min_chunk > self.window:
            raise ConfigError(
                f"min_chunk = {self.min_chunk} is above window = {self.window}.", "Lower it, or raise the window."
            )
        if self.nested_chunks is not None and self.objective != "nested":
            raise ConfigError(
                f"nested_chunks = {self.nested_chunks} does not go with objective = {self.objective}.",
                "Leave it out, or use objective = nested.",
            )

    def _check_backend(self) -> None:
        """Refuse settings of backends of which none is the one chosen."""
        for name, backends in OF_BACKENDS.items():
            if self.backend not in backends and self._is_given(name):
                value = getattr(self, name)
                nested = isinstance(value, Settings)
                what = f"Settings that begin with {name} do" if nested else f"{name} = {value!r} does"
                raise ConfigError(
                    f"{what} not go with backend = {self.backend}.",
                    f"Leave it out, or use backend = {' or '.join(backends)}.",
                )

    def _check_direct(self) -> None:
        """Refuse settings that say how targets are found or solved for, where there are none."""
        used = {"backend", "format", "layers", "columns", "column_bytes", "experts"}
        used |= {"direct", "together", "join", "polish", "statistics", "seed"}
        given = [f.name for f in fields(AnyEditConfig) if f.name not in used and self._is_given(f.name)]
        if given:
            raise ConfigError(
                f"{given[0]} = {getattr(self, given[0])!r} does not go with backend = direct, which has no targets.",
                "Leave it out, use another backend, or see the settings that begin with direct.",
            )
        of_parts = [name for name in OF_PARTS if self._is_given(name)]
        if self.together is None and of_parts:
            raise ConfigError(
                f"The setting {of_parts[0]} does not go with edits that are all optimised together.",
                "Say with together how many are, or leave it out.",
            )
        if self.layers is not None and self.direct.layers is not None:
            raise ConfigError("There are layers, and others under direct.", "Give one of the two.")
        if self.together is not None and (self.is_sparse or self.direct.is_sparse):
            raise ConfigError(
                f"A budget of columns does not go with together = {self.together}: each part would have columns of "
                "its own.",
                "Leave out one of the two, or hf_edit.sparsify the pack.",
            )
        if self.is_sparse and self.direct.is_sparse:
            raise ConfigError("There is a budget of columns, and another one under direct.", "Give one.")

    def _is_given(self, name: str) -> bool:
        """Whether a setting has another value than AnyEdit's default."""
        setting = AnyEditConfig.__dataclass_fields__[name]
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        return bool(getattr(self, name) != default)

    def first_clamp_of(self, chunk: int, n_edits: int) -> float:
        """The clamp with which this chunk of an answer begins, in a pack of `n_edits`."""
        overshoot = n_edits == 1 if self.overshoot is None else self.overshoot
        return self.clamp if overshoot and chunk == 0 else self.first_clamp

    def target_settings(self, n_edits: int) -> dict[str, Any]:
        """What the targets of edits in a pack of `n_edits` depend on beside their texts and the edited map."""
        clamps = [self.first_clamp_of(chunk, n_edits) for chunk in (0, 1)]
        return {**{name: getattr(self, name) for name in OF_TARGETS}, "first_clamps": clamps}

    def moment_weights(self, n_edits: int) -> dict[str, float]:
        """Weight of each part of the statistics in the second moment C, for a pack of `n_edits`."""
        prompt_weight = self.prompt_weight
        if prompt_weight is None:
            prompt_weight = 0.01 if n_edits == 1 else 1.0
        return {"text": 1.0, "prompt": prompt_weight, "answer": self.answer_weight}


def _redefaulted(name: str, default: Any) -> Any:
    """A field of AnyEditConfig with another default."""
    return field(default=default, metadata=AnyEditConfig.__dataclass_fields__[name].metadata)


@dataclass(frozen=True)
class UnKEConfig(AnyEditConfig):
    """UnKE (arXiv 2405.15349): AnyEdit's backend `unke` with one chunk per answer."""

    backend: str = _redefaulted("backend", "unke")
    chunker: str = _redefaulted("chunker", "none")
