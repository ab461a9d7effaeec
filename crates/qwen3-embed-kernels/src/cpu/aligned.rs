//! Buffers that begin at a cache line, so that no vector load from a panel crosses the border of a cache line.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::scalar::Scalar;

/// A boxed slice that begins at a cache line. New buffers are zero. For large buffers, the operating system provides
/// zeroed pages when a thread first writes to them, so no time is spent on filling a buffer with zeros.
pub(super) struct Aligned<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: `Aligned` owns its elements, as `Vec` does.
unsafe impl<T: Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Aligned<T> {}

impl<T: Scalar> Aligned<T> {
    /// A buffer of `len` zeros.
    ///
    /// # Panics
    ///
    /// If the size in bytes overflows `isize`.
    pub(super) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let layout = layout::<T>(len);
        // SAFETY: the layout is not empty, because `len` is not 0 and no `Scalar` has size 0.
        let first = unsafe { alloc_zeroed(layout) };
        match NonNull::new(first.cast()) {
            Some(first) => Self { first, len },
            None => handle_alloc_error(layout),
        }
    }

    /// Makes sure that the buffer has at least `len` values. A shorter buffer is replaced by a buffer of zeros.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

fn layout<T>(len: usize) -> Layout {
    let array = Layout::array::<T>(len).expect("the size in bytes fits isize");
    array.align_to(LINE).expect("the size of a cache line is a power of two")
}

impl<T> Drop for Aligned<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `zeroed` allocated with this layout.
            unsafe { dealloc(self.first.as_ptr().cast(), layout::<T>(self.len)) }
        }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` allocated `len` values, and zero bits are a value, as `Scalar` promises.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { first: NonNull::dangling(), len: 0 }
    }
}

impl<T> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len)
    }
}
