//! Losses and quantities at several inverse temperatures.

use super::arrays::{LentLogits, with_logits};
use super::call::detached;
use super::errors;
use super::functions::{TargetIds, execution};
use crate::error::Error;
use crate::input::LogitsView;
use crate::ops::{self, Likelihood, LossColumns, LossOptions, Options};
use crate::simd::Element;
use numpy::{IntoPyArray, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// What every call on rows takes beside its arrays.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Settings {
    ignore_index: i64,
    temperature: f64,
    softcap: Option<f64>,
    vocab_size: Option<usize>,
    num_threads: Option<i64>,
}

impl Settings {
    pub(super) fn options(&self, py: Python<'_>) -> PyResult<Options> {
        let execution = execution(py, self.num_threads)?;
        Ok(Options { temperature: self.temperature, softcap: self.softcap, execution, ..Options::default() })
    }

    pub(super) fn ignore_index(&self) -> i64 {
        self.ignore_index
    }

    /// The view without the columns of padding.
    pub(super) fn narrow<'a, E: Element>(
        &self,
        py: Python<'_>,
        view: Result<LogitsView<'a, E>, Error>,
    ) -> PyResult<LogitsView<'a, E>> {
        let narrowed = view.and_then(|view| match self.vocab_size {
            Some(vocab_size) => view.with_vocab_size(vocab_size),
            None => Ok(view),
        });
        narrowed.map_err(|error| errors::exception(py, &error))
    }
}

#[pyfunction]
#[pyo3(signature = (logits, element, targets, settings, *, label_smoothing, z_loss, weight))]
#[expect(clippy::too_many_arguments, reason = "the settings of xentrs.cross_entropy")]
pub(super) fn loss<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    targets: TargetIds<'py>,
    settings: Settings,
    label_smoothing: f64,
    z_loss: f64,
    weight: Option<PyReadonlyArray1<'py, f64>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = settings.options(py)?;
    // Copied, because another thread may write to the array while the lock is released.
    let weight = weight.map(|weight| weight.as_slice().map(<[f64]>::to_vec)).transpose()?;
    let logits = LentLogits::borrow(logits, element)?;
    let columns = with_logits!(&logits, |view| {
        let view = settings.narrow(py, view)?;
        let targets = targets.checked(py, view.vocab(), settings.ignore_index)?;
        let loss = LossOptions { label_smoothing, z_loss, class_weights: weight.as_deref() };
        detached(py, |interrupt| ops::loss_with(&view, &targets, &loss, &options, interrupt))
    })?;
    wrap_loss(py, columns)
}

#[pyfunction]
#[pyo3(signature = (logits, element, target_ids, target_probs, settings, *, normalize))]
pub(super) fn soft_cross_entropy<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    target_ids: TargetIds<'py>,
    target_probs: PyReadonlyArray1<'py, f64>,
    settings: Settings,
    normalize: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let options = settings.options(py)?;
    let logits = LentLogits::borrow(logits, element)?;
    let columns = with_logits!(&logits, |view| {
        let view = settings.narrow(py, view)?;
        let shares = target_probs.as_slice()?;
        let shape = (view.rows(), shares.len().checked_div(view.rows()).unwrap_or(0));
        let targets = target_ids.soft(py, shares, shape, view.vocab(), settings.ignore_index, normalize)?;
        detached(py, |interrupt| ops::soft_cross_entropy_with(&view, &targets, &options, interrupt))
    })?;
    wrap_loss(py, columns)
}

pub(super) fn wrap_loss(py: Python<'_>, columns: LossColumns) -> PyResult<Bound<'_, PyDict>> {
    let result = PyDict::new(py);
    result.set_item("loss", columns.loss.into_pyarray(py))?;
    result.set_item("flags", columns.flags.into_pyarray(py))?;
    result.set_item("token_count", columns.token_count)?;
    result.set_item("sum", columns.sum)?;
    result.set_item("mean", columns.mean)?;
    let fields = |row: &Likelihood| [row.lse, row.nll, row.max_logit, row.max_log_prob];
    let likelihoods: Vec<f64> = columns.likelihoods.iter().flat_map(fields).collect();
    result.set_item("likelihoods", likelihoods.into_pyarray(py))?;
    Ok(result)
}

#[pyfunction]
#[pyo3(signature = (logits, element, targets, inverse_temperatures, settings))]
pub(super) fn temperature_grid<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    targets: Option<TargetIds<'py>>,
    inverse_temperatures: Vec<f64>,
    settings: Settings,
) -> PyResult<Bound<'py, PyDict>> {
    let options = settings.options(py)?;
    let logits = LentLogits::borrow(logits, element)?;
    let columns = with_logits!(&logits, |view| {
        let view = settings.narrow(py, view)?;
        let targets = targets.map(|ids| ids.checked(py, view.vocab(), settings.ignore_index)).transpose()?;
        let (targets, list) = (targets.as_ref(), inverse_temperatures.as_slice());
        detached(py, |interrupt| ops::temperature_grid_with(&view, targets, list, &options, interrupt))
    })?;
    let result = PyDict::new(py);
    macro_rules! set {
        ($($name:ident),+) => { $(result.set_item(stringify!($name), columns.$name.into_pyarray(py))?;)+ };
    }
    set!(lse, mean, variance, entropy, nll, flags);
    Ok(result)
}

#[pyfunction]
#[pyo3(signature = (logits, element, orders, settings))]
pub(super) fn renyi_entropy<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    orders: Vec<f64>,
    settings: Settings,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let options = settings.options(py)?;
    let logits = LentLogits::borrow(logits, element)?;
    let (values, flags) = with_logits!(&logits, |view| {
        let view = settings.narrow(py, view)?;
        detached(py, |interrupt| ops::renyi_entropy_with(&view, &orders, &options, interrupt))
    })?;
    Ok((values.into_pyarray(py).into_any(), flags.into_pyarray(py).into_any()))
}
