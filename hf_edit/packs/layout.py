"""The layouts of an adapter on disk: low-rank deltas to a PEFT configuration and tensors, and back.

- `portable` (default): plain LoRA of one rank for all modules, smaller ones padded with zeros, fp32. Every reader of
  LoRA adapters takes it.
- `compact`: each module its own rank, through rank and alpha patterns, which only PEFT and transformers read.
- `bf16`: portable with bfloat16 factors: half the size, about 0.2 % relative error of the change.
- `sparse`: the changed input columns and their values, for PEFT with hf_edit (`hf_edit.sparse`); only for changes of
  few whole columns, whose portable form is then exact too, with one-hot rows as A.
- `all-layers`: portable, with zero factors for the same modules of all other blocks. Some runtimes drop the adapter of
  a kind of module unless every block has it.

Experts that are fused into one parameter are changed through PEFT's `target_parameters`.

Both the configuration and the names and shapes of the tensors follow from the manifest alone, so whatever a pack holds
beside what its manifest declares shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_edit.errors import PackError
from hf_edit.packs.manifest import FUSED_LAYOUTS, LAYOUTS, Manifest
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.support import as_columns, most_columns, on_columns, touched_columns
from hf_edit.sparse.config import COLUMNS, PEFT_TYPE, VALUES


MAX_SPARSE_BYTES = 2 << 30
"""What all columns of a sparse pack may take in memory, as the one-hot rows of portable factors."""

_PREFIX = "base_model.model."
_ANEW = "The pack is damaged or was not written by hf_edit: get it anew from where it was published."


def canonical(delta: LowRankDelta) -> LowRankDelta:
    """The delta as packs carry it: fp32 on the CPU, balanced, no more columns than the matrix has rows or columns."""
    limit = min(delta.shape)
    if delta.rank > limit:
        delta, _ = delta.to(torch.float64).compressed(limit)
    delta = delta.balanced().to(torch.float32, "cpu")
    return LowRankDelta(delta.B.detach().contiguous(), delta.A.detach().contiguous())


def laid_out(
    manifest: Manifest, deltas: Mapping[str, LowRankDelta], layout: str
) -> tuple[Manifest, Mapping[str, LowRankDelta]]:
    """Manifest and deltas, in canonical form, as a pack in this layout has them.

    Raises:
        PackError: the layout is unknown, or the pack cannot be written in it.
    """
    if layout not in LAYOUTS:
        raise PackError(f"There is no layout {layout!r}.", f"Use one of {', '.join(LAYOUTS)}.")
    if layout == "all-layers":
        if manifest.zero_filled is None:
            raise PackError(
                "Which modules of the other blocks to fill with zeros is not known from the pack alone.",
                "Use pack.with_all_layers(model), or hf-edit convert --layout all-layers.",
            )
        return replace(manifest, layout=layout), deltas
    if manifest.fused and layout not in FUSED_LAYOUTS:
        raise PackError(
            f"The layout {layout} cannot hold the change of {manifest.fused[0]}, a parameter of fused experts.",
            f"Use one of {', '.join(FUSED_LAYOUTS)}.",
        )
    manifest = replace(manifest, layout=layout, zero_filled=None)
    if layout == "sparse":
        deltas = {name: _selecting(name, delta) for name, delta in deltas.items()}
        modules = {name: replace(module, rank=deltas[name].rank) for name, module in manifest.modules.items()}
        manifest = replace(manifest, modules=modules)
    return manifest, deltas


def _selecting(name: str, delta: LowRankDelta) -> LowRankDelta:
    """The same change as values times a selection of inputs, each once and in order."""
    selecting = as_columns(delta)
    limit = most_columns(delta.shape)
    if selecting.rank > limit:
        raise PackError(
            f"The change of {name} touches {selecting.rank} of {delta.shape[1]} columns; the layout sparse holds up "
            f"to {limit}.",
            "Solve the pack on few columns first: hf_edit.sparsify(pack, ..., columns=N), or hf-edit convert --layout "
            "sparse --columns N --model BASE.",
        )
    return canonical(selecting)


def adapter_keys(module: str, fused: bool = False) -> tuple[str, str]:
    """Names of the factors A (r, d_in) and B (d_out, r) of a module in the adapter's file.

    Args:
        fused: it is a parameter of fused experts, whose factors, as `experts_factors` has them, PEFT keeps at the
            module that holds it.
    """
    if fused:
        module = module.rpartition(".")[0]
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def experts_factors(delta: LowRankDelta, experts: int) -> tuple[Tensor, Tensor]:
    """Factors A (E * r, f) and B (d_out, r * E) by which PEFT changes a parameter of E experts of f inputs.

    A holds expert by expert, B direction by direction: that is how PEFT reads them. Here all experts write in the
    same r directions, so B says everything E times.
    """
    A = delta.A.unflatten(1, (experts, -1)).transpose(0, 1).flatten(0, 1)
    return A, delta.B.repeat_interleave(experts, dim=1)


def experts_delta(A: Tensor, B: Tensor, experts: int) -> LowRankDelta | None:
    """Undo `experts_factors`; None where the experts do not all write in the same directions."""
    by_expert = B.unflatten(1, (-1, experts))
    if not torch.equal(by_expert, by_expert[:, :, :1].expand_as(by_expert)):
        return None
    return LowRankDelta(by_expert[:, :, 0].clone(), A.unflatten(0, (experts, -1)).transpose(0, 1).flatten(1))


def sparse_keys(module: str) -> tuple[str, str]:
    """Names of the columns (n,) int32 and their values (d_out, n) of a module in a sparse adapter's file."""
    return f"{_PREFIX}{module}.{COLUMNS}", f"{_PREFIX}{module}.{VALUES}"


def adapter_config(manifest: Manifest, base: str | None) -> dict[str, Any]:
    """adapter_config.json.

    Args:
        base: repository id or folder of the base.
    """
    common = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "peft_version": manifest.versions["peft"],
        "revision": manifest.base.revision,
        "target_modules": sorted({*manifest.modules, *(manifest.zero_filled or ())} - set(manifest.fused)),
        "task_type": "CAUSAL_LM",
    }
    if manifest.fused:
        common["target_parameters"] = list(manifest.fused)
    if manifest.layout == "sparse":
        columns = {name: module.rank for name, module in manifest.modules.items()}
        return {**common, "columns": columns, "peft_type": str(PEFT_TYPE)}
    rank = _uniform_rank(manifest)
    pattern = {}
    if manifest.layout == "compact":
        others = {name: m.rank for name, m in manifest.modules.items() if m.rank != rank}
        pattern = {f"^{re.escape(name)}": others[name] for name in sorted(others)}
    return {
        **common,
        "alpha_pattern": pattern,
        "bias": "none",
        "fan_in_fan_out": any(module.orientation == "conv1d" for module in manifest.modules.values()),
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern,
        "use_rslora": False,
    }


def adapter_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The tensors of adapter_model.safetensors: name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module, (d_out, d_in) in _stored(manifest).items():
        rank = _stored_rank(manifest, module)
        if manifest.layout == "sparse":
            columns, values = sparse_keys(module)
            shapes |= {columns: (rank,), values: (d_out, rank)}
        else:
            experts = _experts(manifest, module)
            a, b = adapter_keys(module, experts is not None)
            count = experts or 1
            shapes |= {a: (count * rank, d_in // count), b: (d_out, rank * count)}
    return shapes


def adapter_tensors(manifest: Manifest, deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    """The content of adapter_model.safetensors for manifest and deltas as `laid_out` gives them."""
    tensors: dict[str, Tensor] = {}
    for module, (d_out, d_in) in _stored(manifest).items():
        delta = deltas.get(module) or LowRankDelta(torch.zeros(d_out, 0), torch.zeros(0, d_in))
        if manifest.layout == "sparse":
            columns, values = sparse_keys(module)
            indices, changed = touched_columns(delta)
            tensors |= {columns: indices.int(), values: changed.contiguous()}
        else:
            delta = delta.padded(_stored_rank(manifest, module)).to(_dtype(manifest))
            experts = _experts(manifest, module)
            a, b = adapter_keys(module, experts is not None)
            A, B = (delta.A, delta.B) if experts is None else experts_factors(delta, experts)
            tensors |= {a: A.contiguous(), b: B.contiguous()}
    return tensors


def read_deltas(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, LowRankDelta]:
    """Undo `adapter_tensors`.

    Raises:
        PackError: a tensor too many, missing, of another shape or dtype, not zero where it is padding, or columns
            that are not those of a matrix of the declared shape, each once and in order.
    """
    shapes = adapter_shapes(manifest)
    for problem, names in (("lacks", set(shapes) - set(tensors)), ("has the extra", set(tensors) - set(shapes))):
        if names:
            raise PackError(f"The adapter {problem} tensor {min(names)} ({len(names)} such in all).", _ANEW)
    for name, shape in shapes.items():
        tensor, dtype = tensors[name], torch.int32 if name.endswith(f".{COLUMNS}") else _dtype(manifest)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise PackError(
                f"The tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)} instead of {dtype} of {shape}.",
                _ANEW,
            )
    for module in manifest.zero_filled or ():
        if any(tensors[key].any() for key in adapter_keys(module)):
            raise PackError(f"The factors of {module}, which the pack does not change, are not zero.", _ANEW)
    if manifest.layout == "sparse":
        _check_memory(manifest)
    read = _read_sparse if manifest.layout == "sparse" else _read_factors
    return {module: read(module, manifest, tensors) for module in manifest.modules}


def _read_factors(module: str, manifest: Manifest, tensors: Mapping[str, Tensor]) -> LowRankDelta:
    experts = _experts(manifest, module)
    a, b = adapter_keys(module, experts is not None)
    rank, A, B = manifest.modules[module].rank, tensors[a].float(), tensors[b].float()
    delta = LowRankDelta(B, A) if experts is None else experts_delta(A, B, experts)
    if delta is None:
        raise PackError(f"The experts of {module} do not all change in the same directions.", _ANEW)
    if delta.B[:, rank:].any() or delta.A[rank:].any():
        raise PackError(f"The factors of {module} are not zero beyond its declared rank {rank}.", _ANEW)
    return delta.trimmed(rank)


def _read_sparse(module: str, manifest: Manifest, tensors: Mapping[str, Tensor]) -> LowRankDelta:
    d_in = manifest.shape(module)[1]
    columns, values = (tensors[key] for key in sparse_keys(module))
    if columns[0] < 0 or columns[-1] >= d_in or not (columns[1:] > columns[:-1]).all():
        raise PackError(f"The columns of {module} are not among 0..{d_in - 1}, each once and in order.", _ANEW)
    if not torch.isfinite(values).all():
        raise PackError(f"The values of {module} hold NaN or infinity.", _ANEW)
    return canonical(on_columns(values, columns, d_in))


def _check_memory(manifest: Manifest) -> None:
    """Columns are few bytes in a file and rows as long as the matrix in memory: nothing but this bounds them."""
    size = sum(4 * module.rank * manifest.shape(name)[1] for name, module in manifest.modules.items())
    if size > MAX_SPARSE_BYTES:
        raise PackError(
            f"The pack's columns would take {size >> 20} MiB in memory, more than {MAX_SPARSE_BYTES >> 20}.",
            "Get it in the layout portable; if you do not know its author, leave it.",
        )


def _stored(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """The modules that the adapter's file holds, by name, with their (d_out, d_in)."""
    shapes = {module: manifest.shape(module) for module in manifest.modules}
    for module, (d_out, d_in) in (manifest.zero_filled or {}).items():
        shapes[module] = d_out, d_in
    return {module: shapes[module] for module in sorted(shapes)}


def _experts(manifest: Manifest, module: str) -> int | None:
    """How many experts share the parameter; None for a module, or one that is filled with zeros."""
    return manifest.weight(module).shape[0] if module in manifest.fused else None


def _uniform_rank(manifest: Manifest) -> int:
    return max(module.rank for module in manifest.modules.values())


def _stored_rank(manifest: Manifest, module: str) -> int:
    own_rank = manifest.layout in ("compact", "sparse")
    return manifest.modules[module].rank if own_rank else _uniform_rank(manifest)


def _dtype(manifest: Manifest) -> torch.dtype:
    return torch.bfloat16 if manifest.layout == "bf16" else torch.float32
