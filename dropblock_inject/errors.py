"""The errors of the package. Each is a DropBlockInjectError and the built-in error that fits."""

from __future__ import annotations


class DropBlockInjectError(Exception):
    """Base of all errors of this package."""


class DropBlockValueError(DropBlockInjectError, ValueError):
    """An argument has a value that cannot be used."""


class DropBlockTypeError(DropBlockInjectError, TypeError):
    """An argument has a type that cannot be used."""


class NoTrunkError(DropBlockInjectError, ValueError):
    """The model has no convolutional trunk to put DropBlock into."""


class TraceError(DropBlockInjectError, RuntimeError):
    """The forward pass without data, which finds the stages, failed before the end of the trunk."""


class NoMatchError(DropBlockInjectError, ValueError):
    """A stage or a name pattern matches nothing in the model."""


class AlreadyInjectedError(DropBlockInjectError, RuntimeError):
    """The model already has injected DropBlocks."""


class CompiledModelError(DropBlockInjectError, RuntimeError):
    """The model is compiled or scripted, so that it would ignore hooks added now."""


class DeadSiteError(DropBlockInjectError, RuntimeError):
    """An injected DropBlock no longer takes part in the forward pass."""


class ScheduleError(DropBlockInjectError, RuntimeError):
    """The schedule does not fit the model, the optimizer or the checkpoint."""


class DropBlockWarning(UserWarning):
    """Something is used in a way that is probably a mistake."""
