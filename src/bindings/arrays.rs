//! Memory lent by numpy: borrowed for the whole call, measured before it is lent on.
#![allow(unsafe_code)] // one of the two places; each block names the fact that makes it sound

use crate::error::Error;
use crate::input::{Axis, LogitsView, extent};
use crate::simd::Element;
use crate::simd::lent::Lent;
use half::{bf16, f16};
use numpy::{
    PyArrayDescrMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods, prelude::*,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Logits of one storage type, borrowed so that no other Rust extension writes to them meanwhile.
pub(super) enum LentLogits<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F64(PyReadonlyArrayDyn<'py, f64>),
    F16(PyReadonlyArrayDyn<'py, f16>),
    /// The same bits as int16, because numpy itself has no bfloat16.
    Bf16(PyReadonlyArrayDyn<'py, i16>),
}

impl<'py> LentLogits<'py> {
    /// Borrows an array of native byte order whose dtype is that of `element`.
    pub(super) fn borrow(array: &Bound<'py, PyUntypedArray>, element: &str) -> PyResult<Self> {
        Ok(match element {
            f32::NAME => Self::F32(readonly(array)?),
            f64::NAME => Self::F64(readonly(array)?),
            f16::NAME => Self::F16(readonly(array)?),
            bf16::NAME => Self::Bf16(readonly(array)?),
            _ => return Err(PyTypeError::new_err(format!("no kernel for elements {element}"))),
        })
    }
}

fn readonly<'py, T: numpy::Element>(array: &Bound<'py, PyUntypedArray>) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    if !array.dtype().is_native_byteorder().unwrap_or(true) {
        return Err(PyTypeError::new_err("logits have another byte order than this machine"));
    }
    let typed = array.cast::<numpy::PyArrayDyn<T>>()?;
    typed.try_readonly().map_err(|error| PyValueError::new_err(format!("logits are in use elsewhere: {error}")))
}

/// A contiguous array that the caller has made for this call alone, borrowed to be written.
pub(super) enum LentPlace<'py> {
    F32(PyReadwriteArrayDyn<'py, f32>),
    F64(PyReadwriteArrayDyn<'py, f64>),
    F16(PyReadwriteArrayDyn<'py, f16>),
    /// The same bits as int16.
    Bf16(PyReadwriteArrayDyn<'py, i16>),
}

impl<'py> LentPlace<'py> {
    pub(super) fn borrow(array: &Bound<'py, PyUntypedArray>, element: &str) -> PyResult<Self> {
        Ok(match element {
            f32::NAME => Self::F32(readwrite(array)?),
            f64::NAME => Self::F64(readwrite(array)?),
            f16::NAME => Self::F16(readwrite(array)?),
            bf16::NAME => Self::Bf16(readwrite(array)?),
            _ => return Err(PyTypeError::new_err(format!("no kernel for elements {element}"))),
        })
    }

    /// The numbers, to be written; `E` is the element that the array was borrowed as.
    pub(super) fn numbers<E: Element>(&mut self) -> PyResult<&mut [E]> {
        let (name, pointer, count) = match self {
            Self::F32(array) => raw(f32::NAME, array)?,
            Self::F64(array) => raw(f64::NAME, array)?,
            Self::F16(array) => raw(f16::NAME, array)?,
            Self::Bf16(array) => raw(bf16::NAME, array)?,
        };
        assert_eq!(name, E::NAME, "logits and place were borrowed as the same element");
        // SAFETY: the numbers are contiguous and borrowed for as long as `self` is; an element of that name has the size and
        // alignment of the numpy type, and any bits are values of both.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast(), count) })
    }
}

/// Where an array's numbers begin, and how many there are.
fn raw<T: numpy::Element>(
    name: &'static str,
    array: &mut PyReadwriteArrayDyn<'_, T>,
) -> PyResult<(&'static str, *mut u8, usize)> {
    let numbers = array.as_slice_mut().map_err(|error| PyValueError::new_err(format!("out: {error}")))?;
    Ok((name, numbers.as_mut_ptr().cast(), numbers.len()))
}

fn readwrite<'py, T: numpy::Element>(array: &Bound<'py, PyUntypedArray>) -> PyResult<PyReadwriteArrayDyn<'py, T>> {
    let typed = array.cast::<numpy::PyArrayDyn<T>>()?;
    typed.try_readwrite().map_err(|error| PyValueError::new_err(format!("out cannot be written: {error}")))
}

/// The memory of a borrowed array as logits; the last axis is the vocabulary.
pub(super) fn view<'a, T: numpy::Element, E: Element>(
    array: &'a PyReadonlyArrayDyn<'_, T>,
) -> Result<LogitsView<'a, E>, Error> {
    const { assert!(size_of::<T>() == size_of::<E>()) };
    let axis = |(&length, &stride_bytes): (&usize, &isize)| Axis { length, stride_bytes };
    let axes: Vec<Axis> = array.shape().iter().zip(array.strides()).map(axis).collect();
    let pointer: *const u8 = array.data().cast();
    let (low, high) = if array.shape().contains(&0) {
        (0, 0)
    } else {
        extent::<E>(&axes).ok_or_else(|| Error::ShapeOverflow { shape: array.shape().to_vec() })?
    };
    // SAFETY: numpy's own invariant: every element that shape and strides reach lies in memory that the array keeps alive,
    // and `array` borrows it for `'a`; `extent` has measured exactly those bytes. Any bits are values of `E`.
    let memory = unsafe { Lent::new(pointer.sub(low), low + high) };
    LogitsView::strided(memory, low, &axes)
}

/// Runs the body with `$view` as a [`LogitsView`] of the array's storage type.
macro_rules! with_logits {
    ($logits:expr, |$view:ident| $body:expr) => {
        match $logits {
            $crate::bindings::arrays::LentLogits::F32(array) => {
                let $view = $crate::bindings::arrays::view::<f32, f32>(array);
                $body
            }
            $crate::bindings::arrays::LentLogits::F64(array) => {
                let $view = $crate::bindings::arrays::view::<f64, f64>(array);
                $body
            }
            $crate::bindings::arrays::LentLogits::F16(array) => {
                let $view = $crate::bindings::arrays::view::<half::f16, half::f16>(array);
                $body
            }
            $crate::bindings::arrays::LentLogits::Bf16(array) => {
                let $view = $crate::bindings::arrays::view::<i16, half::bf16>(array);
                $body
            }
        }
    };
}
pub(super) use with_logits;
