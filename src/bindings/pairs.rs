//! Divergences of two arrays of logits, or of two heads.

use super::arrays::{LentLogits, with_logits};
use super::call::detached;
use super::functions::{TargetIds, Tempered, execution, wrap as wrap_rows, wrap_tempered};
use super::linear::Side;
use super::losses::Settings;
use crate::ops::{self, DivergenceColumns, Options, TemperedOptions};
use numpy::{IntoPyArray, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Runs the body with `$p` and `$q` as [`LogitsView`](crate::LogitsView)s of the storage type that both were borrowed as.
macro_rules! with_pair {
    ($p_logits:expr, $q_logits:expr, |$p:ident, $q:ident| $body:expr) => {{
        macro_rules! run {
            ($p_array:expr, $q_array:expr, $stored:ty, $element:ty) => {{
                let $p = super::arrays::view::<$stored, $element>($p_array);
                let $q = super::arrays::view::<$stored, $element>($q_array);
                $body
            }};
        }
        match ($p_logits, $q_logits) {
            (LentLogits::F32(p), LentLogits::F32(q)) => run!(p, q, f32, f32),
            (LentLogits::F64(p), LentLogits::F64(q)) => run!(p, q, f64, f64),
            (LentLogits::F16(p), LentLogits::F16(q)) => run!(p, q, half::f16, half::f16),
            (LentLogits::Bf16(p), LentLogits::Bf16(q)) => run!(p, q, i16, half::bf16),
            _ => unreachable!("both were borrowed as the same element"),
        }
    }};
}

pub(super) use with_pair;

/// Two arrays of float64 and uint8.
type Arrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);
/// The same, and the scales that a gradient is made from.
pub(super) type ScaledArrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

fn wrap<'py>(py: Python<'py>, values: Vec<f64>, flags: Vec<u8>) -> Arrays<'py> {
    (values.into_pyarray(py).into_any(), flags.into_pyarray(py).into_any())
}

pub(super) fn wrap_scaled(py: Python<'_>, values: Vec<f64>, flags: Vec<u8>, scales: Vec<f64>) -> ScaledArrays<'_> {
    let (values, flags) = wrap(py, values, flags);
    (values, flags, scales.into_pyarray(py).into_any())
}

#[pyfunction]
#[pyo3(signature = (p_logits, q_logits, element, *, temperature, log_probs, num_threads))]
pub(super) fn kl_divergence<'py>(
    py: Python<'py>,
    p_logits: &Bound<'py, PyUntypedArray>,
    q_logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    temperature: f64,
    log_probs: bool,
    num_threads: Option<i64>,
) -> PyResult<ScaledArrays<'py>> {
    let execution = execution(py, num_threads)?;
    let (p, q) = (LentLogits::borrow(p_logits, element)?, LentLogits::borrow(q_logits, element)?);
    let columns = with_pair!(&p, &q, |p, q| detached(py, |interrupt| {
        ops::kl_divergence_with(&p?, &q?, temperature, log_probs, &execution, interrupt)
    }))?;
    Ok(wrap_scaled(py, columns.kl_divergence, columns.flags, columns.scales))
}

#[pyfunction]
#[pyo3(signature = (p_logits, q_logits, element, *, temperature, num_threads))]
pub(super) fn divergences<'py>(
    py: Python<'py>,
    p_logits: &Bound<'py, PyUntypedArray>,
    q_logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let execution = execution(py, num_threads)?;
    let (p, q) = (LentLogits::borrow(p_logits, element)?, LentLogits::borrow(q_logits, element)?);
    let columns = with_pair!(&p, &q, |p, q| detached(py, |interrupt| {
        ops::divergences_with(&p?, &q?, temperature, &execution, interrupt)
    }))?;
    wrap_divergences(py, columns)
}

fn wrap_divergences(py: Python<'_>, columns: DivergenceColumns) -> PyResult<Bound<'_, PyDict>> {
    let result = PyDict::new(py);
    macro_rules! set {
        ($($name:ident),+) => { $(result.set_item(stringify!($name), columns.$name.into_pyarray(py))?;)+ };
    }
    set!(kl_divergence, reverse_kl_divergence, cross_entropy, cross_varentropy, flags);
    Ok(result)
}

#[pyfunction]
#[pyo3(signature = (p, q, *, temperature, num_threads))]
pub(super) fn linear_divergences<'py>(
    py: Python<'py>,
    p: Side<'py>,
    q: Side<'py>,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<Bound<'py, PyDict>> {
    let execution = execution(py, num_threads)?;
    let (p, q) = (p.borrow()?, q.borrow()?);
    let (p, q) = (p.projection(py)?, q.projection(py)?);
    let columns = detached(py, |interrupt| ops::linear_divergences_with(&p, &q, temperature, &execution, interrupt))?;
    wrap_divergences(py, columns)
}

/// Statistics of p's rows, of q's with what `tempered` asks for, and divergences.
#[pyfunction]
#[pyo3(signature = (p, q, targets, settings, *, top_k, tempered))]
pub(super) fn linear_joint_row_stats<'py>(
    py: Python<'py>,
    p: Side<'py>,
    q: Side<'py>,
    targets: TargetIds<'py>,
    settings: Settings,
    top_k: usize,
    tempered: Option<Tempered>,
) -> PyResult<[Bound<'py, PyDict>; 3]> {
    let options = Options { top_k, ..settings.options(py)? };
    let (p, q) = (p.borrow()?, q.borrow()?);
    let (p, q) = (p.projection(py)?, q.projection(py)?);
    let targets = targets.checked(py, p.vocab(), settings.ignore_index())?;
    let wanted = tempered.as_ref().map_or_else(TemperedOptions::default, Tempered::options);
    let found = detached(py, |interrupt| {
        ops::linear_joint_row_stats_with(&p, &q, Some(&targets), &wanted, &options, interrupt)
    })?;
    let q = wrap_tempered(py, (found.q, found.q_tempered), tempered.as_ref())?;
    Ok([wrap_rows(py, found.p)?, q, wrap_divergences(py, found.divergences)?])
}

#[pyfunction]
#[pyo3(signature = (p_logits, q_logits, element, *, temperature, num_threads))]
pub(super) fn js_divergence<'py>(
    py: Python<'py>,
    p_logits: &Bound<'py, PyUntypedArray>,
    q_logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<ScaledArrays<'py>> {
    let execution = execution(py, num_threads)?;
    let (p, q) = (LentLogits::borrow(p_logits, element)?, LentLogits::borrow(q_logits, element)?);
    let columns = with_pair!(&p, &q, |p, q| detached(py, |interrupt| {
        ops::js_divergence_with(&p?, &q?, temperature, &execution, interrupt)
    }))?;
    Ok(wrap_scaled(py, columns.js_divergence, columns.flags, columns.scales))
}

#[pyfunction]
#[pyo3(signature = (p_ids, p_log_probs, k, q_logits, element, settings))]
pub(super) fn top_k_kl_divergence<'py>(
    py: Python<'py>,
    p_ids: TargetIds<'py>,
    p_log_probs: PyReadonlyArray1<'py, f64>,
    k: usize,
    q_logits: &Bound<'py, PyUntypedArray>,
    element: &str,
    settings: Settings,
) -> PyResult<Arrays<'py>> {
    let options = settings.options(py)?;
    let logits = LentLogits::borrow(q_logits, element)?;
    let (values, flags) = with_logits!(&logits, |view| {
        let view = settings.narrow(py, view)?;
        let p = p_ids.top_k(py, p_log_probs.as_slice()?, (view.rows(), k), view.vocab(), settings.ignore_index())?;
        detached(py, |interrupt| ops::top_k_kl_divergence_with(&p, &view, &options, interrupt))
    })?;
    Ok(wrap(py, values, flags))
}
