//! Gradients: of losses, entropies and divergences, written to places that the caller has made, and of two heads.

use super::arrays::{LentLogits, LentPlace, with_logits};
use super::call::detached;
use super::functions::{TargetIds, execution};
use super::linear::Side;
use super::losses::Settings;
use super::pairs::with_pair;
use crate::ops::{self, GradientOptions, Gradients, Likelihood, LossOptions, LossTerms, PairTerms};
use crate::output::Matrix;
use crate::simd::Element;
use half::vec::HalfFloatVecExt;
use numpy::{IntoPyArray, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;

/// What was found for the rows, four numbers each.
pub(super) fn likelihoods(numbers: &PyReadonlyArray1<'_, f64>) -> PyResult<Vec<Likelihood>> {
    let likelihood = |row: &[f64; 4]| {
        let [lse, nll, max_logit, max_log_prob] = *row;
        Likelihood { lse, nll, max_logit, max_log_prob }
    };
    Ok(numbers.as_slice()?.as_chunks().0.iter().map(likelihood).collect())
}

/// upstream times the gradient of the loss whose `likelihoods` these are, into `out`.
#[pyfunction]
#[pyo3(signature = (logits, element, targets, settings, likelihoods, upstream, out, *, label_smoothing, z_loss, weight))]
#[expect(clippy::too_many_arguments, reason = "the settings of a backward pass")]
pub(super) fn loss_gradient(
    py: Python<'_>,
    logits: &Bound<'_, PyUntypedArray>,
    element: &str,
    targets: TargetIds<'_>,
    settings: Settings,
    likelihoods: PyReadonlyArray1<'_, f64>,
    upstream: PyReadonlyArray1<'_, f64>,
    out: &Bound<'_, PyUntypedArray>,
    label_smoothing: f64,
    z_loss: f64,
    weight: Option<PyReadonlyArray1<'_, f64>>,
) -> PyResult<()> {
    let options = settings.options(py)?;
    let (likelihoods, upstream) = (self::likelihoods(&likelihoods)?, upstream.as_slice()?.to_vec());
    let weight = weight.map(|weight| weight.as_slice().map(<[f64]>::to_vec)).transpose()?;
    let (logits, mut out) = (LentLogits::borrow(logits, element)?, LentPlace::borrow(out, element)?);
    with_logits!(&logits, |view| {
        let (view, out) = (settings.narrow(py, view)?, out.numbers()?);
        let targets = targets.checked(py, view.vocab(), settings.ignore_index())?;
        let terms = LossTerms {
            targets: &targets,
            likelihoods: &likelihoods,
            settings: LossOptions { label_smoothing, z_loss, class_weights: weight.as_deref() },
            temperature: options.temperature,
            upstream: &upstream,
        };
        detached(py, |interrupt| ops::loss_gradient_with(&view, &terms, &options, out, interrupt))
    })
}

/// upstream times the gradient of the log-sum-exp, into `out`.
#[pyfunction]
#[pyo3(signature = (logits, element, settings, likelihoods, upstream, out))]
pub(super) fn logsumexp_gradient(
    py: Python<'_>,
    logits: &Bound<'_, PyUntypedArray>,
    element: &str,
    settings: Settings,
    likelihoods: PyReadonlyArray1<'_, f64>,
    upstream: PyReadonlyArray1<'_, f64>,
    out: &Bound<'_, PyUntypedArray>,
) -> PyResult<()> {
    let options = settings.options(py)?;
    let (likelihoods, upstream) = (self::likelihoods(&likelihoods)?, upstream.as_slice()?.to_vec());
    let (logits, mut out) = (LentLogits::borrow(logits, element)?, LentPlace::borrow(out, element)?);
    with_logits!(&logits, |view| {
        let (view, out) = (settings.narrow(py, view)?, out.numbers()?);
        detached(py, |interrupt| ops::logsumexp_gradient_with(&view, &likelihoods, &upstream, &options, out, interrupt))
    })
}

/// upstream times the gradient of the entropy, into `out`.
#[pyfunction]
#[pyo3(signature = (logits, element, settings, likelihoods, entropy, upstream, out))]
#[expect(clippy::too_many_arguments, reason = "the settings of a backward pass")]
pub(super) fn entropy_gradient(
    py: Python<'_>,
    logits: &Bound<'_, PyUntypedArray>,
    element: &str,
    settings: Settings,
    likelihoods: PyReadonlyArray1<'_, f64>,
    entropy: PyReadonlyArray1<'_, f64>,
    upstream: PyReadonlyArray1<'_, f64>,
    out: &Bound<'_, PyUntypedArray>,
) -> PyResult<()> {
    let options = settings.options(py)?;
    let (likelihoods, upstream) = (self::likelihoods(&likelihoods)?, upstream.as_slice()?.to_vec());
    let entropy = entropy.as_slice()?.to_vec();
    let (logits, mut out) = (LentLogits::borrow(logits, element)?, LentPlace::borrow(out, element)?);
    with_logits!(&logits, |view| {
        let (view, out) = (settings.narrow(py, view)?, out.numbers()?);
        detached(py, |interrupt| {
            ops::entropy_gradient_with(&view, &likelihoods, &entropy, &upstream, &options, out, interrupt)
        })
    })
}

/// A place, if there is one.
fn place<'py>(out: Option<&Bound<'py, PyUntypedArray>>, element: &str) -> PyResult<Option<LentPlace<'py>>> {
    out.map(|out| LentPlace::borrow(out, element)).transpose()
}

fn numbers<'a, E: Element>(place: &'a mut Option<LentPlace<'_>>) -> PyResult<Option<&'a mut [E]>> {
    place.as_mut().map(LentPlace::numbers).transpose()
}

/// upstream times the gradients of KL(p||q) by the logits of p and of q, into the places that there are.
#[pyfunction]
#[pyo3(signature = (p_logits, q_logits, element, values, scales, upstream, p_out, q_out, *, temperature, num_threads))]
#[expect(clippy::too_many_arguments, reason = "the settings of a backward pass")]
pub(super) fn kl_gradients(
    py: Python<'_>,
    p_logits: &Bound<'_, PyUntypedArray>,
    q_logits: &Bound<'_, PyUntypedArray>,
    element: &str,
    values: PyReadonlyArray1<'_, f64>,
    scales: PyReadonlyArray1<'_, f64>,
    upstream: PyReadonlyArray1<'_, f64>,
    p_out: Option<&Bound<'_, PyUntypedArray>>,
    q_out: Option<&Bound<'_, PyUntypedArray>>,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<()> {
    let execution = execution(py, num_threads)?;
    let (scales, upstream) = (scales.as_slice()?.to_vec(), upstream.as_slice()?.to_vec());
    let values = values.as_slice()?.to_vec();
    let terms = PairTerms { scales: &scales, upstream: &upstream, temperature };
    let (p, q) = (LentLogits::borrow(p_logits, element)?, LentLogits::borrow(q_logits, element)?);
    let (mut p_out, mut q_out) = (place(p_out, element)?, place(q_out, element)?);
    with_pair!(&p, &q, |p, q| {
        let outs = [numbers(&mut p_out)?, numbers(&mut q_out)?];
        detached(py, |interrupt| ops::kl_gradients_with([&p?, &q?], &values, &terms, outs, &execution, interrupt))
    })
}

/// upstream times the gradients of the Jensen-Shannon divergence, likewise.
#[pyfunction]
#[pyo3(signature = (p_logits, q_logits, element, scales, upstream, p_out, q_out, *, temperature, num_threads))]
#[expect(clippy::too_many_arguments, reason = "the settings of a backward pass")]
pub(super) fn js_gradients(
    py: Python<'_>,
    p_logits: &Bound<'_, PyUntypedArray>,
    q_logits: &Bound<'_, PyUntypedArray>,
    element: &str,
    scales: PyReadonlyArray1<'_, f64>,
    upstream: PyReadonlyArray1<'_, f64>,
    p_out: Option<&Bound<'_, PyUntypedArray>>,
    q_out: Option<&Bound<'_, PyUntypedArray>>,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<()> {
    let execution = execution(py, num_threads)?;
    let (scales, upstream) = (scales.as_slice()?.to_vec(), upstream.as_slice()?.to_vec());
    let terms = PairTerms { scales: &scales, upstream: &upstream, temperature };
    let (p, q) = (LentLogits::borrow(p_logits, element)?, LentLogits::borrow(q_logits, element)?);
    let (mut p_out, mut q_out) = (place(p_out, element)?, place(q_out, element)?);
    with_pair!(&p, &q, |p, q| {
        let outs = [numbers(&mut p_out)?, numbers(&mut q_out)?];
        detached(py, |interrupt| ops::js_gradients_with([&p?, &q?], &terms, outs, &execution, interrupt))
    })
}

/// Gradients of the sum of upstream times KL(p||q): hidden states, weights and bias of p, then of q, flat, `None` where not
/// wanted; bfloat16 as the uint16 of the same bits.
#[pyfunction]
#[pyo3(signature = (p, q, values, scales, upstream, *, temperature, num_threads, wanted))]
#[expect(clippy::too_many_arguments, reason = "the settings of a backward pass")]
pub(super) fn linear_kl_gradients<'py>(
    py: Python<'py>,
    p: Side<'py>,
    q: Side<'py>,
    values: PyReadonlyArray1<'py, f64>,
    scales: PyReadonlyArray1<'py, f64>,
    upstream: PyReadonlyArray1<'py, f64>,
    temperature: f64,
    num_threads: Option<i64>,
    wanted: [bool; 6],
) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
    let execution = execution(py, num_threads)?;
    let (scales, upstream) = (scales.as_slice()?.to_vec(), upstream.as_slice()?.to_vec());
    let values = values.as_slice()?.to_vec();
    let terms = PairTerms { scales: &scales, upstream: &upstream, temperature };
    let (p, q) = (p.borrow()?, q.borrow()?);
    let (p, q) = (p.projection(py)?, q.projection(py)?);
    let options = |wanted: &[bool]| GradientOptions {
        hidden: wanted[0],
        weight: wanted[1],
        bias: wanted[2],
        ..GradientOptions::default()
    };
    let options = [options(&wanted[..3]), options(&wanted[3..])];
    let found = detached(py, |interrupt| {
        ops::linear_kl_gradients_with([&p, &q], &values, &terms, options, &execution, interrupt)
    })?;
    Ok(found.into_iter().flat_map(|gradients| wrap_gradients(py, gradients)).collect())
}

/// Hidden states, weights and bias.
pub(super) fn wrap_gradients(py: Python<'_>, found: Gradients) -> [Option<Bound<'_, PyAny>>; 3] {
    let bias = found.bias.map(|bias| bias.into_pyarray(py).into_any());
    let [hidden, weight] = [found.hidden, found.weight].map(|found| found.map(|matrix| wrap_matrix(py, matrix)));
    [hidden, weight, bias]
}

fn wrap_matrix(py: Python<'_>, matrix: Matrix) -> Bound<'_, PyAny> {
    match matrix {
        Matrix::F32(numbers) => numbers.into_pyarray(py).into_any(),
        Matrix::F64(numbers) => numbers.into_pyarray(py).into_any(),
        Matrix::F16(numbers) => numbers.into_pyarray(py).into_any(),
        Matrix::Bf16(numbers) => numbers.reinterpret_into().into_pyarray(py).into_any(),
    }
}
