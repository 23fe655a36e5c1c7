"""What somebody else's file must be to enter the cache."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from hf_edit.errors import StatisticsError
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.compression import Compressed, Compression
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.corpus import CORPUS
from hf_edit.statistics.received import check_corpus, check_moments, is_public, size_limit
from hf_edit.statistics.store import obtain, recipe_folder
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny() -> EditableModel:
    return EditableModel.of(tiny_model())


@pytest.fixture(scope="module")
def sound(tiny: EditableModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of moments and one of a corpus, as collected."""
    chat = PromptFormat.of("chat", tiny_tokenizer())
    config = StatisticsConfig(tokens=256, conversations=2, length=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        obtain(tiny, chat, tiny.linears[:1], config, 0, Silent())
        folder = recipe_folder(tiny, chat, config, 0)
        names = {"moments": f"{tiny.linears[0].name}.safetensors", "corpus": CORPUS}
        return {kind: (folder / name).read_bytes() for kind, name in names.items()}


def rewritten(change: Callable[[dict[str, torch.Tensor]], None], **metadata: str) -> Callable[[bytes], bytes]:
    """A forger of safetensors files."""

    def forge(content: bytes) -> bytes:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])["__metadata__"]
        tensors = load(content)
        change(tensors)
        return save(tensors, {**header, **metadata})

    return forge


def entry(row: int, column: int, value: float) -> Callable[[bytes], bytes]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["text"][row, column] = value

    return rewritten(change)


def whole(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[bytes], bytes]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = make(tensors[name])

    return rewritten(change)


def nothing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors


FORGED_MOMENTS = [
    (lambda content: content[:-8], "cannot be read"),
    (lambda content: b"\x80\x04K\x01." * 100, "cannot be read"),
    (entry(0, 0, float("nan")), "NaN or infinity"),
    (entry(3, 4, float("inf")), "NaN or infinity"),
    (entry(2, 2, -1.0), "not of squares"),
    (entry(3, 4, 1e6), "not symmetric"),
    (whole("text", lambda m: m + 50 * m.max() * (1 - torch.eye(len(m)))), "larger than its variances allow"),
    (whole("text", torch.zeros_like), "not of squares"),
    (whole("text", lambda m: m[:5, :5].contiguous()), "not F32 of"),
    (whole("text", lambda m: m.double()), "not F32 of"),
    (rewritten(lambda tensors: tensors.update(other=tensors["text"].clone())), "holds the parts"),
    (rewritten(lambda tensors: tensors.clear()), "holds the parts"),
    (rewritten(nothing, tokens="{}"), "holds the parts"),
    (rewritten(nothing, tokens='{"text": -3}'), "no positive numbers"),
    (rewritten(nothing, tokens="[" * 9000), "cannot be read"),
    (rewritten(nothing, source="/home/me/secret.txt"), "private text"),
]
FORGED_CORPORA = [
    (lambda content: content[:100], "cannot be read"),
    (whole("text", lambda rows: rows + 512), "tokens outside"),
    (whole("text", lambda rows: rows - 512), "tokens outside"),
    (whole("text", lambda rows: rows.float()), "not int64"),
    (whole("text", lambda rows: rows.reshape(-1)), "numbers of dimensions"),
    (whole("text", lambda rows: rows.reshape(1, -1).repeat(1, 9)), "more than the model's context"),
    (whole("lengths", lambda lengths: lengths + 1), "do not add up"),
    (whole("answer_starts", lambda starts: starts + 1000), "begin outside"),
    (rewritten(lambda tensors: tensors.pop("ids")), "holds"),
]


def small(**given: torch.Tensor) -> Callable[[bytes], bytes]:
    """A compressed moment of text with something wrong."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        moment = tensors["text"]
        tensors.clear()
        tensors.update(Compressed.of(moment, Compression(rank=3)).tensors("text"))
        tensors.update({name.replace("_", "."): tensor for name, tensor in given.items()})

    return rewritten(change, tokens='{"text": 256}', errors='{"text": 0.1}')


FORGED_MOMENTS += [
    (small(text_factor=torch.zeros(56, 57).bfloat16()), "not BF16 of at most"),
    (small(text_factor=torch.zeros(55, 3).bfloat16()), "not BF16 of at most"),
    (small(text_factor=torch.zeros(56).bfloat16()), "not BF16 of at most"),
    (small(text_factor=torch.zeros(56, 3)), "not BF16 of at most"),
    (small(text_diagonal=torch.zeros(55)), "not F32 of"),
    (small(text_diagonal=torch.zeros(56).double()), "not F32 of"),
    (small(text_diagonal=-torch.ones(56)), "not of squares"),
    (small(text_diagonal=torch.full((56,), float("inf"))), "NaN or infinity"),
    (small(text_factor=torch.full((56, 3), float("nan")).bfloat16()), "NaN or infinity"),
    (small(text_factor=torch.zeros(56, 3).bfloat16(), text_diagonal=torch.zeros(56)), "not of squares"),
    (small(text=torch.eye(56)), "holds the parts"),
    (small(other_factor=torch.zeros(56, 3).bfloat16()), "holds the parts"),
    (rewritten(nothing, errors='{"text": 0.1}'), "holds the parts"),
    (rewritten(nothing, errors='{"text": "<b>"}'), "no numbers"),
    (rewritten(nothing, errors="[0.1]"), "no numbers"),
]


def test_what_was_compressed_is_sound(tiny: EditableModel, sound: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "moments").write_bytes(small()(sound["moments"]))
    check_moments(tmp_path / "moments", tiny.linears[0])


def test_what_was_collected_is_sound(tiny: EditableModel, sound: dict[str, bytes], tmp_path: Path) -> None:
    for kind, content in sound.items():
        (tmp_path / kind).write_bytes(content)
    check_moments(tmp_path / "moments", tiny.linears[0])
    check_corpus(tmp_path / "corpus", tiny)
    assert len(sound["moments"]) <= size_limit(tiny.linears[0]) and len(sound["corpus"]) <= size_limit(None)


@pytest.mark.parametrize(
    ("kind", "forge", "said"),
    [("moments", *case) for case in FORGED_MOMENTS] + [("corpus", *case) for case in FORGED_CORPORA],
)
def test_forged_files_are_refused(
    tiny: EditableModel, sound: dict[str, bytes], tmp_path: Path, kind: str, forge: Callable[[bytes], bytes], said: str
) -> None:
    (tmp_path / kind).write_bytes(forge(sound[kind]))
    with pytest.raises(StatisticsError, match=said) as caught:
        if kind == "moments":
            check_moments(tmp_path / kind, tiny.linears[0])
        else:
            check_corpus(tmp_path / kind, tiny)
    assert kind in caught.value.message and caught.value.remedy


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("self", True),
        ("dataset:wikitext:wikitext-2:train:text", True),
        ("dataset:org/data::train:text", True),
        ("dataset:/home/me/data::train:text", False),
        ("notes.txt", False),
        ("", False),
    ],
)
def test_whose_text_others_can_have(source: str, public: bool) -> None:
    assert is_public(source) is public
