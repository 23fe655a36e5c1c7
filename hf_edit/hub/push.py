"""Publishing files on the Hub: one commit that holds all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hf_edit.errors import HubError
from hf_edit.hub.client import HubCommit, attempt


@dataclass(frozen=True)
class Published:
    """What a branch holds at one commit."""

    repo_id: str
    commit: str
    names: frozenset[str]
    _api: HfApi = field(repr=False)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file."""
        if name not in self.names:
            return None
        return Path(self._api.hf_hub_download(self.repo_id, name, revision=self.commit)).read_bytes()


Changes = Mapping[str, bytes | Path | None]
"""Path in the repository -> new content, the file that holds it, or None: to be deleted."""


def push(
    repo_id: str,
    plan: Callable[[Published], Changes],
    *,
    message: str,
    tag: str | None = None,
    branch: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    collection: str | None = None,
) -> HubCommit:
    """Make a repository if there is none, and put files there in a single commit.

    The client's `upload_folder` makes several commits where it sees fit; here a reader sees all of it or nothing.

    Args:
        repo_id: `owner/name`, or a name of one's own.
        plan: says what to change, from what is there; asked again if somebody else's commit comes in between.
        message: of the commit.
        tag: a name for the commit; one that is taken is refused, since versions do not move.
        branch: where the commit goes, made from `main` if it is not there; None is `main`.
        private: of a new repository; True also refuses one that is there and public.
        collection: the slug `owner/title-id` of a collection, or a title, which makes one of the repository's owner.

    Raises:
        HubError: the Hub refused or failed; unless the message says otherwise, nothing was published.
    """
    api = HfApi(token=token)
    doing = f"Pushing to {repo_id!r}"
    repo_id = attempt(lambda: api.create_repo(repo_id, private=private, exist_ok=True), doing).repo_id
    attempt(lambda: _check(api, repo_id, private, tag), doing)
    if branch not in (None, "main"):
        attempt(lambda: api.create_branch(repo_id, branch=str(branch), exist_ok=True), f"{doing} on branch {branch!r}")
    commit = attempt(lambda: _commit(api, repo_id, branch, plan, message), doing)
    done = HubCommit(repo_id, commit)
    if tag is not None:
        attempt(lambda: _tag(api, done, tag), f"Commit {commit} is published; naming it {tag!r}")
    if collection is not None:
        attempt(
            lambda: _collect(api, repo_id, collection, bool(private)),
            f"Commit {commit} is published; adding {repo_id!r} to the collection {collection!r}",
        )
    return done


def _check(api: HfApi, repo_id: str, private: bool | None, tag: str | None) -> None:
    """Refuse, before anything is published, what could not be done to the end."""
    if private and not api.model_info(repo_id).private:
        raise HubError(
            f"{repo_id!r} is a public repository, and private=True was asked for.",
            "Make it private in its settings, or push to another repository.",
        )
    if tag is not None and tag in _tags(api, repo_id):
        raise HubError(f"{repo_id!r} has a tag {tag!r} already.", "Choose another name: versions do not move.")


def _commit(api: HfApi, repo_id: str, branch: str | None, plan: Callable[[Published], Changes], message: str) -> str:
    """One try. Done again after it succeeded and the answer was lost, it finds nothing left to change."""
    info = api.model_info(repo_id, revision=branch)
    there = Published(repo_id, info.sha or "", frozenset(file.rfilename for file in info.siblings or ()), api)
    operations = [
        CommitOperationDelete(path) if content is None else CommitOperationAdd(path, content)
        for path, content in sorted(plan(there).items())
    ]
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=branch, parent_commit=there.commit
    ).oid


def _tags(api: HfApi, repo_id: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}


def _tag(api: HfApi, at: HubCommit, tag: str) -> None:
    if _tags(api, at.repo_id).get(tag) != at.commit:  # a try whose answer was lost made it
        api.create_tag(at.repo_id, tag=tag, revision=at.commit)


def _collect(api: HfApi, repo_id: str, collection: str, private: bool) -> None:
    slug = collection
    if "/" not in collection:
        owner = repo_id.split("/")[0]
        slug = api.create_collection(collection, namespace=owner, private=private, exists_ok=True).slug
    api.add_collection_item(slug, repo_id, "model", exists_ok=True)
