mod cuda_kernels;
mod kernels;
mod machine;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use qwen3_embed::measure::CudaBench;
use qwen3_embed::{DEFAULT_INSTRUCTION, Device, Embedder, Kernels, Overflow, Sharing, instruct};
use serde::Serialize;

use crate::model::{MODEL, ModelArgs};

/// Measure the throughput of an embedding model, and compare it with the peak of the CPU or of the CUDA device
///
/// Each run embeds new texts of random tokens. Loading the model and one warm-up run are not measured. Texts are not
/// padded, so all counted tokens are tokens of texts.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_name = "PATH or ID", required_unless_present = "kernels", help = MODEL)]
    model: Option<String>,
    #[command(flatten)]
    settings: ModelArgs,
    /// Workload of N texts with T tokens each, such as 8x128. Separate several workloads with commas: 8x128,4x512
    #[arg(long, value_name = "NxT,…", value_delimiter = ',')]
    shape: Vec<Shape>,
    /// Number of tokens in a prefix that all texts of a --shape have in common. The texts are longer by this number
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefix: usize,
    /// Workload of texts with these lengths: a JSON file with a list of numbers of tokens
    #[arg(long, value_name = "FILE")]
    lengths: Option<PathBuf>,
    /// Workload of N short queries: 4 to 16 tokens and the default instruction
    #[arg(long, value_name = "N")]
    queries: Option<usize>,
    /// Number of runs of each workload. The median is reported
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Compute every token of every text in every layer, even if texts have a prefix in common
    #[arg(long)]
    no_sharing: bool,
    /// Measure each kernel instead of a whole model: matrix multiplications, attention, norms and, on the CPU,
    /// quantization. The shapes are those of --model, or of Qwen3-Embedding-0.6B. The model is not loaded. On the CPU,
    /// kernels in every weight format run on one thread, and the environment variable QWEN3_EMBED_KERNELS chooses the
    /// kernel set. On a CUDA device, kernels run in bf16
    #[arg(
        long,
        conflicts_with_all = [
            "shape", "prefix", "lengths", "queries", "runs", "no_sharing", "adapter", "precision", "preload", "verify",
            "threads", "max_tokens", "batch_tokens",
        ],
    )]
    kernels: bool,
    /// Print the results as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy)]
struct Shape {
    n_texts: usize,
    n_tokens: usize,
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let numbers = s.split_once('x').and_then(|(n, t)| Some((n.parse().ok()?, t.parse().ok()?)));
        match numbers {
            Some((n_texts, n_tokens)) if n_texts > 0 && n_tokens > 0 => {
                Ok(Self { n_texts, n_tokens })
            }
            _ => Err(format!("expected TEXTSxTOKENS, such as 8x128, got {s}")),
        }
    }
}

/// The texts of one measurement.
struct Workload {
    name: String,
    /// The number of random tokens of each text.
    lengths: Vec<usize>,
    /// The tokens before and after the random tokens of each text.
    frame: [Vec<u32>; 2],
    /// Whether the texts are queries. For queries, the queries per second are reported, too.
    queries: bool,
}

impl Workload {
    /// Texts that are different from the texts of all earlier runs.
    fn texts(&self, vocab_size: usize, random: &mut Random) -> Vec<Vec<u32>> {
        let [before, after] = &self.frame;
        let text =
            |&n: &usize| [before.as_slice(), &random_tokens(n, vocab_size, random), after].concat();
        self.lengths.iter().map(text).collect()
    }
}

fn random_tokens(n: usize, vocab_size: usize, random: &mut Random) -> Vec<u32> {
    (0..n).map(|_| random.below(vocab_size) as u32).collect()
}

#[derive(Serialize)]
struct Report {
    machine: String,
    results: Vec<Measurement>,
}

#[derive(Serialize)]
struct Measurement {
    shape: String,
    precision: String,
    threads: usize,
    /// The median over the runs.
    tokens_per_s: f64,
    /// The difference between the slowest and the fastest run, as a fraction of the median.
    spread: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    queries_per_s: Option<f64>,
    /// `operations_per_s` as a fraction of the measured peak of the CPU or of the CUDA device. Absent if the peak could not
    /// be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_share: Option<f64>,
    /// Multiplications and additions per second, for the tokens that were computed. They count as if all of these tokens
    /// passed the whole last layer, which computes only last tokens. This is 3 % too much for 0.6B.
    operations_per_s: f64,
    /// The tokens that were computed, as a fraction of all tokens. The other tokens belong to shared prefixes.
    computed_share: f64,
    /// The peak resident memory of this process so far. Absent if the operating system does not report this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
    /// The most memory of the CUDA device that the process has taken so far, without the memory of the driver and of
    /// libraries. Absent on the CPU, and if the device does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_device_bytes: Option<u64>,
}

/// Runs `qwen3-embed bench`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.kernels {
        let model = args.model.as_deref();
        return match args.settings.device {
            Device::Cuda(ordinal) => cuda_kernels::run(ordinal, model, args.json),
            _ => kernels::run(model, args.json),
        };
    }
    let model = args.model.as_deref().context("`--model` is missing")?;
    ensure!(args.runs > 0, "`--runs` is 0, expected at least 1");
    let threads = match args.settings.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let mut builder = args.settings.embedder(model).overflow(Overflow::Error).threads(threads);
    if args.no_sharing {
        builder = builder.sharing(Sharing::Off);
    }
    // The device is open during the whole measurement.
    let cuda = match args.settings.device {
        Device::Cuda(ordinal) => Some(CudaBench::open(ordinal)?),
        _ => None,
    };
    let embedder = builder.build()?;
    let workloads = args.workloads(&embedder)?;
    ensure!(
        !workloads.is_empty(),
        "there is no workload: use `--shape`, `--lengths` or `--queries`"
    );
    let (machine, peak) = machine_and_peak(&embedder, cuda.as_ref(), threads)?;
    let mut report = Report { machine, results: Vec::new() };
    let mut output = io::stdout().lock();
    if !args.json {
        writeln!(output, "{}", report.machine)?;
        writeln!(
            output,
            "{:<16} {:>10} {:>8} {:>10} {:>9} {:>8} {:>10}",
            "workload", "tokens/s", "spread", "queries/s", "computed", "of peak", "memory"
        )?;
    }
    for workload in &workloads {
        let measurement = args.measure(&embedder, workload, threads, peak, cuda.as_ref())?;
        if !args.json {
            writeln!(output, "{}", measurement.line())?;
        }
        report.results.push(measurement);
    }
    if args.json {
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
    }
    Ok(())
}

/// A line about the device that computes, and the operations per second that it computes at most. If the peaks of a CUDA
/// device cannot be measured, for example because its memory is short, the line has the error.
fn machine_and_peak(
    embedder: &Embedder,
    cuda: Option<&CudaBench>,
    threads: usize,
) -> Result<(String, Option<f64>)> {
    let arithmetic = embedder.arithmetic();
    let Some(cuda) = cuda else {
        let core_peak = Kernels::current().measured_peak(arithmetic);
        return Ok((machine::summary(core_peak), Some(core_peak * threads as f64)));
    };
    let name = cuda.name()?;
    Ok(match cuda.peaks(arithmetic) {
        Ok(peaks) => (machine::cuda_summary(&name, peaks), Some(peaks.operations_per_s)),
        Err(error) => (format!("{name}, peaks unknown: {error}"), None),
    })
}

impl Args {
    fn workloads(&self, embedder: &Embedder) -> Result<Vec<Workload>> {
        let mut workloads: Vec<Workload> = Vec::new();
        for shape in &self.shape {
            let lengths = vec![shape.n_tokens; shape.n_texts];
            let mut name = format!("{}x{}", shape.n_texts, shape.n_tokens);
            if self.prefix > 0 {
                name = format!("{}x({}+{})", shape.n_texts, self.prefix, shape.n_tokens);
            }
            let before = random_tokens(self.prefix, embedder.config().vocab_size, &mut Random(3));
            workloads.push(Workload { name, lengths, frame: [before, Vec::new()], queries: false });
        }
        if let Some(path) = &self.lengths {
            let json = fs::read(path).with_context(|| path.display().to_string())?;
            let lengths: Vec<usize> =
                serde_json::from_slice(&json).with_context(|| path.display().to_string())?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            workloads.push(Workload { name, lengths, frame: Default::default(), queries: false });
        }
        if let Some(n) = self.queries {
            let mut before = embedder.tokenize(&[instruct(DEFAULT_INSTRUCTION, "")])?.remove(0);
            let after = before.pop().into_iter().collect();
            let mut random = Random(2);
            let lengths = (0..n).map(|_| 4 + random.below(13)).collect();
            let (name, frame) = (format!("{n} queries"), [before, after]);
            workloads.push(Workload { name, lengths, frame, queries: true });
        }
        Ok(workloads)
    }

    fn measure(
        &self,
        embedder: &Embedder,
        workload: &Workload,
        threads: usize,
        peak: Option<f64>,
        cuda: Option<&CudaBench>,
    ) -> Result<Measurement> {
        let mut random = Random(1);
        let mut texts = || workload.texts(embedder.config().vocab_size, &mut random);
        let warm_up = texts();
        embedder.embed_tokens(&warm_up)?;
        let before = embedder.sharing_counts();
        let mut seconds = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            let texts = texts();
            let start = Instant::now();
            embedder.embed_tokens(&texts)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[self.runs / 2];
        let after = embedder.sharing_counts();
        let computed_share = (after.n_computed - before.n_computed) as f64
            / (after.n_tokens - before.n_tokens) as f64;
        let lengths = warm_up.iter().map(Vec::len);
        let n_tokens: usize = lengths.clone().sum();
        let operations: f64 = lengths.map(|n| embedder.config().n_operations(n)).sum();
        let operations_per_s = computed_share * operations / median;
        Ok(Measurement {
            shape: workload.name.clone(),
            precision: embedder.precision().to_string(),
            threads,
            tokens_per_s: n_tokens as f64 / median,
            spread: (seconds[self.runs - 1] - seconds[0]) / median,
            queries_per_s: workload.queries.then(|| warm_up.len() as f64 / median),
            peak_share: peak.map(|peak| operations_per_s / peak),
            operations_per_s,
            computed_share,
            peak_rss_bytes: machine::peak_rss_bytes(),
            peak_device_bytes: cuda.map_or(Ok(None), CudaBench::peak_bytes)?,
        })
    }
}

impl Measurement {
    fn line(&self) -> String {
        let queries = self.queries_per_s.map_or("-".to_owned(), |q| format!("{q:.1}"));
        let share = self.peak_share.map_or("-".to_owned(), |s| format!("{:.1}%", 100.0 * s));
        let bytes = self.peak_device_bytes.or(self.peak_rss_bytes);
        let memory = bytes.map_or("-".to_owned(), |b| format!("{} MiB", b >> 20));
        format!(
            "{:<16} {:>10.1} {:>7.1}% {queries:>10} {:>8.1}% {share:>8} {memory:>10}",
            self.shape,
            self.tokens_per_s,
            100.0 * self.spread,
            100.0 * self.computed_share,
        )
    }
}

/// Pseudo-random numbers from the upper bits of a linear congruential generator. Each start of the program produces the
/// same numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}
