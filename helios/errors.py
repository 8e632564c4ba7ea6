"""The named errors of helios.

Every message says what was received, what was expected and what to do. Errors that stand for a bad
argument are also ``ValueError`` or ``TypeError``, so that code which knows nothing of helios can
catch them.
"""


class HeliosError(Exception):
    """The base of every error that helios names."""


class ConsumedStateError(HeliosError, RuntimeError):
    """A state was used after a donated step had taken its tensors."""


class LossError(HeliosError, TypeError):
    """A loss function returned something that cannot be trained on."""


class ModelError(HeliosError, ValueError):
    """A model cannot be trained as it stands."""


class PretrainedError(HeliosError, ValueError):
    """Pretrained weights do not fit a module, or a file is none of weights."""


class NonFiniteError(HeliosError, ArithmeticError):
    """A loss or a gradient was NaN or infinite; nothing that was saved has its update.

    Attributes:
        update: the number of the update, counted from 1; 0 if unknown, as for the others.
        global_iteration: the micro-batch that closed its window, counted from 1.
        epoch: the epoch of that micro-batch, counted from 1.
    """

    def __init__(
        self, message: str = "", *, update: int = 0, global_iteration: int = 0, epoch: int = 0
    ) -> None:
        super().__init__(message)
        self.update = update
        self.global_iteration = global_iteration
        self.epoch = epoch


class StateMismatchError(HeliosError, ValueError):
    """A state does not have the tree, shapes or dtypes that were expected."""


class SerialisationError(HeliosError, ValueError):
    """Bytes could not be read as a state, or a state holds what cannot be written."""


class DataError(HeliosError, ValueError):
    """A dataset or a loader cannot be trained on as it stands."""


class CheckpointError(HeliosError, RuntimeError):
    """A checkpoint could not be written or read."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint was written by a newer helios."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint's bytes are not what was written."""


class RunLockedError(CheckpointError):
    """Another run is writing checkpoints into the same folder."""


class ResumeError(CheckpointError):
    """A checkpoint is sound, but this run cannot go on from it exactly."""


class RankError(HeliosError, RuntimeError):
    """A run of several ranks failed, or its ranks do not run the same training.

    The message has the first failure, with its traceback.

    Attributes:
        rank: the rank that failed first; None if it was none of them, but what started them.
    """

    def __init__(self, message: str = "", *, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class NotTraceableError(HeliosError, TypeError):
    """Something in a step cannot be traced, so that the step cannot be compiled."""


class LawError(HeliosError, AssertionError):
    """A model or its data break a law that exact resume rests on; the message names the culprit."""


class RegistryError(HeliosError, KeyError):
    """A name is not in a registry, or is there twice."""

    def __str__(self) -> str:
        """Return the message as written; ``KeyError`` would quote it."""
        return str(self.args[0]) if self.args else ""


class ConfigError(HeliosError, ValueError):
    """A configuration has a wrong key, type or value; the message names the path of the key."""
