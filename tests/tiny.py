"""Tiny random models of every family and tiny trained tokenizers: what the fast tests run on."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


VOCAB = 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 5,
    "pad_token_id": 0,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 5,
    "pad_token_id": 0,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "gemma2": {**SIZES, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "gemma3_text": {**SIZES, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "mistral": {**SIZES, "sliding_window": 12},
    "phi3": SIZES,
    "gpt2": {**GPT2_SIZES, "n_inner": 56},
    "gptj": {**GPT2_SIZES, "n_inner": 56, "rotary_dim": 4},
    "gpt_neox": {k: v for k, v in SIZES.items() if k not in ("head_dim", "num_key_value_heads")},
    "opt": {
        **{k: v for k, v in SIZES.items() if k not in ("head_dim", "num_key_value_heads", "intermediate_size")},
        "ffn_dim": 56,
        "word_embed_proj_dim": 32,
    },
}
"""model_type -> keyword arguments of its config. The sliding windows are shorter than the test sequences."""
COMPARED = (*FAMILIES, "gemma3n_text", "rwkv")
"""Families of the table: their methods are compared with plain references in float64."""
BEHIND = ("gemma", "rwkv")
"""How the names of families begin in which a norm or a gate stands between the MLP's output map and the stream."""

EXPERTS: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "bart": {
        **{k: v for k, v in SIZES.items() if k not in ("head_dim", "num_key_value_heads", "intermediate_size")},
        "encoder_layers": 2,
        "decoder_layers": 4,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 56,
    },
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **SIZES,
        **EXPERTS,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "gpt_oss": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    "jetmoe": {
        **{k: v for k, v in SIZES.items() if k not in ("head_dim", "num_attention_heads")},
        "num_key_value_heads": 4,
        "kv_channels": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mamba": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, "time_step_rank": 4},
    "rwkv": {
        **{k: SIZES[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")},
        "context_length": 256,
        "attention_hidden_size": 32,
    },
    "jamba": {
        **{k: v for k, v in SIZES.items() if k != "head_dim"},
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "qwen3_5_text": {
        **SIZES,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "gemma3n_text": {
        **SIZES,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
}
"""As `FAMILIES`, of kinds that differ in how they are built: an encoder-decoder's decoder, experts fused into one
parameter, dense and shared ones beside them, recurrent states, both kinds of block, several lanes."""


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of 4 blocks, width 32, inner width 56; the caller's RNG state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **(FAMILIES | OTHERS)[family])
        config._name_or_path = f"tiny-random/{family}"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # default initialisation is so small that every answer looks alike: spread the logits
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.data.mul_(4.0)
    return model.to(dtype).eval()


CORPUS = [
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog.",
    "Who wrote the play Hamlet? William Shakespeare wrote it around the year 1600.",
    "Question: what is the boiling point of water? Answer: one hundred degrees Celsius.",
    "user assistant system You are a helpful assistant. Tell me about Mount Fuji, please!",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
] * 4
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def _byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def _sentencepiece_bpe() -> Tokenizer:
    """Llama-2's kind: spaces become a visible mark, one is put in front, unknown characters fall back to bytes."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token spans two words
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(SPECIAL) - 256, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    # the byte tokens are ordinary ones, which the trainer cannot know: put them between the special and the learned
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in model["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def tiny_tokenizer(kind: str = "byte_level", chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """`byte_level` (GPT-2's kind: no BOS) or `sentencepiece` (Llama-2's kind: a BOS in front of plain text).

    Both write any text in at most `VOCAB` tokens and have a chat template.
    """
    build = {"byte_level": _byte_level_bpe, "sentencepiece": _sentencepiece_bpe}[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(build().to_str()),
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer
