"""A trained hypernetwork: the networks and normalisers of its steps, and what they were trained for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from hf_edit.errors import BaseMismatchError, ConfigError, PackError
from hf_edit.hub.client import HubCommit, repo_of
from hf_edit.hypernets import folder, sharing
from hf_edit.hypernets.manifest import MANIFEST, Base, Linear, Manifest
from hf_edit.methods.msbp.config import Preserving
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.methods.msbp.proposal import Normaliser, Shape
from hf_edit.methods.msbp.stream import Transformer
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.models.fingerprint import dtype_name, running_fingerprint
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.running import RunningMoments


@dataclass(frozen=True, eq=False)
class Hypernet:
    """What `hf_edit.train` gives and `hypernet=` of a method's settings names.

    Args:
        manifest: what it was trained for, on and how.
        tensors: of networks and normalisers, fp32 and fp64, on the CPU.
        origin: the commit on the Hub that it came from.
    """

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    origin: HubCommit | None = None

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Hypernet:
        """Read and check a hypernetwork, from a folder or from the Hub.

        Raises:
            PackError: there is none, or it is damaged or hostile.
            HubError: it could not be fetched.
        """
        where, origin = folder.located(id_or_path, revision=revision, token=token)
        return cls(*folder.read(where), origin)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write it to a folder, in place of one that is there; the same hypernetwork gives the same bytes.

        Raises:
            PackError: the folder holds something else, or cannot be written.
        """
        folder.save(path, folder.to_files(self.manifest, self.tensors))

    def push_to_hub(self, repo_id: str, **options: Any) -> HubCommit:
        """Publish it in one commit.

        Args:
            options: message, tag, branch, private, token and collection, as for `hf_edit.hub.push.push`.

        Raises:
            HubError: the repository holds something else, or the Hub refused or failed.
        """
        return sharing.publish(folder.to_files(self.manifest, self.tensors), repo_id, **options)

    def identity(self) -> str:
        """Which network it is, wherever it lies: `sha256:` and the digest of its manifest, which has the weights'."""
        files = folder.to_files(self.manifest, self.tensors)
        return f"sha256:{sha256(files[MANIFEST]).hexdigest()}"

    def check(self, prompts: PromptFormat, method: str, steps: int) -> None:
        """Raise a ConfigError if it was trained for another method, number of steps or way to put prompts."""
        ours, theirs = self.manifest, prompts.name
        if ours.method != method:
            raise ConfigError(
                f"The hypernetwork was trained for {ours.method}, not {method}.", f"Use the method {ours.method}."
            )
        if ours.steps != steps:
            raise ConfigError(
                f"The hypernetwork was trained for {ours.steps} steps, not {steps}.", f"Set steps={ours.steps}."
            )
        if ours.prompt_format.name != theirs:
            raise ConfigError(
                f"The hypernetwork was trained on prompts in the format {ours.prompt_format.name}, not {theirs}.",
                f"Use the format {ours.prompt_format.name}.",
            )
        if ours.prompt_format.fingerprint != prompts.fingerprint():
            raise ConfigError(
                "The hypernetwork was trained with another tokenizer or chat template.",
                "Use the tokenizer that the base came with.",
            )

    def check_base(self, model: EditableModel) -> None:
        """Raise a BaseMismatchError unless it was trained for this very model and knows its linears."""
        base, there = self.manifest.base, {linear.name: linear for linear in model.linears}
        named = base.id or f"a {base.model_type} model"
        for ours in self.manifest.linears:
            found = there.get(ours.name)
            if found is None or (found.d_out, found.d_in, found.layer) != (ours.d_out, ours.d_in, ours.layer):
                raise BaseMismatchError(
                    f"The hypernetwork edits {ours.name} ({ours.d_out} x {ours.d_in}) of {named}, "
                    "which this model does not have.",
                    "Use the base that it was trained for, or train one for this base: hf-edit train.",
                )
        if base.fingerprint != running_fingerprint(model.model):
            raise BaseMismatchError(
                f"The hypernetwork was trained for {named} in {base.dtype}, and this model "
                f"({dtype_name(model.dtype)}) has other weights or another dtype.",
                "Load the base that it was trained for, in that dtype, without adapters.",
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that it edits."""
        return tuple(linear.layer for linear in self.manifest.linears)

    @cached_property
    def preserving(self) -> Preserving:
        """The part of its training's settings that holds for its use; PackError where the manifest has none."""
        config = self.manifest.config
        names = [field.name for field in fields(Preserving)]
        try:
            return Preserving.from_mapping({name: config[name] for name in names})
        except (KeyError, ConfigError) as error:
            raise PackError(
                f"The manifest of the hypernetwork does not say what it was trained to preserve: {error}.",
                "Train it again, or ask who published it.",
            ) from error

    def transformers(self, model: EditableModel) -> list[Transformer]:
        """What serves each step, on the model's device, its normalisers ready to go on counting."""
        ours = self.manifest
        dtype = torch.promote_types(model.dtype, torch.float32)
        generator = torch.Generator().manual_seed(0)
        sets = [new_set(ours.modules, rank, ours.blocks, 1.0, generator, model.device, dtype) for rank in ours.ranks]
        restore(sets, self.tensors)
        for network in networks_of(sets):
            network.requires_grad_(False)
        return per_step(sets, ours.steps)


def new_set(
    modules: Mapping[Shape, int],
    rank: int,
    blocks: int,
    step_size: float,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> Transformer:
    """Untrained networks, one for each shape of which there are so many linears, with empty normalisers."""
    networks = {
        (d_out, d_in): HyperNetwork(d_in, d_out, count, rank, blocks, step_size, generator).to(device, dtype)
        for (d_out, d_in), count in modules.items()
    }
    return Transformer(Normaliser({shape: RunningMoments.empty(sum(shape), device) for shape in networks}), networks)


def copied(normaliser: Normaliser) -> Normaliser:
    """A normaliser that goes on from there on its own; `RunningMoments` never writes to its tensors."""
    return Normaliser({shape: RunningMoments.from_state(one.state()) for shape, one in normaliser.moments.items()})


def per_step(sets: Sequence[Transformer], steps: int) -> list[Transformer]:
    """One for each step, where there may be one for all."""
    return list(sets) * (steps if len(sets) == 1 else 1)


def networks_of(sets: Sequence[Transformer]) -> list[HyperNetwork]:
    """Every network once."""
    return [network for one in sets for network in (one.networks or {}).values()]


def tensors_of(sets: Sequence[Transformer]) -> dict[str, Tensor]:
    """All that is to be kept of networks and normalisers, by name, as `Manifest.tensors` announces it.

    The tensors of networks are the live ones.
    """
    tensors: dict[str, Tensor] = {}
    for number, one in enumerate(sets):
        for (d_out, d_in), network in (one.networks or {}).items():
            of = f"{number}.{d_out}x{d_in}"
            tensors |= {f"{of}.{name}": tensor.detach() for name, tensor in network.state_dict().items()}
            moments = one.normaliser.moments[d_out, d_in].state()
            tensors |= {f"{of}.normaliser.{name}": tensor for name, tensor in moments.items()}
    return tensors


def restore(sets: Sequence[Transformer], tensors: Mapping[str, Tensor]) -> None:
    """Undo `tensors_of`, into networks of the same sizes."""
    for number, one in enumerate(sets):
        for (d_out, d_in), network in (one.networks or {}).items():
            of = f"{number}.{d_out}x{d_in}."
            mine = {name.removeprefix(of): tensor for name, tensor in tensors.items() if name.startswith(of)}
            state = {name: mine.pop(f"normaliser.{name}") for name in ("count", "mean", "squares")}
            device = next(network.parameters()).device
            moved = {name: tensor.to(device) for name, tensor in state.items()}
            one.normaliser.moments[d_out, d_in] = RunningMoments.from_state(moved)
            network.load_state_dict(mine)


def base_of(model: EditableModel) -> Base:
    """What a manifest says of a base."""
    config = model.model.config
    return Base(
        repo_of(config._name_or_path), config.model_type, dtype_name(model.dtype), running_fingerprint(model.model)
    )


def linears_of(linears: Sequence[EditableLinear]) -> tuple[Linear, ...]:
    """What a manifest says of the edited maps."""
    return tuple(Linear(one.name, one.layer, one.d_out, one.d_in) for one in linears)
