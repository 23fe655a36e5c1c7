"""`hf-edit inspect`: what a pack teaches, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_edit.cli.options import Json, Pack
from hf_edit.cli.output import folder_size, last_text, print_facts, print_json, print_table, readable_size, shortened


if TYPE_CHECKING:
    from hf_edit.packs.pack import EditPack


def inspect(pack: Pack, as_json: Json = False) -> None:
    """Show what a pack teaches, its base, method, modules and files. No model is loaded."""
    from hf_edit.packs.pack import EditPack

    opened = EditPack.from_pretrained(pack)
    if as_json:
        print_json(_document(pack, opened))
    else:
        _print(pack, opened)


def _document(name: str, pack: EditPack) -> dict[str, Any]:
    manifest = pack.manifest
    return {
        "pack": name,
        "edits": [edit.to_json() for edit in pack.edits],
        "base": {"id": manifest.base.id, "revision": manifest.base.revision, "fingerprint": manifest.base.fingerprint},
        "method": {"name": manifest.method.name, "config": dict(manifest.method.config)},
        "prompt_format": manifest.prompt_format.name,
        "layout": manifest.layout,
        "hf_edit_version": manifest.hf_edit_version,
        "modules": {
            module: {"rank": delta.rank, "shape": list(delta.shape), "norm": delta.norm()}
            for module, delta in pack.deltas.items()
        },
        "parameters": _parameters(pack),
        "bytes": _bytes(name),
        "files": dict(manifest.files),
    }


def _print(name: str, pack: EditPack) -> None:
    manifest = pack.manifest
    size = _bytes(name)
    rows = [(edit.id, shortened(last_text(edit.prompt)), shortened(edit.target)) for edit in pack.edits]
    print_table(f"Teaches {len(rows)} answer(s)", ("id", "prompt", "target"), rows, lines=True)
    print_facts(
        (
            ("pack", name),
            ("base", manifest.base.id or f"not on the Hub ({manifest.base.model_type})"),
            ("base revision", manifest.base.revision or "not recorded"),
            ("base fingerprint", manifest.base.fingerprint),
            ("method", manifest.method.name),
            ("prompt format", manifest.prompt_format.name),
            ("layout", manifest.layout),
            ("size", f"{_parameters(pack):,} parameters" + (f", {readable_size(size)} in all" if size else "")),
            ("written by", f"hf_edit {manifest.hf_edit_version}"),
        )
    )
    modules = [
        (module, delta.rank, f"{delta.shape[0]} x {delta.shape[1]}", f"{delta.norm():.4g}")
        for module, delta in pack.deltas.items()
    ]
    print_table("Changed modules", ("module", "rank", "shape", "norm"), modules)
    print_table("Files, all as recorded", ("file", "sha256"), sorted(manifest.files.items()))


def _parameters(pack: EditPack) -> int:
    return sum(delta.A.numel() + delta.B.numel() for delta in pack.deltas.values())


def _bytes(name: str) -> int | None:
    """Size of a pack's folder; None for one that lies on the Hub."""
    folder = Path(name)
    return folder_size(folder) if folder.is_dir() else None
