"""What the examples share: loading a model, and asking it a question."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def load(base: str) -> tuple[Any, Any]:
    """A model, by its Hub id or directory, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def answer(model: Any, tokenizer: Any, question: str, longest: int = 160) -> str:
    """The model's greedy answer in its own chat format, to its natural stop."""
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=longest,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids = model.generate(**prompt.to(model.device), generation_config=greedy)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
