//! The states of the extension module. Python's `xentrs/metrics.py` names and documents what users call.

use super::arrays::{LentLogits, with_logits};
use super::call::detached;
use super::errors;
use super::functions::{TargetIds, execution, wrap};
use super::linear::Side;
use crate::error::Error;
use crate::ops::{self, Options};
use crate::state;
use numpy::{PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rows whose vocabulary arrives in chunks, in float32 or float64 lanes. Threads may share it: they wait for each other,
/// without the interpreter's lock.
#[pyclass(frozen, module = "xentrs._xentrs")]
pub(super) struct RowStatsState(Mutex<Precision>);

#[derive(Clone)]
enum Precision {
    Single(state::RowStatsState<f32>),
    Double(state::RowStatsState<f64>),
}

impl Precision {
    fn name(&self) -> &'static str {
        match self {
            Self::Single(_) => "float32",
            Self::Double(_) => "float64",
        }
    }
}

fn mismatch(left: &str, right: &str) -> Error {
    Error::StateMismatch { field: "precision", left: left.to_owned(), right: right.to_owned() }
}

/// The state behind a lock; a panic under it left the state whole, as states change only by finished steps.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<Precision> for RowStatsState {
    fn from(precision: Precision) -> Self {
        Self(Mutex::new(precision))
    }
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
        made.map(Self::from).map_err(|error| errors::exception(py, &error))
    }

    #[pyo3(signature = (logits, element, start_column, *, num_threads))]
    fn update(
        &self,
        py: Python<'_>,
        logits: &Bound<'_, PyUntypedArray>,
        element: &str,
        start_column: usize,
        num_threads: Option<i64>,
    ) -> PyResult<()> {
        let execution = execution(py, num_threads)?;
        let logits = LentLogits::borrow(logits, element)?;
        macro_rules! update {
            ($precision:ident, $array:expr, $stored:ty, $element:ty) => {{
                let view = super::arrays::view::<$stored, $element>($array);
                detached(py, |interrupt| match &mut *lock(&self.0) {
                    Precision::$precision(state) => state.update_with(&view?, start_column, &execution, interrupt),
                    other => Err(mismatch(other.name(), element)),
                })
            }};
        }
        match &logits {
            LentLogits::F32(array) => update!(Single, array, f32, f32),
            LentLogits::F16(array) => update!(Single, array, half::f16, half::f16),
            LentLogits::Bf16(array) => update!(Single, array, i16, half::bf16),
            LentLogits::F64(array) => update!(Double, array, f64, f64),
        }
    }

    /// The columns from `start_column` on, made of hidden states and a shard of a head.
    #[pyo3(signature = (shard, start_column, *, num_threads))]
    fn update_linear(
        &self,
        py: Python<'_>,
        shard: Side<'_>,
        start_column: usize,
        num_threads: Option<i64>,
    ) -> PyResult<()> {
        let execution = execution(py, num_threads)?;
        let shard = shard.borrow()?;
        let shard = shard.projection(py)?;
        detached(py, |interrupt| {
            with_state!(&mut *lock(&self.0), |state| {
                state.update_linear_with(&shard, start_column, &execution, interrupt)
            })
        })
    }

    /// `other` is another object.
    fn merge_state(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
        detached(py, |_| {
            let other = lock(&other.0).clone();
            match (&mut *lock(&self.0), &other) {
                (Precision::Single(state), Precision::Single(other)) => state.merge(other),
                (Precision::Double(state), Precision::Double(other)) => state.merge(other),
                (state, other) => Err(mismatch(state.name(), other.name())),
            }
        })
    }

    fn compute<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let columns = detached(py, |_| with_state!(&*lock(&self.0), |state| state.compute()))?;
        wrap(py, columns)
    }

    /// Whether lanes compute in float64.
    #[getter]
    fn is_double(&self, py: Python<'_>) -> PyResult<bool> {
        detached(py, |_| Ok(matches!(*lock(&self.0), Precision::Double(_))))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = detached(py, |_| Ok(with_state!(&*lock(&self.0), |state| state.to_bytes())))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, bytes: &[u8], is_double: bool) -> PyResult<Self> {
        let read = if is_double {
            state::RowStatsState::from_bytes(bytes).map(Precision::Double)
        } else {
            state::RowStatsState::from_bytes(bytes).map(Precision::Single)
        };
        read.map(Self::from).map_err(|error| errors::exception(py, &error))
    }
}

/// Totals over a corpus.
#[pyclass(frozen, module = "xentrs._xentrs")]
#[derive(Default)]
pub(super) struct Perplexity(Mutex<state::Perplexity>);

#[pymethods]
impl Perplexity {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    #[pyo3(signature = (logits, element, targets, *, ignore_index, num_threads))]
    fn update(
        &self,
        py: Python<'_>,
        logits: &Bound<'_, PyUntypedArray>,
        element: &str,
        targets: TargetIds<'_>,
        ignore_index: i64,
        num_threads: Option<i64>,
    ) -> PyResult<()> {
        let options = Options { execution: execution(py, num_threads)?, ..Options::default() };
        let logits = LentLogits::borrow(logits, element)?;
        let columns = with_logits!(&logits, |view| {
            let view = view.map_err(|error| errors::exception(py, &error))?;
            let targets = targets.checked(py, view.vocab(), ignore_index)?;
            detached(py, |interrupt| ops::scan_logits(&view, Some(&targets), &options, false, interrupt))
        })?;
        detached(py, |_| {
            lock(&self.0).update(&columns);
            Ok(())
        })
    }

    fn update_nll(&self, py: Python<'_>, nll: PyReadonlyArray1<'_, f64>, token_count: u64) -> PyResult<()> {
        let nll = nll.as_slice()?;
        detached(py, |_| {
            lock(&self.0).update_nll(nll, token_count);
            Ok(())
        })
    }

    fn merge_state(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
        detached(py, |_| {
            let other = lock(&other.0).clone();
            lock(&self.0).merge(&other);
            Ok(())
        })
    }

    fn compute<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let summary = detached(py, |_| Ok(lock(&self.0).compute()))?;
        let result = PyDict::new(py);
        macro_rules! set {
            ($($name:ident),+) => { $(result.set_item(stringify!($name), summary.$name)?;)+ };
        }
        set!(nll_sum, token_count, mean_nll, perplexity, bits_per_token);
        set!(infinite_count, nan_count, mean_nll_finite, overflow);
        Ok(result)
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = detached(py, |_| Ok(lock(&self.0).to_bytes()))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, bytes: &[u8]) -> PyResult<Self> {
        let read = state::Perplexity::from_bytes(bytes).map(|totals| Self(Mutex::new(totals)));
        read.map_err(|error| errors::exception(py, &error))
    }
}
