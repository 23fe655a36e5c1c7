"""How one answer is cut, as the settings say."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hf_edit.methods.anyedit.chunks import Chunk, sentence_ends, sentences, surprising, windows
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat


def chunks_of(model: EditableModel, prompts: PromptFormat, encoded: Encoded, config: AnyEditConfig) -> list[Chunk]:
    """The chunks of the answer, by the chunker that was set."""
    length = len(encoded.answer_ids)
    if config.chunker == "sentence":
        ends = sentence_ends(prompts.pieces(encoded.answer_ids))
        return sentences(length, ends, config.min_chunk, config.window)
    if config.chunker == "surprisal":
        return surprising(answer_surprisals(model, encoded), config.window)
    if config.chunker == "none":
        return [Chunk(0, length)]
    return windows(length, config.window, config.overlap)


@torch.no_grad()
def answer_surprisals(model: EditableModel, encoded: Encoded) -> list[float]:
    """-log p of each answer token given all before it, in nats."""
    ids, _ = model.ids([encoded.ids])
    predictions = model.logits(ids)[0, encoded.answer_start - 1 : -1]
    accumulate = torch.promote_types(model.dtype, torch.float32)
    surprisals: list[float] = F.cross_entropy(
        predictions.to(accumulate), ids[0, encoded.answer_start :], reduction="none"
    ).tolist()
    return surprisals
