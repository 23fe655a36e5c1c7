"""Calls to the Hub: repeated where that can help, and told as errors that a user can act on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_edit.errors import HfEditError, HubError


WAITS = (1.0, 2.0, 4.0)
"""Seconds before the second, third and fourth try of a call that failed for a reason that passes."""

_PASSING = {408, 412, 429, 500, 502, 503, 504}
"""Statuses worth another try; 412 says that somebody else's commit came in between."""
_LOG_IN = "Log in with `hf auth login`, set HF_TOKEN, or pass token=."

T = TypeVar("T")


@dataclass(frozen=True)
class HubCommit:
    """One commit of a repository on the Hub, and the folder in it that is meant; None is the whole repository."""

    repo_id: str
    commit: str
    subfolder: str | None = None

    @property
    def url(self) -> str:
        """The page that shows it."""
        within = f"/{self.subfolder}" if self.subfolder else ""
        return f"{constants.ENDPOINT}/{self.repo_id}/tree/{self.commit}{within}"


def is_repo_id(name: str) -> bool:
    """Whether the Hub could have a repository of this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def repo_of(name: str | None) -> str | None:
    """The repository that a model of this `_name_or_path` is of; a folder's name is nobody else's business."""
    return name if name and is_repo_id(name) and not os.path.exists(name) else None


def attempt(call: Callable[[], T], doing: str) -> T:
    """What `call` returns, which is called again after a broken connection, a busy Hub or a conflicting commit.

    Args:
        doing: what the call is for, as the subject of a message: "Pushing to 'me/pack'".

    Raises:
        HubError: the call failed for good, or each of `len(WAITS) + 1` times.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except HfEditError:
            raise
        except Exception as error:  # what kinds there are depends on the version of the Hub's client
            cause = _cause(error)
            if wait is None or not _passes(cause):
                reason, remedy = _told(cause)
                raise HubError(f"{doing} failed: {reason}.", remedy) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _passes(error: BaseException | None) -> bool:
    """Whether the same call may well succeed a little later."""
    if isinstance(error, LocalEntryNotFoundError):  # the client looked into its cache after the Hub had failed
        return isinstance(error.__cause__, HfHubHTTPError) and _passes(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, HTTPError)


def _cause(error: BaseException) -> BaseException:
    """What an error comes from: the client wraps failures of single files in a RuntimeError."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _told(error: BaseException) -> tuple[str, str]:
    """Why a call failed, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        return f"it is no id of a repository ({_first_line(error)})", "Write owner/name."
    if isinstance(error, GatedRepoError):
        return "the repository is gated", f"Ask for access on its page. {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository that you may read", f"Check the name. If it is private: {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision", "Name a branch, tag or commit that it has."
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on", "Unset HF_HUB_OFFLINE."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "the Hub cannot be reached, and the cache does not hold it",
            "Check the network, unset HF_HUB_OFFLINE if it is set, and try again.",
        )
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub knows no user by the token, or there is none", _LOG_IN
    if status == 403:
        return "the token gives no right to do that", "Use a token with write access to the repository."
    if _passes(error):
        return f"{len(WAITS) + 1} tries ended with: {_first_line(error)}", "Check the network and try again later."
    return _first_line(error), "Correct what the Hub names."


def _first_line(error: BaseException) -> str:
    server = getattr(error, "server_message", None)
    lines = (server or str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
