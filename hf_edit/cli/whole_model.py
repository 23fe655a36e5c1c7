"""Writing a whole model: weights, configuration, tokenizer and chat template."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hf_edit.errors import ConfigError


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_empty(out: Path) -> None:
    """Find out before the model is loaded that it cannot be saved there."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} is there already and is not empty.", "Choose another place, or move it away.")


def check_savable(model: PreTrainedModel) -> None:
    """Find out before its weights are changed that the model came from a format that cannot be written."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(
            "The base was loaded from quantised weights, which cannot be written back.",
            "Give a model in float32, bfloat16 or float16, saved as safetensors.",
        )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, card: str | None = None) -> int:
    """Save it at `out`, which then is there as a whole or not at all; returns its size in bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if card is not None:
            (unfinished / "README.md").write_text(card, encoding="utf-8")
        unfinished.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
