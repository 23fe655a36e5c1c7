"""Every error that a user can cause. Each names the value, the limit and the remedy."""

import json
import unicodedata


_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d"}  # shape letters of some scripts, and emoji
_LONGEST = 2000


def visible(text: str, keep: str = "\t\n") -> str:
    """Text in which nothing steers a terminal, turns the direction of writing or hides.

    Control characters but for those to keep, bidirectional marks, line separators and halves of surrogate pairs
    become `\\uXXXX`, as in JSON, so that a JSON document stays what it is.
    """
    if text.isprintable():
        return text
    return "".join(
        json.dumps(c)[1:-1].replace("\x7f", "\\u007f")
        if unicodedata.category(c) in _HIDDEN and c not in keep and c not in _JOINERS
        else c
        for c in text
    )


class HfEditError(Exception):
    """Base of all errors that hf_edit raises on purpose.

    Args:
        message: what is wrong, with the value found and the limit that it breaks.
        remedy: what to do about it, as an instruction.

    Both may quote files that anybody wrote: they are made `visible`, also line feeds, which would begin a remedy of
    somebody else's, and cut where they are absurdly long.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = _shortened(visible(message, keep=""))
        self.remedy = _shortened(visible(remedy, keep=""))

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


class InvalidEditError(HfEditError):
    """An edit, or a file of edits, that cannot be taught as it stands."""


class ConfigError(HfEditError):
    """A setting that is unknown or out of its range."""


class UnsupportedModelError(HfEditError):
    """A model in which the parts that an edit needs could not be found."""


class StatisticsError(HfEditError):
    """Second-moment statistics that are missing, too small or of another model."""


class ComputationError(HfEditError):
    """An edit whose computation failed: a loss or a solve that is not finite."""


class MemoryBudgetError(ComputationError):
    """A computation that does not fit into the memory budget, or into the device."""


class PackError(HfEditError):
    """A pack, or another folder of hf_edit's, whose files are missing, damaged, hostile or of an unknown format."""


class BaseMismatchError(PackError):
    """A pack or a hypernetwork, and a model, that do not belong together."""


class ComposeError(HfEditError):
    """Packs that cannot be attached, detached or combined as asked."""


class HubError(HfEditError):
    """Something that the Hub refused, does not have, or could not be asked for."""


class HfEditWarning(UserWarning):
    """Something that works but probably not as well as the user expects."""
