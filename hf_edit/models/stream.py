"""The form in which a model's blocks hand on the residual stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from hf_edit.errors import UnsupportedModelError


@dataclass(frozen=True)
class Layout:
    """Where batch and time stand among the axes of the stream; methods see (B, T, d) always.

    Some models keep several lanes, (lanes, B, T, d) or (B, T, lanes, d). Side by side they are (B, T, lanes * d).

    Args:
        before, after: sizes of the axes in front of (B, T) and behind.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def seen(cls, model: str, shapes: Iterable[tuple[int, ...]], batch: tuple[int, int]) -> Layout:
        """Read off what the blocks of `model` returned for ids of shape `batch`.

        Raises:
            UnsupportedModelError: blocks differ in it, or work on other tokens than those of the text.
        """
        found = set(shapes)
        shape = next(iter(found), ())
        at = next((i for i in range(len(shape) - 2) if shape[i : i + 2] == batch), None)
        if len(found) != 1 or at is None:
            raise UnsupportedModelError(
                f"The blocks of {model} return {' and '.join(map(str, sorted(found))) or 'nothing'} for {batch[0]} "
                f"rows of {batch[1]} tokens: no residual stream of these tokens, so no edit can be placed in it.",
                "Use a model whose blocks return one state for every token.",
            )
        return cls(shape[:at], shape[at + 2 :])

    @property
    def plain(self) -> bool:
        return not self.before and len(self.after) == 1

    def side_by_side(self, stream: Tensor) -> Tensor:
        """(B, T, d) from the model's own form."""
        if self.plain:
            return stream
        at = len(self.before)
        axes = (at, at + 1, *range(at), *range(at + 2, stream.ndim))
        return stream.permute(axes).reshape(*stream.shape[at : at + 2], -1)

    def native(self, stream: Tensor) -> Tensor:
        """Undo `side_by_side`."""
        if self.plain:
            return stream
        at = len(self.before)
        apart = stream.reshape(*stream.shape[:2], *self.before, *self.after)
        return apart.permute(*range(2, 2 + at), 0, 1, *range(2 + at, apart.ndim))

    @property
    def width(self) -> int:
        """d, of all lanes together."""
        return math.prod((*self.before, *self.after))
