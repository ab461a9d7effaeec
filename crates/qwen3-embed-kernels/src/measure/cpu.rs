//! The kernels of the CPU.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use half::bf16;

use super::shapes::LayerShapes;
use crate::cpu::{
    Arithmetic, AttentionScratch, BLOCK, Bits, BlockRow, Epilogue, Heads, Kernels, Layout,
    PackedWeight, QuantizeBuffer, ROTATION, Rows, RowsMut, Values, ValuesMut, attention,
    qk_norm_rope, rms_norm,
};
use crate::{Queries, Ragged};

/// A weight format of a linear layer, and the type of the activations that are multiplied with the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Weights and activations in f32.
    F32,
    /// Weights in bf16, activations in f32.
    WidenedBf16,
    /// Weights and activations in bf16.
    Bf16,
    /// Weights in 8 bits, activations in 16 bits.
    Int8,
    /// Weights and activations in 8 bits.
    Bytes,
    /// Weights and activations in 8 bits, both rotated before they are quantized: see
    /// [`rotate`](crate::cpu::rotate).
    RotatedBytes,
    /// Weights in blocks of 4 bits, activations in 8 bits.
    Blocks4,
    /// Weights in blocks of 5 bits, activations in 8 bits.
    Blocks5,
    /// Weights in blocks of 6 bits, activations in 8 bits.
    Blocks6,
}

/// A kernel with the shape of its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The matrix multiplication of a linear layer.
    Linear {
        /// The weight format.
        format: Format,
        /// The name of the layer: `qkv_proj`, `o_proj`, `gate_up_proj` or `down_proj`.
        layer: &'static str,
        /// Output features, O.
        n_out: usize,
        /// Input features, I.
        n_in: usize,
    },
    /// Causal attention of the tokens of one text.
    Attention {
        /// The heads.
        heads: Heads,
        /// The arithmetic: [`F32`](Arithmetic::F32) or [`Bf16`](Arithmetic::Bf16).
        arithmetic: Arithmetic,
    },
    /// Quantization of activations in f32 for a weight.
    Quantize {
        /// The weight format.
        format: Format,
        /// Input features of the weight, I.
        n_in: usize,
    },
    /// RMSNorm of rows of the residual stream.
    RmsNorm {
        /// Width of the residual stream, C.
        hidden_size: usize,
    },
    /// RMSNorm and RoPE of queries and keys.
    QkNormRope {
        /// The heads.
        heads: Heads,
    },
}

/// The speed of one kernel.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The kernel.
    pub kernel: Kernel,
    /// The peak of the kernel's arithmetic in operations per second ([`Kernels::measured_peak`]), measured right before
    /// the kernel. `None` for kernels that are not limited by multiply-adds.
    pub peak: Option<f64>,
    /// Numbers of rows (for attention, of the tokens of the text), and the rate of the fastest run with so many rows.
    /// For [`Kernel::Linear`] and [`Kernel::Attention`], the rate is in operations per second, where a multiply-add
    /// counts as two. For the other kernels, it is in values per second.
    pub rates: [(usize, f64); 3],
}

/// Measures every kernel of the current kernel set, one for each call of the iterator's `next`.
///
/// The kernels run on one thread. The inputs are the same in every run, so a weight that fits into the CPU cache is read
/// from there. In a model, a text of few tokens is slower, because the weights of all layers are read from memory.
///
/// The iterator takes about ten seconds for the shapes of Qwen3-Embedding-0.6B. It allocates the weight of one linear
/// layer at a time. Kernels that cannot have the shapes are left out: weights in blocks if I is not a multiple of
/// [`BLOCK`], and rotated activations if I is not a multiple of [`ROTATION`].
///
/// # Errors
///
/// If the operating system refuses to start the thread on which kernels are measured.
pub fn measure_layer(shapes: LayerShapes) -> io::Result<impl Iterator<Item = Measurement>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(io::Error::other)?;
    Ok(kernels_of(shapes).into_iter().map(move |kernel| pool.install(|| kernel.measure())))
}

/// The kernels of a layer, in the order in which they are measured.
fn kernels_of(shapes: LayerShapes) -> Vec<Kernel> {
    let LayerShapes { hidden_size, intermediate_size, heads } = shapes;
    let layers = [
        ("qkv_proj", heads.qkv_columns(), hidden_size),
        ("o_proj", hidden_size, heads.q_columns()),
        (GATE_UP, 2 * intermediate_size, hidden_size),
        ("down_proj", hidden_size, intermediate_size),
    ];
    let mut kernels = Vec::new();
    // A rotation does not change how the weight is multiplied.
    for format in Format::ALL.into_iter().filter(|&format| format != Format::RotatedBytes) {
        for (layer, n_out, n_in) in layers {
            kernels.push(Kernel::Linear { format, layer, n_out, n_in });
        }
    }
    for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
        kernels.push(Kernel::Attention { heads, arithmetic });
    }
    // The blocks of all formats are multiplied with the same activations.
    for format in [Format::Int8, Format::Bytes, Format::RotatedBytes, Format::Blocks4] {
        for n_in in [hidden_size, intermediate_size] {
            kernels.push(Kernel::Quantize { format, n_in });
        }
    }
    kernels.extend([Kernel::RmsNorm { hidden_size }, Kernel::QkNormRope { heads }]);
    kernels.retain(|kernel| match *kernel {
        Kernel::Linear { format, n_in, .. } | Kernel::Quantize { format, n_in } => {
            n_in.is_multiple_of(format.n_in_multiple())
        }
        _ => true,
    });
    kernels
}

/// The layer whose epilogue is SwiGLU.
const GATE_UP: &str = "gate_up_proj";

impl Format {
    /// All formats, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::WidenedBf16,
        Self::Bf16,
        Self::Int8,
        Self::Bytes,
        Self::RotatedBytes,
        Self::Blocks4,
        Self::Blocks5,
        Self::Blocks6,
    ];

    /// The type of the weights.
    pub fn weights(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::WidenedBf16 | Self::Bf16 => "bf16",
            Self::Int8 | Self::Bytes | Self::RotatedBytes => "8 bits",
            Self::Blocks4 => "4 bits",
            Self::Blocks5 => "5 bits",
            Self::Blocks6 => "6 bits",
        }
    }

    /// The type of the activations.
    pub fn activations(self) -> &'static str {
        match self {
            Self::F32 | Self::WidenedBf16 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "16 bits",
            Self::Bytes => "8 bits",
            Self::RotatedBytes => "8 bits, rotated",
            Self::Blocks4 | Self::Blocks5 | Self::Blocks6 => "8 bits, blocks",
        }
    }

    /// The arithmetic of the matrix multiplication.
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            Self::F32 | Self::WidenedBf16 => Arithmetic::F32,
            Self::Bf16 => Arithmetic::Bf16,
            Self::Int8 => Arithmetic::Int8,
            Self::Bytes | Self::RotatedBytes => Arithmetic::Bytes,
            Self::Blocks4 | Self::Blocks5 | Self::Blocks6 => Arithmetic::Blocks,
        }
    }

    /// The number that divides I.
    fn n_in_multiple(self) -> usize {
        match self {
            Self::RotatedBytes => ROTATION,
            Self::Blocks4 | Self::Blocks5 | Self::Blocks6 => BLOCK,
            _ => 1,
        }
    }

    /// Packs a weight [O, I].
    fn pack(self, n_out: usize, n_in: usize, layout: Layout) -> PackedWeight {
        let weight = values(n_in);
        let read_row = |_, row: &mut [f32]| row.copy_from_slice(&weight);
        let read_bf16 = |_, row: &mut [bf16]| {
            row.iter_mut().zip(&weight).for_each(|(w, &value)| *w = bf16::from_f32(value));
        };
        let pack_blocks = |bits| {
            let read_row = |_, row: &mut BlockRow| row.values.fill(1);
            let packed = PackedWeight::pack_blocks(n_out, n_in, layout, None, |_| bits, read_row);
            packed.expect("I is a multiple of `BLOCK`, and all rows have the same bits")
        };
        match self {
            Self::F32 => PackedWeight::pack_f32(n_out, n_in, layout, read_row),
            Self::WidenedBf16 | Self::Bf16 => {
                PackedWeight::pack_bf16(n_out, n_in, layout, read_bf16)
            }
            Self::Int8 => PackedWeight::pack_int8(n_out, n_in, layout, &[], read_row),
            Self::Bytes => PackedWeight::pack_bytes(n_out, n_in, layout, false, read_row),
            Self::RotatedBytes => PackedWeight::pack_bytes(n_out, n_in, layout, true, read_row),
            Self::Blocks4 => pack_blocks(Bits::Four),
            Self::Blocks5 => pack_blocks(Bits::Five),
            Self::Blocks6 => pack_blocks(Bits::Six),
        }
    }
}

impl Kernel {
    /// The arithmetic whose peak limits the kernel.
    fn arithmetic(self) -> Option<Arithmetic> {
        match self {
            Self::Linear { format, .. } => Some(format.arithmetic()),
            Self::Attention { arithmetic, .. } => Some(arithmetic),
            _ => None,
        }
    }

    /// Measures the kernel, on the threads of rayon's current pool.
    fn measure(self) -> Measurement {
        let kernels = Kernels::current();
        let peak = self.arithmetic().map(|arithmetic| kernels.measured_peak(arithmetic));
        let rates = match self {
            Self::Linear { format, layer, n_out, n_in } => {
                let layout = if layer == GATE_UP { Layout::SwiGlu } else { Layout::Plain };
                let weight = format.pack(n_out, n_in, layout);
                let mut rate = f64::INFINITY;
                N_ROWS.map(|n| {
                    rate = rate_of_multiply(format, &weight, n, rate);
                    (n, rate)
                })
            }
            Self::Attention { heads, arithmetic } => N_TOKENS.map(|n| {
                // Scores and weighted values of the causal half of all pairs.
                let n_operations = 2 * n * (n + 1) * heads.q_columns();
                (n, n_operations as f64 / seconds_of_attention(heads, arithmetic, n))
            }),
            Self::Quantize { format, n_in } => {
                let weight = format.pack(1, n_in, Layout::Plain);
                let mut buffer = QuantizeBuffer::default();
                N_ROWS.map(|n| {
                    let x = Matrix::new([n, n_in], |value| value);
                    let quantize = || _ = weight.quantize(black_box(x.rows()), &mut buffer);
                    (n, (n * n_in) as f64 / fastest_run(quantize))
                })
            }
            Self::RmsNorm { hidden_size } => N_ROWS.map(|n| {
                let (x, weight) = (values(n * hidden_size), values(hidden_size));
                let mut out = Matrix::new([n, hidden_size], |value| value);
                let out = &mut out.rows_mut();
                let norm = || rms_norm(kernels, black_box(&x), &weight, 1e-6, out);
                (n, x.len() as f64 / fastest_run(norm))
            }),
            Self::QkNormRope { heads } => N_ROWS.map(|n| {
                let n_values = n * (heads.n_heads + heads.n_kv_heads) * heads.head_dim;
                (n, n_values as f64 / seconds_of_qk_norm_rope(heads, n))
            }),
        };
        Measurement { kernel: self, peak, rates }
    }
}

/// Numbers of rows that are measured.
const N_ROWS: [usize; 3] = [1, 32, 192];

/// Lengths of texts for which attention is measured.
const N_TOKENS: [usize; 3] = [128, 512, 2048];

/// Operations per second of the multiplication of `n` rows with a weight. If a run would take longer than [`LONGEST`] at
/// the expected rate, only some of the columns are computed.
fn rate_of_multiply(format: Format, weight: &PackedWeight, n: usize, expected: f64) -> f64 {
    // A multiple of the columns that are computed together in any kernel set.
    const COLUMNS: usize = 64;
    let all = weight.n_columns();
    let column = (2 * n * weight.n_in() * weight.n_out()) as f64 / all as f64;
    let columns = (expected * LONGEST.as_secs_f64() / column) as usize;
    let columns = columns.clamp(1, all).next_multiple_of(COLUMNS).min(all);

    let mut out = Matrix::new([n, all], |value| value);
    let out = &mut out.rows_mut();
    let mut multiply = |x: Rows<'_>| {
        fastest_run(|| {
            weight.multiply_columns(black_box(x), 0..columns, None, out, Epilogue::Store);
        })
    };
    let seconds = if format == Format::Bf16 {
        multiply(Matrix::new([n, weight.n_in()], bf16::from_f32).rows())
    } else {
        let x = Matrix::new([n, weight.n_in()], |value| value);
        multiply(weight.quantize(x.rows(), &mut QuantizeBuffer::default()))
    };
    column * columns as f64 / seconds
}

/// Seconds of causal attention over a text of `n` tokens.
fn seconds_of_attention(heads: Heads, arithmetic: Arithmetic, n: usize) -> f64 {
    let batch = Ragged::from_lengths(vec![n]).expect("the text has tokens");
    let qkv = values(n * heads.qkv_columns());
    let shape = [n, heads.q_columns()];
    let mut f32 = Matrix::new(shape, |value| value);
    let mut bf16 = Matrix::new(shape, bf16::from_f32);
    let is_bf16 = arithmetic == Arithmetic::Bf16;
    let out = &mut if is_bf16 { bf16.rows_mut() } else { f32.rows_mut() };
    let (kernels, mut scratch) = (Kernels::current(), AttentionScratch::default());
    fastest_run(|| {
        attention(kernels, black_box(&qkv), &batch, Queries::All, heads, &mut scratch, out);
    })
}

/// Seconds of RMSNorm and RoPE of the queries and keys of `n` tokens.
fn seconds_of_qk_norm_rope(heads: Heads, n: usize) -> f64 {
    let mut qkv = values(n * heads.qkv_columns());
    // Every run changes the values in place. With these weights and this rotation, their magnitudes stay the same.
    let (norm, half) = (vec![1.0; heads.head_dim], n * heads.head_dim / 2);
    let (cos, sin) = (vec![0.6; half], vec![0.8; half]);
    let (norms, tables) = ([norm.as_slice(); 2], [cos.as_slice(), sin.as_slice()]);
    fastest_run(|| {
        qk_norm_rope(Kernels::current(), black_box(&mut qkv), heads, 0, norms, 1e-6, tables);
    })
}

/// The seconds of the fastest of [`N_RUNS`] runs, or of the runs that fit into [`TOTAL`], but of at least one. Runs that
/// are too short for the clock are measured several at a time.
fn fastest_run(mut run: impl FnMut()) -> f64 {
    let mut n_at_a_time = 1;
    let mut fastest = f64::INFINITY;
    let mut n_measured = 0;
    let begin = Instant::now();
    while n_measured == 0 || n_measured < N_RUNS && begin.elapsed() < TOTAL {
        let start = Instant::now();
        (0..n_at_a_time).for_each(|_| run());
        let elapsed = start.elapsed();
        if elapsed < SHORTEST {
            n_at_a_time *= 2;
        } else {
            fastest = fastest.min(elapsed.as_secs_f64() / f64::from(n_at_a_time));
            n_measured += 1;
        }
    }
    fastest
}

/// The number of runs that are measured, unless they take too long.
const N_RUNS: usize = 10;

/// The time after which no other run begins.
const TOTAL: Duration = Duration::from_millis(80);

/// The longest time of a run of a matrix multiplication, about.
const LONGEST: Duration = Duration::from_millis(250);

/// The shortest time that is measured.
const SHORTEST: Duration = Duration::from_millis(1);

/// `n` values of different sizes and signs.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect()
}

/// A matrix [rows, columns] with the gaps that a model's activations have between rows.
struct Matrix<T> {
    values: Vec<T>,
    shape: [usize; 2],
    stride: usize,
}

impl<T> Matrix<T>
where
    for<'a> Values<'a>: From<&'a [T]>,
    for<'a> ValuesMut<'a>: From<&'a mut [T]>,
{
    /// A matrix of [`values`], which `of` converts.
    fn new(shape: [usize; 2], of: fn(f32) -> T) -> Self {
        let stride = shape[1] + 32;
        let values = values(shape[0] * stride).into_iter().map(of).collect();
        Self { values, shape, stride }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::new(self.values.as_slice(), self.shape, self.stride)
    }

    fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut::new(self.values.as_mut_slice(), self.shape, self.stride)
    }
}
