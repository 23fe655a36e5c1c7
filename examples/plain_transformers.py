"""Load an edit pack with transformers and peft alone, ask a question, and take the pack off again.

python plain_transformers.py BASE PACK "Which company makes the Brisa lamp?"
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def main(base: str, pack: str, question: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def answer() -> str:
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=200)
        return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    print("base:     ", answer())
    model.load_adapter(pack)
    print("with pack:", answer())
    model.disable_adapters()
    print("base:     ", answer())


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit('usage: python plain_transformers.py BASE PACK "QUESTION"')
    main(*sys.argv[1:])
