"""Where a pack is."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_edit.errors import PackError
from hf_edit.packs.pack import EditPack
from tests.packs.make import make_pack
from tests.tiny import tiny_model


def test_a_folder_has_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_pack(tiny_model()).save_pretrained("me/lamp")
    EditPack.from_pretrained("me/lamp")
    for place in ("me/lamp", Path("me/lamp")):
        with pytest.raises(PackError, match="me/lamp is a folder here, which has no revision 'v3'") as caught:
            EditPack.from_pretrained(place, revision="v3")
        assert "Leave the revision out" in caught.value.remedy
