"""Which directions of a pack's update the keys of its listed edits explain."""

from __future__ import annotations

from hf_edit.errors import ComputationError, StatisticsError
from hf_edit.evaluation.audit.keys import listed_keys
from hf_edit.evaluation.audit.moments import whitening
from hf_edit.evaluation.audit.outside import Outside, outside
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat


KEYED = (
    ("anyedit", "direct"),
    ("anyedit", "memit"),
    ("memit", None),
    ("polish", None),
    ("stack", None),
    ("revert", None),
)
"""Methods and backends whose updates lie in the span of whitened keys."""


def examined(
    view: EditableModel,
    prompts: PromptFormat,
    pack: EditPack,
    progress: Progress,
    findings: list[str],
    limits: list[str],
) -> dict[str, Outside]:
    """Full module name -> how its change lies to the listed edits' keys; empty where that cannot be examined.

    Args:
        findings, limits: sentences are added of what is found, and of what cannot be examined.
    """
    linears = view.linears_named(pack.deltas.keys())
    elsewhere = sorted(set(pack.deltas) - {linear.name for linear in linears})
    if elsewhere:
        findings.append(f"The pack changes {', '.join(elsewhere)}, outside of the blocks that edits are made in.")
    method, backend = pack.manifest.method.name, pack.manifest.method.config.get("backend")
    if (method, backend) not in KEYED:
        limits.append(
            f"Directions: the method {method} does not keep to the listed edits' keys, so they tell nothing."
        )
        return {}
    if not linears:
        return {}
    try:
        factors = whitening(view, prompts, pack, linears, progress)
    except (ComputationError, StatisticsError) as error:
        limits.append(f"Directions: {error.message}")
        return {}
    asked, along = listed_keys(view, prompts, pack, linears)
    found = {}
    for linear in linears:
        name, above = linear.name, linear.layer > linears[0].layer
        found[name] = outside(pack.deltas[name], asked.get(name), along[name], factors[name], above)
    findings += [
        f"The change of {name} has a direction of {one.size:.1%} of its size that lies {one.largest:.0%} outside of "
        "what the listed edits reach."
        for name, one in found.items()
        if one.flagged
    ]
    untold = [name for name, one in found.items() if not one.told]
    if untold:
        limits.append(
            f"Directions: {len(untold)} of {len(found)} changes tell nothing; the second moments or the keys here are "
            "not those that they were made with (another machine, version or setting, or changes below them), or they "
            "have too many directions to be held against the edits' keys."
        )
    return found
