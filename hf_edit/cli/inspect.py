"""`hf-edit inspect`: what a pack teaches, and what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.options import Device, Dtype, Json, Pack, Revision
from hf_edit.cli.output import last_text, print_facts, print_json, print_table, readable_size, shortened
from hf_edit.cli.packs import check_revision, open_pack
from hf_edit.errors import HubError


if TYPE_CHECKING:
    from hf_edit.packs.locate import Place
    from hf_edit.packs.pack import EditPack


def inspect(
    pack: Pack,
    model: Annotated[
        str | None, typer.Option(help="The base model: gives the size of each change relative to the weight.")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Show what a pack teaches, how large its changes are, who made it from what, and whether it is signed.

    Nothing is checked against a model: `verify` does that, and `audit` looks for teaching that is not listed.
    """
    check_revision(revision, model)
    opened, place = open_pack(pack)
    weights = {} if model is None else _weight_norms(opened, model, revision, device, dtype)
    document = _document(pack, opened, place, weights)
    if as_json:
        print_json(document)
    else:
        _print(document, opened)


def _document(name: str, pack: EditPack, place: Place, weights: Mapping[str, float]) -> dict[str, Any]:
    from hf_edit.packs.signing import read_signature
    from hf_edit.packs.verify import over_budget, rank_budget

    manifest = pack.manifest
    signature = read_signature(place.opened())
    unlisted, note = _unlisted(place, manifest.files)
    notes = [over_budget(manifest, pack.edits), note]
    return {
        "pack": name,
        "commit": None if pack.origin is None else pack.origin.commit,
        "edits": [edit.to_json() for edit in pack.edits],
        "base": {
            "id": manifest.base.id,
            "model_type": manifest.base.model_type,
            "revision": manifest.base.revision,
            "dtype": manifest.base.dtype,
            "fingerprint": manifest.base.fingerprint,
        },
        "method": {"name": manifest.method.name, "config": dict(manifest.method.config)},
        "seed": manifest.seed,
        "prompt_format": manifest.prompt_format.name,
        "layout": manifest.layout,
        "hf_edit_version": manifest.hf_edit_version,
        "versions": dict(manifest.versions),
        "parents": list(manifest.parents),
        "earlier": list(manifest.earlier),
        "signature": None if signature is None else {"key": signature.key, "files": list(signature.files)},
        "modules": {
            module: {
                "rank": delta.rank,
                "shape": list(delta.shape),
                "norm": delta.norm(),
                **({"relative_norm": delta.norm() / weights[module]} if weights.get(module) else {}),
            }
            for module, delta in pack.deltas.items()
        },
        "rank_budget": rank_budget(pack.edits),
        "parameters": sum(delta.A.numel() + delta.B.numel() for delta in pack.deltas.values()),
        "bytes": _bytes(name),
        "measured": {m.name: m.figure.value for m in pack.evaluation.metrics} if pack.evaluation else {},
        "files": dict(manifest.files),
        "unlisted_files": unlisted,
        "notes": [note for note in notes if note],
    }


def _unlisted(place: Place, listed: Iterable[str]) -> tuple[list[str] | None, str | None]:
    """What lies beside the pack, None where the Hub does not say, and a note of what is odd about that."""
    from hf_edit.packs.listing import unlisted_files

    try:
        unlisted = unlisted_files(place.entries(), listed)
    except HubError as error:
        return None, error.message
    return unlisted, f"files that the manifest does not list: {unlisted}" if unlisted else None


def _print(document: Mapping[str, Any], pack: EditPack) -> None:
    base, size = document["base"], document["bytes"]
    rows = [(edit.id, shortened(last_text(edit.prompt)), shortened(edit.target)) for edit in pack.edits]
    print_table(f"Teaches {len(rows)} answer(s)", ("id", "prompt", "target"), rows, lines=True)
    largest = max(module["rank"] for module in document["modules"].values())
    print_facts(
        (
            ("pack", document["pack"]),
            *([("commit", document["commit"])] if document["commit"] else []),
            ("base", base["id"] or f"not on the Hub ({base['model_type']})"),
            ("base revision", base["revision"] or "not recorded"),
            ("base fingerprint", base["fingerprint"]),
            ("method", _method(document["method"])),
            ("seed", document["seed"]),
            ("prompt format", document["prompt_format"]),
            ("layout", document["layout"]),
            ("rank", f"{largest}, of {document['rank_budget']} that the listed edits account for"),
            ("size", f"{document['parameters']:,} parameters" + (f", {readable_size(size)} in all" if size else "")),
            ("written by", f"hf_edit {document['hf_edit_version']}, " + _versions(document["versions"])),
            ("made from", "; ".join(_lineage(document["parents"])) or "edits alone"),
            *(
                [("made beside", f"{len(document['earlier'])} pack(s) taught before, which it preserves")]
                if document["earlier"]
                else []
            ),
            ("measured", _measured(len(document["measured"]))),
            ("signature", _signature(document["signature"])),
        )
    )
    modules = [
        (
            module,
            entry["rank"],
            " x ".join(map(str, entry["shape"])),
            f"{entry['norm']:.4g}",
            *([f"{entry['relative_norm']:.2%}"] if "relative_norm" in entry else []),
        )
        for module, entry in document["modules"].items()
    ]
    columns = ("module", "rank", "shape", "norm", "of the weight's")
    print_table("Changed modules", columns[: len(modules[0])], modules)
    print_table("Files, all as recorded", ("file", "sha256"), sorted(document["files"].items()))
    for note in document["notes"]:
        print_facts([("note", note)])


def _method(method: Mapping[str, Any]) -> str:
    backend = method["config"].get("backend")
    return method["name"] + (f", backend {shortened(backend, 40)}" if isinstance(backend, str) else "")


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{library} {version}" for library, version in sorted(versions.items()))


def _lineage(parents: list[Any]) -> Iterator[str]:
    """One phrase for each parent; manifests leave it open what a parent says of itself."""
    for parent in parents:
        said = parent if isinstance(parent, dict) else {}
        method, edits, older = said.get("method"), said.get("edits"), said.get("parents")
        name = method.get("name") if isinstance(method, dict) else None
        count = edits.get("count") if isinstance(edits, dict) else None
        before = f" and {len(older)} before it" if isinstance(older, list) and older else ""
        yield f"a pack of {shortened(str(count), 20)} edit(s) by {shortened(str(name), 40)}{before}"


def _measured(count: int) -> str:
    return f"{count} figures, on the card and in evaluation.json" if count else "not yet: hf-edit evaluate --save"


def _signature(signature: Mapping[str, Any] | None) -> str:
    if signature is None:
        return "unsigned"
    return f"by the key {signature['key'] or 'that it does not name'}; unchecked, see `hf-edit verify --public-key`"


def _weight_norms(pack: EditPack, base: str, revision: str | None, device: str | None, dtype: str) -> dict[str, float]:
    from hf_edit.models.loading import load_model
    from hf_edit.models.orientation import stored_weights

    model, _ = load_model(base, dtype=dtype, device=device, revision=revision)
    pack.verify(model, weights=False)
    stored = stored_weights(model)
    return {name: float(stored[name][0].detach().float().norm()) for name in pack.deltas}


def _bytes(name: str) -> int | None:
    """Size of the plain files in a pack's folder; None for one that lies on the Hub."""
    folder = Path(name)
    files = folder.iterdir() if folder.is_dir() else []
    return sum(file.lstat().st_size for file in files if not file.is_symlink() and file.is_file()) or None
