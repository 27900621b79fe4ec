//! The functions of the extension module. Python's `xentrs/functional.py` names and documents what users call.

use super::arrays::{LentLogits, with_logits};
use super::call::{detached, warn_of_rounding};
use super::errors;
use crate::error::Error;
use crate::input::{SoftTargets, Targets, TopKDistribution};
use crate::ops::{self, Options, TemperedColumns, TemperedOptions};
use crate::output::RowColumns;
use crate::plan::Execution;
use crate::simd::Isa;
use numpy::{IntoPyArray, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Class ids, copied by the caller: one contiguous array that nobody else holds.
#[derive(FromPyObject)]
pub(super) enum TargetIds<'py> {
    Signed(PyReadonlyArray1<'py, i64>),
    Unsigned(PyReadonlyArray1<'py, u64>),
}

/// Gives the ids to a constructor, whatever their sign.
macro_rules! with_ids {
    ($ids:expr, $py:expr, |$values:ident| $made:expr) => {{
        let made = match $ids {
            TargetIds::Signed(ids) => {
                let $values = ids.as_slice()?.iter().copied();
                $made
            }
            TargetIds::Unsigned(ids) => {
                let $values = ids.as_slice()?.iter().copied();
                $made
            }
        };
        made.map_err(|error| errors::exception($py, &error))
    }};
}

impl TargetIds<'_> {
    pub(super) fn checked(&self, py: Python<'_>, vocab: usize, ignore_index: i64) -> PyResult<Targets> {
        with_ids!(self, py, |ids| Targets::new(ids, vocab, ignore_index))
    }

    pub(super) fn soft(
        &self,
        py: Python<'_>,
        shares: &[f64],
        shape: (usize, usize),
        vocab: usize,
        ignore_index: i64,
        normalize: bool,
    ) -> PyResult<SoftTargets> {
        with_ids!(self, py, |ids| SoftTargets::new(ids, shares, shape, vocab, ignore_index, normalize))
    }

    pub(super) fn top_k(
        &self,
        py: Python<'_>,
        log_probs: &[f64],
        shape: (usize, usize),
        vocab: usize,
        ignore_index: i64,
    ) -> PyResult<TopKDistribution> {
        with_ids!(self, py, |ids| TopKDistribution::new(ids, log_probs, shape, vocab, ignore_index))
    }
}

/// The settings of a call that reads logits, from a thread count as Python gives it: `None` or 0 for all.
pub(super) fn execution(py: Python<'_>, num_threads: Option<i64>) -> PyResult<Execution> {
    warn_of_rounding(py)?;
    let count = num_threads.unwrap_or(0);
    let known = usize::try_from(count).map(|count| Execution { num_threads: Some(count), ..Execution::default() });
    known.map_err(|_| {
        let expected = "None, 0 or a number from 1 to 4096";
        errors::exception(py, &Error::Parameter { name: "num_threads", value: count.to_string(), expected })
    })
}

/// What Python asks for beside a row's statistics.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Tempered {
    moments: bool,
    renyi_orders: Vec<f64>,
    inverse_temperatures: Vec<f64>,
}

impl Tempered {
    pub(super) fn options(&self) -> TemperedOptions<'_> {
        let (renyi_orders, inverse_temperatures) = (&self.renyi_orders, &self.inverse_temperatures);
        TemperedOptions { moments: self.moments, renyi_orders, inverse_temperatures }
    }
}

/// All statistics, or with `all=False` lse, nll and flags; with `tempered` all, and what it asks for.
#[pyfunction]
#[pyo3(signature = (logits, element, targets, *, all, ignore_index, temperature, softcap, top_k, vocab_size, strict, num_threads, tempered=None))]
#[expect(clippy::too_many_arguments, reason = "the settings of xentrs.row_stats")]
pub(super) fn row_stats<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    targets: Option<TargetIds<'py>>,
    all: bool,
    ignore_index: i64,
    temperature: f64,
    softcap: Option<f64>,
    top_k: usize,
    vocab_size: Option<usize>,
    strict: bool,
    num_threads: Option<i64>,
    tempered: Option<Tempered>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = Options { temperature, softcap, top_k, strict, execution: execution(py, num_threads)? };
    let logits = LentLogits::borrow(logits, element)?;
    let columns = with_logits!(&logits, |view| {
        let narrowed = view.and_then(|view| match vocab_size {
            Some(vocab_size) => view.with_vocab_size(vocab_size),
            None => Ok(view),
        });
        let view = narrowed.map_err(|error| errors::exception(py, &error))?;
        let targets = targets.map(|ids| ids.checked(py, view.vocab(), ignore_index)).transpose()?;
        let targets = targets.as_ref();
        detached(py, |interrupt| match &tempered {
            None => Ok((ops::scan_logits(&view, targets, &options, all, interrupt)?, TemperedColumns::default())),
            Some(beside) => ops::tempered_row_stats_with(&view, targets, &beside.options(), &options, interrupt),
        })
    })?;
    wrap_tempered(py, columns, tempered.as_ref())
}

#[pyfunction]
#[pyo3(signature = (logits, element, *, num_threads))]
pub(super) fn read_probe<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    num_threads: Option<i64>,
) -> PyResult<f64> {
    let execution = execution(py, num_threads)?;
    let logits = LentLogits::borrow(logits, element)?;
    with_logits!(&logits, |view| detached(py, |_| ops::read_probe(&view?, &execution)))
}

#[pyfunction]
pub(super) fn isa(py: Python<'_>) -> PyResult<&'static str> {
    Isa::current().map(Isa::name).map_err(|error| errors::exception(py, &error))
}

/// What a head of bfloat16 is multiplied with.
#[pyfunction]
pub(super) fn head_isa(py: Python<'_>) -> PyResult<&'static str> {
    Isa::current().map(Isa::head_name).map_err(|error| errors::exception(py, &error))
}

#[pyfunction]
pub(super) fn available_isas() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

#[pyfunction]
pub(super) fn num_threads(py: Python<'_>) -> PyResult<usize> {
    crate::plan::default_threads(usize::MAX).map_err(|error| errors::exception(py, &error))
}

/// Panics inside a call, so that tests see what a panic becomes.
#[pyfunction]
pub(super) fn panic_for_tests(py: Python<'_>) -> PyResult<()> {
    detached(py, |_| -> Result<(), Error> { panic!("asked for by a test") })
}

/// The columns as arrays by name, without a copy.
pub(super) fn wrap(py: Python<'_>, columns: RowColumns) -> PyResult<Bound<'_, PyDict>> {
    let result = PyDict::new(py);
    macro_rules! set {
        ($($name:ident),+) => { $(result.set_item(stringify!($name), columns.$name.into_pyarray(py))?;)+ };
    }
    set!(lse, nll, log_prob, entropy, varentropy, max_logit, max_log_prob, margin, sum_sq_prob);
    set!(argmax, rank, ties, flags, top_log_probs, top_ids);
    result.set_item("token_count", columns.token_count)?;
    result.set_item("isa", columns.isa)?;
    Ok(result)
}

/// The same with what was asked for beside them.
pub(super) fn wrap_tempered<'py>(
    py: Python<'py>,
    (columns, found): (RowColumns, TemperedColumns),
    wanted: Option<&Tempered>,
) -> PyResult<Bound<'py, PyDict>> {
    let result = wrap(py, columns)?;
    let Some(wanted) = wanted else { return Ok(result) };
    macro_rules! set {
        ($from:expr, $($key:literal: $name:ident),+) => { $(result.set_item($key, $from.$name.into_pyarray(py))?;)+ };
    }
    if wanted.moments {
        set!(found, "log_prob_mean": log_prob_mean, "log_prob_variance": log_prob_variance);
    }
    if !wanted.renyi_orders.is_empty() {
        set!(found, "renyi_entropy": renyi_entropy);
    }
    if !wanted.inverse_temperatures.is_empty() {
        let grid = found.temperature_grid;
        set!(grid, "grid_lse": lse, "grid_mean": mean, "grid_variance": variance, "grid_entropy": entropy);
        set!(grid, "grid_nll": nll, "grid_flags": flags);
    }
    Ok(result)
}
