"""Which commit of the Hub a model's weights are of.

transformers does not say (it did until 5.0, in the configuration), so the Hub's cache is asked: the weights came from
one of the commits that lie there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open
from torch import Tensor


_WEIGHTS = "model.safetensors"


def cached_commit(repo_id: str, weights: Mapping[str, Tensor]) -> str | None:
    """The commit in the Hub's cache that has exactly these weights; of several that of `main`, else the newest.

    Args:
        weights: name -> parameter, in any dtype that the checkpoint's was cast to.

    Returns:
        None if there is none, as for models that were loaded from another cache or not from safetensors files.
    """
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    main = folder / "refs" / "main"
    try:
        latest = main.read_text().strip() if main.is_file() else None
        snapshots = sorted(
            (folder / "snapshots").iterdir(),
            key=lambda path: (path.name == latest, path.stat().st_mtime),
            reverse=True,
        )
    except OSError:
        return None
    return next((path.name for path in snapshots if _holds(path, weights)), None)


def _holds(snapshot: Path, weights: Mapping[str, Tensor]) -> bool:
    try:
        index = snapshot / f"{_WEIGHTS}.index.json"
        files = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
        return all(_same(snapshot, files, name, weight) for name, weight in weights.items())
    except (OSError, SafetensorError, KeyError, ValueError):  # not complete in the cache, or named otherwise
        return False


def _same(snapshot: Path, files: Mapping[str, str], name: str, weight: Tensor) -> bool:
    """Checkpoints of base models, such as GPT-2's, leave out the first part of the name."""
    short = name.partition(".")[2]
    with safe_open(snapshot / files.get(name, files.get(short, _WEIGHTS)), framework="pt") as file:
        stored = file.get_tensor(name if name in file.keys() else short)  # noqa: SIM118 (not a dict)
    return torch.equal(stored.to(weight.dtype), weight.detach().cpu())
