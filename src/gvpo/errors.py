"""Errors that gvpo raises deliberately.

    GvpoError
     ├─ ConfigError            a recipe, a key or a command line that cannot work
     ├─ DataError              a dataset, a prompt, a group or a file of them
     ├─ ObjectiveError         invalid input of an objective
     │   ├─ ShapeError         a tensor with the wrong shape or dtype
     │   ├─ GroupTooSmall      a group of one row for an objective that centres rewards
     │   └─ MissingInput       a keyword that the objective requires is not in the batch
     │       └─ MissingLogprobs   reference or old log-probs, all or some
     ├─ ModelError             a model or a tokenizer that cannot be loaded, saved or used
     │   └─ RoundTripError     a saved model that differs after loading
     ├─ EngineError            a sampling engine or server that failed or did not answer in time
     ├─ RewardError            rewards that cannot be used, or too few of them
     ├─ EpisodeError           an environment that cannot be used
     ├─ RunError               a run directory that is taken, missing or unusable
     │   └─ CheckpointError    a checkpoint that is incomplete or damaged
     └─ TrainingError          training that cannot continue (non-finite updates, no usable groups)

Messages are one line and state a remedy. The command line prints them without a traceback and exits with code 2.
"""


class GvpoError(Exception):
    """The root of the errors: `except GvpoError` catches only errors that the library raises deliberately."""


class ConfigError(GvpoError, ValueError):
    """A recipe, a key or a command line that cannot work."""


class DataError(GvpoError, ValueError):
    """A dataset, a prompt, a group or a file of them that cannot be used."""


class ObjectiveError(GvpoError, ValueError):
    """Invalid input of an objective."""


class ShapeError(ObjectiveError):
    """A tensor has the wrong shape or dtype; the message contains its name and the expected shape or dtype."""


class GroupTooSmall(ObjectiveError):
    """A group has fewer than two rows, and the objective centres rewards."""


class MissingInput(ObjectiveError):
    """A keyword that the objective requires is not in the batch."""


class MissingLogprobs(MissingInput):
    """Reference or old log-probs are missing from all rows or from some."""


class ModelError(GvpoError):
    """A model or a tokenizer cannot be loaded, saved or used."""


class RoundTripError(ModelError):
    """A saved model or tokenizer differs after loading."""


class EngineError(GvpoError):
    """A sampling engine or server failed, or did not answer in time."""


class RewardError(GvpoError):
    """Rewards cannot be used, or too few of them were returned."""


class EpisodeError(GvpoError):
    """An environment cannot be used, or its episodes cannot begin."""


class EpisodeLost(EpisodeError):
    """An episode cannot continue, such as that of a server that is gone. A step that raises it ends the episode."""


class RunError(GvpoError):
    """A run directory is taken, missing or unusable."""


class CheckpointError(RunError):
    """A checkpoint is incomplete or damaged."""


class TrainingError(GvpoError):
    """Training cannot continue."""


class GvpoWarning(UserWarning):
    """The root of the library's warnings: a setting with an unexpected effect, or a fall-back."""


def one_line(error: BaseException, most: int | None = 300) -> str:
    """Return an error's message on one line, without the last full stop, or its class's name if it has none.

    Args:
        error: The error.
        most: Maximum number of characters; None keeps all of them.
    """
    return " ".join(str(error).split())[:most].rstrip(".") or type(error).__name__


def type_of(value: object) -> str:
    """Return the type of a value with its article, for a message: "a str", "an int", "None"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
