"""The view through which methods see a model: the one place that knows module names.

Everything runs through the model's own `forward`, so rotary embeddings, sliding windows, masks and norms are the
model's own business. Running only some of the blocks is done by letting the others pass their input through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import ComputationError, UnsupportedModelError
from hf_edit.models.borrow import borrowed
from hf_edit.models.families import Family
from hf_edit.models.finder import find_family, linear_shape
from hf_edit.models.hooks import (
    adding,
    entering,
    hook,
    passed_through,
    reading_input,
    reading_output,
    replacing,
    side_path,
    tensor_of,
)
from hf_edit.solvers.low_rank import LowRankDelta


@dataclass(frozen=True)
class EditableLinear:
    """A linear map that an edit may change.

    Args:
        name: full module name inside the ...ForCausalLM, without adapter wrappers.
        layer: index of its block.
        module: what the model calls there: the linear, or the adapter layer around it.
        d_out, d_in: its size; deltas are always (d_out, d_in).
        transposed: the weight is stored (d_in, d_out), as in GPT-2's Conv1D.
    """

    name: str
    layer: int
    module: nn.Module
    d_out: int
    d_in: int
    transposed: bool


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass left behind. All tensors are (B, T, width).

    Args:
        inputs: linear name -> its inputs (the keys).
        outputs: linear name -> its outputs.
        entering: block index -> residual stream before the block.
        leaving: block index -> residual stream after the block.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prefix:
    """Attention keys and values of tokens already run, of the blocks from `first` on: per block two (B, H, P, d_h)."""

    first: int
    states: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        return self.states[0][0].shape[-2]


class EditableModel:
    """A view on a causal language model of transformers, plain or inside a `PeftModel`.

    Nothing here writes to the model; hooks and passed-through blocks live only inside the calls that set them.

    Raises:
        UnsupportedModelError: its blocks or their MLP output maps could not be found.
        ComputationError: it computes no finite logits, as with damaged weights.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model = model
        self.family = family
        self.blocks: list[nn.Module] = list(model.get_submodule(family.blocks))  # type: ignore[arg-type]
        self.linears = [self._linear(layer, family.mlp_out) for layer in range(len(self.blocks))]
        self._arity = self._output_arities()

    @classmethod
    def of(cls, model: nn.Module) -> EditableModel:
        """The view on `model`."""
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        if not isinstance(model, PreTrainedModel):
            raise UnsupportedModelError(
                f"{type(model).__name__} is not a transformers PreTrainedModel.",
                "Load the model with AutoModelForCausalLM.from_pretrained.",
            )
        with borrowed(model):
            return cls(model, find_family(model))

    def _linear(self, layer: int, path: str) -> EditableLinear:
        module = self.blocks[layer].get_submodule(path)
        base = _base(module)
        d_out, d_in = linear_shape(base)
        name = f"{self.family.blocks}.{layer}.{path}"
        return EditableLinear(name, layer, module, d_out, d_in, isinstance(base, Conv1D))

    def block_linears(self, layer: int) -> list[EditableLinear]:
        """Every linear map of one block, attention and MLP, in the order of its modules."""
        wrapped: list[str] = []  # what an adapter layer holds is the adapter's, not the base's
        found: list[EditableLinear] = []
        for path, module in self.blocks[layer].named_modules():
            if path.startswith(tuple(f"{outer}." for outer in wrapped)):
                continue
            if isinstance(module, BaseTunerLayer):
                wrapped.append(path)
            if isinstance(_base(module), (nn.Linear, Conv1D)):
                found.append(self._linear(layer, path))
        return found

    def linears_named(self, names: Collection[str]) -> list[EditableLinear]:
        """The linear maps of the blocks with these full module names, in the order of the blocks."""
        every = {
            linear.name: linear
            for layer, mlp_output in enumerate(self.linears)
            for linear in (mlp_output, *self.block_linears(layer))
        }
        return [linear for name, linear in every.items() if name in names]

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        return self.linears[0].d_out

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embeddings."""
        return self.model.get_input_embeddings().weight.device

    @property
    def max_length(self) -> int | None:
        """The longest sequence the model was built for, if its config says so."""
        return getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def ids(self, sequences: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
        """Token ids padded on the right and their mask, both (B, T)."""
        width = max(map(len, sequences))
        rows = [list(s) + [pad] * (width - len(s)) for s in sequences]
        mask = [[1] * len(s) + [0] * (width - len(s)) for s in sequences]
        return torch.tensor(rows, device=self.device), torch.tensor(mask, device=self.device)

    # ---- reading -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def trace(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        inputs: Iterable[EditableLinear] = (),
        outputs: Iterable[EditableLinear] = (),
        entering: Iterable[int] = (),
        leaving: Iterable[int] = (),
        start: Mapping[int, Tensor] | None = None,
    ) -> Trace:
        """Run `ids` (B, T) as far as needed and keep what is asked for.

        Args:
            start: `{block: residual stream entering it}`, (B, T, d): begin there instead of at the embeddings.
        """
        inputs, outputs, entering, leaving = list(inputs), list(outputs), list(entering), list(leaving)
        trace = Trace()
        last = max([x.layer for x in [*inputs, *outputs]] + entering + leaving)
        batch = tuple(ids.shape)
        with ExitStack() as stack:
            for linear in inputs:
                stack.enter_context(reading_input(linear.module, trace.inputs, linear.name, batch))
            for linear in outputs:
                stack.enter_context(reading_output(linear.module, trace.outputs, linear.name, batch))
            for layer in entering:
                stack.enter_context(reading_input(self.blocks[layer], trace.entering, layer, batch))
            for layer in leaving:
                stack.enter_context(reading_output(self.blocks[layer], trace.leaving, layer, batch))
            stack.enter_context(self._running(start, last))
            self.model(input_ids=ids, attention_mask=_or_ones(mask, ids), use_cache=False, logits_to_keep=1)
        return trace

    def logits(
        self,
        ids: Tensor,
        *,
        start: Mapping[int, Tensor] | None = None,
        shift: tuple[EditableLinear, Tensor] | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Logits (B, n, V), differentiable with respect to the shift.

        Args:
            ids: (B, n), the tokens after the prefix.
            start: `{block: residual stream entering it}`, (B, n, d): begin there instead of at the embeddings.
            shift: a linear and what to add to its outputs, (B, n, d_out).
            prefix: attention states of the tokens before `ids`.
        """
        return self._run(ids, start, shift, prefix, keep=0)[0]

    def logits_at(
        self,
        ids: Tensor,
        where: Tensor,
        *,
        start: Mapping[int, Tensor] | None = None,
        shift: tuple[EditableLinear, Tensor] | None = None,
        prefix: Prefix | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, V) at the N places that `where` (B, T) marks, row by row; the head runs nowhere else.

        Differentiable with respect to the shift and the factors of an enclosing `updated`. Rows may be padded on the
        right: no token sees what comes after it.

        Args:
            start, shift, prefix: as for `logits`.
            mask: (B, P + T), 0 where a prefix of P tokens is padded, on its left; by default it is not.
        """
        head = self.model.get_output_embeddings()
        with hook(head.register_forward_pre_hook(lambda _, args: (args[0][where][None], *args[1:]))):
            return self._run(ids, start, shift, prefix, keep=0, mask=mask)[0][0]

    def block_outputs(
        self,
        layer: int,
        ids: Tensor,
        states: Tensor,
        *,
        shift: tuple[EditableLinear, Tensor] | None = None,
    ) -> Tensor:
        """The residual stream leaving one block that `states` (B, T, d) enter, differentiable; no other block runs.

        Args:
            ids: (B, T), for what a model reads off its ids besides the embeddings. Rows may be padded on the right: no
                token sees what comes after it.
            shift: as for `logits`.
        """
        left: list[Tensor] = []
        with ExitStack() as stack:
            if shift is not None:
                stack.enter_context(adding(shift[0].module, shift[1]))
            keep = self.blocks[layer].register_forward_hook(lambda _, __, output: left.append(tensor_of(output)))
            stack.enter_context(hook(keep))
            stack.enter_context(self._running({layer: states}, layer))
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1)
        return left[0].reshape(states.shape)

    def no_prefix(self, first: int) -> Prefix:
        """A prefix of no tokens for the blocks from `first` on."""
        empty = torch.zeros(1, 1, 0, 1, device=self.device, dtype=self.dtype)
        return Prefix(first, ((empty, empty),) * (self.n_layers - first))

    @torch.no_grad()
    def extended(
        self,
        prefix: Prefix,
        ids: Tensor,
        *,
        start: Mapping[int, Tensor] | None = None,
        shift: tuple[EditableLinear, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Prefix:
        """The prefix followed by `ids`; arguments as for `logits_at`."""
        cache = self._run(ids, start, shift, prefix, keep=1, mask=mask)[1]
        assert cache is not None
        return Prefix(prefix.first, tuple((layer.keys, layer.values) for layer in cache.layers[prefix.first :]))

    def _run(
        self,
        ids: Tensor,
        start: Mapping[int, Tensor] | None,
        shift: tuple[EditableLinear, Tensor] | None,
        prefix: Prefix | None,
        keep: int,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, DynamicCache | None]:
        """Logits of the last `keep` tokens (0: all), and the filled cache if a prefix was given."""
        arguments: dict[str, Any] = {"use_cache": False, "attention_mask": torch.ones_like(ids)}
        cache = None
        if prefix is not None:
            cache = _as_cache(prefix, ids.shape[0], self.device, self.dtype)
            if mask is None:
                mask = ids.new_ones(ids.shape[0], prefix.length + ids.shape[1])
            arguments = {
                "use_cache": True,
                "past_key_values": cache,
                "position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)[:, prefix.length :],
                "attention_mask": mask,
            }
        with ExitStack() as stack:
            if shift is not None:
                stack.enter_context(adding(shift[0].module, shift[1]))
            stack.enter_context(self._running(start, self.n_layers - 1))
            out = self.model(input_ids=ids, logits_to_keep=keep, **arguments)
        return out.logits, cache

    @contextmanager
    def updated(self, deltas: Mapping[str, LowRankDelta | Tensor]) -> Iterator[None]:
        """The model as if the deltas were in its weights: each linear adds B (A x), or dW x, to its output.

        Args:
            deltas: full module name of any linear in a block -> factors, or dW (d_out, d_in); both may be trained.
        """
        with ExitStack() as stack:
            for name, delta in deltas.items():
                stack.enter_context(side_path(self.model.get_submodule(name), delta))
            yield

    @contextmanager
    def reading(self, linears: Iterable[EditableLinear], batch: tuple[int, ...]) -> Iterator[dict[str, Tensor]]:
        """What enters the linears, by full module name, (B, T, d_in), filled in by the passes run inside.

        Args:
            batch: (B, T) of these passes.
        """
        inputs: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for linear in linears:
                stack.enter_context(reading_input(linear.module, inputs, linear.name, batch))
            yield inputs

    @contextmanager
    def shifted(self, shifts: Mapping[str, Tensor]) -> Iterator[None]:
        """Linears, by full module name, add (B, T, d_out) to their output."""
        with ExitStack() as stack:
            for name, shift in shifts.items():
                stack.enter_context(adding(self.model.get_submodule(name), shift))
            yield

    @contextmanager
    def replaced(self, values: Trace, where: Tensor) -> Iterator[None]:
        """Outputs are taken from a trace at some tokens of each sequence.

        Args:
            values: the blocks and linears concerned are those whose outputs it holds (`leaving`, `outputs`), of one
                sequence, (1, T, width).
            where: (B, T), true where a value takes the place of what was computed.
        """
        modules = {self.model.get_submodule(name): value for name, value in values.outputs.items()}
        modules |= {self.blocks[layer]: value for layer, value in values.leaving.items()}
        with ExitStack() as stack:
            for module, value in modules.items():
                stack.enter_context(replacing(module, value, where))
            yield

    def embeddings_shifted(self, shift: Tensor) -> Any:
        """A context in which `shift` (B, T, d) is added to the token embeddings."""
        return adding(self.model.get_input_embeddings(), shift)

    @cached_property
    def writes_residual(self) -> bool:
        """Whether a change of an MLP output map's output arrives unchanged in the residual stream.

        False where a norm stands between (Gemma 2 and 3). Found by trying, so that no table has to know.
        """
        linear = self.linears[0]
        ids = torch.arange(1, 5, device=self.device)[None]
        plain = self.trace(ids, leaving=[0], outputs=[linear])
        before, size = plain.leaving[0], plain.outputs[linear.name].abs().mean()
        direction = torch.linspace(-1, 1, linear.d_out, device=before.device, dtype=before.dtype).expand_as(before)
        for scale in (1, 8):  # a norm may happen to return one of them unchanged, never both
            shift = scale * size * direction
            with adding(linear.module, shift):
                after = self.trace(ids, leaving=[0]).leaving[0]
            if (after - before - shift).abs().max() > 0.05 * shift.abs().max():
                return False
        return True

    # ---- running only some blocks ------------------------------------------------------------------------------

    @contextmanager
    def _running(self, start: Mapping[int, Tensor] | None, last: int) -> Iterator[None]:
        """Only the blocks from the start's to `last` run; the others hand their input on."""
        first, states = next(iter(start.items())) if start else (0, None)
        with ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                if not first <= index <= last:
                    stack.enter_context(passed_through(block, self._arity[type(block)]))
            if states is not None:
                stack.enter_context(entering(self.blocks[first], states))
            yield

    def _output_arities(self) -> dict[type, int | None]:
        """Per class of block the length of the tuple that it returns, None where it returns a bare tensor."""
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        seen: dict[type, int | None] = {}

        def note(module: nn.Module, _: Any, output: Any) -> None:
            seen[type(module)] = len(output) if isinstance(output, tuple) else None

        handles = [block.register_forward_hook(note) for block in self.blocks]
        try:
            with torch.no_grad():
                out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if not torch.isfinite(out.logits).all():
            raise ComputationError(
                f"The logits of {type(self.model).__name__} are not finite.",
                "Load it in float32 or bfloat16; if that does not help, its weights are damaged.",
            )
        return seen


def _or_ones(mask: Tensor | None, ids: Tensor) -> Tensor:
    return torch.ones_like(ids) if mask is None else mask


def _base(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _as_cache(prefix: Prefix, batch: int, device: torch.device, dtype: torch.dtype) -> DynamicCache:
    """The prefix as transformers' cache. Blocks that are passed through get a stand-in of the right length.

    Without a config every layer of the cache is a full one, also for sliding windows: the model's masks then cut
    the window themselves, and no state is dropped that a later, shorter chunk would need.
    """
    cache = DynamicCache()
    stand_in = torch.zeros(batch, 1, prefix.length, 1, device=device, dtype=dtype)
    for index in range(prefix.first):
        cache.update(stand_in, stand_in, index)
    if prefix.length:
        for index, (keys, values) in enumerate(prefix.states, start=prefix.first):
            cache.update(keys, values, index)
    return cache


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise a ComputationError that names `what` if the tensor holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise ComputationError(
            f"{what} is not finite.", "Compute in float32 (--dtype float32), or lower the learning rate or the clamp."
        )
