//! The numbers of the lines on which the records of a CSV file begin.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;

/// The lines that a [`LineCounter`] has read.
#[derive(Clone, Default)]
pub(super) struct LineNumbers(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    n_bytes: u64,
    n_line_feeds: u64,
    is_within_line: bool,
    /// The offset of the first byte and the number of each line that is not empty.
    starts: VecDeque<(u64, u64)>,
}

/// A reader that remembers where lines begin.
pub(super) struct LineCounter<R> {
    reader: R,
    numbers: LineNumbers,
}

impl<R: Read> LineCounter<R> {
    pub(super) fn new(reader: R) -> (Self, LineNumbers) {
        let numbers = LineNumbers::default();
        (Self { reader, numbers: numbers.clone() }, numbers)
    }
}

impl<R: Read> Read for LineCounter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        self.numbers.0.borrow_mut().count(&buffer[..n_read]);
        Ok(n_read)
    }
}

impl LineNumbers {
    /// The number of the line on which a record begins. `offset` is the end of the record before it: the csv crate has
    /// not read the line feed of `\r\n` and empty lines at this point, so its own line numbers are too small.
    ///
    /// Earlier lines are forgotten, so offsets must not decrease.
    pub(super) fn line_after(&self, offset: u64) -> u64 {
        let State { starts, n_line_feeds, .. } = &mut *self.0.borrow_mut();
        while starts.front().is_some_and(|&(start, _)| start < offset) {
            starts.pop_front();
        }
        starts.front().map_or(*n_line_feeds + 1, |&(_, number)| number)
    }
}

impl State {
    fn count(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let is_break = byte == b'\n' || byte == b'\r';
            if !is_break && !self.is_within_line {
                self.starts.push_back((self.n_bytes, self.n_line_feeds + 1));
            }
            self.is_within_line = !is_break;
            self.n_line_feeds += u64::from(byte == b'\n');
            self.n_bytes += 1;
        }
    }
}
