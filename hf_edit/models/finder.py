"""Finds blocks and MLP output maps by structure, for architectures that the table does not list."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.experts import find_experts
from hf_edit.models.families import Family, families
from hf_edit.models.forward import run
from hf_edit.models.hooks import hook
from hf_edit.models.reach import Reach
from hf_edit.models.shapes import base_of, linear_shape, linears_of


DEPTHS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers", "num_blocks")
"""Fields of configurations that say how many decoder blocks there are; of encoder-decoder ones the first are right."""


def find_family(model: PreTrainedModel, experts: bool = False) -> Family:
    """The table's entry for the model, or one read off its structure.

    Args:
        experts: the output maps of fused experts come first, whatever else there is.

    Raises:
        UnsupportedModelError: no stack of decoder blocks, or no linear in one of them that an edit can change, or no
            fused experts where they are asked for.
    """
    known = families().get(model.config.model_type)
    if known is not None and _has(model, known):
        return _with_experts(model, known) if experts else known
    blocks = _find_blocks(model)
    paths, fused = _find_writers(model, blocks)
    found = Family("structural", blocks, paths, fused)
    return _with_experts(model, found) if experts else found


def named_experts(model: PreTrainedModel, blocks: str) -> dict[str, str]:
    """Paths inside a block of the output maps of fused experts that an adapter reaches -> path of their mixture."""
    width = model.config.get_text_config(decoder=True).hidden_size
    numbered = dict(enumerate(_blocks(model, blocks)))
    reach, found = Reach(model), {}
    for path, mixture in find_experts(model, numbered, _short_text(model), width).items():
        layer = next(layer for layer, block in numbered.items() if has_parameter(block, path))
        if reach.reaches_experts(f"{blocks}.{layer}.{path}"):
            found[path] = mixture
    return found


def has_parameter(block: nn.Module, path: str) -> bool:
    """Whether there is a parameter of that path."""
    holder, _, name = path.rpartition(".")
    return has_module(block, holder) and name in base_of(block.get_submodule(holder))._parameters


def _with_experts(model: PreTrainedModel, family: Family) -> Family:
    """The family with its fused experts first."""
    fused = named_experts(model, family.blocks)
    if not fused:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no experts fused into one parameter whose output map an edit can change.",
            "Leave experts = False: another map is edited then.",
        )
    others = tuple(path for path in family.mlp_out if path not in fused)
    return replace(family, mlp_out=(*reversed(fused), *others), experts=fused)


def edited_path(model: PreTrainedModel, family: Family, layer: int) -> str:
    """Path inside that block of the linear map that is edited there."""
    path = _first(_blocks(model, family.blocks)[layer], family.mlp_out)
    if path is None:
        raise UnsupportedModelError(
            f"Block {layer} of {type(model).__name__} has none of {', '.join(family.mlp_out)}.",
            f"Add the map to change there to hf_edit/models/families.toml under [{model.config.model_type}].",
        )
    return path


def _has(model: PreTrainedModel, family: Family) -> bool:
    return has_module(model, family.blocks) and all(
        _first(block, family.mlp_out) for block in _blocks(model, family.blocks)
    )


def _blocks(model: PreTrainedModel, path: str) -> list[nn.Module]:
    return list(model.get_submodule(path))  # type: ignore[arg-type]


def _first(block: nn.Module, paths: Iterable[str]) -> str | None:
    """The first of the paths that the block has, as a module or a parameter."""
    return next((path for path in paths if has_module(block, path) or has_parameter(block, path)), None)


def has_module(parent: nn.Module, path: str) -> bool:
    """Whether there is a module of that path."""
    try:
        parent.get_submodule(path)
    except AttributeError:
        return False
    return True


def _find_blocks(model: PreTrainedModel) -> str:
    """Path of the list of as many modules as the config has layers; the largest if a text runs through several."""
    config = model.config.get_text_config(decoder=True)
    depths = [depth for name in DEPTHS if isinstance(depth := getattr(config, name, None), int)]
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    ran = _modules_run(model, [module[0] for _, module in lists if len(module)])
    for depth in depths:
        stacks = [
            (sum(p.numel() for p in m.parameters()), name) for name, m in lists if len(m) == depth > 0 and m[0] in ran
        ]
        if stacks:
            return max(stacks)[1]
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of {' or '.join(map(str, depths)) or None} decoder blocks, as its config "
        "says.",
        f"Add its paths to hf_edit/models/families.toml under [{model.config.model_type}].",
    )


def _modules_run(model: PreTrainedModel, modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Which of the modules a text runs through; a vision tower's, for one, it does not."""
    ran: set[nn.Module] = set()
    with ExitStack() as hooks, torch.no_grad():
        for module in modules:
            hooks.enter_context(hook(module.register_forward_pre_hook(lambda module, _: ran.add(module))))
        run(model, _short_text(model))
    return ran


def _short_text(model: PreTrainedModel) -> Tensor:
    """Ids (2, 8), all different, so that tokens are routed to different experts."""
    return torch.arange(16, device=model.get_input_embeddings().weight.device).reshape(2, 8)


def _find_writers(model: PreTrainedModel, blocks: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Paths inside a block of the maps that can be edited, best first, and those that are fused experts'.

    What writes to the residual stream last: in every decoder block the MLP closes the block or runs after the
    attention, so its last linear is the one that writes its result. Experts see only some of the tokens, and fused
    ones are no linears; then the last is the shared expert's, or the attention's. Where no such map can be had, it is
    the fused experts' own; where there are none (state space models), what reads all of the stream.
    """
    reach, reached = Reach(model), {}
    chosen: dict[int, str] = {}
    behind: dict[str, int] = {}  # path -> how many better ones its blocks have, at most
    ran = _linears_run(model, blocks)
    fused = named_experts(model, blocks) if any(not block.writers for block in ran.values()) else {}
    reached.update(dict.fromkeys(fused, True))
    for layer, block in ran.items():
        own = [path for path in reversed(fused) if has_parameter(_blocks(model, blocks)[layer], path)]
        for place, path in enumerate(block.by_preference(own)):
            behind[path] = max(behind.get(path, 0), place)
            if path not in reached:
                reached[path] = reach.reaches(f"{blocks}.{layer}.{path}")
            if reached[path]:
                chosen.setdefault(layer, path)
    paths = tuple(sorted(set(chosen.values()), key=lambda path: (behind[path], path)))
    lacking = next((layer for layer, block in enumerate(_blocks(model, blocks)) if not _first(block, paths)), None)
    if lacking is not None:
        refused = ran[lacking].by_preference(())
        raise UnsupportedModelError(
            f"Block {lacking} of {type(model).__name__} has no linear map that an edit can change: "
            + (f"PEFT puts no adapter around {' or '.join(refused)}." if refused else _NO_LINEAR),
            f"If it has one, add it to hf_edit/models/families.toml under [{model.config.model_type}].",
        )
    return paths, {path: mixture for path, mixture in fused.items() if path in paths}


_NO_LINEAR = (
    "no nn.Linear or Conv1D in it reads or writes the residual stream at every token, and it has no output map of "
    "experts fused into one parameter."
)


@dataclass(frozen=True)
class _Ran:
    """Paths of the linears of a block that saw every token, in the order in which they ran.

    A map narrower than the stream is no reader: a router, the gate of an expert, a bottleneck. A change of it chooses
    among few things; it cannot put anything into the stream.
    """

    writers: list[str]
    readers: list[str]

    def by_preference(self, experts: Iterable[str]) -> list[str]:
        """Best first, with these output maps of fused experts among them."""
        readers = (path for path in reversed(self.readers) if path not in self.writers)
        return [*reversed(self.writers), *experts, *readers]


def _linears_run(model: PreTrainedModel, blocks: str) -> dict[int, _Ran]:
    """Block -> its linears as a short text runs."""
    width = model.config.get_text_config(decoder=True).hidden_size
    ids = _short_text(model)
    ran: dict[int, _Ran] = {}

    def note(into: _Ran, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        d_out, d_in = linear_shape(base_of(module))
        if args and args[0].numel() == ids.numel() * d_in:
            into.writers.extend([path] * (d_out == width))
            into.readers.extend([path] * (d_in == width <= d_out))

    with ExitStack() as hooks, torch.no_grad():
        for layer, block in enumerate(_blocks(model, blocks)):
            ran[layer] = _Ran([], [])
            for path, module in linears_of(block):
                hooks.enter_context(hook(module.register_forward_pre_hook(partial(note, ran[layer], path))))
        run(model, ids)
    return ran
