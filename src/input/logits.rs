//! Logits of shape `(..., vocab)`, lent with any strides.

use super::leaf::{LEAF, Leaf};
use crate::error::Error;
use crate::simd::Element;
use crate::simd::lent::{BLOCK, Lent};

/// Borrowed logits, `(rows, vocab)` after flattening the leading axes. Strides may be negative or zero.
///
/// ```
/// let logits = [0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0];
/// let view = xentrs::LogitsView::from_slice(&logits, 2, 3)?;
/// assert_eq!((view.rows(), view.vocab()), (2, 3));
/// # Ok::<(), xentrs::Error>(())
/// ```
#[derive(Clone)]
pub struct LogitsView<'a, E> {
    memory: Lent<'a, E>,
    origin: usize,
    leading: Vec<Axis>,
    rows: usize,
    vocab: usize,
    stride_bytes: isize,
}

/// One axis: its length and the bytes from one index to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) length: usize,
    pub(crate) stride_bytes: isize,
}

impl<'a, E: Element> LogitsView<'a, E> {
    /// Contiguous rows.
    ///
    /// # Errors
    /// [`Error::BufferLength`] if the slice does not hold `rows * vocab` elements.
    pub fn from_slice(logits: &'a [E], rows: usize, vocab: usize) -> Result<Self, Error> {
        if rows.checked_mul(vocab) != Some(logits.len()) {
            return Err(Error::BufferLength { elements: logits.len(), rows, vocab });
        }
        let element = size_of::<E>() as isize;
        let row_axis = Axis { length: rows, stride_bytes: vocab as isize * element };
        Self::strided(Lent::from_slice(logits), 0, &[row_axis, Axis { length: vocab, stride_bytes: element }])
    }

    /// Any strides; the last axis is the vocabulary. `origin` is the byte offset of index 0 on every axis.
    pub(crate) fn strided(memory: Lent<'a, E>, origin: usize, axes: &[Axis]) -> Result<Self, Error> {
        let (last, leading) = axes.split_last().expect("the caller gives at least the vocabulary axis");
        let overflow = || Error::ShapeOverflow { shape: axes.iter().map(|axis| axis.length).collect() };
        let rows = leading.iter().try_fold(1usize, |rows, axis| rows.checked_mul(axis.length)).ok_or_else(overflow)?;
        rows.checked_mul(last.length.max(1)).ok_or_else(overflow)?;
        if rows > 0 && last.length > 0 {
            let (low, high) = extent::<E>(axes).ok_or_else(overflow)?;
            let start = origin.checked_sub(low).ok_or_else(overflow)?;
            let end = origin.checked_add(high).ok_or_else(overflow)?;
            assert!(start <= end && end <= memory.byte_count(), "the lender measured the same extent");
        }
        let leading = leading.to_vec();
        Ok(Self { memory, origin, leading, rows, vocab: last.length, stride_bytes: last.stride_bytes })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The same rows without the padding columns from `vocab_size` on.
    ///
    /// # Errors
    /// [`Error::VocabSize`] if there are not so many columns, or for 0.
    pub fn with_vocab_size(mut self, vocab_size: usize) -> Result<Self, Error> {
        if vocab_size == 0 || vocab_size > self.vocab {
            return Err(Error::VocabSize { vocab_size, vocab: self.vocab });
        }
        self.vocab = vocab_size;
        Ok(self)
    }

    /// Row number `index`.
    pub(crate) fn row(&self, index: usize) -> RowView<'a, E> {
        debug_assert!(index < self.rows);
        let (mut remaining, mut offset) = (index, self.origin as isize);
        for axis in self.leading.iter().rev() {
            offset += (remaining % axis.length) as isize * axis.stride_bytes;
            remaining /= axis.length;
        }
        RowView {
            memory: self.memory,
            byte_offset: offset as usize,
            stride_bytes: self.stride_bytes,
            vocab: self.vocab,
        }
    }
}

/// Bytes that elements of these axes reach below and above the origin.
pub(crate) fn extent<E>(axes: &[Axis]) -> Option<(usize, usize)> {
    let (mut low, mut high) = (0usize, size_of::<E>());
    for axis in axes {
        let reach = axis.stride_bytes.unsigned_abs().checked_mul(axis.length - 1)?;
        let side = if axis.stride_bytes < 0 { &mut low } else { &mut high };
        *side = side.checked_add(reach).filter(|&bytes| bytes <= isize::MAX as usize)?;
    }
    Some((low, high))
}

/// One row.
#[derive(Clone, Copy)]
pub(crate) struct RowView<'a, E> {
    memory: Lent<'a, E>,
    byte_offset: usize,
    stride_bytes: isize,
    vocab: usize,
}

impl<'a, E: Element> RowView<'a, E> {
    /// A row of `vocab` columns of which only leaf number `index` is at hand, in `columns`.
    pub(crate) fn window(columns: &'a [E], index: usize, vocab: usize) -> Self {
        let stride_bytes = size_of::<E>() as isize;
        // Places are counted from column 0, which stands before the memory; a read of another leaf is caught by its check.
        let byte_offset = (0usize).wrapping_sub(index * LEAF * size_of::<E>());
        Self { memory: Lent::from_slice(columns), byte_offset, stride_bytes, vocab }
    }

    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Leaves of the row.
    pub(crate) fn leaf_count(&self) -> usize {
        self.vocab.div_ceil(LEAF)
    }

    /// The logit of one column.
    pub(crate) fn logit(&self, column: usize) -> E {
        assert!(column < self.vocab);
        self.memory.element(self.offset_of(column))
    }

    /// Leaf number `index`, counted in columns of this row.
    pub(crate) fn leaf<'s>(&self, index: usize, scratch: &'s mut [E]) -> Leaf<'s, E>
    where
        'a: 's,
    {
        let start = index * LEAF;
        self.columns(start, LEAF.min(self.vocab - start), scratch)
    }

    /// Up to [`LEAF`] columns from `start` on, as a leaf.
    pub(crate) fn columns<'s>(&self, start: usize, columns: usize, scratch: &'s mut [E]) -> Leaf<'s, E>
    where
        'a: 's,
    {
        if self.stride_bytes == size_of::<E>() as isize {
            let full = columns / BLOCK * BLOCK;
            let tail = &mut scratch[..BLOCK];
            if full < columns {
                tail.fill(E::IMPOSSIBLE);
                self.memory.copy_to(self.offset_of(start + full), &mut tail[..columns - full]);
            }
            Leaf::new(self.memory, self.offset_of(start), columns, tail)
        } else {
            self.copy_columns(start, &mut scratch[..columns]);
            scratch[columns..columns.next_multiple_of(BLOCK)].fill(E::IMPOSSIBLE);
            Leaf::from_padded(&scratch[..columns.next_multiple_of(BLOCK)], columns)
        }
    }

    /// Copies the columns from `start` on.
    pub(crate) fn copy_columns(&self, start: usize, target: &mut [E]) {
        if target.is_empty() {
            return; // rows of no columns have no memory to point into
        }
        if self.stride_bytes == size_of::<E>() as isize {
            self.memory.copy_to(self.offset_of(start), target);
        } else {
            for (i, element) in target.iter_mut().enumerate() {
                *element = self.memory.element(self.offset_of(start + i));
            }
        }
    }

    fn offset_of(&self, column: usize) -> usize {
        (self.byte_offset as isize).wrapping_add(column as isize * self.stride_bytes) as usize
    }
}
