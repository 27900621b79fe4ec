//! The states of the extension module. Python's `xentrs/metrics.py` names and documents what users call.

use super::arrays::{LentLogits, with_logits};
use super::call::detached;
use super::errors;
use super::functions::{TargetIds, threads, wrap};
use crate::error::Error;
use crate::ops::Options;
use crate::state;
use numpy::{PyReadonlyArray1, PyUntypedArray};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// Rows whose vocabulary arrives in chunks, in float32 or float64 lanes.
#[pyclass(module = "xentrs._xentrs")]
pub(super) struct RowStatsState(Precision);

enum Precision {
    Single(state::RowStatsState<f32>),
    Double(state::RowStatsState<f64>),
}

/// Runs the body on the state of either precision.
macro_rules! with_state {
    ($precision:expr, |$state:ident| $body:expr) => {
        match $precision {
            Precision::Single($state) => $body,
            Precision::Double($state) => $body,
        }
    };
}

#[pymethods]
impl RowStatsState {
    #[new]
    #[pyo3(signature = (rows, vocab, targets, target_logits, *, is_double, ignore_index, temperature, top_k))]
    #[expect(clippy::too_many_arguments, reason = "the settings of xentrs.RowStatsState")]
    fn new(
        py: Python<'_>,
        rows: usize,
        vocab: usize,
        targets: Option<TargetIds<'_>>,
        target_logits: Option<PyReadonlyArray1<'_, f64>>,
        is_double: bool,
        ignore_index: i64,
        temperature: f64,
        top_k: usize,
    ) -> PyResult<Self> {
        let options = Options { temperature, top_k, ..Options::default() };
        let targets = targets.map(|ids| ids.checked(py, vocab, ignore_index)).transpose()?;
        let target_logits = target_logits.map(|logits| logits.as_slice().map(<[f64]>::to_vec)).transpose()?;
        let made = if is_double {
            state::RowStatsState::new(rows, vocab, targets, target_logits, &options).map(Precision::Double)
        } else {
            state::RowStatsState::new(rows, vocab, targets, target_logits, &options).map(Precision::Single)
        };
        made.map(Self).map_err(|error| errors::exception(py, &error))
    }

    #[pyo3(signature = (logits, element, start_column, *, num_threads))]
    fn update(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyUntypedArray>,
        element: &str,
        start_column: usize,
        num_threads: Option<i64>,
    ) -> PyResult<()> {
        let num_threads = threads(py, num_threads)?;
        let logits = LentLogits::borrow(logits, element)?;
        macro_rules! update {
            ($state:ident, $array:expr, $stored:ty, $element:ty) => {{
                let view = super::arrays::view::<$stored, $element>($array);
                detached(py, |interrupt| $state.update_with(&view?, start_column, num_threads, interrupt))
            }};
        }
        match (&mut self.0, &logits) {
            (Precision::Single(state), LentLogits::F32(array)) => update!(state, array, f32, f32),
            (Precision::Single(state), LentLogits::F16(array)) => update!(state, array, half::f16, half::f16),
            (Precision::Single(state), LentLogits::Bf16(array)) => update!(state, array, i16, half::bf16),
            (Precision::Double(state), LentLogits::F64(array)) => update!(state, array, f64, f64),
            _ => Err(PyTypeError::new_err("the chunk's elements are not those that the state computes in")),
        }
    }

    fn merge_state(&mut self, py: Python<'_>, other: &Self) -> PyResult<()> {
        match (&mut self.0, &other.0) {
            (Precision::Single(state), Precision::Single(other)) => detached(py, |_| state.merge(other)),
            (Precision::Double(state), Precision::Double(other)) => detached(py, |_| state.merge(other)),
            (state, _) => {
                let names =
                    if matches!(state, Precision::Single(_)) { ("float32", "float64") } else { ("float64", "float32") };
                let (left, right) = (names.0.to_owned(), names.1.to_owned());
                Err(errors::exception(py, &Error::StateMismatch { field: "precision", left, right }))
            }
        }
    }

    fn compute<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let columns = with_state!(&self.0, |state| detached(py, |_| state.compute()))?;
        wrap(py, columns)
    }

    /// Whether lanes compute in float64.
    #[getter]
    fn is_double(&self) -> bool {
        matches!(self.0, Precision::Double(_))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &with_state!(&self.0, |state| state.to_bytes()))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, bytes: &[u8], is_double: bool) -> PyResult<Self> {
        let read = if is_double {
            state::RowStatsState::from_bytes(bytes).map(Precision::Double)
        } else {
            state::RowStatsState::from_bytes(bytes).map(Precision::Single)
        };
        read.map(Self).map_err(|error| errors::exception(py, &error))
    }
}

/// Totals over a corpus.
#[pyclass(module = "xentrs._xentrs")]
#[derive(Default)]
pub(super) struct Perplexity(state::Perplexity);

#[pymethods]
impl Perplexity {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    #[pyo3(signature = (logits, element, targets, *, ignore_index, num_threads))]
    fn update(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyUntypedArray>,
        element: &str,
        targets: TargetIds<'_>,
        ignore_index: i64,
        num_threads: Option<i64>,
    ) -> PyResult<()> {
        let options = Options { num_threads: threads(py, num_threads)?, ..Options::default() };
        let logits = LentLogits::borrow(logits, element)?;
        let columns = with_logits!(&logits, |view| {
            let view = view.map_err(|error| errors::exception(py, &error))?;
            let targets = targets.checked(py, view.vocab(), ignore_index)?;
            detached(py, |interrupt| crate::ops::likelihoods_with(&view, Some(&targets), &options, interrupt))
        })?;
        self.0.update(&columns);
        Ok(())
    }

    fn update_nll(&mut self, nll: PyReadonlyArray1<'_, f64>, token_count: u64) -> PyResult<()> {
        self.0.update_nll(nll.as_slice()?, token_count);
        Ok(())
    }

    fn merge_state(&mut self, other: &Self) {
        self.0.merge(&other.0);
    }

    fn compute<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let summary = self.0.compute();
        let result = PyDict::new(py);
        macro_rules! set {
            ($($name:ident),+) => { $(result.set_item(stringify!($name), summary.$name)?;)+ };
        }
        set!(nll_sum, token_count, mean_nll, perplexity, bits_per_token);
        set!(infinite_count, nan_count, mean_nll_finite, overflow);
        Ok(result)
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_bytes())
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, bytes: &[u8]) -> PyResult<Self> {
        state::Perplexity::from_bytes(bytes).map(Self).map_err(|error| errors::exception(py, &error))
    }
}
