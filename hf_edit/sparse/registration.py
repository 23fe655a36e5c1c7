"""Makes PEFT know column-sparse adapters as soon as both packages are imported, in either order.

`import hf_edit` must not import PEFT, which takes seconds. So where PEFT is not there yet, a finder waits for its
import and registers the tuner right after PEFT's own code has run. PEFT has no entry points for methods from outside,
but its loaders go through three public dictionaries, keyed by the `peft_type` of a configuration.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from hf_edit.errors import HfEditWarning


def register_with_peft() -> None:
    """Register the tuner now if PEFT is imported, else when it will be."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(MetaPathFinder):
    """Finds PEFT as the other finders do, and has it registered with once it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        # the loader itself stays what it is: resources and inspection go through it
        spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        from peft import mapping

        from hf_edit.sparse.config import PEFT_TYPE, PREFIX, SparseConfig
        from hf_edit.sparse.model import SparseModel

        mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = SparseConfig
        mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = SparseModel
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = PREFIX
    except Exception as error:  # whatever a PEFT of another version lacks, `import peft` must go on
        warnings.warn(
            f"Sparse packs cannot be opened with the installed PEFT ({error!r}); convert them to the portable layout.",
            HfEditWarning,
            stacklevel=2,
        )
