"""What anybody can write into a pack's folder, digests made right again."""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_edit.files import strict_json
from hf_edit.packs.contents import EDITS, MANIFEST
from hf_edit.packs.manifest import sha256


Spoil = Callable[[Path], object]


def reseal(pack: Path, edits: Mapping[str, Any] | None = None) -> None:
    """Make every digest right, as one would who wants to deceive, wherever there is one to make.

    Args:
        edits: what the manifest is to say of the edits, if not the digest of their file.
    """
    try:
        manifest = json.loads(_small(pack / MANIFEST))
        manifest.pop("digest", None)
        for name in manifest["files"]:
            with suppress(OSError, ValueError):
                manifest["files"][name] = sha256(_small(pack / name))
        manifest["edits"]["sha256"] = manifest["files"][EDITS]
        manifest["edits"] = edits or manifest["edits"]
        sealed = {**manifest, "digest": sha256(strict_json.dumps(manifest))}
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return  # no manifest, or none that could be right
    (pack / MANIFEST).write_bytes(strict_json.dumps(sealed))


def _small(path: Path) -> bytes:
    """The content of a plain file that fits into memory; OSError for any other."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > 1 << 24:
        raise OSError(f"{path} is not small")
    return path.read_bytes()


def in_json(name: str, *path: str | int, value: Any = None, drop: bool = False) -> Spoil:
    """Set, or leave out, what stands at a path of keys."""

    def spoil(pack: Path) -> None:
        content = json.loads((pack / name).read_bytes())
        at = content
        for key in path[:-1]:
            at = at[key]
        if drop:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        (pack / name).write_text(json.dumps(content), encoding="utf-8")

    return spoil


def in_bytes(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    """Change the content of a file."""

    def spoil(pack: Path) -> None:
        (pack / name).write_bytes(change((pack / name).read_bytes()))

    return spoil


def in_header(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the header of a safetensors file and leave the numbers behind it."""

    def spoil(pack: Path) -> None:
        data = (pack / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        (pack / name).write_bytes(with_header(json.dumps(header).encode(), data[8 + length :]))

    return spoil


def with_header(header: bytes, payload: bytes) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(header)) + header + payload
