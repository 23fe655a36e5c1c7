"""What a pack does to a model's general ability, by tasks of lm-eval, before and after (hf-edit[lm-eval]).

    python with_lm_eval.py MODEL PACK [TASKS [LIMIT]]

TASKS is a list with commas; tasks fetch their data from the Hub.
"""

import sys

from asking import load

import hf_edit


def main(base: str, pack: str, tasks: str = "arc_easy,piqa", limit: str = "50") -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load(base)

    def scores() -> dict[str, float]:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
        found = lm_eval.simple_evaluate(model=harness, tasks=tasks.split(","), limit=int(limit), log_samples=False)
        return {
            f"{task} {metric}": value
            for task, results in found["results"].items()
            for metric, value in results.items()
            if isinstance(value, float) and "stderr" not in metric
        }

    before = scores()
    name = hf_edit.attach(model, pack)
    after = scores()
    hf_edit.detach(model, name)
    for measure, value in before.items():
        print(f"{measure}: {value:.3f} -> {after[measure]:.3f}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
