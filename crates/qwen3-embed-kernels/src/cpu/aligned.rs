//! Memory for panels: whole cache lines, so that no register of a panel lies across two.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::product::Element;

/// A slice that begins at a cache line, zero to begin with. The system gives zeroed pages when they
/// are first touched, by the threads that fill them.
pub(super) struct Aligned<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements as a `Vec` does.
unsafe impl<T: Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Aligned<T> {}

impl<T: Element> Aligned<T> {
    /// `len` zeros.
    ///
    /// # Panics
    ///
    /// If they are more bytes than an address can count.
    pub(super) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let layout = layout::<T>(len);
        // SAFETY: the layout has a size, because a value has one and there is one at least.
        let first = unsafe { alloc_zeroed(layout) };
        match NonNull::new(first.cast()) {
            Some(first) => Self { first, len },
            None => handle_alloc_error(layout),
        }
    }

    /// Room for `len` values, which may be any; what was there is kept if that is enough.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }
}

const LINE: usize = 64;

fn layout<T>(len: usize) -> Layout {
    let array = Layout::array::<T>(len).expect("as many bytes as an address can count");
    array.align_to(LINE).expect("a line is a power of two")
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
        // SAFETY: `zeroed` has made so many values, and zeros are one, as `Element` promises.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T: Element> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut clone = Self::zeroed(self.len);
        clone.copy_from_slice(self);
        clone
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
