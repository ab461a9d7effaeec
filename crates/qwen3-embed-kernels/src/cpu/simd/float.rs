use half::bf16;

/// Vector registers of f32.
///
/// # Safety
///
/// A value of the type proves that the CPU has the instructions, because the code that constructs the value must have
/// checked it. Pointers must be valid for `LANES` elements, at any alignment.
pub(in crate::cpu) unsafe trait FloatOps: Copy + Send + Sync {
    /// A register of `LANES` values.
    type V: Copy;
    /// The sums of the largest tile of a floating-point kernel, in which no other sums are in registers.
    type FloatTile: TileSums<Self::V>;
    /// The sums of the largest tile of the kernel that widens bf16 weights, which needs more registers besides the sums.
    type WidenedTile: TileSums<Self::V>;
    /// Values in a register.
    const LANES: usize;
    /// Words of a row of a tile that [`load_words`](Self::load_words) loads. A word has the four bytes of a step: an
    /// f32, a pair of 16-bit values or a quad of bytes. Sets that multiply with one lane of a register load four words,
    /// one for each of four steps. Other sets load one word into every lane.
    const WORDS: usize = 1;

    /// The value in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store(self, p: *mut f32, x: Self::V);
    /// Loads the next `WORDS` words of a row.
    ///
    /// # Safety
    /// `p` is valid for reading `WORDS` words.
    #[inline(always)]
    unsafe fn load_words(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        self.splat(unsafe { p.read_unaligned() })
    }
    /// Loads bf16 values and widens them.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// Stores the nearest bf16 values, ties to even. Subnormal values may become zero.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store_bf16(self, p: *mut bf16, x: Self::V);
    /// Prefetches the cache line at `p` into the second-level cache. `p` need not be a valid address.
    fn prefetch(self, p: *const u8);
    /// Returns `p`, such that the compiler assumes that the result depends on `x`. So it does not move loads from the
    /// result before the computation of `x`, where there may be no free register for them.
    #[inline(always)]
    fn after<T>(self, p: *const T, x: Self::V) -> *const T {
        let _ = x;
        p
    }
    /// Returns `p`, such that the compiler does not know how `p` was computed. So it keeps `p` in a register and does not
    /// compute it again from other addresses.
    #[inline(always)]
    fn opaque<T>(self, p: *const T) -> *const T {
        p
    }
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller value. NaN if `b` is NaN; if only `a` is NaN, the result is `b` or NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger value. NaN if `b` is NaN; if only `a` is NaN, the result is `b` or NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The first `n` lanes of `x`, and `fill` in the other lanes.
    fn keep(self, x: Self::V, n: usize, fill: f32) -> Self::V;
    /// `a · b + c`, rounded once if the CPU has an instruction for it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// [`mul_add`](Self::mul_add) with word `WORD % WORDS` of `a`, which [`load_words`](Self::load_words) has loaded.
    #[inline(always)]
    fn mul_add_word<const WORD: usize>(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.mul_add(a, b, c)
    }
    /// Rounds to the nearest integers.
    fn round(self, x: Self::V) -> Self::V;
    /// `2^n` for integers `n` from −126 to 127.
    fn exp2_int(self, n: Self::V) -> Self::V;
    /// Rounds to bf16, ties to even, and packs pairs: values of `first` in the lower half of each lane, values of
    /// `second` in the upper half.
    fn pair(self, first: Self::V, second: Self::V) -> Self::V;
    /// The first bf16 value of each pair, which is in the lower half of its lane, widened.
    fn first(self, pairs: Self::V) -> Self::V;
    /// The second bf16 value of each pair, which is in the upper half of its lane, widened.
    fn second(self, pairs: Self::V) -> Self::V;
    /// The sum of all lanes, in a fixed order.
    fn sum(self, x: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::V) -> f32;

    /// `c + a · b` for pairs of bf16 values: both products of a lane are added to the lane of `c` in f32, the second
    /// product first. Subnormal values may count as zero.
    #[inline(always)]
    fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        dot_bf16_in_f32(self, a, b, c)
    }

    /// [`dot_bf16`](Self::dot_bf16) with word `WORD % WORDS` of `a`, which [`load_words`](Self::load_words) has loaded.
    #[inline(always)]
    fn dot_bf16_word<const WORD: usize>(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.dot_bf16(a, b, c)
    }

    /// `exp(x)` within 2 ulp for `x` from −87 to 88; beyond, `exp` of the nearer bound. NaN for NaN.
    ///
    /// # Source
    ///
    /// Range reduction by a two-part ln 2 and the degree-5 polynomial of Cephes' `expf`.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // `x` is the second operand of `min` and `max`, so that NaN is kept.
        let x = self.max(self.splat(-87.0), self.min(self.splat(88.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let p = self.mul_add(self.mul(p, r), r, self.add(r, self.splat(1.0)));
        self.mul(p, self.exp2_int(n))
    }
}

/// The sums of a tile: an array with two registers of columns for each row.
pub(in crate::cpu) trait TileSums<V>: AsMut<[[V; 2]]> {
    /// Rows of the largest tile.
    const ROWS: usize;

    /// The value in every register.
    fn filled(value: V) -> Self;
}

impl<V: Copy, const N: usize> TileSums<V> for [[V; 2]; N] {
    const ROWS: usize = N;

    #[inline(always)]
    fn filled(value: V) -> Self {
        [[value; 2]; N]
    }
}

/// [`FloatOps::dot_bf16`] for instruction sets without an instruction for it.
#[inline(always)]
pub(super) fn dot_bf16_in_f32<S: FloatOps>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    let c = s.mul_add(s.second(a), s.second(b), c);
    s.mul_add(s.first(a), s.first(b), c)
}
