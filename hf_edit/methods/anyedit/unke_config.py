"""Settings of UnKE's second stage."""

from __future__ import annotations

from dataclasses import dataclass

from hf_edit.settings import Settings, setting


@dataclass(frozen=True)
class UnKESettings(Settings):
    """How one block is trained. The three losses are squared errors in units of the change asked at a key."""

    parametrisation: str = setting(
        "factors",
        "factors: low-rank factors are trained; full: whole weights are, and compressed afterwards. [full]",
        choices=("factors", "full"),
    )
    rank: int = setting(32, "Columns of the factors of each linear map. [none]", at_least=1)
    learning_rate: float = setting(
        0.01, "Adam's first step in a weight, as a share of the map's root mean square weight. [2e-4]", above=0
    )
    steps: int = setting(50, "Most steps over all texts. [50]", at_least=1)
    stop_error: float = setting(
        0.02, "Training ends below this error at the keys, relative to the change asked there. [0]", at_least=0
    )
    key_weight: float = setting(1.0, "Weight of the mean error over the keys. [keys / tokens of the edits]", above=0)
    own_weight: float = setting(1.0, "Weight of the mean error over the edits' other tokens. [1]", at_least=0)
    preserved_weight: float = setting(
        1.0, "Weight of the mean error over the preserved texts' tokens. [1]", at_least=0
    )
