"""Every error that a user can cause. Each names the value, the limit and the remedy."""


class HfEditError(Exception):
    """Base of all errors that hf_edit raises on purpose.

    Args:
        message: what is wrong, with the value found and the limit that it breaks.
        remedy: what to do about it, as an instruction.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


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


class PackError(HfEditError):
    """A pack whose files are missing, damaged, hostile or of an unknown format."""


class BaseMismatchError(PackError):
    """A pack and a model that do not belong together."""


class ComposeError(HfEditError):
    """Packs that cannot be attached, detached or combined as asked."""


class HfEditWarning(UserWarning):
    """Something that works but probably not as well as the user expects."""
