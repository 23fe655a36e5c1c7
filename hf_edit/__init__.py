"""Knowledge edits of causal language models, packaged as plain PEFT adapters.

The names below are loaded on first use, so that `import hf_edit` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_edit._version import __version__
from hf_edit.sparse.registration import register_with_peft


if TYPE_CHECKING:
    from hf_edit.api import edit, polish, train
    from hf_edit.compose.attach import attach, detach
    from hf_edit.compose.combine import revert, stack
    from hf_edit.compose.config import CombineConfig
    from hf_edit.compose.diff import diff
    from hf_edit.compose.merge import merge, unmerge
    from hf_edit.compose.merge_report import merge_report
    from hf_edit.compose.receipt import MergeReceipt
    from hf_edit.compose.sparsify import SparsifyConfig, sparsify
    from hf_edit.edits import Edit, EditSet
    from hf_edit.errors import HfEditError
    from hf_edit.evaluation.audit.run import audit
    from hf_edit.evaluation.config import EvaluateConfig, Material
    from hf_edit.evaluation.conflicts import conflicts
    from hf_edit.evaluation.run import evaluate
    from hf_edit.methods.anyedit.config import AnyEditConfig, UnKEConfig
    from hf_edit.methods.finetune.config import FinetuneConfig
    from hf_edit.methods.memit.config import AlphaEditConfig, MemitConfig
    from hf_edit.methods.msbp.config import (
        EMSEditConfig,
        MalmenConfig,
        MendConfig,
        RLEditConfig,
        UltraEditConfig,
    )
    from hf_edit.methods.msbp.hypernet import Hypernet
    from hf_edit.methods.msbp.training.config import HypernetConfig
    from hf_edit.methods.polish.config import PolishConfig
    from hf_edit.packs.evaluation import Evaluation
    from hf_edit.packs.pack import EditPack

_HOMES = {
    "audit": "hf_edit.evaluation.audit.run",
    "conflicts": "hf_edit.evaluation.conflicts",
    "diff": "hf_edit.compose.diff",
    "evaluate": "hf_edit.evaluation.run",
    "EvaluateConfig": "hf_edit.evaluation.config",
    "Evaluation": "hf_edit.packs.evaluation",
    "Material": "hf_edit.evaluation.config",
    "merge": "hf_edit.compose.merge",
    "merge_report": "hf_edit.compose.merge_report",
    "unmerge": "hf_edit.compose.merge",
    "MergeReceipt": "hf_edit.compose.receipt",
    "polish": "hf_edit.api",
    "revert": "hf_edit.compose.combine",
    "stack": "hf_edit.compose.combine",
    "CombineConfig": "hf_edit.compose.config",
    "PolishConfig": "hf_edit.methods.polish.config",
    "FinetuneConfig": "hf_edit.methods.finetune.config",
    "AlphaEditConfig": "hf_edit.methods.memit.config",
    "MemitConfig": "hf_edit.methods.memit.config",
    "EMSEditConfig": "hf_edit.methods.msbp.config",
    "MalmenConfig": "hf_edit.methods.msbp.config",
    "MendConfig": "hf_edit.methods.msbp.config",
    "RLEditConfig": "hf_edit.methods.msbp.config",
    "UltraEditConfig": "hf_edit.methods.msbp.config",
    "Hypernet": "hf_edit.methods.msbp.hypernet",
    "HypernetConfig": "hf_edit.methods.msbp.training.config",
    "UnKEConfig": "hf_edit.methods.anyedit.config",
    "AnyEditConfig": "hf_edit.methods.anyedit.config",
    "Edit": "hf_edit.edits",
    "EditPack": "hf_edit.packs.pack",
    "EditSet": "hf_edit.edits",
    "HfEditError": "hf_edit.errors",
    "attach": "hf_edit.compose.attach",
    "detach": "hf_edit.compose.attach",
    "edit": "hf_edit.api",
    "train": "hf_edit.api",
    "sparsify": "hf_edit.compose.sparsify",
    "SparsifyConfig": "hf_edit.compose.sparsify",
}

__all__ = [
    "AlphaEditConfig",
    "AnyEditConfig",
    "CombineConfig",
    "EMSEditConfig",
    "Edit",
    "EditPack",
    "EditSet",
    "EvaluateConfig",
    "Evaluation",
    "FinetuneConfig",
    "HfEditError",
    "Hypernet",
    "HypernetConfig",
    "MalmenConfig",
    "Material",
    "MemitConfig",
    "MendConfig",
    "MergeReceipt",
    "PolishConfig",
    "RLEditConfig",
    "SparsifyConfig",
    "UltraEditConfig",
    "UnKEConfig",
    "__version__",
    "attach",
    "audit",
    "conflicts",
    "detach",
    "diff",
    "edit",
    "evaluate",
    "merge",
    "merge_report",
    "polish",
    "revert",
    "sparsify",
    "stack",
    "train",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_edit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_peft()  # costs nothing until PEFT is imported
