"""The tuner of column-sparse adapters, which PEFT and transformers put into models by its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hf_edit.errors import ComposeError
from hf_edit.sparse.config import PREFIX, SparseConfig
from hf_edit.sparse.layer import SparseLinear


class SparseModel(BaseTuner):
    """Wraps the modules that a `SparseConfig` names in `SparseLinear`."""

    prefix = PREFIX
    tuner_layer_cls = SparseLinear
    target_module_mapping: dict[str, list[str]] = {}

    @staticmethod
    def _check_target_module_exists(peft_config: SparseConfig, key: str) -> bool:
        return key in peft_config.columns  # full names only: PEFT would take suffixes too

    def _create_and_replace(
        self,
        peft_config: SparseConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del parameter_name
        count = peft_config.columns[current_key]
        if isinstance(target, SparseLinear):
            target.update_layer(adapter_name, count, inference_mode=peft_config.inference_mode)
            return
        layer = SparseLinear(target, adapter_name, count)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # added beside others, it is not what is trained
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """What PEFT runs a forward in; it would not say that `adapter_names` is of no effect."""
        if kwargs.get("adapter_names") is not None:
            raise ComposeError(
                "Sparse adapters are active for a whole batch: adapter_names cannot choose them row by row.",
                "Use set_adapter, or packs in the layout portable.",
            )
        yield
