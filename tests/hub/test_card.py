"""What of a published card is generated and what is its owner's."""

from __future__ import annotations

import pytest
import yaml

from hf_edit.hub.card import BEGIN, END, MAX_ENTRIES, merged_card


NEW = b"---\nlibrary_name: peft\nbase_model: org/base\ntags:\n- hf-edit\n---\n\n# Two edits\n\n| a | b |\n"


def parts(card: bytes) -> tuple[dict[str, object], str, str, str]:
    """Metadata, and the text above, between and below the comments."""
    _, head, body = card.decode().split("---\n", 2)
    above, rest = body.split(BEGIN)
    between, below = rest.split(END)
    return yaml.safe_load(head), above.strip(), between.strip(), below.strip()


def test_a_first_card_is_all_generated() -> None:
    metadata, above, between, below = parts(merged_card(NEW, None))
    assert metadata == {"library_name": "peft", "base_model": "org/base", "tags": ["hf-edit"]}
    assert (above, between, below) == ("", "# Two edits\n\n| a | b |", "")


def test_what_the_owner_wrote_around_it_stays() -> None:
    first = merged_card(NEW, None).decode()
    edited = (
        first.replace(BEGIN, f"# My pack\n\n{BEGIN}").replace(END, f"{END}\n\nAsk me.\n").replace("| a |", "| x |")
    )
    edited = edited.replace("library_name: peft", "license: mit\nlibrary_name: other").replace("- hf-edit", "- mine")
    changed = NEW.replace(b"Two", b"Three").replace(b"org/base", b"org/other")
    second = merged_card(changed, edited.encode())
    metadata, above, between, below = parts(second)
    assert metadata == {
        "license": "mit",
        "library_name": "peft",
        "base_model": "org/other",
        "tags": ["mine", "hf-edit"],
    }
    assert (above, between, below) == ("# My pack", "# Three edits\n\n| a | b |", "Ask me.")
    assert merged_card(changed, second) == second
    assert merged_card(second, second) == second  # a card that was pulled and is pushed again


def test_a_card_of_somebodys_own_keeps_its_text_above() -> None:
    metadata, above, between, _ = parts(merged_card(NEW, b"---\nlicense: mit\n---\n\n# Mine\n\nText.\n"))
    assert (metadata["license"], above) == ("mit", "# Mine\n\nText.")
    assert between.startswith("# Two edits")


def test_what_the_owner_wrote_here_is_kept_where_nothing_is_there() -> None:
    mine = merged_card(NEW, b"---\nlicense: mit\n---\n\n# Mine\n").replace(END.encode(), f"{END}\n\nAsk me.".encode())
    assert merged_card(mine, None) == mine
    for published in (merged_card(NEW, None), b"---\nlanguage: en\n---\n"):
        metadata, above, between, below = parts(merged_card(mine, published))
        assert (above, between, below) == ("# Mine", "# Two edits\n\n| a | b |", "Ask me.")
        assert metadata["license"] == "mit"
    _, above, _, below = parts(merged_card(mine, b"Theirs."))
    assert (above, below) == ("Theirs.", "Ask me.")


def test_tags_that_hf_edit_sets_are_those_of_the_new_card() -> None:
    old = merged_card(NEW.replace(b"- hf-edit", b"- hf-edit\n- lora"), b"---\ntags: [medical]\n---\n")
    assert parts(old)[0]["tags"] == ["medical", "hf-edit", "lora"]
    assert parts(merged_card(NEW, old))[0]["tags"] == ["medical", "hf-edit"]


@pytest.mark.parametrize(
    ("odd", "kept"),
    [
        (b"---\nlicense: [mit\n---\n\nMine.", "license: [mit"),
        (b"---\n- mit\n---\n\nMine.", "- mit"),
        (b"---\n1: one\n---\n\nMine.", "1: one"),
        (b"\xff\xfe Mine.", "Mine."),
        (b"--- Mine.", "--- Mine."),
        ("\ufeff---\nlicense: mit\n---\nMine.".encode(), "Mine."),
        (b"---\ntags:\n- {a: b}\n- mine\n---\nMine.", "Mine."),
    ],
)
def test_whatever_a_card_is_nothing_of_it_is_lost(odd: bytes, kept: str) -> None:
    for card in (merged_card(NEW, odd), merged_card(merged_card(NEW, odd), None)):
        metadata, above, between, _ = parts(card)
        assert kept in above and "Mine." in above and between == "# Two edits\n\n| a | b |"
        assert metadata["base_model"] == "org/base"
    if b"\xbb" in odd:
        assert metadata["license"] == "mit"
    parts(merged_card(odd, None))


def test_figures_do_not_outlive_their_pack() -> None:
    old = b"---\nmodel-index:\n- name: x\nlanguage: en\n---\n"
    metadata, *_ = parts(merged_card(NEW, old))
    assert "model-index" not in metadata and metadata["language"] == "en"
    measured = NEW.replace(b"tags:", b"model-index:\n- name: y\n  results: []\ntags:")
    assert parts(merged_card(measured, old))[0]["model-index"] == [{"name": "y", "results": []}]


def test_changes_are_kept_newest_first() -> None:
    card = merged_card(NEW, None)
    assert "## Changes" not in card.decode()
    card = merged_card(NEW, card, "### Since 1\n\n- Added a")
    assert merged_card(NEW, card) == card
    card = merged_card(NEW.replace(b"Two", b"Three"), card, "### Since 2\n\n- Removed a\n- Added b")
    _, _, between, below = parts(card)
    assert between == (
        "# Three edits\n\n| a | b |\n\n## Changes\n\n### Since 2\n\n- Removed a\n- Added b\n\n### Since 1\n\n- Added a"
    )
    assert not below
    assert b"## Changes" not in merged_card(card, None)  # they are of the repository that it came from


def test_old_changes_are_forgotten() -> None:
    card = merged_card(NEW, None)
    for number in range(MAX_ENTRIES + 3):
        card = merged_card(NEW, card, f"### Since {number}\n\n- Added e{number}")
    told = [line for line in card.decode().splitlines() if line.startswith("### ")]
    assert told == [f"### Since {number}" for number in range(MAX_ENTRIES + 2, 2, -1)]


def test_a_single_tag_is_one_tag() -> None:
    assert parts(merged_card(NEW, b"---\ntags: medical\n---\n"))[0]["tags"] == ["medical", "hf-edit"]
