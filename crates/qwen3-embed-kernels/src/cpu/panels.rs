//! The division of a weight into panels (see `tile`): the panel and the column of each row of the weight.

use std::ops::Range;

use rayon::prelude::*;

use super::aligned::Aligned;
use super::dispatch::Kernels;
use super::scalar::Scalar;

/// The order in which the rows of a weight become columns of panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Rows in their order. The result has a column for each row.
    Plain,
    /// For SwiGLU: the first half of the rows are gates, the second half are ups. Gates and ups are interleaved, and
    /// the result has a column `silu(gate) · up` for each pair of a gate and an up.
    SwiGlu,
}

/// The shape of a weight [O, I] and its division into panels, each of which has the same number of columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct PanelGrid {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) layout: Layout,
    /// Lanes of a register. A panel is two registers wide.
    lanes: usize,
    /// The offset of weights in the format `bytes`.
    pub(super) weight_offset: u8,
}

impl PanelGrid {
    /// The division for a kernel set.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub(super) fn new(n_out: usize, n_in: usize, layout: Layout, kernels: &Kernels) -> Self {
        let is_even = layout != Layout::SwiGlu || n_out.is_multiple_of(2);
        assert!(is_even, "SwiGLU needs as many gates as ups, got {n_out} rows");
        let Kernels { lanes, weight_offset, .. } = *kernels;
        Self { n_out, n_in, layout, lanes, weight_offset }
    }

    /// Columns of a panel.
    pub(super) fn panel_columns(self) -> usize {
        2 * self.lanes
    }

    /// Columns of the result: O, or O / 2 with [`Layout::SwiGlu`].
    pub(super) fn n_columns(self) -> usize {
        match self.layout {
            Layout::Plain => self.n_out,
            Layout::SwiGlu => self.n_out / 2,
        }
    }

    /// Number of panels.
    pub(super) fn n_panels(self) -> usize {
        self.panels_of(0..self.n_columns()).len()
    }

    /// The panels that compute these columns of the result.
    pub(super) fn panels_of(self, columns: Range<usize>) -> Range<usize> {
        let per_panel = match self.layout {
            Layout::Plain => self.panel_columns(),
            Layout::SwiGlu => self.lanes,
        };
        columns.start / per_panel..columns.end.div_ceil(per_panel)
    }

    /// The panel that has the row `o` of the weight, and its column in that panel.
    pub(super) fn position(self, o: usize) -> (usize, usize) {
        let column = match self.layout {
            Layout::Plain => o,
            Layout::SwiGlu => {
                let (half, o) = (o / (self.n_out / 2), o % (self.n_out / 2));
                o / self.lanes * 2 * self.lanes + half * self.lanes + o % self.lanes
            }
        };
        (column / self.panel_columns(), column % self.panel_columns())
    }

    /// The row of the weight in each column of all panels, or `None` for columns that pad the last panel.
    pub(super) fn rows_at_columns(self) -> Vec<Option<usize>> {
        let mut row_at = vec![None; self.n_panels() * self.panel_columns()];
        for o in 0..self.n_out {
            let (panel, column) = self.position(o);
            row_at[panel * self.panel_columns() + column] = Some(o);
        }
        row_at
    }

    /// Fills panels of `panel_size` values, in parallel: `write(room, o, panel, column)` writes the row `o` of the
    /// weight to a column of a panel. Columns beyond the weight stay zero. `room()` makes a buffer for each thread.
    pub(super) fn fill<T: Scalar, R>(
        self,
        panel_size: usize,
        room: impl Fn() -> R + Sync + Send,
        write: impl Fn(&mut R, usize, &mut [T], usize) + Sync,
    ) -> Aligned<T> {
        let columns = self.panel_columns();
        let row_at = self.rows_at_columns();
        let mut panels = Aligned::zeroed(self.n_panels() * panel_size);
        let each = panels.par_chunks_mut(panel_size.max(1));
        each.zip(row_at.par_chunks(columns)).for_each_init(room, |room, (panel, row_at)| {
            for (column, o) in row_at.iter().enumerate() {
                if let Some(o) = *o {
                    write(room, o, panel, column);
                }
            }
        });
        panels
    }
}
