"""What every editing method takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.statistics.moments import SecondMoments


@dataclass(frozen=True, eq=False)
class KeyValues:
    """What one edit asks of one linear: change the output at these tokens of its own text by these vectors.

    The keys themselves are the linear's inputs there; one forward of the base over the edit's text gives them again.

    Args:
        positions: (n,) int64, token positions in prompt + answer as the pack's prompt format encodes them.
        values: (n, d_out), the desired change of the output, fp32.
    """

    positions: Tensor
    values: Tensor


EditSource = Sequence[Mapping[str, KeyValues]]
"""Per edit, in the order of the edit set: full module name -> what the edit asks of that linear."""


@dataclass(frozen=True, eq=False)
class EditResult:
    """A computed update.

    Args:
        deltas: full module name -> change of that linear.
        source: per edit, what the deltas were solved from; None where no solve was made and the deltas say all.
        receipt: per edit, figures worth keeping (final loss, target norm, ...): JSON values, no times, so that the
            same inputs give the same bytes.
        settings: what a pack's manifest says in place of settings of that name, where their own values are good on
            this machine only.
    """

    deltas: Mapping[str, LowRankDelta]
    source: EditSource | None
    receipt: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Preservation(Protocol):
    """What an update must leave alone."""

    @property
    def earlier(self) -> Sequence[Encoded]:
        """Texts of edits taught before, which are to stay as they are."""

    def moments(self, linears: Sequence[EditableLinear]) -> SecondMoments:
        """Second moments of the inputs of these linears, from a cache or by collecting them."""

    def conversations(self) -> Sequence[Encoded]:
        """Questions in the edits' format with the base's own answers, not necessarily to their end."""

    def strangers(self, edits: Sequence[Edit], count: int) -> Sequence[Encoded]:
        """Questions of the same kind as those of `edits`, up to `count` for each, with the base's own answers."""


class Checkpoints(Protocol):
    """Keeps intermediate tensors, so that a killed run goes on where it was. Keys are digests of all inputs."""

    def load(self, key: str) -> dict[str, Tensor] | None:
        """What was saved under `key`."""

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` under `key`, all or nothing."""


class EditMethod(Protocol):
    """One method with its settings bound."""

    name: str
    config: Any

    def linears(self, model: EditableModel) -> list[EditableLinear]:
        """The maps that `compute` will change."""

    def compute(
        self,
        model: EditableModel,
        prompts: PromptFormat,
        edits: EditSet,
        preserve: Preservation,
        checkpoints: Checkpoints,
        progress: Progress,
    ) -> EditResult:
        """Compute the update that teaches `edits`, leaving the model as it is."""
