"""Detached signatures of packs, by the package model-signing (OpenSSF): elliptic-curve keys, without any network.

Signed is every file of the pack but its card, which its owner may edit, and other signatures. What counts is the
manifest: it has the digests of all the rest, which reading a pack checks.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_edit.errors import ConfigError, PackError
from hf_edit.files import strict_json
from hf_edit.files.reading import PlainFolder
from hf_edit.packs.contents import CARD, MANIFEST, from_folder
from hf_edit.packs.listing import SIGNATURE_ENDING, check_listing
from hf_edit.packs.manifest import Manifest


SIGNATURE = "model.sig"
MAX_BYTES = 16 << 20
_MAKE_A_KEY = (
    "Make a pair: openssl ecparam -genkey -name prime256v1 -noout -out key.pem && "
    "openssl ec -in key.pem -pubout -out key.pub"
)


class SignatureError(PackError):
    """A signature that is missing, damaged, or not the one expected."""


@dataclass(frozen=True)
class Signature:
    """What a signature says of itself; nobody has checked it.

    Args:
        key: sha256 of the public key (its PEM) that is to verify it; None where the signer names none.
        files: the files that it covers.
    """

    key: str | None
    files: tuple[str, ...]


def read_signature(folder: PlainFolder) -> Signature | None:
    """What the signature in a pack's folder claims; None where the pack is not signed.

    Raises:
        SignatureError: it is damaged.
    """
    if not os.path.lexists(folder.path / SIGNATURE):
        return None
    bundle = strict_json.loads(folder.read(SIGNATURE, MAX_BYTES), SIGNATURE)
    try:
        statement = strict_json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True), SIGNATURE)
        files = tuple(sorted(str(resource["name"]) for resource in statement["predicate"]["resources"]))
        key = bundle["verificationMaterial"].get("publicKey", {}).get("hint")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise SignatureError(
            f"{SIGNATURE} is not a signature of a model: {type(error).__name__}.",
            "Get it anew, or sign the pack anew.",
        ) from error
    return Signature(key if isinstance(key, str) else None, files)


def sign(path: str | os.PathLike[str], private_key: str | os.PathLike[str], *, password: str | None = None) -> Path:
    """Sign the pack in a folder, replacing the signature that is there.

    Args:
        private_key: PEM file of an elliptic-curve key on P-256, P-384 or P-521.
        password: of the key, if it has one.

    Returns:
        The file of the signature.

    Raises:
        PackError: the pack is not sound, or the folder holds what its manifest does not list.
        ConfigError: model-signing is not installed, or the key cannot be used.
    """
    folder = PlainFolder(Path(path))
    check_listing(folder.path, os.listdir(folder.path), from_folder(folder).manifest.files)
    signing = _model_signing().signing
    with _explained(f"The pack cannot be signed with {private_key}", ConfigError, _MAKE_A_KEY):
        config = signing.Config().use_elliptic_key_signer(
            private_key=os.fspath(private_key),
            password=None if password is None else password.encode(),  # type: ignore[arg-type]  # its annotation errs
        )
        config.set_hashing_config(_hashing(folder.path))
        with tempfile.TemporaryDirectory(dir=folder.path.parent, prefix=".signing.") as temporary:
            config.sign(folder.path, Path(temporary) / SIGNATURE)
            os.replace(Path(temporary) / SIGNATURE, folder.path / SIGNATURE)
    return folder.path / SIGNATURE


def verify_signature(folder: PlainFolder, public_key: str | os.PathLike[str]) -> Signature:
    """Check that the pack is as the owner of a key signed it.

    Raises:
        SignatureError: it is not signed, by another key, leaves out the manifest or what that lists, or a file was
            changed since.
        PackError: a folder that is of no cache holds what the manifest does not list.
        ConfigError: model-signing is not installed, or the key cannot be read.
    """
    signature = read_signature(folder)
    if signature is None:
        raise SignatureError(f"{folder.path} is not signed.", f"Ask its author for {SIGNATURE}.")
    listed = Manifest.from_bytes(folder.read(MANIFEST)).files
    if not folder.cached:  # a cache holds what else was fetched, not what is in the repository: `Place.entries` tells
        check_listing(folder.path, os.listdir(folder.path), listed)
    library = _model_signing()
    with _explained(f"The public key {public_key} cannot be used", ConfigError, _MAKE_A_KEY):
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=os.fspath(public_key))
    # the files of a Hub cache are links, which reading has followed already
    config.set_hashing_config(library.hashing.Config().set_allow_symlinks(folder.cached))
    config.set_ignore_unsigned_files(True)
    remedy = "Do not use the pack, unless you know why: ask its author, and check that the key is the author's."
    with _explained(f"The signature of {folder.path} does not hold", SignatureError, remedy):
        config.verify(folder.path, folder.path / SIGNATURE)
    if left_out := sorted({MANIFEST, *listed} - set(signature.files)):
        raise SignatureError(f"{SIGNATURE} holds, but it leaves out {', '.join(left_out)}.", remedy)
    return signature


def _hashing(folder: Path) -> Any:
    """What is signed."""
    config = _model_signing().hashing.Config()
    signatures = {name for name in os.listdir(folder) if name.endswith(SIGNATURE_ENDING)} | {SIGNATURE}
    return config.set_ignored_paths(paths=[CARD, *sorted(signatures), ".cache"])


def _model_signing() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(
            f"Signatures need the package model-signing ({error}).", "Run: pip install 'hf-edit[signing]'"
        ) from error
    return model_signing


@contextmanager
def _explained(what: str, kind: type[ConfigError | PackError], remedy: str) -> Iterator[None]:
    """Whatever the library raises, as an error of ours: what it may raise is not written down."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise kind(f"{what}: {reason.rstrip('.')}.", remedy) from error
