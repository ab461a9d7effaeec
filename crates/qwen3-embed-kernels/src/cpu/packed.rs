//! Weights in the order in which products read them.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Kernels;
use super::activations::Arithmetic;
use super::aligned::Aligned;
use super::blocks::{BlockPanels, BlockRow};
use super::product::{BYTE_GROUP, Bits, Element, Weight8, group_size};
use super::rotation::{ROTATION, rotate};

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
    /// In groups of I, each followed by its columns' scales. Behind the last group come the groups
    /// of `precise`: input features whose weights have a second value, what is left of them beside
    /// the first.
    Int8 {
        groups: Aligned<i8>,
        precise: Vec<usize>,
    },
    /// In groups as well, for activations in 8 bits, which are rotated before or not, as the weights are.
    Bytes {
        groups: Aligned<u8>,
        is_rotated: bool,
    },
    /// In blocks of few bits, for activations in 8 bits.
    Blocks(BlockPanels),
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
        Self::new(n_out, n_in, layout, |place| Panels::F32(pack(place, read_row)))
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
        Self::new(n_out, n_in, layout, |place| Panels::Bf16(pack(place, read_row)))
    }

    /// Packs a weight [O, I] that is kept in 8 bits, in parallel on rayon's current pool.
    /// `read_row(o, row)` writes all `I` values of the weight's row `o`. Each group of 32 of them gets
    /// a scale and values from −127 to 127; the weights of the input features `precise`, which have the
    /// largest activations, are kept in twice as many bits.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`], or a feature is not below I.
    pub fn pack_int8(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        precise: &[usize],
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        assert!(precise.iter().all(|&k| k < n_in), "features are below I = {n_in}");
        Self::new(n_out, n_in, layout, |place| Panels::Int8 {
            groups: pack_rounded(place, precise, read_row),
            precise: precise.to_vec(),
        })
    }

    /// Packs a weight [O, I] that is kept in 8 bits, for activations in 8 bits, in parallel on rayon's
    /// current pool. `read_row(o, row)` writes all `I` values of the weight's row `o`. Each group of
    /// [`BYTE_GROUP`](super::BYTE_GROUP) of them gets a scale and values from −127 to 127. If `is_rotated`, weights and
    /// activations are [rotated](super::rotate) before they are rounded.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`], or if I is not whole blocks of [`ROTATION`](super::ROTATION) values that are
    /// to be rotated.
    pub fn pack_bytes(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        is_rotated: bool,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        assert!(
            !is_rotated || n_in.is_multiple_of(ROTATION),
            "I = {n_in} is rotated in whole blocks of {ROTATION}"
        );
        let read = |o: usize, row: &mut [f32]| {
            read_row(o, row);
            if is_rotated {
                rotate(row);
            }
        };
        Self::new(n_out, n_in, layout, |place| Panels::Bytes {
            groups: pack_rounded(place, &[], read),
            is_rotated,
        })
    }

    /// Packs a weight [O, I] that is there in 8 bits already, with a scale for every 32 values, in
    /// parallel on rayon's current pool. `read_row(o, values, scales)` writes the `I` values and the
    /// scales of the weight's row `o`.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub fn pack_q8(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [i8], &mut [f32]) + Sync,
    ) -> Self {
        Self::new(n_out, n_in, layout, |place| {
            let read = |(): &mut (), o: usize, row: &mut QuantisedRow<'_>| {
                read_row(o, &mut row.values[..n_in], row.scales);
            };
            Panels::Int8 { groups: pack_groups(place, 0, || (), read), precise: Vec::new() }
        })
    }

    /// Packs a weight [O, I] that is there in blocks of few bits already, for activations in 8 bits, in
    /// parallel on rayon's current pool. `read_row(o, row)` writes the weight's row `o`, which is in
    /// `bits(o)`. Activations are multiplied with `columns`, if there are any, before they are
    /// brought into 8 bits.
    ///
    /// `None` if I is not whole blocks, or if rows in different bits would lie in one panel.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`], if a row is not of this size, or if `columns` is not `[I]`.
    pub fn pack_blocks(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        columns: Option<&[f32]>,
        bits: impl Fn(usize) -> Bits,
        read_row: impl Fn(usize, &mut BlockRow) + Sync,
    ) -> Option<Self> {
        assert!(columns.is_none_or(|columns| columns.len() == n_in), "columns are [I = {n_in}]");
        let kernels = Kernels::current();
        let place = Place::new(n_out, n_in, layout, kernels);
        let columns = columns.map(<[f32]>::to_vec);
        let panels = Panels::Blocks(BlockPanels::pack(place, columns, bits, read_row)?);
        Some(Self { panels, place, kernels })
    }

    fn new(n_out: usize, n_in: usize, layout: Layout, pack: impl FnOnce(Place) -> Panels) -> Self {
        let kernels = Kernels::current();
        let place = Place::new(n_out, n_in, layout, kernels);
        Self { panels: pack(place), place, kernels }
    }

    /// The same weight for another kernel set, for tests and benchmarks.
    ///
    /// # Panics
    ///
    /// If blocks in different bits would lie in one panel there.
    #[doc(hidden)]
    pub fn repacked(&self, kernels: &'static Kernels) -> Self {
        let from = self.place;
        let place = Place::new(from.n_out, from.n_in, from.layout, kernels);
        let panels = match &self.panels {
            Panels::F32(p) => Panels::F32(pack(place, |o, row| unpack_row(p, from, o, row))),
            Panels::Bf16(p) => Panels::Bf16(pack(place, |o, row| unpack_row(p, from, o, row))),
            Panels::Int8 { groups, precise } => Panels::Int8 {
                groups: repack_groups(groups, from, place, precise.len()),
                precise: precise.clone(),
            },
            &Panels::Bytes { ref groups, is_rotated } => {
                Panels::Bytes { groups: repack_groups(groups, from, place, 0), is_rotated }
            }
            Panels::Blocks(panels) => {
                Panels::Blocks(panels.repacked(from, place).expect("panels in the same bits"))
            }
        };
        Self { panels, place, kernels }
    }

    /// Whether it multiplies with such activations.
    pub fn accepts(&self, arithmetic: Arithmetic) -> bool {
        matches!(
            (&self.panels, arithmetic),
            (Panels::F32(_), Arithmetic::F32)
                | (Panels::Bf16(_), Arithmetic::F32 | Arithmetic::Bf16)
                | (Panels::Int8 { .. }, Arithmetic::Int8)
                | (Panels::Bytes { .. }, Arithmetic::Bytes)
                | (Panels::Blocks(_), Arithmetic::Blocks)
        )
    }

    /// Whether it multiplies with what [`Quantised`](super::Quantised) makes of activations.
    pub fn is_quantised(&self) -> bool {
        matches!(self.panels, Panels::Int8 { .. } | Panels::Bytes { .. } | Panels::Blocks(_))
    }

    /// Values of `k` that a panel has, and the elements that it takes; of panels of blocks, which know their
    /// sizes, none.
    pub(super) fn panel_size(&self) -> [usize; 2] {
        let n_in = self.place.n_in;
        match &self.panels {
            Panels::F32(_) => [n_in, self.place.panel_size::<f32>()],
            Panels::Bf16(_) => [n_in, self.place.panel_size::<bf16>()],
            Panels::Int8 { precise, .. } => {
                let n_k = padded::<i8>(n_in, precise.len());
                [n_k, self.place.group_panel_size::<i8>(n_k)]
            }
            Panels::Bytes { .. } => {
                let n_k = padded::<u8>(n_in, 0);
                [n_k, self.place.group_panel_size::<u8>(n_k)]
            }
            Panels::Blocks(_) => [n_in, 0],
        }
    }

    /// Bytes of the panels.
    pub fn n_bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of_val(&panels[..]),
            Panels::Bf16(panels) => size_of_val(&panels[..]),
            Panels::Int8 { groups, .. } => groups.len(),
            Panels::Bytes { groups, .. } => groups.len(),
            Panels::Blocks(panels) => panels.n_bytes(),
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

    pub(super) fn panel_columns(self) -> usize {
        2 * self.lanes
    }

    /// Values in a panel.
    fn panel_size<T: Element>(self) -> usize {
        self.n_in.next_multiple_of(T::DEPTH) * self.panel_columns()
    }

    /// Bytes in a panel of groups that has `n_k` of `k`.
    fn group_panel_size<T: Weight8>(self, n_k: usize) -> usize {
        n_k / T::GROUP * group_size::<T>(self.panel_columns())
    }

    /// Number of panels.
    pub(super) fn n_panels(self) -> usize {
        match self.layout {
            Layout::Plain => self.n_out.div_ceil(self.panel_columns()),
            Layout::SwiGlu => (self.n_out / 2).div_ceil(self.lanes),
        }
    }

    /// The panels that have these columns of the product.
    pub(super) fn panels_of(self, columns: Range<usize>) -> Range<usize> {
        let per_panel = match self.layout {
            Layout::Plain => self.panel_columns(),
            Layout::SwiGlu => self.lanes,
        };
        columns.start / per_panel..columns.end.div_ceil(per_panel)
    }

    /// The column, counted over all panels, of the weight's row `o`.
    pub(super) fn column(self, o: usize) -> usize {
        match self.layout {
            Layout::Plain => o,
            Layout::SwiGlu => {
                let (half, o) = (o / (self.n_out / 2), o % (self.n_out / 2));
                o / self.lanes * 2 * self.lanes + half * self.lanes + o % self.lanes
            }
        }
    }

    /// The weight's row at each column of all panels.
    pub(super) fn rows_at_columns(self) -> Vec<Option<usize>> {
        let mut row_at = vec![None; self.n_panels() * self.panel_columns()];
        for o in 0..self.n_out {
            row_at[self.column(o)] = Some(o);
        }
        row_at
    }

    /// Where element `k` of a column of a panel is in that panel.
    fn within_panel<T: Element>(self, column: usize, k: usize) -> usize {
        (k / T::DEPTH * self.panel_columns() + column) * T::DEPTH + k % T::DEPTH
    }
}

/// Fills the panels of a weight, in parallel.
fn pack<T: Element>(place: Place, read_row: impl Fn(usize, &mut [T]) + Sync) -> Aligned<T> {
    let room = || vec![T::default(); place.n_in];
    fill(place, place.panel_size::<T>(), room, |row, o, panel, column| {
        read_row(o, row);
        for (k, &value) in row.iter().enumerate() {
            panel[place.within_panel::<T>(column, k)] = value;
        }
    })
}

/// Fills panels of `panel_size` values, in parallel: `write(room, o, panel, column)` writes the weight's
/// row `o` into a column of a panel. Each thread works in a room of its own.
fn fill<T: Element, R>(
    place: Place,
    panel_size: usize,
    room: impl Fn() -> R + Sync + Send,
    write: impl Fn(&mut R, usize, &mut [T], usize) + Sync,
) -> Aligned<T> {
    let columns = place.panel_columns();
    let row_at = place.rows_at_columns();
    let mut panels = Aligned::zeroed(place.n_panels() * panel_size);
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

/// Reads the weight's row `o` back.
fn unpack_row<T: Element>(panels: &[T], place: Place, o: usize, row: &mut [T]) {
    let (panel, column) =
        (place.column(o) / place.panel_columns(), place.column(o) % place.panel_columns());
    let panel = &panels[panel * place.panel_size::<T>()..];
    for (k, value) in row.iter_mut().enumerate() {
        *value = panel[place.within_panel::<T>(column, k)];
    }
}

/// Values of `k` of panels in 8 bits: of `n_in` features and `n_precise` second values, whole groups each.
fn padded<T: Weight8>(n_in: usize, n_precise: usize) -> usize {
    n_in.next_multiple_of(T::GROUP) + n_precise.next_multiple_of(T::GROUP)
}

/// A row of a weight in 8 bits, with a scale for each group. It is as long as whole groups, and zero
/// beyond the weight.
struct QuantisedRow<'a> {
    values: &'a mut [i8],
    scales: &'a mut [f32],
}

impl QuantisedRow<'_> {
    /// Brings a weight's row into 8 bits, in groups of `group` values, and what is then left of the
    /// features `precise` into 8 more.
    fn quantise(&mut self, group: usize, weights: &[f32], precise: &[usize]) {
        let (values, second_values) =
            self.values.split_at_mut(weights.len().next_multiple_of(group));
        let (scales, second_scales) = self.scales.split_at_mut(values.len() / group);
        let groups = values.chunks_exact_mut(group).zip(&mut *scales);
        for ((values, scale), weights) in groups.zip(weights.chunks(group)) {
            *scale = quantise_group(weights, values);
        }
        let groups = second_values.chunks_exact_mut(group).zip(second_scales);
        for ((second_values, second_scale), precise) in groups.zip(precise.chunks(group)) {
            let mut left = [0f32; BYTE_GROUP];
            for (left, &k) in left.iter_mut().zip(precise) {
                *left = weights[k] - f32::from(values[k]) * scales[k / group];
            }
            *second_scale = quantise_group(&left[..group], second_values);
        }
    }
}

/// Writes a group of weights as multiples of its scale, which is returned. A weight that is not finite
/// makes the scale NaN, so that it does not vanish.
fn quantise_group(weights: &[f32], values: &mut [i8]) -> f32 {
    // Magnitudes are in the order of their bits, what is not finite above all others.
    let magnitude = |w: &f32| (w.to_bits() & 0x7fff_ffff) as i32;
    let largest = weights.iter().fold(0, |largest, w| largest.max(magnitude(w)));
    let largest = f32::from_bits(largest as u32);
    if !largest.is_finite() {
        values.fill(1);
        return f32::NAN;
    }
    let scale = largest / 127.0;
    // Of a scale that is subnormal or zero nothing but zeros are multiples.
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 127.0 / largest };
    for (value, weight) in values.iter_mut().zip(weights) {
        // Beside 1.5 · 2^23 there are no bits for a fraction: the lowest eight are the nearest whole
        // number.
        *value = (weight * inverse + 12_582_912.0).to_bits() as i8;
    }
    scale
}

/// Fills panels in 8 bits with rounded weights, in parallel: `read_row(o, row)` writes the weight's row `o`.
fn pack_rounded<T: Weight8>(
    place: Place,
    precise: &[usize],
    read_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Aligned<T> {
    let room = || vec![0f32; place.n_in];
    pack_groups(place, precise.len(), room, |room, o, row| {
        read_row(o, room);
        row.quantise(T::GROUP, room, precise);
    })
}

/// Fills panels in 8 bits, in parallel: `read_row(room, o, row)` writes the weight's row `o`.
fn pack_groups<T: Weight8, R: Send>(
    place: Place,
    n_precise: usize,
    room: impl Fn() -> R + Sync + Send,
    read_row: impl Fn(&mut R, usize, &mut QuantisedRow<'_>) + Sync,
) -> Aligned<T> {
    let n_k = padded::<T>(place.n_in, n_precise);
    let room = || (room(), vec![0i8; n_k], vec![0f32; n_k / T::GROUP]);
    let (columns, depth) = (place.panel_columns(), T::DEPTH);
    let panel_size = place.group_panel_size::<T>(n_k);
    fill(place, panel_size, room, |(room, values, scales), o, panel, column| {
        read_row(room, o, &mut QuantisedRow { values, scales });
        let groups = panel.chunks_exact_mut(group_size::<T>(columns));
        for ((group, values), scale) in groups.zip(values.chunks_exact(T::GROUP)).zip(scales) {
            let (steps, scales) = group.split_at_mut(T::GROUP * columns);
            let steps = steps.chunks_exact_mut(depth * columns);
            for (step, values) in steps.zip(values.chunks_exact(depth)) {
                let step = &mut step[depth * column..][..depth];
                step.iter_mut().zip(values).for_each(|(out, &value)| *out = T::of(value));
            }
            let bytes = scale.to_ne_bytes().map(T::from_bits);
            scales[bytes.len() * column..][..bytes.len()].copy_from_slice(&bytes);
        }
    })
}

/// Panels in 8 bits of another kernel set.
fn repack_groups<T: Weight8>(
    panels: &[T],
    from: Place,
    place: Place,
    n_precise: usize,
) -> Aligned<T> {
    let read = |(): &mut (), o: usize, row: &mut QuantisedRow<'_>| {
        unpack_groups(panels, from, o, row);
    };
    pack_groups(place, n_precise, || (), read)
}

/// Reads the weight's row `o` of panels in 8 bits back.
fn unpack_groups<T: Weight8>(panels: &[T], place: Place, o: usize, row: &mut QuantisedRow<'_>) {
    let (columns, depth) = (place.panel_columns(), T::DEPTH);
    let (panel, column) = (place.column(o) / columns, place.column(o) % columns);
    let panel_size = place.group_panel_size::<T>(row.values.len());
    let groups = panels[panel * panel_size..].chunks_exact(group_size::<T>(columns));
    let values = row.values.chunks_exact_mut(T::GROUP).zip(&mut *row.scales);
    for ((values, scale), group) in values.zip(groups) {
        let (steps, scales) = group.split_at(T::GROUP * columns);
        let steps = steps.chunks_exact(depth * columns);
        for (values, step) in values.chunks_exact_mut(depth).zip(steps) {
            let step = &step[depth * column..][..depth];
            values.iter_mut().zip(step).for_each(|(value, &byte)| *value = byte.weight());
        }
        let bytes = &scales[size_of::<f32>() * column..];
        *scale = f32::from_ne_bytes(std::array::from_fn(|i| bytes[i].bits()));
    }
}
