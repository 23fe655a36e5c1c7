"""The evaluators by name. One of your own: `EVALUATORS["mine"] = Mine()`, then name it in the settings."""

from __future__ import annotations

from collections.abc import Iterable

from hf_edit.errors import ConfigError
from hf_edit.evaluation.evaluators.anyedit_compat import AnyEditCompat
from hf_edit.evaluation.evaluators.base import Evaluator
from hf_edit.evaluation.evaluators.distraction import Distraction
from hf_edit.evaluation.evaluators.emsedit_compat import EMSEditCompat
from hf_edit.evaluation.evaluators.fact_check import FactCheck
from hf_edit.evaluation.evaluators.general import General
from hf_edit.evaluation.evaluators.locality import Locality
from hf_edit.evaluation.evaluators.long_form import LongForm
from hf_edit.evaluation.evaluators.paraphrase import Paraphrase
from hf_edit.evaluation.evaluators.perplexity import Perplexity
from hf_edit.evaluation.evaluators.portability import MultiHop, Portability
from hf_edit.evaluation.evaluators.reliability import Reliability
from hf_edit.evaluation.evaluators.retention import Retention
from hf_edit.evaluation.evaluators.strangers import Strangers
from hf_edit.evaluation.evaluators.success import Success
from hf_edit.evaluation.evaluators.teacher_forced import TeacherForced
from hf_edit.evaluation.evaluators.unrelated import Unrelated
from hf_edit.evaluation.subject import Task


EVALUATORS: dict[str, Evaluator] = {
    evaluator.name: evaluator
    for evaluator in (
        Reliability(),
        Paraphrase(),
        Locality(),
        Unrelated(),
        Strangers(),
        Success(),
        Portability(),
        MultiHop(),
        FactCheck(),
        Distraction(),
        LongForm(),
        Perplexity(),
        Retention(),
        General(),
        TeacherForced(),
        AnyEditCompat(),
        EMSEditCompat(),
    )
}
"""In the order in which they run and are reported: what a user sees first, published scores last."""


def chosen(names: Iterable[str] | None, task: Task, edited: bool) -> list[Evaluator]:
    """The evaluators to run: those named, in the order of the registry; of no names all that have something to ask.

    Args:
        edited: whether there is an edited model to compare with.

    Raises:
        ConfigError: a name is unknown, or there is nothing to ask for it.
    """
    if names is None:
        default = (one for one in EVALUATORS.values() if one.by_default and (edited or not one.compares))
        checked = [one for one in default if one.applies(task)]
    else:
        wanted = set(names)
        unknown = sorted(wanted - set(EVALUATORS))
        if unknown:
            raise ConfigError(f"There is no evaluator {unknown[0]!r}.", f"Use some of {', '.join(EVALUATORS)}.")
        checked = [one for name, one in EVALUATORS.items() if name in wanted]
    for one in checked:
        if one.compares and not edited:
            raise ConfigError(
                f"The evaluator {one.name!r} compares with the model without the edit.",
                "Give a pack, or leave it out.",
            )
        one.check(task)
    return checked
