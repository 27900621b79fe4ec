//! Weights in tile order, and how rows and panels come back out of it.

use super::head::{GROUP, Head, PanelRoom, Weight, padded_depth};
use super::matrix::{MatrixView, RowOperand};
use crate::error::{Error, try_filled};
use crate::simd::Isa;
use crate::simd::tiles::{Operand, PANEL};
use half::bf16;

/// Weights in tile order, packed once and used with many batches.
///
/// bfloat16 weights stay bfloat16, float16 and float32 become float32, float64 stays; rows are padded to 16, the width of
/// bfloat16 to 32, and a width of 0 to 1.
#[derive(Clone)]
pub struct PackedHead {
    pub(super) panels: Panels,
    pub(super) vocab: usize,
    pub(super) width: usize,
    pub(super) depth: usize,
}

/// Panels one after another.
#[derive(Clone)]
pub(crate) enum Panels {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bf16(Vec<bf16>),
}

impl PackedHead {
    /// Packs weights, `(vocab, width)`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Parameter`] for an instruction set that `XENTRS_ISA` names in vain.
    pub fn new(weight: &MatrixView<'_>) -> Result<Self, Error> {
        let isa = Isa::current()?;
        let (vocab, width) = (weight.rows(), weight.width());
        let (panels, depth) = match weight {
            MatrixView::F64(_) => (Panels::F64(packed(isa, weight)?), padded_depth::<f64>(width)),
            MatrixView::Bf16(_) => (Panels::Bf16(packed(isa, weight)?), padded_depth::<bf16>(width)),
            _ => (Panels::F32(packed(isa, weight)?), padded_depth::<f32>(width)),
        };
        Ok(Self { panels, vocab, width, depth })
    }

    /// Rows of the weights.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// As numpy calls the type of the panels.
    pub fn element(&self) -> &'static str {
        match self.panels {
            Panels::F32(_) => "float32",
            Panels::F64(_) => "float64",
            Panels::Bf16(_) => "bfloat16",
        }
    }

    /// Bytes that it holds.
    pub fn byte_count(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of_val(&panels[..]),
            Panels::F64(panels) => size_of_val(&panels[..]),
            Panels::Bf16(panels) => size_of_val(&panels[..]),
        }
    }

    /// Copies one row of weights.
    pub(super) fn copy_row<O: HeadOperand>(&self, row: usize, target: &mut [O]) {
        fn column<T: Operand>(panels: &[T], depth: usize, row: usize) -> impl Iterator<Item = T> + '_ {
            let panel = &panels[row / PANEL * PANEL * depth..][..PANEL * depth];
            let place = move |k: usize| (k / T::PAIR * PANEL + row % PANEL) * T::PAIR + k % T::PAIR;
            (0..depth).map(move |k| panel[place(k)])
        }
        let places = target.iter_mut();
        match &self.panels {
            Panels::F32(panels) => places.zip(column(panels, self.depth, row)).for_each(|(p, v)| *p = O::widen_f32(v)),
            Panels::F64(panels) => places.zip(column(panels, self.depth, row)).for_each(|(p, v)| *p = O::widen_f64(v)),
            Panels::Bf16(panels) => {
                places.zip(column(panels, self.depth, row)).for_each(|(p, v)| *p = O::widen_bf16(v))
            }
        }
    }
}

fn packed<O: HeadOperand>(isa: Isa, weight: &MatrixView<'_>) -> Result<Vec<O>, Error> {
    let head = Head::new(Weight::Rows(weight.clone()), None)?;
    let mut room = PanelRoom::new(head.width());
    let panel = PANEL * room.depth;
    let zero = O::narrow(<O::Compute as crate::simd::Float>::ZERO);
    let mut panels = try_filled(head.vocab().div_ceil(PANEL).saturating_mul(panel), zero)?;
    for (group, target) in panels.chunks_mut(GROUP / PANEL * panel).enumerate() {
        let rows = GROUP.min(head.vocab() - group * GROUP);
        target.copy_from_slice(head.panels(isa, group * GROUP, rows, &mut room));
    }
    Ok(panels)
}

/// An operand that a head can give.
pub(crate) trait HeadOperand: RowOperand {
    /// The panels, where they are of this type.
    fn packed(panels: &Panels) -> Option<&[Self]>;
    fn widen_bf16(value: bf16) -> Self;
    fn widen_f32(value: f32) -> Self;
    fn widen_f64(value: f64) -> Self;

    /// Panels of pairs of bfloat16 as panels of this type, which takes no pairs.
    fn unpack(source: &[bf16], source_depth: usize, target: &mut [Self], depth: usize, count: usize) {
        for (source, target) in source.chunks(PANEL * source_depth).zip(target.chunks_mut(PANEL * depth)).take(count) {
            for (place, value) in target.iter_mut().enumerate() {
                let (k, column) = (place / PANEL, place % PANEL);
                *value = Self::widen_bf16(source[(k / 2 * PANEL + column) * 2 + k % 2]);
            }
        }
    }
}

impl HeadOperand for f32 {
    fn packed(panels: &Panels) -> Option<&[f32]> {
        if let Panels::F32(panels) = panels { Some(panels) } else { None }
    }
    fn widen_bf16(value: bf16) -> f32 {
        value.to_f32()
    }
    fn widen_f32(value: f32) -> f32 {
        value
    }
    fn widen_f64(_: f64) -> f32 {
        unreachable!("float64 weights are multiplied in float64")
    }
}
impl HeadOperand for f64 {
    fn packed(panels: &Panels) -> Option<&[f64]> {
        if let Panels::F64(panels) = panels { Some(panels) } else { None }
    }
    fn widen_bf16(value: bf16) -> f64 {
        value.to_f64()
    }
    fn widen_f32(value: f32) -> f64 {
        value.into()
    }
    fn widen_f64(value: f64) -> f64 {
        value
    }
}
impl HeadOperand for bf16 {
    fn packed(panels: &Panels) -> Option<&[bf16]> {
        if let Panels::Bf16(panels) = panels { Some(panels) } else { None }
    }
    fn widen_bf16(value: bf16) -> bf16 {
        value
    }
    fn widen_f32(_: f32) -> bf16 {
        unreachable!("bfloat16 tiles are chosen for bfloat16 weights alone")
    }
    fn widen_f64(_: f64) -> bf16 {
        unreachable!("bfloat16 tiles are chosen for bfloat16 weights alone")
    }
}
