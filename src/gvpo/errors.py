"""Every error that gvpo raises on purpose.

    GvpoError
     ├─ ConfigError            a recipe, a key or a command line that cannot work
     ├─ DataError              a data set, a prompt, a group or a file of them
     ├─ ObjectiveError         what an objective was given
     │   ├─ ShapeError         a tensor with the wrong shape or dtype
     │   ├─ GroupTooSmall      a centred objective met a group of one
     │   └─ MissingInput       a keyword that the objective requires is not in the batch
     │       └─ MissingLogprobs   reference or old log-probs, all or some
     ├─ ModelError             a model or a tokenizer that cannot be loaded, saved or used
     │   └─ RoundTripError     saved, and something else comes back
     ├─ RewardError            rewards that cannot be used, or too few of them
     ├─ RunError               a run directory that is taken, missing or unusable
     │   └─ CheckpointError    a checkpoint that is incomplete or damaged
     └─ TrainingError          training that cannot go on (non-finite updates, no usable groups)

Messages are one line and say what to do. The command line prints them without a traceback and exits with code 2.
"""


class GvpoError(Exception):
    """The root: `except GvpoError` catches what the library raises on purpose and nothing else."""


class ConfigError(GvpoError, ValueError):
    """A recipe, a key or a command line that cannot work."""


class DataError(GvpoError, ValueError):
    """A data set, a prompt, a group or a file of them that cannot be used."""


class ObjectiveError(GvpoError, ValueError):
    """What an objective was given does not fit."""


class ShapeError(ObjectiveError):
    """A tensor has the wrong shape or dtype; the message names it and says what is expected."""


class GroupTooSmall(ObjectiveError):
    """A centred objective met a group with fewer than two rows."""


class MissingInput(ObjectiveError):
    """A keyword that the objective requires is not in the batch."""


class MissingLogprobs(MissingInput):
    """Reference or old log-probs are missing from all rows or from some."""


class ModelError(GvpoError):
    """A model or a tokenizer cannot be loaded, saved or used."""


class RoundTripError(ModelError):
    """A saved model or tokenizer does not come back as what was saved."""


class RewardError(GvpoError):
    """Rewards cannot be used, or too few of them came back."""


class RunError(GvpoError):
    """A run directory is taken, missing or unusable."""


class CheckpointError(RunError):
    """A checkpoint is incomplete or damaged."""


class TrainingError(GvpoError):
    """Training cannot go on."""


class GvpoWarning(UserWarning):
    """The root of what the library warns of: a setting that works and rarely means what it says, a fall-back taken."""


def one_line(error: BaseException, most: int | None = 300) -> str:
    """Return what an error says on one line, without the last full stop; its class's name if it says nothing.

    Args:
        error: The error.
        most: Maximum number of characters; None keeps all of them.
    """
    return " ".join(str(error).split())[:most].rstrip(".") or type(error).__name__
