//! Operands into panels of sixteen columns, as products take them.

use super::{Operand, PANEL};
use crate::simd::{Isa, Job, Simd};

/// Packs sixteen rows of `depth` operands, `stride` from one to the next, so that each row becomes a column of `panel`.
pub(crate) fn pack_rows<O: Operand>(isa: Isa, rows: &[O], stride: usize, depth: usize, panel: &mut [O]) {
    assert!(stride >= depth && rows.len() >= (PANEL - 1) * stride + depth && panel.len() == PANEL * depth);
    isa.run(PackRows { rows, stride, depth, panel });
}

struct PackRows<'p, O> {
    rows: &'p [O],
    stride: usize,
    depth: usize,
    panel: &'p mut [O],
}

impl<O: Operand> Job for PackRows<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let word = O::PAIR * size_of::<O>();
        let step = PANEL * O::PAIR;
        let mut first = 0;
        if word == size_of::<u32>() && self.stride.is_multiple_of(O::PAIR) {
            while first + step <= self.depth {
                let (source, target) = (self.rows[first..].as_ptr(), self.panel[first * PANEL..].as_mut_ptr());
                // SAFETY: `pack_rows` has seen that sixteen rows hold `depth` operands and the panel as many; a step is sixteen
                // words of each, and ends within the depth.
                unsafe { simd.transpose(source.cast(), self.stride / O::PAIR, target.cast()) };
                first += step;
            }
        }
        for k in first..self.depth {
            for column in 0..PANEL {
                let place = (k / O::PAIR * PANEL + column) * O::PAIR + k % O::PAIR;
                self.panel[place] = self.rows[column * self.stride + k];
            }
        }
    }
}

/// Packs `depth` rows, `stride` operands from one to the next, into panels: panel `i` takes their columns from `16 i` on.
/// Rows and columns that are missing are 0; `depth` is that of the rows padded to [`Operand::DEPTH`].
pub(crate) fn pack_columns<O: Operand>(isa: Isa, rows: &[O], stride: usize, columns: usize, panels: &mut [O]) {
    let count = columns.div_ceil(PANEL);
    assert!(stride >= columns && panels.len().is_multiple_of(count * PANEL));
    isa.run(PackColumns { rows, stride, columns, depth: panels.len() / (count * PANEL), panels });
}

struct PackColumns<'p, O> {
    rows: &'p [O],
    stride: usize,
    columns: usize,
    depth: usize,
    panels: &'p mut [O],
}

impl<O: Operand> Job for PackColumns<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let zero = O::narrow(<O::Compute as crate::simd::Float>::ZERO);
        for (index, panel) in self.panels.chunks_exact_mut(self.depth * PANEL).enumerate() {
            let first = index * PANEL;
            let width = PANEL.min(self.columns - first);
            for (step, target) in panel.chunks_exact_mut(PANEL * O::PAIR).enumerate() {
                for half in 0..O::PAIR {
                    let start = (step * O::PAIR + half) * self.stride + first;
                    let row = self.rows.get(start..start + width).unwrap_or_default();
                    let places = target.iter_mut().skip(half).step_by(O::PAIR);
                    if let Ok(row) = <&[O; PANEL]>::try_from(row) {
                        places.zip(row).for_each(|(place, operand)| *place = *operand);
                    } else {
                        places
                            .zip(row.iter().copied().chain(std::iter::repeat(zero)))
                            .for_each(|(place, operand)| *place = operand);
                    }
                }
            }
        }
    }
}
