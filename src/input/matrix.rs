//! Hidden states and head weights: rows of numbers of any storage type.

use super::LogitsView;
use crate::simd::Element;
use crate::simd::tiles::Operand;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Borrowed rows, `(rows, width)` after flattening the leading axes, of any strides: hidden states `(tokens, width)` or the
/// weights of a head `(vocab, width)`.
///
/// ```
/// use xentrs::{LogitsView, MatrixView};
/// let hidden = MatrixView::from(LogitsView::from_slice(&[1.0f32, 2.0], 1, 2)?);
/// assert_eq!((hidden.rows(), hidden.width()), (1, 2));
/// # Ok::<(), xentrs::Error>(())
/// ```
#[derive(Clone)]
#[expect(missing_docs, reason = "a variant for each storage type")]
pub enum MatrixView<'a> {
    F32(LogitsView<'a, f32>),
    F64(LogitsView<'a, f64>),
    F16(LogitsView<'a, f16>),
    Bf16(LogitsView<'a, bf16>),
}

/// Runs the body with `$view` as the rows' own type.
macro_rules! each_type {
    ($matrix:expr, $view:ident => $body:expr) => {
        match $matrix {
            MatrixView::F32($view) => $body,
            MatrixView::F64($view) => $body,
            MatrixView::F16($view) => $body,
            MatrixView::Bf16($view) => $body,
        }
    };
}

impl MatrixView<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        each_type!(self, view => view.rows())
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        each_type!(self, view => view.vocab())
    }

    /// As numpy calls the storage type.
    pub fn element(&self) -> &'static str {
        fn name<E: Element>(_: &LogitsView<'_, E>) -> &'static str {
            E::NAME
        }
        each_type!(self, view => name(view))
    }

    /// Copies one row, exactly: the operand is at least as wide as the storage type.
    pub(crate) fn copy_row<O: RowOperand>(&self, row: usize, target: &mut [O]) {
        O::copy_row(self, row, target);
    }
}

macro_rules! from_view {
    ($($variant:ident: $type:ty),+) => {
        $(impl<'a> From<LogitsView<'a, $type>> for MatrixView<'a> {
            fn from(view: LogitsView<'a, $type>) -> Self {
                Self::$variant(view)
            }
        })+
    };
}
from_view!(F32: f32, F64: f64, F16: f16, Bf16: bf16);

/// An operand, and how rows become it.
pub(crate) trait RowOperand: Operand {
    fn copy_row(matrix: &MatrixView<'_>, row: usize, target: &mut [Self]);
}

impl RowOperand for f32 {
    fn copy_row(matrix: &MatrixView<'_>, row: usize, target: &mut [f32]) {
        match matrix {
            MatrixView::F32(view) => view.row(row).copy_columns(0, target),
            MatrixView::F16(view) => copied(view, row, target.len()).convert_to_f32_slice(target),
            MatrixView::Bf16(view) => copied(view, row, target.len()).convert_to_f32_slice(target),
            MatrixView::F64(_) => unreachable!("float64 rows are multiplied in float64"),
        }
    }
}

impl RowOperand for f64 {
    fn copy_row(matrix: &MatrixView<'_>, row: usize, target: &mut [f64]) {
        fn widen<E: Element>(view: &LogitsView<'_, E>, row: usize, target: &mut [f64]) {
            let elements = copied(view, row, target.len());
            for (place, element) in target.iter_mut().zip(elements) {
                *place = element.widen().into();
            }
        }
        each_type!(matrix, view => widen(view, row, target));
    }
}

impl RowOperand for bf16 {
    fn copy_row(matrix: &MatrixView<'_>, row: usize, target: &mut [bf16]) {
        match matrix {
            MatrixView::Bf16(view) => view.row(row).copy_columns(0, target),
            _ => unreachable!("bfloat16 tiles are chosen for bfloat16 rows alone"),
        }
    }
}

fn copied<E: Element>(view: &LogitsView<'_, E>, row: usize, width: usize) -> Vec<E> {
    let mut elements = vec![E::IMPOSSIBLE; width];
    view.row(row).copy_columns(0, &mut elements);
    elements
}
