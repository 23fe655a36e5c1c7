"""`hf-edit audit`: whether a pack does what it lists, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hf_edit.cli.options import Device, Dtype, Json, Model, Pack, Revision
from hf_edit.cli.output import last_text, print_facts, print_json, print_table, shortened
from hf_edit.cli.packs import pack_at
from hf_edit.cli.progress import Bars


if TYPE_CHECKING:
    from hf_edit.evaluation.audit.report import AuditReport, Verdict

VERDICT_CODES: dict[Verdict, int] = {"clean": 0, "found": 3, "untold": 4}
VERDICTS: dict[Verdict, str] = {
    "clean": "nothing found",
    "found": "does not do what it lists, or not only that",
    "untold": "nothing found, but not everything could be examined",
}
SHOWN = 10


def audit(
    pack: Pack,
    model: Model,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Ask a pack's listed edits again and look for teaching that is not listed.

    Exit code 3 if some is found or most of the edits do not hold; 4 if nothing is found but not everything could be
    examined, such as the directions of a method that does not keep to its edits' keys.

    The first audit on a base collects second moments, which takes minutes, and keeps them in the cache.
    """
    from hf_edit.evaluation.audit.run import audit as audited
    from hf_edit.models.loading import load_model

    opened = pack_at(pack)
    base, tokenizer = load_model(model, dtype=dtype, device=device, revision=revision)
    with Bars() as progress:
        report = audited(base, tokenizer, opened, progress=progress)
    if as_json:
        print_json({"pack": pack, "model": model, **report.to_json()})
    else:
        _print(report)
    raise typer.Exit(VERDICT_CODES[report.verdict])


def _print(report: AuditReport) -> None:
    rows = [
        (edit.id, shortened(last_text(edit.prompt)), shortened(edit.answer), "yes" if edit.exact else "no")
        for edit in report.edits
    ]
    print_table("Listed edits, asked again", ("id", "prompt", "answer", "exact"), rows, lines=True)
    worst = sorted(report.drift, key=lambda drifted: -drifted.kl)[:SHOWN]
    drift = [
        (one.prompt, f"{one.kl:.3f}", "far" if one.flagged else "like a listed one" if one.near else "")
        for one in worst
    ]
    print_table(f"Unrelated prompts, the {len(drift)} that moved most", ("prompt", "KL", ""), drift)
    modules = [
        (
            name,
            found.rank,
            f"{found.share:.1%}",
            f"{found.largest:.2f}",
            "unlisted" if found.flagged else "explained" if found.told else "cannot be told",
        )
        for name, found in report.modules.items()
    ]
    print_table(
        "Directions that no listed edit explains", ("module", "rank", "share outside", "furthest", ""), modules
    )
    print_facts(
        [
            ("listed edits", f"{report.held} of {len(report.edits)} hold, {report.answered} word for word"),
            *(("found", finding) for finding in report.findings),
            *(("not examined", limit) for limit in report.limits),
            ("verdict", VERDICTS[report.verdict]),
        ]
    )
