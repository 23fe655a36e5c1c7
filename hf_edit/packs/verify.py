"""Does a pack hold what it declares, and do pack and model belong together? Nothing here changes either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import nn

from hf_edit.edits import EditSet, question_of
from hf_edit.errors import BaseMismatchError, PackError, UnsupportedModelError
from hf_edit.methods.base import EditSource
from hf_edit.models.fingerprint import base_modules, is_quantised, matches
from hf_edit.models.orientation import is_fused, matrix_shape, stored_weights, weight_name
from hf_edit.models.shapes import linear_shape
from hf_edit.packs.manifest import Manifest, sha256
from hf_edit.packs.values import check_source
from hf_edit.solvers.low_rank import LowRankDelta


RANK_PER_EDIT = 32
"""What training takes for an edit; solves take one for each chunk of an answer, of 20 tokens by default."""
CHARACTERS_PER_RANK = 20
"""So that a long answer may take one for each handful of tokens, as a solve for every chunk or sentence does."""
_REBUILD = "Compute the pack anew, or get it anew from where it was published."


def check_contents(
    manifest: Manifest, deltas: Mapping[str, LowRankDelta], edits: EditSet, source: EditSource | None
) -> None:
    """Check deltas, edits and source against the manifest.

    Raises:
        PackError: something undeclared, missing, of another shape or not finite.
    """
    different = sorted(set(deltas) ^ set(manifest.modules))
    if different:
        raise PackError(f"Deltas and manifest disagree on the modules {', '.join(different[:3])}.", _REBUILD)
    for name, delta in deltas.items():
        declared = (*manifest.shape(name), manifest.modules[name].rank)
        if (*delta.shape, delta.rank) != declared:
            raise PackError(
                f"The delta of {name} has shape and rank {(*delta.shape, delta.rank)}, declared {declared}.", _REBUILD
            )
        if not (torch.isfinite(delta.B).all() and torch.isfinite(delta.A).all()):
            raise PackError(f"The delta of {name} holds NaN or infinity.", _REBUILD)
    if len(edits) != manifest.edits.count or sha256(edits.dumps().encode()) != manifest.edits.sha256:
        raise PackError(
            f"The {len(edits)} edits listed are not the {manifest.edits.count} that the manifest declares.", _REBUILD
        )
    if source is not None:
        check_source(source, {name: delta.shape for name, delta in deltas.items()}, len(edits))


def rank_budget(edits: EditSet) -> int:
    """The largest rank per module that these edits account for; more of it could teach what is not listed."""
    lengths = (len(question_of(edit.prompt)) + len(edit.target) for edit in edits)
    return sum(max(RANK_PER_EDIT, length // CHARACTERS_PER_RANK) for length in lengths)


def over_budget(manifest: Manifest, edits: EditSet) -> str | None:
    """A sentence that says so where a module's rank is more than the edits account for."""
    name, module = max(manifest.modules.items(), key=lambda entry: entry[1].rank)
    budget = rank_budget(edits)
    if module.rank <= budget:
        return None
    return (
        f"the change of {name} has rank {module.rank}, and {len(edits)} listed edit(s) account for {budget} at most: "
        "it has room for more than is listed"
    )


def check_fits(manifest: Manifest, model: nn.Module) -> None:
    """Check that the model has every module of the pack, as a map of the right shape.

    Raises:
        BaseMismatchError: it has not.
    """
    stored, modules = stored_weights(model), dict(base_modules(model))
    for name, declared in manifest.modules.items():
        if name not in stored:
            raise BaseMismatchError(_absent(name, model), _load_base(manifest))
        weight, orientation = stored[name]
        # a linear map tells its sizes itself: quantised weights may be packed into another shape
        fused = is_fused(orientation)
        shape = matrix_shape(weight.shape, orientation) if fused else linear_shape(modules[name])
        expected = manifest.shape(name)
        if (shape, orientation) != (expected, declared.orientation) or (
            fused and tuple(weight.shape) != manifest.weight(name).shape
        ):
            raise BaseMismatchError(
                f"{name} is a {orientation} of shape {shape} (outputs, inputs); the pack changes a "
                f"{declared.orientation} of shape {expected}.",
                _load_base(manifest),
            )
        if weight.is_meta:
            raise BaseMismatchError(f"{name} is offloaded: its weight is not in memory.", "Load the model fully.")


def check_base(manifest: Manifest, model: nn.Module) -> None:
    """Check by digest that every weight which the pack changes is the one that it was computed on.

    Raises:
        BaseMismatchError: one is not.
        UnsupportedModelError: the model is quantised, so its weights cannot be compared.
    """
    stored = stored_weights(model)
    for module in manifest.modules:
        recorded, (weight, orientation) = manifest.weight(module), stored[module]
        name = weight_name(module, orientation)
        if is_quantised(weight):
            raise UnsupportedModelError(
                f"{name} is quantised, so it cannot be compared with the base that the pack was computed on.",
                "If this is that base, quantised, attach with verify=False; else load the base unquantised.",
            )
        if not matches(asdict(recorded), weight):
            raise BaseMismatchError(
                f"{name} (now {weight.dtype}) has the right shape but other values than the base that the pack "
                f"was computed on ({recorded.dtype}).",
                _load_base(manifest),
            )


def _absent(name: str, model: nn.Module) -> str:
    module = dict(base_modules(model)).get(name)
    if module is None:
        return f"The model has no module {name}."
    return f"{name} is a {type(module).__name__}, not a linear map."


def _load_base(manifest: Manifest) -> str:
    base = manifest.base
    named = f"{base.id}" if base.id else f"the {base.model_type} model"
    at = f" at revision {base.revision}" if base.revision else ""
    return f"Load {named}{at} in {base.dtype}, without adapters merged into it: the pack was computed on that."
