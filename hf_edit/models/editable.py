"""The view through which methods see a model: the one place that knows module names.

Everything runs through the model's own `forward`, so rotary embeddings, sliding windows, masks and norms are the
model's own business. Running only some of the blocks is done by letting the others pass their input through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import ComputationError, UnsupportedModelError
from hf_edit.models.borrow import borrowed
from hf_edit.models.experts import Experts, experts_at
from hf_edit.models.families import Family
from hf_edit.models.finder import edited_path, find_family, has_module, has_parameter, named_experts
from hf_edit.models.forward import context_length, run
from hf_edit.models.hooks import (
    adding,
    entering,
    here,
    hook,
    passed_through,
    reading_input,
    reading_output,
    recomputed,
    replacing,
    side_path,
    tensor_of,
)
from hf_edit.models.linear import EditableLinear as EditableLinear
from hf_edit.models.memory import Memory
from hf_edit.models.orientation import EXPERTS_TRANSPOSED
from hf_edit.models.prefix import Prefix, States, Tokens
from hf_edit.models.shapes import base_of, linear_shape, linears_of
from hf_edit.models.stream import Layout
from hf_edit.models.trace import Trace
from hf_edit.models.trial import arrives, keeps_states, skips_blocks
from hf_edit.solvers.low_rank import LowRankDelta


class EditableModel:
    """A view on a causal language model of transformers, plain or inside a `PeftModel`.

    Nothing here writes to the model; hooks and passed-through blocks live only inside the calls that set them.

    Raises:
        UnsupportedModelError: its blocks or their MLP output maps could not be found.
        ComputationError: it computes no finite logits, as with damaged weights.
    """

    def __init__(self, model: PreTrainedModel, family: Family, memory_budget: int | None = None) -> None:
        self.model = model
        self.memory = Memory(self.device, memory_budget, sum(p.numel() * p.element_size() for p in model.parameters()))
        self.family = family
        self.blocks: list[nn.Module] = list(model.get_submodule(family.blocks))  # type: ignore[arg-type]
        self.linears = [self._linear(layer, edited_path(model, family, layer)) for layer in range(len(self.blocks))]
        self._edited = {linear.name: linear for linear in self.linears}
        self._arity: dict[type, int | None] = {}
        self._stream = self._look_at_blocks()

    @classmethod
    def of(cls, model: nn.Module, memory_budget: int | None = None, *, experts: bool = False) -> EditableModel:
        """The view on `model`.

        Args:
            memory_budget: bytes that computations on it may take beside it; None: what the device has.
            experts: the output maps of fused experts are edited, where a block has them.
        """
        if isinstance(model, PeftModel):
            if model.active_peft_config.is_prompt_learning:
                raise UnsupportedModelError(
                    "The model has an adapter of virtual tokens, which stand in front of every text.",
                    "Edit the model without it: model.get_base_model().",
                )
            model = model.get_base_model()
        if not isinstance(model, PreTrainedModel):
            raise UnsupportedModelError(
                f"{type(model).__name__} is not a transformers PreTrainedModel.",
                "Load the model with AutoModelForCausalLM.from_pretrained.",
            )
        with borrowed(model):
            return cls(model, find_family(model, experts), memory_budget)

    def _linear(self, layer: int, path: str) -> EditableLinear:
        if path in self.family.experts:
            return self._experts(layer, path, self.family.experts[path])
        module = self.blocks[layer].get_submodule(path)
        base = base_of(module)
        d_out, d_in = linear_shape(base)
        name = f"{self.family.blocks}.{layer}.{path}"
        return EditableLinear(name, layer, module, d_out, d_in, isinstance(base, Conv1D))

    def _experts(self, layer: int, path: str, mixture: str) -> EditableLinear:
        experts = experts_at(self.blocks[layer], path, mixture)
        d_out, d_in = experts.shape
        transposed = experts.orientation == EXPERTS_TRANSPOSED
        name = f"{self.family.blocks}.{layer}.{path}"
        return EditableLinear(name, layer, experts.carrier, d_out, d_in, transposed, experts)

    def block_linears(self, layer: int) -> list[EditableLinear]:
        """Every linear map of one block, attention and MLP, in the order of its modules."""
        return [self._linear(layer, path) for path, _ in linears_of(self.blocks[layer])]

    def linears_named(self, names: Collection[str]) -> list[EditableLinear]:
        """The maps of the blocks with these full names, in the order of the blocks."""
        every = {
            linear.name: linear
            for layer, mlp_output in enumerate(self.linears)
            for linear in (mlp_output, *self.block_linears(layer))
        }
        if set(names) - set(every):
            every |= self._named_experts
        return sorted((every[name] for name in every if name in names), key=lambda linear: linear.layer)

    @cached_property
    def _named_experts(self) -> dict[str, EditableLinear]:
        """Full name of every output map of fused experts -> the map, whatever is edited by default."""
        paths = named_experts(self.model, self.family.blocks)
        every = [
            self._experts(layer, path, mixture)
            for layer, block in enumerate(self.blocks)
            for path, mixture in paths.items()
            if has_parameter(block, path)
        ]
        return {linear.name: linear for linear in every}

    def _experts_named(self, name: str) -> Experts | None:
        """The fused experts whose parameter has that full name; None for any other name."""
        if name in self._edited:
            return self._edited[name].experts
        if has_module(self.model, name):
            return None
        return self._named_experts[name].experts

    def _module(self, name: str) -> nn.Module:
        """What the model calls for a map of that full name."""
        experts = self._experts_named(name)
        return self.model.get_submodule(name) if experts is None else experts.carrier

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config(decoder=True).hidden_size

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
        return context_length(self.model)

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
        spread: bool = False,
    ) -> Trace:
        """Run `ids` (B, T) as far as needed and keep what is asked for.

        Args:
            start: `{block: residual stream entering it}`, (B, T, d): begin there instead of at the embeddings.
            spread: what is kept stays where the blocks lie, which may be several devices; else it comes to `device`.
        """
        inputs, outputs, entering, leaving = list(inputs), list(outputs), list(entering), list(leaving)
        trace = Trace()
        last = max([x.layer for x in [*inputs, *outputs]] + entering + leaving)
        batch = tuple(ids.shape)
        with ExitStack() as stack:
            for linear in inputs:
                stack.enter_context(linear.reading_input(trace.inputs, linear.name, batch))
            for linear in outputs:
                stack.enter_context(reading_output(linear.module, trace.outputs, linear.name, batch))
            for layer in entering:
                stack.enter_context(reading_input(self.blocks[layer], trace.entering, layer, batch, self._stream))
            for layer in leaving:
                stack.enter_context(reading_output(self.blocks[layer], trace.leaving, layer, batch, self._stream))
            stack.enter_context(self._running(start, last))
            run(self.model, ids, mask, logits_to_keep=1)
        wanted = ((trace.inputs, [x.name for x in inputs]), (trace.outputs, [x.name for x in outputs]))
        silent = [name for kept, names in wanted for name in names if name not in kept]
        if silent:
            raise UnsupportedModelError(
                f"A text does not run through {silent[0]} of {type(self.model).__name__}.", "Choose other layers."
            )
        return trace if spread else trace.to(self.device)

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
        if isinstance(prefix, Tokens):
            whole = self._behind(prefix, ids, start, shift, mask)
            order = whole.order()
            before = where.new_zeros(where.shape[0], prefix.length)
            where = torch.cat([before, where], dim=1).gather(1, order.argsort(dim=1))
            ids, start, shift, prefix, mask = *_parts(whole.placed(order)), None, None

        def chosen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden: Tensor = args[0]
            return hidden[where.to(hidden.device)][None], *args[1:]

        with hook(self.model.get_output_embeddings().register_forward_pre_hook(here(chosen))):
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
            keep = self.blocks[layer].register_forward_hook(here(lambda _, __, output: left.append(tensor_of(output))))
            stack.enter_context(hook(keep))
            stack.enter_context(self._running({layer: states}, layer))
            run(self.model, ids, logits_to_keep=1)
        return self._stream.side_by_side(left[0]).reshape(states.shape).to(self.device)

    @cached_property
    def keeps_states(self) -> bool:
        """Whether the attention states of a prefix say all that the blocks know of it.

        False where blocks keep other things too: recurrent states, convolutions, keys of other blocks.
        """
        return self.skips_blocks and keeps_states(self)

    def no_prefix(self, first: int) -> Prefix:
        """A prefix of no tokens for the blocks from `first` on."""
        if self.keeps_states:
            return States.none(first, self.n_layers, self._like)
        ids = torch.zeros((1, 0), dtype=torch.long, device=self.device)
        return Tokens(first, ids, ids)

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
        if isinstance(prefix, Tokens):
            return self._behind(prefix, ids, start, shift, mask)
        cache = self._run(ids, start, shift, prefix, keep=1, mask=mask)[1]
        assert cache is not None
        return States(prefix.first, tuple((layer.keys, layer.values) for layer in cache.layers[prefix.first :]))

    def _behind(
        self,
        prefix: Tokens[EditableLinear],
        ids: Tensor,
        start: Mapping[int, Tensor] | None,
        shift: tuple[EditableLinear, Tensor] | None,
        mask: Tensor | None,
    ) -> Tokens[EditableLinear]:
        own = torch.ones_like(ids) if mask is None else mask[:, prefix.length :]
        return prefix.followed_by(ids, own, next(iter(start.values())) if start else None, shift)

    def _run(
        self,
        ids: Tensor,
        start: Mapping[int, Tensor] | None,
        shift: tuple[EditableLinear, Tensor] | None,
        prefix: Prefix | None,
        keep: int,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, DynamicCache | None]:
        """Logits of the last `keep` tokens (0: all), and the filled cache if a prefix of states was given."""
        if isinstance(prefix, Tokens):
            whole = self._behind(prefix, ids, start, shift, mask)
            order = whole.order()
            logits = self._run(*_parts(whole.placed(order)), None, keep=0)[0]
            at = order[:, prefix.length :].to(logits.device)
            return logits.gather(1, at[..., None].expand(-1, -1, logits.shape[2]))[:, -keep:], None
        arguments: dict[str, Any] = {}
        cache = None
        if isinstance(prefix, States):
            cache = prefix.as_cache(ids.shape[0], self._like, growing=keep == 1)
            if mask is None:
                mask = ids.new_ones(ids.shape[0], prefix.length + ids.shape[1])
            positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, prefix.length :]
            arguments = {"use_cache": True, "past_key_values": cache, "position_ids": positions}
        else:
            mask = None  # padding stands behind the text, where no token sees it
        with ExitStack() as stack:
            if shift is not None:
                stack.enter_context(adding(shift[0].module, shift[1]))
            stack.enter_context(self._running(start, self.n_layers - 1))
            if self.memory.recomputing and torch.is_grad_enabled():
                first, shifted = next(iter(start)) if start else 0, None if shift is None else shift[0].layer
                for block in self.blocks[first:] if shifted is None else self.blocks[max(first, shifted + 1) :]:
                    stack.enter_context(recomputed(block))
            out = run(self.model, ids, mask, logits_to_keep=keep, **arguments)
        return out.logits, cache

    @property
    def _like(self) -> Tensor:
        """An empty tensor on the model's device and in its dtype."""
        return torch.empty(0, device=self.device, dtype=self.dtype)

    @contextmanager
    def updated(self, deltas: Mapping[str, LowRankDelta | Tensor]) -> Iterator[None]:
        """The model as if the deltas were in its weights: each linear adds B (A x), or dW x, to its output.

        Args:
            deltas: full name of any map in a block -> factors, or dW (d_out, d_in); both may be trained.
        """
        with ExitStack() as stack:
            for name, delta in deltas.items():
                experts = self._experts_named(name)
                stack.enter_context(
                    side_path(self.model.get_submodule(name), delta) if experts is None else experts.side_path(delta)
                )
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
                stack.enter_context(linear.reading_input(inputs, linear.name, batch))
            yield inputs

    @contextmanager
    def shifted(self, shifts: Mapping[str, Tensor]) -> Iterator[None]:
        """Maps, by full name, add (B, T, d_out) to their output."""
        with ExitStack() as stack:
            for name, shift in shifts.items():
                stack.enter_context(adding(self._module(name), shift))
            yield

    @contextmanager
    def replaced(self, values: Trace, where: Tensor) -> Iterator[None]:
        """Outputs are taken from a trace at some tokens of each sequence.

        Args:
            values: the blocks and linears concerned are those whose outputs it holds (`leaving`, `outputs`), of one
                sequence, (1, T, width).
            where: (B, T), true where a value takes the place of what was computed.
        """
        modules = {self._module(name): value for name, value in values.outputs.items()}
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
        """Whether a change of an edited map's output arrives unchanged in the residual stream, in every block.

        False where a norm stands between (Gemma 2 and 3), or the MLP behind an edited attention map reads the change.
        """
        kinds = {linear.name.split(f".{linear.layer}.", 1)[1]: linear for linear in reversed(self.linears)}
        return all(arrives(self, linear) for linear in kinds.values())

    @cached_property
    def skips_blocks(self) -> bool:
        """Whether blocks can be left out: not where later ones need more of them than the residual stream."""
        self.skips_blocks = True  # while it is tried
        return skips_blocks(self)

    # ---- running only some blocks ------------------------------------------------------------------------------

    @contextmanager
    def _running(self, start: Mapping[int, Tensor] | None, last: int) -> Iterator[None]:
        """Only the blocks from the start's to `last` run; the others hand their input on."""
        first, states = next(iter(start.items())) if start else (0, None)
        with ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                if not first <= index <= last and self.skips_blocks:
                    stack.enter_context(passed_through(block, self._arity[type(block)]))
            if states is not None:
                stack.enter_context(entering(self.blocks[first], self._stream.native(states)))
            yield

    def _look_at_blocks(self) -> Layout:
        """Run two rows of three tokens and see in which form the blocks take and return the residual stream.

        Per class of block, `_arity` gets the length of the tuple that it returns, None where it is a bare tensor.
        """
        ids = torch.zeros((2, 3), dtype=torch.long, device=self.device)
        shapes: dict[int, tuple[int, ...]] = {}
        handles = []

        def note(layer: int, module: nn.Module, output: Any) -> None:
            self._arity[type(module)] = len(output) if isinstance(output, (tuple, list)) else None
            shapes[layer] = tuple(tensor_of(output).shape)

        for layer, block in enumerate(self.blocks):
            handles.append(block.register_forward_hook(lambda module, _, out, layer=layer: note(layer, module, out)))
        try:
            with torch.no_grad():
                out = run(self.model, ids)
        finally:
            for handle in handles:
                handle.remove()
        if not torch.isfinite(out.logits).all():
            raise ComputationError(
                f"The logits of {type(self.model).__name__} are not finite.",
                "Load it in float32 or bfloat16; if that does not help, its weights are damaged.",
            )
        return Layout.seen(type(self.model).__name__, shapes.values(), (ids.shape[0], ids.shape[1]))


def _parts(
    text: Tokens[EditableLinear],
) -> tuple[Tensor, dict[int, Tensor] | None, tuple[EditableLinear, Tensor] | None]:
    """Ids, start and shift of a run over that text, from its first token on."""
    start = None if text.entering is None else {text.first: text.entering}
    return text.ids, start, text.shift


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise a ComputationError that names `what` if the tensor holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise ComputationError(
            f"{what} is not finite.", "Compute in float32 (--dtype float32), or lower the learning rate or the clamp."
        )
