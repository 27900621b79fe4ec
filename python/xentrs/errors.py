"""Errors: what is wrong with a call, an input or a file. Each class has a built-in parent, so plain handlers work."""

from __future__ import annotations

__all__ = [
    "DTypeError",
    "FormatError",
    "InputChangedError",
    "InternalError",
    "IsaError",
    "LimitError",
    "ManifestMismatch",
    "MissingColumn",
    "NonFiniteError",
    "NotNormalizedError",
    "ParamError",
    "ShapeError",
    "TargetError",
    "TruncatedError",
    "XentrsError",
]


class XentrsError(Exception):
    """Parent of every error that xentrs raises itself; errors of the operating system pass through as `OSError`."""


class ShapeError(XentrsError, ValueError):
    """An array has another shape than the call needs."""


class DTypeError(XentrsError, TypeError):
    """An array holds another kind of element, or lies where the call cannot read it."""


class TargetError(XentrsError, IndexError):
    """A target is outside the vocabulary."""


class ParamError(XentrsError, ValueError):
    """A setting is outside its range."""


class NonFiniteError(XentrsError, ValueError):
    """A row has no finite result, and `strict=True` asked for one."""


class NotNormalizedError(XentrsError, ValueError):
    """Log-probabilities do not sum to one."""


class FormatError(XentrsError, ValueError):
    """A file or a saved state is not in the format it should be in."""


class TruncatedError(FormatError, EOFError):
    """A file ends too early."""


class LimitError(FormatError):
    """A file asks for more than a limit allows."""


class InputChangedError(XentrsError, OSError):
    """An input file changed while it was read."""


class ManifestMismatch(XentrsError, ValueError):  # noqa: N818 - the published name
    """A RUN folder was made from other inputs or with other settings."""


class MissingColumn(ParamError):  # noqa: N818 - like ManifestMismatch
    """A RUN folder lacks a column that another option of `xentrs score` would have written."""


class IsaError(XentrsError, RuntimeError):
    """`XENTRS_ISA` names no instruction set that runs here."""


class InternalError(XentrsError, RuntimeError):
    """A fault of xentrs itself."""
