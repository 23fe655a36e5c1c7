"""Statistics that somebody else computed: checked before they enter the cache.

What they say of the base cannot be checked without collecting them again; that they are second moments, and of maps of
these shapes, can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_edit.errors import StatisticsError
from hf_edit.hub.client import is_repo_id
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.statistics.compression import DIAGONAL, FACTOR, parts_of
from hf_edit.statistics.moments import PARTS


MAX_HEADER_BYTES = 1 << 16
MAX_CORPUS_BYTES = 64 << 20
_TOLERANCE = 1e-3
"""Relative: what rounding of fp32 sums may leave of symmetry and of |C_ij|^2 <= C_ii C_jj."""


def size_limit(linear: EditableLinear | None) -> int:
    """The most bytes that a file of this linear, or of the corpus (None), can have."""
    return MAX_CORPUS_BYTES if linear is None else MAX_HEADER_BYTES + 4 * len(PARTS) * linear.d_in**2


def check_moments(path: Path, linear: EditableLinear) -> None:
    """Check that a file holds second moments of the inputs of this linear.

    Raises:
        StatisticsError: it is no sound file, or holds another part, shape or dtype, or no second moments.
    """
    with _read(path) as (file, metadata):
        tokens = json.loads(metadata["tokens"])
        if not isinstance(tokens, dict) or not all(type(count) is int and count > 0 for count in tokens.values()):
            _refuse(path, "its token counts are no positive numbers")
        errors = json.loads(metadata.get("errors", "{}"))
        if not isinstance(errors, dict) or not all(type(error) is float for error in errors.values()):
            _refuse(path, "its errors of compression are no numbers")
        parts, whole = set(parts_of(file.keys())), not errors
        expected = parts if whole else {f"{part}.{kind}" for part in parts for kind in (FACTOR, DIAGONAL)}
        if not parts or parts != set(tokens) or not parts <= set(PARTS) or set(file.keys()) != expected:
            _refuse(path, f"it holds the parts {sorted(parts)} and counts tokens of {sorted(tokens)}")
        for part in sorted(parts):
            problem = (_problem if whole else _compressed_problem)(file, part, linear.d_in)
            if problem:
                _refuse(path, f"part {part!r} {problem}")


def check_corpus(path: Path, model: EditableModel) -> None:
    """Check that a file holds rows of text and conversations in this model's tokens.

    Raises:
        StatisticsError: it does not.
    """
    with _read(path) as (file, _):
        names = set(file.keys())
        if names != {"text", "ids", "lengths", "answer_starts"}:
            _refuse(path, f"it holds {sorted(names)}")
        tensors = {name: file.get_tensor(name) for name in names}
        problem = _corpus_problem(tensors, model)
        if problem:
            _refuse(path, problem)


def _problem(file: Any, part: str, d_in: int) -> str | None:
    """What keeps a tensor from being a mean of `k k^T`; it is not read before its shape is known to be right."""
    declared = file.get_slice(part)
    if list(declared.get_shape()) != [d_in, d_in] or declared.get_dtype() != "F32":
        return f"is {declared.get_dtype()} of shape {declared.get_shape()}, not F32 of {[d_in, d_in]}"
    moment = file.get_tensor(part)
    if not torch.isfinite(moment).all():
        return "holds NaN or infinity"
    diagonal = moment.diagonal()
    if (diagonal < 0).any() or not diagonal.any():
        return "has a diagonal that is not of squares"
    if ((moment - moment.T).abs() > _TOLERANCE * diagonal.max()).any():
        return "is not symmetric"
    spread = diagonal.sqrt()
    if (moment.abs() > torch.outer(spread, spread) + _TOLERANCE * diagonal.max()).any():
        return "has covariances larger than its variances allow"
    return None


def _compressed_problem(file: Any, part: str, d_in: int) -> str | None:
    """The same of a compressed one, which cannot but be symmetric."""
    factor, diagonal = (file.get_slice(f"{part}.{kind}") for kind in (FACTOR, DIAGONAL))
    size = factor.get_shape()
    if len(size) != 2 or size[0] != d_in or size[1] > d_in or factor.get_dtype() != "BF16":
        return f"has a factor that is {factor.get_dtype()} of shape {size}, not BF16 of at most {[d_in, d_in]}"
    if list(diagonal.get_shape()) != [d_in] or diagonal.get_dtype() != "F32":
        return f"has a diagonal that is {diagonal.get_dtype()} of shape {diagonal.get_shape()}, not F32 of {[d_in]}"
    L, t = (file.get_tensor(f"{part}.{kind}") for kind in (FACTOR, DIAGONAL))
    if not (torch.isfinite(L).all() and torch.isfinite(t).all()):
        return "holds NaN or infinity"
    if (t < 0).any() or not (t.any() or L.any()):
        return "has a diagonal that is not of squares"
    return None


def _corpus_problem(tensors: Mapping[str, Tensor], model: EditableModel) -> str | None:
    text, ids, lengths, starts = (tensors[name] for name in ("text", "ids", "lengths", "answer_starts"))
    if any(tensor.dtype != torch.int64 for tensor in tensors.values()):
        return "its tensors are not int64"
    if text.ndim != 2 or not text.numel() or any(tensor.ndim != 1 for tensor in (ids, lengths, starts)):
        return "its tensors have other numbers of dimensions"
    if lengths.shape != starts.shape or (lengths < 1).any() or int(lengths.sum()) != len(ids):
        return "its lengths do not add up"
    if (starts < 0).any() or (starts > lengths).any():
        return "its answers begin outside of the conversations"
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    tokens = torch.cat([text.flatten(), ids])
    if (tokens < 0).any() or (tokens >= vocabulary).any():
        return f"it has tokens outside of the model's {vocabulary}"
    longest = max([text.shape[1], *lengths.tolist()])
    if model.max_length is not None and longest > model.max_length:
        return f"it has rows of {longest} tokens, more than the model's context of {model.max_length}"
    return None


@contextmanager
def _read(path: Path) -> Any:
    """An open file and its metadata; whatever cannot be read in it is told of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not is_public(metadata["source"]):
                _refuse(path, "it was taken over a private text")
            yield file, metadata
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError, RuntimeError) as error:
        _refuse(path, f"it cannot be read ({error})")


def is_public(source: str) -> bool:
    """Whether others can have the text that statistics are over: the model wrote it, or it is a data set's."""
    kind, _, rest = source.partition(":")
    return source == "self" or (kind == "dataset" and is_repo_id(rest.partition(":")[0]))


def _refuse(path: Path, problem: str) -> NoReturn:
    raise StatisticsError(
        f"{path.parent.name}/{path.name} is refused: {problem}.",
        "Nothing was added to the cache. Tell who published it, or collect: hf-edit stats collect.",
    )
