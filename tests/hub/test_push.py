"""One commit or none, whatever the Hub and the network do meanwhile."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_edit.errors import HubError
from hf_edit.hub.client import HubCommit
from hf_edit.hub.fetch import download, listing
from hf_edit.hub.push import push
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, Repository


pytestmark = REAL_CLIENT
FILES: dict[str, bytes | Path | None] = {"a.txt": b"one", "sub/b.safetensors": b"\0" * 1000}


def send(repo_id: str = "me/repo", files: dict[str, bytes | Path | None] = FILES, **options: object) -> HubCommit:
    return push(repo_id, lambda there: files, message="files", **options)  # type: ignore[arg-type]


def test_files_of_memory_and_disk_in_one_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"three")
    done = send("repo", {**FILES, "c.txt": tmp_path / "c"})
    assert (done.repo_id, done.url) == ("me/repo", f"{hub.url}/me/repo/tree/{done.commit}")
    there = hub.files("me/repo", done.commit)
    assert (there["a.txt"], there["sub/b.safetensors"], there["c.txt"]) == (b"one", b"\0" * 1000, b"three")
    assert hub.repositories["me/repo"].messages == ["initial commit", "files"]

    again = send("me/repo", {"a.txt": b"two", "sub/b.safetensors": None})
    assert sorted(hub.files("me/repo")) == [".gitattributes", "a.txt", "c.txt"]
    assert send("me/repo", {"a.txt": b"two"}) == again  # nothing to change, nothing committed


def test_what_is_there_can_be_read_by_the_plan(hub: LoopbackHub) -> None:
    hub.upload("me/repo", {"a.txt": b"old"})

    def plan(there: object) -> dict[str, bytes | Path | None]:
        assert there.read("none") is None  # type: ignore[attr-defined]
        return {"a.txt": there.read("a.txt") + b" and new"}  # type: ignore[attr-defined]

    push("me/repo", plan, message="more")
    assert hub.files("me/repo")["a.txt"] == b"old and new"


def test_tag_branch_and_collection(hub: LoopbackHub) -> None:
    done = send(tag="v1", branch="next", collection="My packs")
    repository = hub.repositories["me/repo"]
    assert repository.tags == {"v1": done.commit} and repository.branches["next"] == done.commit
    assert sorted(hub.files("me/repo")) == [".gitattributes"]
    slug, collection = next(iter(hub.collections.items()))
    assert collection["title"] == "My packs" and [item["id"] for item in collection["items"]] == ["me/repo"]

    send("me/other", collection=slug)
    send("me/other", collection="My packs")
    assert [item["id"] for item in hub.collections[slug]["items"]] == ["me/repo", "me/other"]


def test_a_tag_that_is_taken_is_refused_before_anything_is_published(hub: LoopbackHub) -> None:
    first = send(tag="v1")
    with pytest.raises(HubError, match="has a tag 'v1' already"):
        send(files={"a.txt": b"two"}, tag="v1")
    assert hub.repositories["me/repo"].branches["main"] == first.commit


def test_private(hub: LoopbackHub) -> None:
    send(private=True)
    assert hub.repositories["me/repo"].private
    send(private=True, files={"a.txt": b"two"})
    hub.repositories["me/open"] = Repository()
    with pytest.raises(HubError, match="'me/open' is a public repository"):
        send("me/open", private=True)
    assert sorted(hub.files("me/open")) == [".gitattributes"]


@pytest.mark.parametrize("place", ["/api/repos/create", "/commit/", "/lfs/", "/tag/", "/collections$", "/items$"])
def test_failures_that_pass_are_tried_again(hub: LoopbackHub, place: str) -> None:
    method = "PUT" if place == "/lfs/" else "POST"
    if place == "/lfs/":
        hub.fail(method, place, 503)  # the client's own retries, with waits of its own
    else:
        hub.fail(method, place, 503)
        hub.fail(method, place, 429)
        hub.cut(method, place)
    done = send(tag="v1", collection="Packs")
    assert not any(fault.times for fault in hub.faults)
    repository = hub.repositories["me/repo"]
    assert repository.messages == ["initial commit", "files"] and repository.tags == {"v1": done.commit}
    assert len(hub.collections) == 1


@pytest.mark.parametrize("cut", [False, True])
def test_a_failure_that_stays_publishes_nothing(hub: LoopbackHub, cut: bool) -> None:
    if cut:
        hub.cut("POST", "/commit/", times=9)
    else:
        hub.fail("POST", "/commit/", 503, times=9)
    with pytest.raises(HubError, match="Pushing to 'me/repo' failed: 4 tries ended with") as caught:
        send(tag="v1")
    assert "try again later" in caught.value.remedy
    assert hub.asked("POST .*/commit/") == 4
    assert hub.repositories["me/repo"].messages == ["initial commit"] and not hub.repositories["me/repo"].tags
    hub.faults.clear()
    send(tag="v1")


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.loopback_hub import _Handler

    lost, send_answer = [1], _Handler._send

    def losing(handler: _Handler, *arguments: object) -> None:
        if "/commit/" in handler.path and lost:
            lost.pop()
            handler.close_connection = True
        else:
            send_answer(handler, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_Handler, "_send", losing)
    done = send(tag="v1")
    assert hub.repositories["me/repo"].messages == ["initial commit", "files"]
    assert hub.repositories["me/repo"].tags == {"v1": done.commit}


def test_somebody_elses_commit_in_between_makes_a_new_plan(hub: LoopbackHub) -> None:
    seen: list[str] = []

    def plan(there: object) -> dict[str, bytes | Path | None]:
        seen.append(there.commit)  # type: ignore[attr-defined]
        if len(seen) == 1:
            hub.upload("me/repo", {"theirs.txt": b"x"})
        return {"a.txt": b"one"}

    push("me/repo", plan, message="ours")
    assert len(set(seen)) == 2 and {"theirs.txt", "a.txt"} <= set(hub.files("me/repo"))


@pytest.mark.parametrize(
    ("repo_id", "token", "said", "remedy"),
    [
        ("me/repo", None, "knows no user by the token", "hf auth login"),
        ("me/repo", "wrong", "knows no user by the token", "hf auth login"),
        ("you/repo", "my-token", "gives no right", "write access"),
        ("no/such/thing", "my-token", "no id of a repository", "owner/name"),
        ("./folder", "my-token", "no id of a repository", "owner/name"),
    ],
)
def test_who_may_not(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, repo_id: str, token: str | None, said: str, remedy: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=said) as caught:
        send(repo_id, token=token)
    assert repr(repo_id) in caught.value.message and remedy in caught.value.remedy
    assert not hub.repositories


def test_a_branch_of_somebody_else(hub: LoopbackHub) -> None:
    hub.repositories["you/repo"] = Repository()
    with pytest.raises(HubError, match="gives no right"):
        send("you/repo")


def test_no_network_and_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="4 tries ended with") as caught:
        send()
    assert "network" in caught.value.remedy
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on"):
        send()


def test_metadata_that_the_hub_refuses(hub: LoopbackHub) -> None:
    with pytest.raises(HubError, match="Invalid metadata"):
        send(files={"README.md": b"---\nbase_model: /home/me/base\n---\n"})
    assert hub.repositories["me/repo"].messages == ["initial commit"]


def test_a_connection_that_breaks_in_the_middle_of_a_file(hub: LoopbackHub, tmp_path: Path) -> None:
    send()
    there = listing("me/repo")
    assert there.sizes == {".gitattributes": 25, "a.txt": 3, "sub/b.safetensors": 1000}
    assert there.digests == {"sub/b.safetensors": hashlib.sha256(b"\0" * 1000).hexdigest()}
    hub.cut("GET", "/resolve/.*safetensors")
    download("me/repo", there.commit, ["sub/b.safetensors"], tmp_path)
    assert (tmp_path / "sub/b.safetensors").read_bytes() == b"\0" * 1000
    assert not (tmp_path / "a.txt").exists()
    hub.fail("GET", "/api/models", 503, times=2)
    assert listing("me/repo", revision=there.commit) == there
