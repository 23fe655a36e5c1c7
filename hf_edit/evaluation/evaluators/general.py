"""General ability, by tasks of lm-eval (the language model evaluation harness), an extra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

from hf_edit.errors import ConfigError
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.extras import needed
from hf_edit.evaluation.intervals import LEVEL, wilson
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.packs.evaluation import FIXED, FREE, Figure


class General(Evaluator):
    """Tasks are named by the setting `tasks`; the model is handed over as it stands, with its chat template unused."""

    name = "general"
    metrics: ClassVar[Mapping[str, About]] = {}
    needs = "tasks of lm-eval (the setting tasks)"

    def applies(self, task: Task) -> bool:
        return bool(task.config.tasks)

    def check(self, task: Task) -> None:
        super().check(task)
        _harness()

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        config = subject.task.config
        found = subject.shared(
            ("lm-eval", config.task_limit, config.batch, config.seed),
            config.tasks,
            lambda tasks: [_observed(_results(subject, tasks))],
        )
        return Observed(
            {name: score for one in found for name, score in one.scores.items()},
            about={name: about for one in found for name, about in one.about.items()},
        )


def _results(subject: Subject, tasks: Sequence[str]) -> Mapping[str, Any]:
    """What lm-eval says of the model."""
    config = subject.task.config
    harness, models = _harness()
    model = models.HFLM(pretrained=subject.model, tokenizer=subject.task.prompts.tokenizer, batch_size=config.batch)
    try:
        found: Mapping[str, Any] = harness.simple_evaluate(
            model=model,
            tasks=list(tasks),
            limit=config.task_limit,
            random_seed=config.seed,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except (KeyError, OSError, ValueError) as error:
        raise ConfigError(
            f"lm-eval could not run {', '.join(tasks)}: {error}",
            "Check the names of the tasks (lm-eval ls tasks), and that their data can be had.",
        ) from error
    return found


def _observed(found: Mapping[str, Any]) -> Observed:
    """Metrics of lm-eval's results, with normal intervals from its standard errors, or Wilson's where they are 0."""
    scores: dict[str, Figure] = {}
    about: dict[str, About] = {}
    for task, results in found["results"].items():
        leaves = _leaves(found, task)
        n = sum(int(found["n-samples"][leaf]["effective"]) for leaf in leaves)
        free = any(found["configs"].get(leaf, {}).get("output_type") == "generate_until" for leaf in leaves)
        for key, value in results.items():
            metric, comma, variant = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            name = f"{_plain(task)}.{_plain(metric)}" + ("" if variant == "none" else f".{_plain(variant)}")
            better = bool(found["higher_is_better"].get(task, {}).get(metric, True))
            scores[name] = _figure(float(value), results.get(f"{metric}_stderr,{variant}"), n, better)
            about[name] = About(
                f"{metric} of the task {task} of lm-eval {needed('lm_eval', 'lm-eval', 'general').__version__}, with "
                "the interval of its standard error.",
                FREE if free else FIXED,
                better,
            )
    return Observed(scores, about=about)


def _leaves(found: Mapping[str, Any], task: str) -> set[str]:
    """The tasks of a group, through groups in it; itself of a task, as only tasks have records."""
    if task in found["n-samples"]:
        return {task}
    return {leaf for part in found["group_subtasks"][task] for leaf in _leaves(found, part)}


def _figure(value: float, error: Any, n: int, higher_is_better: bool) -> Figure:
    if not isinstance(error, (int, float)):
        return Figure(value, None, None, n)
    is_share = higher_is_better and 0 <= value <= 1
    if is_share and error == 0:  # all records alike
        return Figure(value, *wilson(value * n, n), n)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    low, high = value - z * error, value + z * error
    return Figure(value, max(0.0, low) if is_share else low, min(1.0, high) if is_share else high, n)


def _plain(name: str) -> str:
    """As part of the name of a metric."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def _harness() -> tuple[Any, Any]:
    return needed("lm_eval", "lm-eval", "lm-eval"), needed("lm_eval.models.huggingface", "lm-eval", "lm-eval")
