"""The edit pack: a computed edit with everything that it teaches, in memory and on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_edit._version import __version__
from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError, PackError
from hf_edit.files import strict_json
from hf_edit.files.atomic import write_directory
from hf_edit.hub.client import HubCommit
from hf_edit.methods.base import EditSource
from hf_edit.packs import layout as layouts
from hf_edit.packs.contents import FILES, MANIFEST, PackContents, from_folder, is_pack_file, to_files
from hf_edit.packs.describe import describe_base
from hf_edit.packs.evaluation import Evaluation
from hf_edit.packs.locate import locate
from hf_edit.packs.manifest import Edits, Manifest, Method, sha256
from hf_edit.packs.sharing import SIGNATURES, publish
from hf_edit.packs.siblings import siblings
from hf_edit.packs.verify import check_base, check_fits
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.truncation import TruncationError, truncated
from hf_edit.sparse.config import SparseConfig


if TYPE_CHECKING:
    from hf_edit.compose.config import CombineConfig
    from hf_edit.progress import Progress


@dataclass(frozen=True, eq=False)
class EditPack(PackContents):
    """An edit that was computed: attach it, save it, combine it.

    Args:
        deltas: full module name -> its change, fp32 on the CPU.
        edits: what the pack teaches, and all that it teaches.
        manifest: method, base, digests.
        source: per edit, what the deltas were solved from; None if it was not published.
        evaluation: figures measured on these very factors; a layout that rounds them, such as bf16, leaves it out.
        base_path: the folder the base came from if it did not come from the Hub. Written to adapter_config.json, so
            that AutoModelForCausalLM finds the base there, and nowhere else.
        origin: the commit on the Hub that it was read from; None for every other pack.
        peak_memory: the most bytes beside the model that computing it took; None for one that was read. Written
            nowhere, since the same edits give the same files on every machine.
    """

    origin: HubCommit | None = None
    peak_memory: int | None = None

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
        earlier: Sequence[EditPack | EditSet] = (),
    ) -> EditPack:
        """A pack of an update computed on `model`, which is only read.

        Args:
            config, receipt: JSON values, without times.
            parents: packs that it was made from.
            earlier: what was taught before, and preserved.

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
            prompt_format=prompt_format.described(),
            base=base,
            modules=modules,
            edits=Edits(len(edits), sha256(edits.dumps().encode())),
            receipt=_as_json(receipt),
            parents=tuple(parent.manifest.lineage() for parent in parents),
            earlier=tuple(
                one.manifest.identity() if isinstance(one, EditPack) else sha256(one.dumps().encode())
                for one in earlier
            ),
        )
        pack = cls(deltas, edits, manifest, source, base_path=base_path)
        pack.check()
        return pack

    def __repr__(self) -> str:
        ids = ", ".join(self.edits.ids[:3]) + (", ..." if len(self.edits) > 3 else "")
        return f"EditPack({len(self.edits)} edit(s): {ids}; {self.manifest.method.name}; {len(self.deltas)} module(s))"

    def save_pretrained(self, path: str | os.PathLike[str], *, layout: str = "portable", values: bool = True) -> None:
        """Write the pack to a folder; the same pack gives the same bytes.

        A pack that is there is replaced as a whole, also when the process is killed at any moment. A folder that
        holds anything else (notes, `.git`) is left alone.

        Args:
            layout: `portable`, `compact`, `bf16`, `sparse` or `all-layers`; see `hf_edit.packs.layout`.
            values: write the source too, if the pack has one.

        Raises:
            PackError: the layout is unknown or not one for this pack, the pack is not sound, or the folder cannot be
                replaced or written.
        """
        write_directory(path, to_files(self, layout, values), marker=MANIFEST, known=is_pack_file)

    def revert(
        self,
        ids: str | Iterable[str],
        *,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        config: CombineConfig | None = None,
        progress: Progress | None = None,
    ) -> EditPack:
        """The pack without the edits of these ids; see `hf_edit.compose.combine.revert`."""
        from hf_edit.compose.combine import revert  # upward: taking back needs the base, which packs know nothing of

        return revert(self, ids, model=model, tokenizer=tokenizer, config=config, progress=progress)

    @classmethod
    def coerce(cls, pack: EditPack | str | os.PathLike[str]) -> EditPack:
        """A pack, or the one in a folder or at an id on the Hub.

        Raises:
            PackError, HubError: as `from_pretrained`; or it is neither.
        """
        if isinstance(pack, EditPack):
            return pack
        if not isinstance(pack, (str, os.PathLike)):
            raise PackError(f"{type(pack).__name__} is no pack.", "Give a pack, its folder, or its id on the Hub.")
        return cls.from_pretrained(pack)

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

        All files are of one commit, which `origin` names. Offline (HF_HUB_OFFLINE), or when the Hub cannot be
        reached, what was fetched last under this revision is read.

        Args:
            id_or_path: a folder if there is one, else the id of a repository on the Hub.
            revision: branch, tag or commit on the Hub; `pack.origin.commit` gives the same pack again for ever.
            subfolder: where in the folder or repository the pack is.
            token: for a private or gated repository, unless one is logged in.
            cache_dir: the Hub's cache, if not the usual one.

        Raises:
            PackError: it is not there, of a newer format, damaged, or holds what it does not declare.
            HubError: the repository or revision is not there for this token, or the Hub cannot be reached.
        """
        place = locate(
            id_or_path,
            file_names=(*FILES, SIGNATURES),
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
        )
        return cls(**vars(from_folder(place.of_pack())), origin=place.origin)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tag: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        subfolder: str | None = None,
        layout: str = "portable",
        values: bool = True,
        message: str | None = None,
        collection: str | None = None,
        base_model: str | None = None,
    ) -> HubCommit:
        """Publish the pack on the Hub, in one commit: readers see all of it or nothing.

        A pack that is there is replaced. What others wrote stays: files that belong to no pack, and in the card the
        text outside of the generated part, the metadata that hf_edit does not set, and the tags.

        Args:
            repo_id: `owner/name`, or a name of one's own; made if it is not there.
            tag: a name for this version; one that is taken is refused.
            revision: the branch; made from `main` if it is not there. None is `main`.
            private: of a new repository; True also refuses one that is there and public.
            token: with write access; None is the one that is logged in.
            subfolder: where in the repository, so that it can hold several packs.
            layout, values: as for `save_pretrained`.
            message: of the commit.
            collection: the slug `owner/title-id` of a collection, or a title, which makes one if there is none.
            base_model: the id of the base on the Hub. Needed where the pack was computed on a base from a folder;
                readers are protected from a wrong one by the digests of the weights.

        Returns:
            The commit, with its `url`.

        Raises:
            PackError: the layout is unknown, or the pack is not sound.
            HubError: the base has no id on the Hub, the repository holds something that is no pack, or the Hub
                refused or failed; a call that failed for a passing reason is made four times.
        """
        return publish(
            self,
            repo_id,
            layout=layout,
            values=values,
            base_model=base_model,
            subfolder=subfolder,
            message=message,
            tag=tag,
            branch=revision,
            private=private,
            token=token,
            collection=collection,
        )

    def verify(self, model: PreTrainedModel | PeftModel, *, weights: bool = True) -> None:
        """Check that the pack is sound and that `model` is the base that it was computed on.

        What lies beside its files and whether its rank suits its edits, `hf-edit verify` tells.

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

    def prompts(self, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
        """The prompt format that the pack was taught in.

        Raises:
            ConfigError: this tokenizer writes prompts otherwise.
        """
        taught = self.manifest.prompt_format
        prompts = PromptFormat.of(taught.name, tokenizer)
        if prompts.fingerprint() != taught.fingerprint:
            raise ConfigError(
                "The tokenizer writes prompts otherwise than the one that the pack was taught with.",
                "Use the base's own tokenizer, with its own chat template.",
            )
        return prompts

    def truncated(
        self, rank: int, *, moments: Mapping[str, Tensor] | None = None
    ) -> tuple[EditPack, dict[str, TruncationError]]:
        """The nearest pack of at most `rank` columns per module, and per module what that costs.

        Args:
            moments: full module name -> second moment (d_in, d_in) of the inputs that count. With it, what those
                inputs see of the change is kept best, else the weights themselves.

        Returns:
            A pack with this one as its parent, and the errors by module. Whether its edits are still answered as
            asked can only a model tell.

        Raises:
            PackError: the rank is below 1.
        """
        if rank < 1:
            raise PackError(f"rank = {rank} leaves nothing of a change.", "Choose a rank of at least 1.")
        smaller, errors = {}, {}
        for name, delta in self.deltas.items():
            kept, errors[name] = truncated(delta, rank, None if moments is None else moments[name])
            smaller[name] = layouts.canonical(kept)
        manifest = replace(
            self.manifest,
            method=Method("truncate", {"rank": rank, "whitened": moments is not None}),
            modules={n: replace(module, rank=smaller[n].rank) for n, module in self.manifest.modules.items()},
            receipt={name: asdict(error) for name, error in errors.items()},
            parents=(self.manifest.lineage(),),
            layout="portable",
            files={},
            zero_filled=None,
        )
        pack = EditPack(smaller, self.edits, manifest, self.source, base_path=self.base_path)
        return pack, errors

    def with_all_layers(self, model: nn.Module) -> EditPack:
        """The same pack, knowing which modules of other blocks the layout `all-layers` fills with zeros.

        Args:
            model: the pack's base. Its weights are not looked at and may be on the meta device.

        Raises:
            BaseMismatchError: the model lacks a module of the pack.
        """
        return replace(self, manifest=replace(self.manifest, zero_filled=siblings(model, self.manifest.modules)))

    def with_evaluation(self, evaluation: Evaluation) -> EditPack:
        """The same pack with figures that were measured on it, but for how long that took.

        Raises:
            PackError: they were measured on another pack, or on none.
        """
        pack = replace(self, evaluation=evaluation.timeless())
        pack.check()
        return pack

    def lora_config(self) -> LoraConfig:
        """The adapter's configuration, in the portable layout."""
        config: LoraConfig = self.peft_config("portable")
        return config

    def peft_config(self, layout: str) -> Any:
        """The adapter's configuration in a layout, as PEFT has it.

        Raises:
            PackError: the pack cannot be written in that layout.
        """
        manifest, _ = layouts.laid_out(self.manifest, self.deltas, layout)
        config = layouts.adapter_config(manifest, self.base)
        del config["peft_type"]
        return SparseConfig(**config) if layout == "sparse" else LoraConfig(**config)

    def adapter_state_dict(self, layout: str = "portable") -> dict[str, Tensor]:
        """The adapter's tensors as its file names them.

        Raises:
            PackError: the pack cannot be written in that layout.
        """
        return layouts.adapter_tensors(*layouts.laid_out(self.manifest, self.deltas, layout))


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they will be read back: tuples as lists, keys as text."""
    plain: dict[str, Any] = json.loads(strict_json.dumps(dict(values)))
    return plain
