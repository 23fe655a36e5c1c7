"""Signatures by key files: what they cover, and what is said where they do not hold."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from hf_edit.errors import ConfigError, PackError
from hf_edit.files.reading import PlainFolder
from hf_edit.packs.contents import ADAPTER, CARD, EDITS, EVALUATION, FILES, MANIFEST
from hf_edit.packs.pack import EditPack
from hf_edit.packs.signing import SIGNATURE, SignatureError, read_signature, sign, verify_signature
from tests.packs.hostile import in_bytes, reseal
from tests.packs.make import make_pack
from tests.tiny import tiny_model


pytest.importorskip("model_signing")
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402


def write_keys(folder: Path, name: str, private: Any, password: bytes | None = None) -> tuple[Path, Path]:
    hiding = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    secret.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hiding))
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return secret, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "mine", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    make_pack(tiny_model()).save_pretrained(tmp_path / "pack")
    return tmp_path / "pack"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a signature by a key needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_signed_pack_is_verified_and_opens_as_before(pack: Path, keys: tuple[Path, Path]) -> None:
    before = {path.name: path.read_bytes() for path in pack.iterdir()}
    assert read_signature(PlainFolder(pack)) is None
    assert sign(pack, keys[0]) == pack / SIGNATURE
    assert {name: (pack / name).read_bytes() for name in before} == before
    assert sorted(os.listdir(pack.parent)) == ["pack"]
    signature = verify_signature(PlainFolder(pack), keys[1])
    assert set(signature.files) == set(FILES) - {EVALUATION, CARD} and len(signature.key or "") == 64
    EditPack.from_pretrained(pack)
    sign(pack, keys[0])  # again
    (pack / CARD).write_text("the owner's own words")
    verify_signature(PlainFolder(pack), keys[1])


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves(curve: ec.EllipticCurve, pack: Path, tmp_path: Path) -> None:
    secret, public = write_keys(tmp_path, "other", ec.generate_private_key(curve))
    sign(pack, secret)
    verify_signature(PlainFolder(pack), public)


def test_a_key_with_a_password(pack: Path, tmp_path: Path) -> None:
    secret, public = write_keys(tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), b"open sesame")
    for password in (None, "wrong"):
        with pytest.raises(ConfigError, match="cannot be signed"):
            sign(pack, secret, password=password)
    assert not (pack / SIGNATURE).exists()
    sign(pack, secret, password="open sesame")
    verify_signature(PlainFolder(pack), public)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [(ADAPTER, b"\x01", b"\x02"), (EDITS, b"Port Amber", b"Port Ember"), (MANIFEST, b'"seed": 0', b'"seed": 1')],
)
def test_an_altered_file_is_noticed_also_when_its_digest_was_made_right(
    name: str, old: bytes, new: bytes, pack: Path, keys: tuple[Path, Path]
) -> None:
    sign(pack, keys[0])
    in_bytes(name, lambda data: data.replace(old, new))(pack)
    reseal(pack)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(PlainFolder(pack), keys[1])


def test_another_key_is_not_the_author(pack: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign(pack, keys[0])
    _, other = write_keys(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SignatureError, match="(?i)key mismatch"):
        verify_signature(PlainFolder(pack), other)


def test_the_signature_of_another_pack(pack: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    make_pack(tiny_model(), seed=1).save_pretrained(tmp_path / "other")
    sign(tmp_path / "other", keys[0])
    shutil.copy(tmp_path / "other" / SIGNATURE, pack)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(PlainFolder(pack), keys[1])


def test_a_signature_that_leaves_the_manifest_out_vouches_for_nothing(pack: Path, keys: tuple[Path, Path]) -> None:
    from model_signing import hashing, signing

    ignoring = hashing.Config().set_ignored_paths(paths=[MANIFEST, CARD, SIGNATURE])
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(ignoring)
    config.sign(pack, pack / SIGNATURE)
    with pytest.raises(SignatureError, match="leaves out edit_pack.json"):
        verify_signature(PlainFolder(pack), keys[1])


def test_a_signature_that_leaves_out_what_the_manifest_lists(pack: Path, keys: tuple[Path, Path]) -> None:
    from model_signing import hashing, signing

    ignoring = hashing.Config().set_ignored_paths(paths=[ADAPTER, EDITS, CARD, SIGNATURE])
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(ignoring)
    config.sign(pack, pack / SIGNATURE)
    with pytest.raises(SignatureError, match=f"leaves out {ADAPTER}, {EDITS}"):
        verify_signature(PlainFolder(pack), keys[1])


def test_a_signed_file_that_is_gone(pack: Path, keys: tuple[Path, Path]) -> None:
    sign(pack, keys[0])
    (pack / ADAPTER).unlink()
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(PlainFolder(pack), keys[1])


def test_what_the_library_itself_signs_is_verified(pack: Path, keys: tuple[Path, Path]) -> None:
    from model_signing import signing

    (pack / CARD).unlink()
    signing.Config().use_elliptic_key_signer(private_key=keys[0]).sign(pack, pack / SIGNATURE)
    verify_signature(PlainFolder(pack), keys[1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"dsseEnvelope": 3}',
        b'{"dsseEnvelope": {"payload": "%%%"}, "verificationMaterial": {}}',
        b'{"dsseEnvelope": {"payload": "e30="}, "verificationMaterial": {}}',
        b'{"a":' + b"[" * 9999,
    ],
)
def test_a_signature_that_is_none(content: bytes, pack: Path, keys: tuple[Path, Path]) -> None:
    (pack / SIGNATURE).write_bytes(content)
    with pytest.raises(PackError, match=SIGNATURE):
        verify_signature(PlainFolder(pack), keys[1])
    EditPack.from_pretrained(pack)  # which asks for no signature


def test_a_signature_with_a_part_missing(pack: Path, keys: tuple[Path, Path]) -> None:
    sign(pack, keys[0])
    bundle = json.loads((pack / SIGNATURE).read_bytes())
    bundle["dsseEnvelope"]["signatures"] = []
    (pack / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(SignatureError, match="does not hold"):
        verify_signature(PlainFolder(pack), keys[1])


def test_an_unsigned_pack_is_said_to_be_unsigned(pack: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        verify_signature(PlainFolder(pack), keys[1])


def test_only_sound_packs_and_nothing_else_are_signed(pack: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (pack / "notes.txt").write_text("x")
    with pytest.raises(PackError, match="notes.txt"):
        sign(pack, keys[0])
    (pack / "notes.txt").unlink()
    in_bytes(ADAPTER, lambda data: data[:-1])(pack)
    with pytest.raises(PackError, match="was altered"):
        sign(pack, keys[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackError, match=MANIFEST):
        sign(tmp_path / "empty", keys[0])


def test_keys_of_no_use(pack: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    secret, public = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    (tmp_path / "text").write_text("no key")
    for useless in (secret, tmp_path / "text", tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="openssl"):
            sign(pack, useless)
    sign(pack, keys[0])
    for useless in (public, tmp_path / "text", tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be used"):
            verify_signature(PlainFolder(pack), useless)


def test_a_pack_in_the_hubs_cache(pack: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """There every file is a link to a blob."""
    sign(pack, keys[0])
    snapshot = tmp_path / "repo" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.move(pack, tmp_path / "repo" / "blobs")
    for name in os.listdir(tmp_path / "repo" / "blobs"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    verify_signature(PlainFolder(snapshot, within=tmp_path / "repo"), keys[1])
    (tmp_path / "repo" / "blobs" / "0").write_text("MIT")
    (snapshot / "LICENSE").symlink_to("../../blobs/0")
    (snapshot / "other").mkdir()
    (snapshot / "other" / MANIFEST).symlink_to("../../../blobs/0")
    verify_signature(PlainFolder(snapshot, within=tmp_path / "repo"), keys[1])
    with pytest.raises(PackError, match="symbolic link"):
        verify_signature(PlainFolder(snapshot), keys[1])


def test_without_the_package_the_extra_is_named(
    pack: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "model_signing":
            raise ModuleNotFoundError("No module named 'model_signing'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'hf-edit\[signing\]'"):
        sign(pack, keys[0])


def test_what_else_lies_in_a_folder_is_told(pack: Path, keys: tuple[Path, Path]) -> None:
    sign(pack, keys[0])
    (pack / "LICENSE").write_text("MIT")
    with pytest.raises(PackError, match="does not list: LICENSE"):
        verify_signature(PlainFolder(pack), keys[1])


def test_another_signature_beside_it_is_nobodys_business(pack: Path, keys: tuple[Path, Path]) -> None:
    sign(pack, keys[0])
    (pack / "other.sig").write_text("{}")
    verify_signature(PlainFolder(pack), keys[1])
