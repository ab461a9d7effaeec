//! The machine on which a benchmark runs.

use std::fs;

use qwen3_embed::Kernels;
use qwen3_embed::measure::CudaPeaks;

/// The name of the CPU, the kernel set, and the measured peak of the kernel set on one core.
pub(super) fn summary(core_peak: f64) -> String {
    format!("{}, {} kernels, {:.0} GFLOP/s a core", cpu(), Kernels::current().name, core_peak / 1e9)
}

/// The name of a CUDA device, and its measured peaks.
pub(super) fn cuda_summary(name: &str, peaks: CudaPeaks) -> String {
    let CudaPeaks { operations_per_s, bytes_per_s } = peaks;
    let (tera, giga) = (operations_per_s / 1e12, bytes_per_s / 1e9);
    format!("{name}, {tera:.1} TFLOP/s, {giga:.0} GB/s")
}

/// The name of the CPU, or of its architecture if the operating system does not report the name.
pub(super) fn cpu() -> String {
    cpu_info("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The vector instructions of the CPU. Empty if the operating system does not report them.
pub(super) fn instruction_sets() -> Vec<String> {
    const PREFIXES: [&str; 9] =
        ["amx", "asimd", "avx", "bf16", "fma", "i8mm", "sme", "sve", "sse4"];
    let features = cpu_info("flags").or_else(|| cpu_info("Features")).unwrap_or_default();
    let is_vector = |feature: &&str| PREFIXES.into_iter().any(|prefix| feature.starts_with(prefix));
    features.split_whitespace().filter(is_vector).map(str::to_owned).collect()
}

/// A field of the first CPU in `/proc/cpuinfo`.
fn cpu_info(field: &str) -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let mut fields = info.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| name.trim_end() == field)?;
    Some(value.trim().to_owned())
}

/// The peak resident memory of this process. `None` if the operating system does not report this number.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
