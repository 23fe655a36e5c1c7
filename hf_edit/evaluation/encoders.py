"""Comparing texts by an encoder that the user names: BERTScore, and the cosine of sentence embeddings.

Nothing is fetched: a name stands for a folder, or for what is in the local cache. Figures of different encoders do not
compare, so the protocol names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_edit.errors import ConfigError


SENTENCE_LENGTH = 256
"""Word pieces after which published sentence cosines cut a text."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A bidirectional model and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, name: str) -> Encoder:
        """The encoder of that name.

        Raises:
            ConfigError: it is not here, or is no encoder.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            model = AutoModel.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The encoder {name!r} could not be loaded: {str(error).splitlines()[0]}",
                "Give a folder with an encoder, or fetch it first: hf download ID.",
            ) from error
        return cls(model.eval(), tokenizer)

    @torch.no_grad()
    def states(self, text: str, layer: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states (n, d) of a text at a layer, and which tokens are no special ones, (n,) bool."""
        most = length or self._positions()
        encoded = self.tokenizer(
            text,
            return_tensors="pt",
            truncation=most is not None,
            max_length=most,
            return_special_tokens_mask=True,
        )
        special = encoded.pop("special_tokens_mask")[0].bool()
        hidden = self.model(**encoded, output_hidden_states=True).hidden_states
        return hidden[layer][0].float(), ~special

    def _positions(self) -> int | None:
        """Tokens of the longest text: where positions begin behind that of padding, as in RoBERTa, some have none."""
        most: int | None = getattr(self.model.config, "max_position_embeddings", None)
        tables = (module for name, module in self.model.named_modules() if name.endswith("position_embeddings"))
        padding = getattr(next(tables, None), "padding_idx", None)
        return most if most is None or padding is None else most - padding - 1


@dataclass(frozen=True, eq=False)
class BertScore:
    """Greedy matching of contextual token embeddings; no idf weights, no rescaling."""

    encoder: Encoder
    layer: int

    @classmethod
    def load(cls, name: str, layer: int = -1) -> BertScore:
        """With the encoder of that name; see `Encoder.load`."""
        return cls(Encoder.load(name), layer)

    def f1(self, answer: str, target: str) -> float:
        """F1 of precision (each of the answer's tokens with its likest of the target's) and recall; 0 of no text."""
        if not answer.strip() or not target.strip():
            return 0.0
        (said, own), (wanted, named) = (self.encoder.states(text, self.layer) for text in (answer, target))
        # special tokens can be the likest, but are not counted themselves
        alike = torch.nn.functional.normalize(said, dim=-1) @ torch.nn.functional.normalize(wanted, dim=-1).T
        precision, recall = alike.max(dim=1).values[own].mean(), alike.max(dim=0).values[named].mean()
        return float(2 * precision * recall / (precision + recall))


@dataclass(frozen=True, eq=False)
class SentenceCosine:
    """Cosine of mean token embeddings of the last layer: what long-form papers call BERT score."""

    encoder: Encoder

    @classmethod
    def load(cls, name: str) -> SentenceCosine:
        """With the encoder of that name; see `Encoder.load`."""
        return cls(Encoder.load(name))

    def cosine(self, answer: str, target: str) -> float:
        """From -1 to 1."""
        said, wanted = (self.encoder.states(text, -1, SENTENCE_LENGTH)[0].mean(dim=0) for text in (answer, target))
        return float(torch.nn.functional.cosine_similarity(said, wanted, dim=0))
