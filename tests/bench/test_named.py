"""What settings name by a path is told by what lies there."""

from __future__ import annotations

from pathlib import Path

from hf_edit.bench.named import _digest, contents


def test_a_folder_or_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    net, text = tmp_path / "net", tmp_path / "text.txt"
    net.mkdir()
    (net / "a").write_text("1")
    text.write_text("Once.")
    settings = {"hypernet": str(net), "statistics": {"text": str(text)}, "layers": [1], "label": str(net)}
    first = dict(contents(settings))
    assert first.keys() == {"hypernet", "statistics.text"} and first == dict(contents(settings))
    (net / "a").write_text("2")
    _digest.cache_clear()  # as in another run
    second = dict(contents(settings))
    assert second["hypernet"] != first["hypernet"] and second["statistics.text"] == first["statistics.text"]
    assert not dict(contents({"hypernet": "me/net", "statistics": {"text": "self"}}))  # not here
