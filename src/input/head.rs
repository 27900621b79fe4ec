//! The head of a language model: weights and bias, lent as they lie or packed once.

use super::matrix::MatrixView;
use super::packed::{HeadOperand, PackedHead, Panels};
use crate::error::Error;
use crate::simd::Isa;
use crate::simd::tiles::{Operand, PANEL, pack_rows};

/// A head: z = weight . hidden + bias.
#[derive(Clone)]
pub struct Head<'a> {
    weight: Weight<'a>,
    bias: Option<Vec<f64>>,
    vocab: usize,
    /// Which row of the weights each row of the head is, where that is another.
    order: Option<Vec<usize>>,
}

/// Weights of a head.
#[derive(Clone)]
pub enum Weight<'a> {
    /// As they lie, `(vocab, width)`; tiles are packed as they are needed.
    Rows(MatrixView<'a>),
    /// Packed once, for use with many batches.
    Packed(&'a PackedHead),
}

impl<'a> Head<'a> {
    /// Weights, and a bias for each row of them.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there is not one bias for each row.
    pub fn new(weight: Weight<'a>, bias: Option<Vec<f64>>) -> Result<Self, Error> {
        let vocab = weight.vocab();
        match &bias {
            Some(bias) if bias.len() != vocab => {
                let (left_shape, right_shape) = (vec![bias.len()], vec![vocab]);
                Err(Error::ShapeMismatch { left: "bias", left_shape, right: "the rows of weight", right_shape })
            }
            _ => Ok(Self { weight, bias, vocab, order: None }),
        }
    }

    /// The same head without the padding rows from `vocab_size` on.
    ///
    /// # Errors
    /// [`Error::VocabSize`] if there are not so many rows, or for 0.
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Result<Self, Error> {
        if vocab_size == 0 || vocab_size > self.vocab {
            return Err(Error::VocabSize { vocab_size, vocab: self.vocab });
        }
        self.vocab = vocab_size;
        Ok(self)
    }

    /// Rows of the weights.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        match &self.weight {
            Weight::Rows(rows) => rows.width(),
            Weight::Packed(packed) => packed.width,
        }
    }

    /// As numpy calls the type of the weights, which for packed ones is float32, bfloat16 or float64.
    pub fn element(&self) -> &'static str {
        match &self.weight {
            Weight::Rows(rows) => rows.element(),
            Weight::Packed(packed) => packed.element(),
        }
    }

    /// The same head with its rows in another order: row `i` is row `order[i]` of this one.
    pub(crate) fn reordered(&self, order: &[usize]) -> Self {
        let bias = self.bias.as_ref().map(|bias| order.iter().map(|&row| bias[row]).collect());
        Self { weight: self.weight.clone(), bias, vocab: order.len(), order: Some(order.to_vec()) }
    }

    pub(crate) fn bias(&self) -> Option<&[f64]> {
        self.bias.as_deref()
    }

    /// Copies one row of weights.
    pub(crate) fn copy_row<O: HeadOperand>(&self, row: usize, target: &mut [O]) {
        let row = self.order.as_ref().map_or(row, |order| order[row]);
        match &self.weight {
            Weight::Rows(rows) => rows.copy_row(row, target),
            Weight::Packed(packed) => packed.copy_row(row, target),
        }
    }

    /// The panels of up to [`GROUP`] rows from `first` on; `room` may hold them.
    pub(crate) fn panels<'s, O: HeadOperand>(
        &'s self,
        isa: Isa,
        first: usize,
        rows: usize,
        room: &'s mut PanelRoom<O>,
    ) -> &'s [O] {
        let (depth, count) = (room.depth, rows.div_ceil(PANEL));
        let panels = first / PANEL * PANEL * depth..(first / PANEL + count) * PANEL * depth;
        if let (Weight::Packed(packed), None, true) = (&self.weight, &self.order, first.is_multiple_of(PANEL)) {
            if let Some(all) = O::packed(&packed.panels) {
                return &all[panels];
            }
            if let Panels::Bf16(all) = &packed.panels {
                O::unpack(&all[first / PANEL * PANEL * packed.depth..], packed.depth, &mut room.panels, depth, count);
                return &room.panels[..count * PANEL * depth];
            }
        }
        let width = self.width();
        for (row, target) in room.rows.chunks_mut(depth).take(count * PANEL).enumerate() {
            if row < rows {
                self.copy_row(first + row, &mut target[..width]);
            } else {
                target.fill(O::narrow(<O::Compute as crate::simd::Float>::ZERO));
            }
        }
        room.pack(isa, count)
    }
}

impl Weight<'_> {
    fn vocab(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.rows(),
            Self::Packed(packed) => packed.vocab,
        }
    }
}

/// Rows of a head that are packed and multiplied at a time.
pub(crate) const GROUP: usize = 4 * PANEL;

/// Room for a group of rows, as they lie and packed.
pub(crate) struct PanelRoom<O> {
    pub(crate) depth: usize,
    pub(crate) rows: Vec<O>,
    pub(crate) panels: Vec<O>,
}

impl<O: Operand> PanelRoom<O> {
    /// For rows of `width` numbers, padded with zeros.
    pub(crate) fn new(width: usize) -> Self {
        let depth = padded_depth::<O>(width);
        let zero = O::narrow(<O::Compute as crate::simd::Float>::ZERO);
        Self { depth, rows: vec![zero; GROUP * depth], panels: vec![zero; GROUP * depth] }
    }

    /// The first `count` panels of the rows.
    pub(crate) fn pack(&mut self, isa: Isa, count: usize) -> &[O] {
        let size = PANEL * self.depth;
        for (rows, panel) in self.rows.chunks(size).zip(self.panels.chunks_mut(size)).take(count) {
            pack_rows(isa, rows, self.depth, self.depth, panel);
        }
        &self.panels[..count * size]
    }
}

/// The depth of products over `width` numbers.
pub(crate) fn padded_depth<O: Operand>(width: usize) -> usize {
    width.max(1).next_multiple_of(O::DEPTH)
}
