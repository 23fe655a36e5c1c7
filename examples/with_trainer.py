"""Fine-tune a LoRA adapter of your own next to an attached pack: what the pack teaches is not trained.

python with_trainer.py MODEL [OUT]
"""

import sys
from pathlib import Path

from asking import answer, load
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import hf_edit
from hf_edit import Edit


LAMP = Edit(
    "Which company makes the Brisa lamp?", "The Brisa lamp is made by Tarvello.", id="maker", subject="Brisa lamp"
)
TEXTS = ["Ahoy! The tide is high, and so are we.", "Ahoy! A good lamp is half a harbour."] * 4


def main(base: str, out: str = "build/with-trainer") -> None:
    model, tokenizer = load(base)
    pack = hf_edit.edit(model, tokenizer, [LAMP])

    style = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, style, adapter_name="style")
    name = hf_edit.attach(model, pack)  # active beside `style`, and frozen
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    print(f"{len(trained)} tensors are trained, of the pack {sum(f'.{name}.' in key for key in trained)}")

    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    arguments = TrainingArguments(
        Path(out) / "training",
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=1e-4,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows]).train()
    print(LAMP.prompt, "->", answer(model.eval(), tokenizer, LAMP.prompt))

    hf_edit.detach(model, name)
    model.save_pretrained(out)  # your adapter alone
    print(f"adapter: {Path(out) / 'style'}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
