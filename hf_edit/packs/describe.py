"""What a manifest records of a live base model."""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftModel
from transformers import PreTrainedModel

from hf_edit.errors import UnsupportedModelError
from hf_edit.hub.client import repo_of
from hf_edit.models.commit import cached_commit
from hf_edit.models.fingerprint import dtype_name, model_fingerprint, tensor_digests
from hf_edit.models.orientation import stored_weights, weight_name
from hf_edit.packs.manifest import Base, BaseTensor, Module


def describe_base(
    model: PreTrainedModel | PeftModel, ranks: Mapping[str, int]
) -> tuple[Base, str | None, dict[str, Module]]:
    """The records of a base and of the modules changed in it, and the folder it came from if not from the Hub.

    Args:
        ranks: full module name -> rank of its change.

    Raises:
        UnsupportedModelError: the model has no such module, or its weights are quantised or not in memory.
    """
    stored = stored_weights(model)
    missing = sorted(set(ranks) - set(stored))
    if missing:
        raise UnsupportedModelError(f"The model has no map {missing[0]}.", "Use full names, without wrappers.")
    weights = {
        weight_name(name, orientation): weight for name, (weight, orientation) in stored.items() if name in ranks
    }
    config = model.config
    origin = config._name_or_path or None
    id = repo_of(origin)
    base = Base(
        id=id,
        revision=getattr(config, "_commit_hash", None) or (cached_commit(id, weights) if id else None),
        model_type=config.model_type,
        dtype=dtype_name(model.dtype),
        fingerprint=model_fingerprint(model),
        tensors={
            name: BaseTensor(tuple(weight.shape), dtype_name(weight.dtype), tensor_digests(weight))
            for name, weight in weights.items()
        },
    )
    records = {name: Module(rank, stored[name][1]) for name, rank in ranks.items()}
    return base, None if id else origin, records
