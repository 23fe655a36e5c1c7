"""Text that stands before what is run, in the form in which a model can go on from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


Self = TypeVar("Self", bound="Prefix")
Linear = TypeVar("Linear")


class Prefix(ABC):
    """What blocks from `first` on know of P tokens before the text, for B rows (or 1, for any number of rows)."""

    first: int

    @property
    @abstractmethod
    def length(self) -> int:
        """P."""

    @abstractmethod
    def rows(self: Self, rows: Tensor) -> Self:
        """Some of the rows, by index or by a boolean mask (B,)."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes that it holds."""

    @abstractmethod
    def taken(self: Self, columns: Tensor) -> Self:
        """Those of each row's tokens that `columns` (B, P') says, in its order."""

    def aligned(self: Self, mask: Tensor) -> tuple[Self, Tensor]:
        """Each row's padding moved in front of its tokens, as little of it as the longest row leaves; and its mask.

        Attention through a window counts what stands between two tokens, padding or not.

        Args:
            mask: (B, P), 0 at padding.
        """
        if bool(mask.all()):
            return self, mask
        columns = mask.argsort(dim=1, stable=True)[:, -int(mask.sum(dim=1).max()) :]
        return self.taken(columns), mask.gather(1, columns)


@dataclass(frozen=True, eq=False)
class States(Prefix):
    """Attention keys and values, of the blocks from `first` on: per block two (B, H, P, d_h)."""

    first: int
    states: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def none(cls, first: int, n_layers: int, like: Tensor) -> States:
        """Of no tokens, on the device and in the dtype of `like`."""
        empty = like.new_zeros(1, 1, 0, 1)
        return cls(first, ((empty, empty),) * (n_layers - first))

    @property
    def length(self) -> int:
        return self.states[0][0].shape[-2]

    def rows(self, rows: Tensor) -> States:
        if not self.length:
            return self
        return self._mapped(lambda states: states[rows.to(states.device)])

    @property
    def size(self) -> int:
        return sum(states.numel() * states.element_size() for pair in self.states for states in pair)

    def taken(self, columns: Tensor) -> States:
        def moved(states: Tensor) -> Tensor:
            index = columns[:, None, :, None].to(states.device)
            return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))

        return self._mapped(moved)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> States:
        return States(self.first, tuple((change(keys), change(values)) for keys, values in self.states))

    def above(self, layer: int) -> States:
        """For the blocks from `layer` on."""
        return States(layer, self.states[layer - self.first :])

    def as_cache(self, batch: int, like: Tensor, *, growing: bool) -> DynamicCache:
        """The states as transformers' cache. Blocks that are passed through get a stand-in of the right length.

        Without a config every layer of the cache is a full one, also for sliding windows: the model's masks then cut
        the window themselves, and no state is dropped that a later, shorter chunk would need.

        Args:
            growing: the tokens that run are added to it; else they only see it, and may run several times.
        """
        cache = DynamicCache()
        stand_in = like.new_zeros(batch, 1, self.length, 1)
        states = [*[(stand_in, stand_in)] * self.first, *self.states]
        if not growing:
            cache.layers = [_Seen(keys, values) for keys, values in states]
        elif self.length:
            for index, (keys, values) in enumerate(states):
                cache.update(keys, values, index)
        return cache


class _Seen(DynamicLayer):
    """States that tokens see and are not added to, so that a block may run twice over the same tokens."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        if keys.shape[-2]:
            super().update(keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The states with these behind them."""
        if not self.is_initialized:
            return key_states, value_states
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@dataclass(frozen=True, eq=False)
class Tokens(Prefix, Generic[Linear]):
    """The tokens themselves, run again each time: for models whose blocks keep more than attention states.

    Args:
        ids, mask: (B, P); the mask is 0 at padding.
        entering: (B, P, d), the residual stream before block `first`; None for its own embeddings.
        shift: a linear and what is added to its output, (B, P, d_out); None for nothing.
    """

    first: int
    ids: Tensor
    mask: Tensor
    entering: Tensor | None = None
    shift: tuple[Linear, Tensor] | None = None

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def rows(self, rows: Tensor) -> Tokens[Linear]:
        return self._mapped(lambda tensor: tensor[rows.to(tensor.device)]) if self.length else self

    def followed_by(
        self, ids: Tensor, mask: Tensor, entering: Tensor | None, shift: tuple[Linear, Tensor] | None
    ) -> Tokens[Linear]:
        """With `ids` (B, n) behind; arguments as those of the class, for the n tokens. Only one linear is shifted."""
        B = ids.shape[0]
        streams = [stream.expand(B, -1, -1) for stream in (self.entering, entering) if stream is not None]
        return Tokens(
            self.first,
            torch.cat([self.ids.expand(B, -1), ids], dim=1),
            torch.cat([self.mask.expand(B, -1), mask], dim=1),
            torch.cat(streams, dim=1) if streams else None,
            self._shift_with(shift, *ids.shape),
        )

    def _shift_with(self, shift: tuple[Linear, Tensor] | None, B: int, n: int) -> tuple[Linear, Tensor] | None:
        some = shift or self.shift
        if some is None:
            return None
        linear, like = some
        parts = [
            like.new_zeros(B, length, like.shape[2]) if one is None else one[1].expand(B, -1, -1)
            for one, length in ((self.shift, self.length), (shift, n))
        ]
        return linear, torch.cat(parts, dim=1)

    def order(self) -> Tensor:
        """(B, P): where the tokens of each row stand once its padding has been moved behind them."""
        return self.mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True).argsort(dim=1)

    def placed(self, order: Tensor) -> Tokens[Linear]:
        """Each token where `order` (B, P) says."""
        return self.taken(order.argsort(dim=1))

    def taken(self, columns: Tensor) -> Tokens[Linear]:
        def moved(tensor: Tensor) -> Tensor:
            index = columns.to(tensor.device)
            return tensor.gather(1, index if tensor.ndim == 2 else index[..., None].expand(-1, -1, tensor.shape[2]))

        return self._mapped(moved)

    @property
    def size(self) -> int:
        held = [self.ids, self.mask, self.entering, None if self.shift is None else self.shift[1]]
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Tokens[Linear]:
        return Tokens(
            self.first,
            change(self.ids),
            change(self.mask),
            None if self.entering is None else change(self.entering),
            None if self.shift is None else (self.shift[0], change(self.shift[1])),
        )
