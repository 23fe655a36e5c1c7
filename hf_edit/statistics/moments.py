"""Second moments of the inputs of linear maps: what an update should leave alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.errors import StatisticsError
from hf_edit.processes import Processes


PARTS = ("text", "chat", "prompt", "answer")
"""Which tokens a moment is over: plain text; all tokens of questions in the edits' format, a template's own among
them; their last tokens, where every edit's first key sits; and the tokens of their answers."""


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Uncentred second moments `E[k k^T]` per part and linear.

    Args:
        matrices: part -> linear name -> (d_in, d_in) fp32; those on disk are read when they are asked for.
        tokens: part -> number of tokens averaged over.
        source: where the tokens came from, in words and settings that identify them.
    """

    matrices: Mapping[str, Mapping[str, Tensor]]
    tokens: Mapping[str, int]
    source: str

    def collected(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The weights of the parts that there are.

        A model that invents no question has plain text only.
        """
        return {part: weight for part, weight in weights.items() if part in self.tokens}

    def combined(self, name: str, weights: Mapping[str, float]) -> Tensor:
        """The weighted sum over parts, (d_in, d_in) float64.

        Args:
            weights: part -> weight; parts of weight 0 need not have been collected.

        Raises:
            StatisticsError: a part with a weight, or the linear, was not collected.
        """
        wanted = {part: weight for part, weight in weights.items() if weight}
        for part in wanted:
            if name not in self.matrices.get(part, {}):
                raise StatisticsError(
                    f"The statistics from {self.source} hold no part {part!r} for {name}.",
                    "Collect them for this layer and format, or set the weight of that part to 0.",
                )
        total = torch.zeros(())
        for part, weight in wanted.items():
            total = total + weight * self.matrices[part][name].double()
        return total

    def combined_each(
        self, names: Iterable[str], weights: Mapping[str, float], device: torch.device
    ) -> Iterator[tuple[str, Tensor]]:
        """Linear name and `combined`, over the parts that were collected, one after the other."""
        collected = self.collected(weights)
        for name in names:
            yield name, self.combined(name, collected).to(device)


class Accumulator:
    """Running sums of `k k^T` and counts, by part and linear."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._tokens: dict[str, int] = {}

    def add(self, part: str, inputs: Mapping[str, Tensor]) -> None:
        """Add tokens: linear name -> (n, d_in), the same n for all."""
        count = 0
        for name, k in inputs.items():
            k = k.float()
            count = k.shape[0]
            sums = self._sums.setdefault(part, {})
            if name not in sums:
                sums[name] = torch.zeros(k.shape[1], k.shape[1], dtype=k.dtype, device=k.device)
            sums[name] = sums[name].to(k.device).addmm_(k.T, k)
        self._tokens[part] = self._tokens.get(part, 0) + count

    def tensors(self) -> dict[str, Tensor]:
        """The sums and counts, as `from_tensors` takes them back."""
        sums = {f"{part}/{name}": total for part, names in self._sums.items() for name, total in names.items()}
        counts = torch.tensor([self.count(part) for part in PARTS])
        return {**sums, "tokens": counts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Accumulator:
        """The sums and counts that `tensors` came from."""
        found = cls()
        for key in tensors.keys() - {"tokens"}:
            part, _, name = key.partition("/")
            found._sums.setdefault(part, {})[name] = tensors[key]
        counts = zip(PARTS, tensors["tokens"].tolist(), strict=True)
        found._tokens = {part: count for part, count in counts if count}
        return found

    def add_up(self, processes: Processes, linears: Mapping[str, Tensor]) -> None:
        """Put the sums and counts over all processes in place of this one's.

        Args:
            linears: linear name -> no tokens, (0, d_in), where its inputs come from.
        """
        parts = {part for counted in processes.gathered(self._tokens) for part in counted}
        for part in [part for part in PARTS if part in parts]:
            self.add(part, linears)  # zeros where this process saw none
            processes.add_up(self._sums[part][name] for name in linears)
            self._tokens[part] = sum(processes.gathered(self._tokens[part]))

    def count(self, part: str) -> int:
        """Tokens added to `part` so far."""
        return self._tokens.get(part, 0)

    def moments(self, source: str) -> SecondMoments:
        """The means so far, on the CPU."""
        matrices = {
            part: {name: (total / self._tokens[part]).cpu() for name, total in sums.items()}
            for part, sums in self._sums.items()
        }
        return SecondMoments(matrices, dict(self._tokens), source)
