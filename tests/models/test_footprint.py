"""What the system says of memory."""

from __future__ import annotations

from pathlib import Path

import torch

from hf_edit.models.footprint import _left_in_group, free, peak_over


CPU = torch.device("cpu")
MB = 1 << 20


def test_there_is_memory_and_other_devices_do_not_say() -> None:
    left = free(CPU)
    assert left is None or left > MB
    assert free(torch.device("meta")) is None


def group(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("700\n")
    (folder / "memory.stat").write_text("anon 300\ninactive_file 250\nactive_file 150\n")
    return folder


def test_a_container_leaves_what_its_limit_leaves(tmp_path: Path) -> None:
    assert _left_in_group(group(tmp_path, "1000")) == 550
    assert _left_in_group(group(tmp_path, "100")) == 0
    assert _left_in_group(group(tmp_path, "max")) is None
    assert _left_in_group(tmp_path / "none") is None


def test_an_inner_block_takes_nothing_from_the_peak_of_the_outer_one() -> None:
    with peak_over(CPU) as outer:
        held = torch.ones(96 * MB, dtype=torch.uint8)
        del held
        with peak_over(CPU) as inner:
            held = torch.ones(32 * MB, dtype=torch.uint8)
            del held
    assert outer.beyond > 80 * MB
    assert 24 * MB < inner.beyond < 64 * MB
