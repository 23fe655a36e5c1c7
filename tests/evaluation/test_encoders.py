"""Comparing texts by an encoder, against plain loops over its hidden states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from hf_edit.errors import ConfigError
from hf_edit.evaluation.encoders import SENTENCE_LENGTH, BertScore, Encoder, SentenceCosine
from tests.tiny import VOCAB, tiny_tokenizer


TEXTS = ("The capital of France is Paris.", "Who wrote the play Hamlet?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random encoder whose tokenizer puts a special token in front of text."""
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    BertModel(config).save_pretrained(path)
    tiny_tokenizer("sentencepiece").save_pretrained(path)
    return path


def hidden(folder: Path, text: str, layer: int) -> tuple[np.ndarray, list[int]]:
    ids = tiny_tokenizer("sentencepiece")(text)["input_ids"][:512]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].numpy()
    return states, ids


@pytest.mark.parametrize("layer", [1, -1])
def test_bertscore_is_greedy_matching(folder: Path, layer: int) -> None:
    (said, said_ids), (wanted, wanted_ids) = (hidden(folder, text, layer) for text in TEXTS)
    assert said_ids[0] == wanted_ids[0] == 1  # <s>, which is not counted

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    precision = np.mean([max(cosine(s, w) for w in wanted) for s in said[1:]])
    recall = np.mean([max(cosine(s, w) for s in said) for w in wanted[1:]])
    score = BertScore.load(str(folder), layer)
    assert score.f1(*TEXTS) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)
    assert score.f1(TEXTS[0], TEXTS[0]) == pytest.approx(1.0, abs=1e-5)
    assert score.f1("", TEXTS[0]) == 0.0


def test_sentence_cosine_is_of_mean_states(folder: Path) -> None:
    first, second = (hidden(folder, text, -1)[0].mean(axis=0) for text in TEXTS)
    expected = float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert SentenceCosine.load(str(folder)).cosine(*TEXTS) == pytest.approx(expected, abs=1e-5)


def test_sentence_cosine_is_scikit_learns(folder: Path) -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    first, second = (hidden(folder, text, -1)[0].mean(axis=0, keepdims=True) for text in TEXTS)
    expected = float(pairwise.cosine_similarity(first, second)[0, 0])
    assert SentenceCosine.load(str(folder)).cosine(*TEXTS) == pytest.approx(expected, abs=1e-5)


def test_long_texts_are_cut(folder: Path) -> None:
    encoder, long = Encoder.load(str(folder)), "lazy dog " * 400
    assert len(encoder.states(long, -1, SENTENCE_LENGTH)[0]) == SENTENCE_LENGTH
    assert len(encoder.states(long, -1)[0]) == 512  # what the encoder holds


def test_an_encoder_that_is_not_here_is_not_fetched(tmp_path: Path) -> None:
    for name in (str(tmp_path), "no-such/encoder"):
        with pytest.raises(ConfigError, match="could not be loaded") as caught:
            Encoder.load(name)
        assert "fetch it first" in caught.value.remedy
