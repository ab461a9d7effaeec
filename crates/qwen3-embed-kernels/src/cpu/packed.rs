//! Weights in the order in which products read them.

use half::bf16;
use rayon::prelude::*;

use super::Kernels;
use super::activations::Arithmetic;
use super::aligned::Aligned;
use super::product::Element;

/// How the rows of a weight go into panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Rows in order: the product has a column for each.
    Plain,
    /// The first half of the rows are SwiGLU's gates and the second half its ups. They are
    /// interleaved, and the product has a column `silu(gate) · up` for each pair.
    SwiGlu,
}

/// A weight matrix [O, I], packed for a kernel set.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    pub(super) panels: Panels,
    pub(super) place: Place,
    pub(super) kernels: &'static Kernels,
}

/// Panels in the type that they are stored in, row-major [panels, steps of I, columns of a panel,
/// values of a step]. What is beyond the weight is zero.
#[derive(Debug, Clone)]
pub(super) enum Panels {
    F32(Aligned<f32>),
    Bf16(Aligned<bf16>),
}

impl PackedWeight {
    /// Packs a weight [O, I] that is kept in f32, in parallel on rayon's current pool.
    /// `read_row(o, row)` writes all `I` values of the weight's row `o`.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub fn pack_f32(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let kernels = Kernels::best();
        let place = Place::new(n_out, n_in, layout, kernels);
        Self { panels: Panels::F32(pack(place, read_row)), place, kernels }
    }

    /// Packs a weight [O, I] that is kept in bf16, in parallel on rayon's current pool.
    /// `read_row(o, row)` writes all `I` values of the weight's row `o`.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub fn pack_bf16(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Self {
        let kernels = Kernels::best();
        let place = Place::new(n_out, n_in, layout, kernels);
        Self { panels: Panels::Bf16(pack(place, read_row)), place, kernels }
    }

    /// The same weight for another kernel set, for tests and benchmarks.
    #[doc(hidden)]
    pub fn repacked(&self, kernels: &'static Kernels) -> Self {
        let from = self.place;
        let place = Place::new(from.n_out, from.n_in, from.layout, kernels);
        let panels = match &self.panels {
            Panels::F32(p) => Panels::F32(pack(place, |o, row| unpack_row(p, from, o, row))),
            Panels::Bf16(p) => Panels::Bf16(pack(place, |o, row| unpack_row(p, from, o, row))),
        };
        Self { panels, place, kernels }
    }

    /// Whether it multiplies with such activations.
    pub fn accepts(&self, arithmetic: Arithmetic) -> bool {
        match (&self.panels, arithmetic) {
            (Panels::F32(_), Arithmetic::Bf16) => false,
            (Panels::F32(_), Arithmetic::F32) | (Panels::Bf16(_), _) => true,
        }
    }

    /// Input features, I.
    pub fn n_in(&self) -> usize {
        self.place.n_in
    }

    /// Output features, O.
    pub fn n_out(&self) -> usize {
        self.place.n_out
    }

    /// Columns of the product: O, or O / 2 for [`Layout::SwiGlu`].
    pub fn n_columns(&self) -> usize {
        match self.place.layout {
            Layout::Plain => self.place.n_out,
            Layout::SwiGlu => self.place.n_out / 2,
        }
    }
}

/// Where the elements of a weight lie in its panels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) layout: Layout,
    /// Lanes of a register; a panel is two registers wide.
    lanes: usize,
}

impl Place {
    fn new(n_out: usize, n_in: usize, layout: Layout, kernels: &Kernels) -> Self {
        let halves = layout != Layout::SwiGlu || n_out.is_multiple_of(2);
        assert!(halves, "as many gates as ups, not {n_out} together");
        Self { n_out, n_in, layout, lanes: kernels.lanes }
    }

    fn panel_columns(self) -> usize {
        2 * self.lanes
    }

    /// Values in a panel.
    pub(super) fn panel_size<T: Element>(self) -> usize {
        self.n_in.next_multiple_of(T::DEPTH) * self.panel_columns()
    }

    /// Number of panels.
    pub(super) fn n_panels(self) -> usize {
        match self.layout {
            Layout::Plain => self.n_out.div_ceil(self.panel_columns()),
            Layout::SwiGlu => (self.n_out / 2).div_ceil(self.lanes),
        }
    }

    /// The column, counted over all panels, of the weight's row `o`.
    fn column(self, o: usize) -> usize {
        match self.layout {
            Layout::Plain => o,
            Layout::SwiGlu => {
                let (half, o) = (o / (self.n_out / 2), o % (self.n_out / 2));
                o / self.lanes * 2 * self.lanes + half * self.lanes + o % self.lanes
            }
        }
    }

    /// Where element `k` of a column of a panel is in that panel.
    fn within_panel<T: Element>(self, column: usize, k: usize) -> usize {
        (k / T::DEPTH * self.panel_columns() + column) * T::DEPTH + k % T::DEPTH
    }
}

/// Fills the panels of a weight, in parallel.
fn pack<T: Element>(place: Place, read_row: impl Fn(usize, &mut [T]) + Sync) -> Aligned<T> {
    let columns = place.panel_columns();
    // The weight's row at each column of all panels.
    let mut row_at = vec![None; place.n_panels() * columns];
    for o in 0..place.n_out {
        row_at[place.column(o)] = Some(o);
    }
    let mut panels = Aligned::zeroed(place.n_panels() * place.panel_size::<T>());
    let each = panels.par_chunks_mut(place.panel_size::<T>().max(1));
    each.zip(row_at.par_chunks(columns)).for_each_init(
        || vec![T::default(); place.n_in],
        |row, (panel, row_at)| {
            for (column, o) in row_at.iter().enumerate() {
                if let Some(o) = *o {
                    read_row(o, row);
                    for (k, &value) in row.iter().enumerate() {
                        panel[place.within_panel::<T>(column, k)] = value;
                    }
                }
            }
        },
    );
    panels
}

/// Reads the weight's row `o` back.
fn unpack_row<T: Element>(panels: &[T], place: Place, o: usize, row: &mut [T]) {
    let (panel, column) =
        (place.column(o) / place.panel_columns(), place.column(o) % place.panel_columns());
    let panel = &panels[panel * place.panel_size::<T>()..];
    for (k, value) in row.iter_mut().enumerate() {
        *value = panel[place.within_panel::<T>(column, k)];
    }
}
