//! The locks of the queue and of its requests. In `shuttle_tests`, a scheduler decides which thread gets them.

#[cfg(all(test, shuttle))]
pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(all(test, shuttle)))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
