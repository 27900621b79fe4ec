//! Hidden states and heads: the functions of `xentrs/linear.py`.

use super::arrays::{LentLogits, with_logits};
use super::call::detached;
use super::errors;
use super::functions::{TargetIds, Tempered, execution, wrap_tempered};
use super::gradients::{likelihoods, wrap_gradients};
use super::losses::{Settings, wrap_loss};
use super::pairs::{ScaledArrays, wrap_scaled};
use crate::error::Error;
use crate::input::{Head, MatrixView, PackedHead as Packed, Weight};
use crate::ops::{self, GradientOptions, LossOptions, LossTerms, Options, Projection, TemperedColumns};
use numpy::{IntoPyArray, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// Weights in tile order.
#[pyclass(frozen, module = "xentrs._xentrs")]
pub(super) struct PackedHead(Arc<Packed>);

#[pymethods]
impl PackedHead {
    #[new]
    fn new(py: Python<'_>, weight: &Bound<'_, PyUntypedArray>, element: &str) -> PyResult<Self> {
        let weight = LentLogits::borrow(weight, element)?;
        let view = matrix(py, &weight)?;
        detached(py, |_| Packed::new(&view)).map(|packed| Self(Arc::new(packed)))
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.vocab(), self.0.width())
    }

    #[getter]
    fn element(&self) -> &'static str {
        self.0.element()
    }

    #[getter]
    fn byte_count(&self) -> usize {
        self.0.byte_count()
    }
}

fn matrix<'a>(py: Python<'_>, array: &'a LentLogits<'_>) -> PyResult<MatrixView<'a>> {
    let view: Result<MatrixView<'a>, Error> = with_logits!(array, |view| view.map(MatrixView::from));
    view.map_err(|error| errors::exception(py, &error))
}

/// What one model gives, as Python names it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Side<'py> {
    hidden: Bound<'py, PyUntypedArray>,
    hidden_element: String,
    weight: WeightObject<'py>,
    weight_element: String,
    bias: Option<PyReadonlyArray1<'py, f64>>,
    logit_scale: f64,
    softcap: Option<f64>,
    vocab_size: Option<usize>,
}

#[derive(FromPyObject)]
enum WeightObject<'py> {
    Packed(Bound<'py, PackedHead>),
    Rows(Bound<'py, PyUntypedArray>),
}

/// The same, borrowed.
pub(super) struct LentSide<'py> {
    hidden: LentLogits<'py>,
    weight: LentWeight<'py>,
    bias: Option<Vec<f64>>,
    logit_scale: f64,
    softcap: Option<f64>,
    vocab_size: Option<usize>,
}

enum LentWeight<'py> {
    Packed(Arc<Packed>),
    Rows(LentLogits<'py>),
}

impl<'py> Side<'py> {
    pub(super) fn borrow(self) -> PyResult<LentSide<'py>> {
        let weight = match self.weight {
            WeightObject::Packed(packed) => LentWeight::Packed(packed.get().0.clone()),
            WeightObject::Rows(rows) => LentWeight::Rows(LentLogits::borrow(&rows, &self.weight_element)?),
        };
        Ok(LentSide {
            hidden: LentLogits::borrow(&self.hidden, &self.hidden_element)?,
            weight,
            bias: self.bias.map(|bias| bias.as_slice().map(<[f64]>::to_vec)).transpose()?,
            logit_scale: self.logit_scale,
            softcap: self.softcap,
            vocab_size: self.vocab_size,
        })
    }
}

impl LentSide<'_> {
    pub(super) fn projection(&self, py: Python<'_>) -> PyResult<Projection<'_>> {
        let hidden = matrix(py, &self.hidden)?;
        let weight = match &self.weight {
            LentWeight::Packed(packed) => Weight::Packed(packed),
            LentWeight::Rows(rows) => Weight::Rows(matrix(py, rows)?),
        };
        let made = Head::new(weight, self.bias.clone())
            .and_then(|head| match self.vocab_size {
                Some(vocab_size) => head.with_vocab_size(vocab_size),
                None => Ok(head),
            })
            .and_then(|head| Projection::new(hidden, head)?.scaled(self.logit_scale, self.softcap));
        made.map_err(|error| errors::exception(py, &error))
    }
}

/// All statistics, or with `all=False` lse, nll and flags; with `tempered` all, and what it asks for.
#[pyfunction]
#[pyo3(signature = (side, targets, settings, *, all, top_k, strict, tempered=None))]
#[expect(clippy::too_many_arguments, reason = "the settings of xentrs.linear_row_stats")]
pub(super) fn linear_row_stats<'py>(
    py: Python<'py>,
    side: Side<'py>,
    targets: Option<TargetIds<'py>>,
    settings: Settings,
    all: bool,
    top_k: usize,
    strict: bool,
    tempered: Option<Tempered>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = Options { top_k, strict, ..settings.options(py)? };
    let side = side.borrow()?;
    let projection = side.projection(py)?;
    let targets = targets.map(|ids| ids.checked(py, projection.vocab(), settings.ignore_index())).transpose()?;
    let targets = targets.as_ref();
    let columns = detached(py, |interrupt| match &tempered {
        None => Ok((ops::linear_scan(&projection, targets, &options, all, interrupt)?, TemperedColumns::default())),
        Some(beside) => {
            ops::linear_tempered_row_stats_with(&projection, targets, &beside.options(), &options, interrupt)
        }
    })?;
    wrap_tempered(py, columns, tempered.as_ref())
}

#[pyfunction]
#[pyo3(signature = (side, targets, settings, *, label_smoothing, z_loss, class_weights))]
pub(super) fn linear_loss<'py>(
    py: Python<'py>,
    side: Side<'py>,
    targets: TargetIds<'py>,
    settings: Settings,
    label_smoothing: f64,
    z_loss: f64,
    class_weights: Option<PyReadonlyArray1<'py, f64>>,
) -> PyResult<Bound<'py, PyDict>> {
    let options = settings.options(py)?;
    let class_weights = class_weights.map(|weights| weights.as_slice().map(<[f64]>::to_vec)).transpose()?;
    let side = side.borrow()?;
    let projection = side.projection(py)?;
    let targets = targets.checked(py, projection.vocab(), settings.ignore_index())?;
    let loss = LossOptions { label_smoothing, z_loss, class_weights: class_weights.as_deref() };
    let columns = detached(py, |interrupt| ops::linear_loss_with(&projection, &targets, &loss, &options, interrupt))?;
    wrap_loss(py, columns)
}

#[pyfunction]
#[pyo3(signature = (p, q, *, temperature, num_threads))]
pub(super) fn linear_kl_divergence<'py>(
    py: Python<'py>,
    p: Side<'py>,
    q: Side<'py>,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<ScaledArrays<'py>> {
    let execution = execution(py, num_threads)?;
    let (p, q) = (p.borrow()?, q.borrow()?);
    let (p, q) = (p.projection(py)?, q.projection(py)?);
    let columns = detached(py, |interrupt| ops::linear_kl_divergence_with(&p, &q, temperature, &execution, interrupt))?;
    Ok(wrap_scaled(py, columns.kl_divergence, columns.flags, columns.scales))
}

/// sum_v p_v weight_v of each row, flat.
#[pyfunction]
#[pyo3(signature = (side, *, temperature, num_threads))]
pub(super) fn linear_expected_embedding<'py>(
    py: Python<'py>,
    side: Side<'py>,
    temperature: f64,
    num_threads: Option<i64>,
) -> PyResult<Bound<'py, PyAny>> {
    let execution = execution(py, num_threads)?;
    let side = side.borrow()?;
    let projection = side.projection(py)?;
    let found =
        detached(py, |interrupt| ops::linear_expected_embedding_with(&projection, temperature, &execution, interrupt))?;
    Ok(found.embedding.into_pyarray(py).into_any())
}

/// Gradients of the sum of upstream times loss: `[hidden, weight, bias]`, flat, `None` where not wanted; bfloat16 as the uint16
/// of the same bits. `likelihoods` are those that `linear_loss` returned.
#[pyfunction]
#[pyo3(signature = (side, targets, settings, likelihoods, upstream, *, label_smoothing, z_loss, wanted, filter_eps, orders_vocabulary))]
#[expect(clippy::too_many_arguments, reason = "the settings of a backward pass")]
pub(super) fn linear_gradients<'py>(
    py: Python<'py>,
    side: Side<'py>,
    targets: TargetIds<'py>,
    settings: Settings,
    likelihoods: PyReadonlyArray1<'py, f64>,
    upstream: PyReadonlyArray1<'py, f64>,
    label_smoothing: f64,
    z_loss: f64,
    wanted: (bool, bool, bool),
    filter_eps: Option<f64>,
    orders_vocabulary: bool,
) -> PyResult<[Option<Bound<'py, PyAny>>; 3]> {
    let options = settings.options(py)?;
    let likelihoods = self::likelihoods(&likelihoods)?;
    let upstream = upstream.as_slice()?.to_vec();
    let side = side.borrow()?;
    let projection = side.projection(py)?;
    let targets = targets.checked(py, projection.vocab(), settings.ignore_index())?;
    let (hidden, weight, bias) = wanted;
    let wanted = GradientOptions { hidden, weight, bias, filter_eps, orders_vocabulary };
    let loss = LossTerms {
        targets: &targets,
        likelihoods: &likelihoods,
        settings: LossOptions { label_smoothing, z_loss, class_weights: None },
        temperature: options.temperature,
        upstream: &upstream,
    };
    let found = detached(py, |interrupt| {
        ops::linear_gradients_with(&projection, &loss, &wanted, &options.execution, interrupt)
    })?;
    Ok(wrap_gradients(py, found))
}

/// The logit of each row's target; NaN where the id is -100.
#[pyfunction]
#[pyo3(signature = (side, targets, *, num_threads))]
pub(super) fn linear_target_logits<'py>(
    py: Python<'py>,
    side: Side<'py>,
    targets: TargetIds<'py>,
    num_threads: Option<i64>,
) -> PyResult<Bound<'py, PyAny>> {
    let execution = execution(py, num_threads)?;
    let side = side.borrow()?;
    let projection = side.projection(py)?;
    let targets = targets.checked(py, projection.vocab(), -100)?;
    let logits = detached(py, |_| ops::linear_target_logits(&projection, &targets, &execution))?;
    Ok(logits.into_pyarray(py).into_any())
}

/// 10^9 multiplications and additions a second, of "bfloat16" or "float32".
#[pyfunction]
#[pyo3(signature = (element, num_threads))]
pub(super) fn tile_probe(py: Python<'_>, element: &str, num_threads: Option<i64>) -> PyResult<f64> {
    let execution = execution(py, num_threads)?;
    detached(py, |_| ops::tile_probe(element == "bfloat16", &execution))
}
