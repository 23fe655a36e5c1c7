"""What lies in a pack's folder or repository beside what its manifest lists."""

from __future__ import annotations

from collections.abc import Iterable

from hf_edit.errors import PackError
from hf_edit.packs.contents import CARD, MANIFEST


SIGNATURE_ENDING = ".sig"
_KEEPING = (".git", ".gitattributes", ".gitignore", ".cache")
"""What git, and the Hub's client in a folder that it downloads to, keep for themselves."""


def unlisted_files(entries: Iterable[str], listed: Iterable[str]) -> list[str]:
    """Entries of a pack's folder that its manifest does not vouch for, sorted.

    The card is its owner's to edit and signatures speak for themselves. Anything else could change what another
    library makes of the folder: a `config.json`, for one, makes it a whole model.

    Args:
        entries: all names in the folder.
        listed: names of the files that the manifest lists.
    """
    known = {*listed, MANIFEST, CARD, *_KEEPING}
    return sorted(name for name in entries if name not in known and not name.endswith(SIGNATURE_ENDING))


def check_listing(place: object, entries: Iterable[str], listed: Iterable[str]) -> None:
    """Raise a PackError that names what `unlisted_files` finds in `place`."""
    extra = unlisted_files(entries, listed)
    if extra:
        shown = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        raise PackError(
            f"{place} holds what the manifest does not list: {shown}.",
            "Move it away, or get the pack anew from where it was published: hf-edit pull takes nothing else.",
        )
