//! The only place that turns an [`Error`] into a Python exception. The classes themselves stand in `xentrs/errors.py`,
//! because each has two parents.

use crate::error::Error;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;

/// The exception for an error of a call.
pub(super) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    use Error::*;
    let class = match error {
        BufferLength { .. } | ShapeMismatch { .. } | ShapeOverflow { .. } | EmptyVocabulary { .. } | Columns { .. } => {
            "ShapeError"
        }
        Target { .. } => "TargetError",
        VocabSize { .. } | Parameter { .. } | StateMismatch { .. } => "ParamError",
        NotNormalized { .. } => "NotNormalizedError",
        SavedState { .. } => "FormatError",
        NonFinite { .. } => "NonFiniteError",
        UnknownIsa { .. } | IsaUnavailable { .. } => "IsaError",
        Internal { .. } => "InternalError",
        OutOfMemory { .. } => return PyMemoryError::new_err(error.to_string()),
        Threads { .. } | Interrupted => return PyRuntimeError::new_err(error.to_string()),
    };
    named(py, class, error.to_string())
}

/// An exception of the class of that name in `xentrs.errors`.
pub(super) fn named(py: Python<'_>, class: &str, message: String) -> PyErr {
    let made =
        py.import("xentrs.errors").and_then(|module| module.getattr(class)).and_then(|class| class.call1((message,)));
    made.map_or_else(|error| error, PyErr::from_value)
}
