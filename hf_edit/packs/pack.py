"""The edit pack: a computed edit with everything that it teaches, in memory and on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_edit._version import __version__
from hf_edit.edits import EditSet
from hf_edit.errors import PackError
from hf_edit.methods.base import EditSource
from hf_edit.packs import layout as layouts
from hf_edit.packs import strict_json
from hf_edit.packs.atomic import write_directory
from hf_edit.packs.contents import FILES, MANIFEST, PackContents, from_folder, is_pack_file, to_files
from hf_edit.packs.describe import describe_base
from hf_edit.packs.locate import locate
from hf_edit.packs.manifest import Edits, Manifest, Method, Prompting, sha256
from hf_edit.packs.verify import check_base, check_fits
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta


@dataclass(frozen=True, eq=False)
class EditPack(PackContents):
    """An edit that was computed: attach it, save it, combine it.

    Args:
        deltas: full module name -> its change, fp32 on the CPU.
        edits: what the pack teaches, and all that it teaches.
        manifest: method, base, digests.
        source: per edit, what the deltas were solved from; None if it was not published.
        evaluation: measured figures, as JSON.
        base_path: the folder the base came from if it did not come from the Hub. Written to adapter_config.json, so
            that AutoModelForCausalLM finds the base there, and nowhere else.
    """

    @classmethod
    def build(
        cls,
        model: PreTrainedModel | PeftModel,
        *,
        deltas: Mapping[str, LowRankDelta],
        edits: EditSet,
        source: EditSource | None,
        method: str,
        config: Mapping[str, Any],
        seed: int | None,
        prompt_format: PromptFormat,
        receipt: Mapping[str, Any],
        parents: Sequence[EditPack] = (),
    ) -> EditPack:
        """A pack of an update computed on `model`, which is only read.

        Args:
            config, receipt: JSON values, without times.
            parents: packs that it was made from.

        Raises:
            PackError: there are no deltas, or they are not finite.
            UnsupportedModelError: the model has no such modules, or its weights are quantised or not in memory.
        """
        deltas = {name: layouts.canonical(deltas[name]) for name in sorted(deltas)}
        if not deltas or any(delta.rank == 0 for delta in deltas.values()):
            raise PackError("An update without a change, or with one of rank 0, makes no pack.", "Leave it out.")
        base, base_path, modules = describe_base(model, {name: delta.rank for name, delta in deltas.items()})
        manifest = Manifest(
            hf_edit_version=__version__,
            method=Method(method, _as_json(config)),
            versions={library.__name__: library.__version__ for library in (peft, safetensors, torch, transformers)},
            seed=seed,
            prompt_format=Prompting(prompt_format.name, prompt_format.fingerprint()),
            base=base,
            modules=modules,
            edits=Edits(len(edits), sha256(edits.dumps().encode())),
            receipt=_as_json(receipt),
            parents=tuple(parent.manifest.lineage() for parent in parents),
        )
        pack = cls(deltas, edits, manifest, source, base_path=base_path)
        pack.check()
        return pack

    def save_pretrained(self, path: str | os.PathLike[str], *, layout: str = "portable", values: bool = True) -> None:
        """Write the pack to a folder; the same pack gives the same bytes.

        A pack that is there is replaced as a whole, also when the process is killed at any moment. A folder that
        holds anything else (notes, `.git`) is left alone.

        Args:
            layout: `portable`, `compact` or `bf16`; see `hf_edit.packs.layout`.
            values: write the source too, if the pack has one.

        Raises:
            PackError: the layout is unknown, the pack is not sound, or the folder cannot be replaced or written.
        """
        write_directory(path, to_files(self, layout, values), marker=MANIFEST, known=is_pack_file)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> EditPack:
        """Read a pack from a folder or from the Hub, all of it or nothing; no code in it is ever run.

        Raises:
            PackError: it is not there, of a newer format, damaged, or holds what it does not declare.
        """
        folder = locate(
            id_or_path, file_names=FILES, revision=revision, subfolder=subfolder, token=token, cache_dir=cache_dir
        )
        return cls(**vars(from_folder(folder)))

    def verify(self, model: PreTrainedModel | PeftModel, *, weights: bool = True) -> None:
        """Check that the pack is sound and that `model` is the base that it was computed on.

        Args:
            weights: compare the weights that the pack changes, by digest. Without it only names and shapes are
                compared: for quantised models, or a base known to be right.

        Raises:
            PackError: the pack holds something that its manifest does not declare, or a value that is not finite.
            BaseMismatchError: the model lacks a module, or a weight has another shape or other values.
            UnsupportedModelError: the model is quantised, so its weights cannot be compared.
        """
        self.check()
        check_fits(self.manifest, model)
        if weights:
            check_base(self.manifest, model)

    def lora_config(self) -> LoraConfig:
        """The adapter's configuration, in the portable layout."""
        config = layouts.adapter_config(replace(self.manifest, layout="portable"), self.base)
        return LoraConfig(**{key: value for key, value in config.items() if key != "peft_type"})

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """The adapter's tensors as its file names them, in the portable layout."""
        return layouts.adapter_tensors(replace(self.manifest, layout="portable"), self.deltas)


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they will be read back: tuples as lists, keys as text."""
    plain: dict[str, Any] = json.loads(strict_json.dumps(dict(values)))
    return plain
