//! Memory lent by a caller: a pointer and a length, never a slice, because another thread may write to it while we read.
//! Every read goes through here and is checked once per block.

use super::{Element, LANES, Simd};
use std::marker::PhantomData;

/// Vectors of one block.
pub(crate) const BLOCK_VECTORS: usize = 16;
/// Columns of one block: so many are summed in float32 lanes, sixteen to a lane, before they fold into float64.
pub(crate) const BLOCK: usize = BLOCK_VECTORS * LANES;

/// Bytes that may be read for `'a`, holding elements `E` at any alignment.
pub struct Lent<'a, E> {
    start: *const u8,
    byte_count: usize,
    lender: PhantomData<&'a [E]>,
}

impl<E> Clone for Lent<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Lent<'_, E> {}

// SAFETY: the memory is only read, through raw loads that make no reference to it; a concurrent writer makes the
// values unspecified, which the lender is told.
unsafe impl<E: Send> Send for Lent<'_, E> {}
// SAFETY: as for `Send`.
unsafe impl<E: Sync> Sync for Lent<'_, E> {}

impl<'a, E: Element> Lent<'a, E> {
    /// # Safety
    /// - `start` is readable for `byte_count` bytes during `'a`.
    /// - Any bit pattern there is a value of `E`.
    pub(crate) unsafe fn new(start: *const u8, byte_count: usize) -> Self {
        Self { start, byte_count, lender: PhantomData }
    }

    /// The memory of a slice.
    pub(crate) fn from_slice(elements: &'a [E]) -> Self {
        // SAFETY: the slice is readable for its whole length during `'a`, and its bytes are values of `E`.
        unsafe { Self::new(elements.as_ptr().cast(), size_of_val(elements)) }
    }

    pub(crate) fn byte_count(self) -> usize {
        self.byte_count
    }

    /// The pointer to `count` elements at `byte_offset`, once they are known to lie inside.
    #[inline(always)]
    fn checked(self, byte_offset: usize, count: usize) -> *const E {
        let end = byte_offset.checked_add(count * size_of::<E>()).expect("an offset inside an array fits usize");
        assert!(end <= self.byte_count, "a view reads only the memory it was checked for");
        // SAFETY: the offset lies inside the memory, as just asserted.
        unsafe { self.start.add(byte_offset).cast() }
    }

    /// One block of [`BLOCK`] consecutive elements.
    #[inline(always)]
    pub(crate) fn block(self, byte_offset: usize) -> Block<'a, E> {
        Block { pointer: self.checked(byte_offset, BLOCK), lender: PhantomData }
    }

    /// One element.
    #[inline(always)]
    pub(crate) fn element(self, byte_offset: usize) -> E {
        // SAFETY: `checked` has seen that the element lies inside; the read takes any alignment.
        unsafe { self.checked(byte_offset, 1).read_unaligned() }
    }

    /// Copies consecutive elements.
    pub(crate) fn copy_to(self, byte_offset: usize, target: &mut [E]) {
        let source: *const u8 = self.checked(byte_offset, target.len()).cast();
        // SAFETY: source and target both hold that many bytes; the target is ours alone, so they do not overlap.
        unsafe { source.copy_to_nonoverlapping(target.as_mut_ptr().cast(), size_of_val(target)) };
    }
}

/// [`BLOCK`] consecutive elements, checked to be readable.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a, E> {
    pointer: *const E,
    lender: PhantomData<&'a [E]>,
}

impl<E: Element> Block<'_, E> {
    /// Vector number `index` of the block, in the compute type.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(self, simd: S, index: usize) -> E::Lanes<S> {
        assert!(index < BLOCK_VECTORS);
        // SAFETY: the block's elements are readable, and the index is inside it.
        unsafe { E::load(simd, self.pointer.add(index * LANES)) }
    }

    /// See [`Element::max_of_block`].
    #[inline(always)]
    pub(crate) fn max<S: Simd>(self, simd: S) -> E::Lanes<S> {
        // SAFETY: the block's elements are readable.
        unsafe { E::max_of_block(simd, self.pointer) }
    }

    /// Asks for the memory `distance` elements after vector number `index`; it need not be readable.
    #[inline(always)]
    pub(crate) fn prefetch<S: Simd>(self, simd: S, index: usize, distance: usize) {
        simd.prefetch(self.pointer.wrapping_add(index * LANES + distance).cast());
    }
}
