//! One call into the core: the interpreter's lock released, signals heard, panics caught, errors turned.

use super::errors;
use crate::error::Error;
use crate::run::Interrupt;
use crate::simd::{rounds_to_nearest, with_default_control};
use pyo3::exceptions::PyRuntimeWarning;
use pyo3::ffi::c_str;
use pyo3::prelude::*;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Tells a caller whose thread rounds otherwise that the result is rounded to nearest.
pub(super) fn warn_of_rounding(py: Python<'_>) -> PyResult<()> {
    if !rounds_to_nearest() {
        let message = c_str!("the thread's rounding mode is not to nearest; xentrs computes with rounding to nearest");
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), message, 2)?;
    }
    Ok(())
}

/// Runs `work` without the lock. A signal whose handler raises ends it with that exception.
pub(super) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(Interrupt<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let raised = Mutex::new(None);
    let interrupted = || {
        let signal = Python::attach(|py| py.check_signals()).err();
        let is_raised = signal.is_some();
        if is_raised {
            *raised.lock().expect("the lock is held only to store an exception") = signal;
        }
        is_raised
    };
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(|| with_default_control(|| work(&interrupted)))));
    if let Some(signal) = raised.into_inner().expect("the lock is held only to store an exception") {
        return Err(signal);
    }
    match outcome {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(errors::exception(py, &error)),
        Err(panic) => Err(errors::named(py, "InternalError", describe(panic.as_ref()))),
    }
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("internal error: {}; please report it", text.unwrap_or("a panic without a message"))
}
