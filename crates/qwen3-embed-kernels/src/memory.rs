//! The memory that this process can still use.

use std::fs;
use std::path::Path;

/// The memory in bytes that this process can still allocate and use, or `None` if the system does not tell, as on
/// systems other than Linux.
///
/// It is the smallest of: the memory and swap that the system has available, what is left of the limits of the control
/// groups of the process, and what is left of its limit for address space (`ulimit -v`). The page cache counts as
/// available, because the system frees it on demand.
pub(crate) fn available_bytes() -> Option<usize> {
    available(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn available(proc: &Path, cgroups: &Path) -> Option<usize> {
    let meminfo = fs::read_to_string(proc.join("meminfo")).ok()?;
    let kib = |name| field(&meminfo, name).map(|kib| kib.saturating_mul(1024));
    let of_system = kib("MemAvailable:")?.saturating_add(kib("SwapFree:").unwrap_or(0));
    let groups = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let of_groups = groups.lines().filter_map(|line| of_group(line, cgroups));
    [Some(of_system), of_address_space(proc)].into_iter().flatten().chain(of_groups).min()
}

/// What is left of the limit of a control group and of the groups that contain it. `line` is a line of
/// `/proc/self/cgroup`: `0::PATH` for version 2, or `NUMBER:CONTROLLERS:PATH` for version 1.
fn of_group(line: &str, cgroups: &Path) -> Option<usize> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    // The fields of `memory.stat` are the page cache, and the part of it that cannot be freed.
    let (root, limit, used, cache) = match controllers {
        "" => (cgroups.to_owned(), "memory.max", "memory.current", ["file", "shmem"]),
        list if list.split(',').any(|name| name == "memory") => {
            let cache = ["total_cache", "total_shmem"];
            (cgroups.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", cache)
        }
        _ => return None,
    };
    let left = |group: &Path| {
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse().ok();
        // A group without a limit has the limit `max`, which is not a number.
        let (limit, used): (usize, usize) = (number(limit)?, number(used)?);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let [file, shared] = cache.map(|name| field(&stat, name).unwrap_or(0));
        Some(limit.saturating_sub(used.saturating_sub(file.saturating_sub(shared))))
    };
    // Containers may see their own group as the root, or the path of the host, which does not exist in the container.
    let group = root.join(path);
    group.ancestors().take_while(|group| group.starts_with(&root)).filter_map(left).min()
}

/// What is left of the limit for address space. `None` without a limit.
fn of_address_space(proc: &Path) -> Option<usize> {
    let limits = fs::read_to_string(proc.join("self/limits")).ok()?;
    let limit = field(&limits, "Max address space")?;
    let status = fs::read_to_string(proc.join("self/status")).ok()?;
    Some(limit.saturating_sub(field(&status, "VmSize:")?.saturating_mul(1024)))
}

/// The number after `name` in the line that begins with it.
fn field(lines: &str, name: &str) -> Option<usize> {
    let rest = lines.lines().find_map(|line| line.strip_prefix(name))?;
    rest.starts_with(char::is_whitespace).then(|| rest.split_whitespace().next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Writes files with the given paths and contents.
    fn files(folder: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn available_with(with: &[(&str, &str)]) -> Option<usize> {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:  9000 kB\nMemAvailable:  4096 kB\nSwapFree:  1024 kB\n";
        files(dir.path(), &[("proc/meminfo", meminfo)]);
        files(dir.path(), with);
        available(&dir.path().join("proc"), &dir.path().join("cgroup"))
    }

    #[test]
    fn available_memory_is_the_smallest_of_all_limits() {
        assert_eq!(available_with(&[]), Some(5 * MIB));
        let unlimited = "Limit   Soft Limit  Hard Limit  Units\nMax address space  unlimited  unlimited  bytes\n";
        assert_eq!(available_with(&[("proc/self/limits", unlimited)]), Some(5 * MIB));
        let limits = "Max address space         3145728              3145728              bytes\n";
        let status = "Name: x\nVmSize:  2048 kB\n";
        let of_process = [("proc/self/limits", limits), ("proc/self/status", status)];
        assert_eq!(available_with(&of_process), Some(MIB));
    }

    #[test]
    fn limits_of_groups_count_without_the_page_cache() {
        let group = [
            ("proc/self/cgroup", "0::/a/b\n"),
            ("cgroup/a/b/memory.max", "max\n"),
            ("cgroup/a/memory.max", "4194304\n"),
            ("cgroup/a/memory.current", "3145728\n"),
            ("cgroup/a/memory.stat", "anon 1048576\nfile 2097152\nfile_mapped 9\nshmem 1048576\n"),
        ];
        assert_eq!(available_with(&group), Some(2 * MIB));
        // The path of the host, which a container does not see.
        let container = [
            ("proc/self/cgroup", "3:cpu,cpuacct:/x\n2:memory:/host/path\n"),
            ("cgroup/memory/memory.limit_in_bytes", "4194304\n"),
            ("cgroup/memory/memory.usage_in_bytes", "1048576\n"),
            ("cgroup/memory/memory.stat", "cache 5\ntotal_cache 0\ntotal_shmem 0\n"),
        ];
        assert_eq!(available_with(&container), Some(3 * MIB));
        // More than the limit is in use.
        let full = [
            ("proc/self/cgroup", "0::/\n"),
            ("cgroup/memory.max", "1\n"),
            ("cgroup/memory.current", "2\n"),
        ];
        assert_eq!(available_with(&full), Some(0));
    }

    #[test]
    fn this_machine_has_memory_left() {
        let available = available_bytes();
        assert_eq!(available.is_some(), cfg!(target_os = "linux"));
        assert!(available.is_none_or(|bytes| bytes > MIB));
    }
}
