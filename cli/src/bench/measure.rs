//! What is measured beside the requests: percentiles, a disk's fdatasync, a process's
//! CPU and memory.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// Percentile `p` (0 to 100) of sorted values by nearest rank: a value that really
/// was measured, never one in between. Zero for no values.
pub(crate) fn percentile(sorted: &[u32], p: f64) -> u32 {
    debug_assert!(sorted.is_sorted());
    if sorted.is_empty() {
        return 0;
    }
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let rank = (p / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The median time of an fdatasync of 4 KB that were just appended in `folder`.
pub(crate) fn fdatasync(folder: &Path) -> io::Result<Duration> {
    const ROUNDS: usize = 31;
    let path = folder.join(".citadel-bench-fsync");
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&path)?;
    let mut times = Vec::with_capacity(ROUNDS);
    let mut measure = || {
        for _ in 0..ROUNDS {
            file.write_all(&[0x5a; 4096])?;
            let start = Instant::now();
            file.sync_data()?;
            times.push(start.elapsed());
        }
        Ok::<_, io::Error>(())
    };
    let measured = measure();
    std::fs::remove_file(&path)?;
    measured?;
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

/// CPU time and memory of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    /// User and system time since it started.
    pub(crate) cpu: Duration,
    /// Resident bytes.
    pub(crate) resident: u64,
}

/// Reads `/proc/<pid>/stat`: all threads, ended ones too.
pub(crate) fn usage_of(pid: u32) -> io::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = clock_ticks()?;
    parse_stat(&stat, ticks, page_size()?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of /proc/PID/stat"))
}

/// CPU time of a process since it started, to the nanosecond: user and system, all threads,
/// ended ones too.
pub(crate) fn cpu_of(pid: u32) -> io::Result<Duration> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let clock = clock_getcpuclockid(Pid::from_raw(pid))?;
    Ok(clock.now()?.into())
}

fn clock_ticks() -> io::Result<u64> {
    sysconf(nix::unistd::SysconfVar::CLK_TCK)
}

fn page_size() -> io::Result<u64> {
    sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
}

fn sysconf(variable: nix::unistd::SysconfVar) -> io::Result<u64> {
    nix::unistd::sysconf(variable)?
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The program's name stands in parentheses and may hold anything, so fields are
/// counted from the last one. Fields (proc(5)): 14 utime, 15 stime, 24 rss in pages.
fn parse_stat(stat: &str, ticks_per_second: u64, page: u64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // The first field after the name is number 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)? + field(15)?;
    Some(Usage {
        cpu: Duration::from_micros(ticks * 1_000_000 / ticks_per_second),
        resident: field(24)? * page,
    })
}

/// Reads the CPU and memory of a server from its metrics (`OpenMetrics` text).
pub(crate) fn parse_metrics(text: &str) -> Option<Usage> {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (found, value) = line.split_once(' ')?;
            (found == name)
                .then(|| value.split(' ').next()?.parse::<f64>().ok())
                .flatten()
        })
    };
    let seconds = value("process_cpu_seconds_total").filter(|seconds| *seconds >= 0.0)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let resident = value("process_resident_memory_bytes").unwrap_or(0.0) as u64;
    Some(Usage {
        cpu: Duration::from_secs_f64(seconds),
        resident,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50.0), 50);
        assert_eq!(percentile(&hundred, 90.0), 90);
        assert_eq!(percentile(&hundred, 99.0), 99);
        assert_eq!(percentile(&hundred, 100.0), 100);
        assert_eq!(percentile(&[7], 50.0), 7);
        assert_eq!(percentile(&[1, 9], 50.0), 1);
        assert_eq!(percentile(&[1, 9], 51.0), 9);
        assert_eq!(percentile(&[], 99.0), 0);
    }

    #[test]
    fn the_stat_line_is_read_after_the_name_whatever_the_name_is() {
        let line = "12 (a) b (c)) S 1 12 12 0 -1 4194560 900 0 0 0 250 50 0 0 20 0 5 0 100 \
                    1000000 300 18446744073709551615 1 1 0";
        let usage = parse_stat(line, 100, 4096).unwrap();
        assert_eq!(usage.cpu, Duration::from_secs(3));
        assert_eq!(usage.resident, 300 * 4096);
        assert_eq!(parse_stat("12 (a", 100, 4096), None);
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let before = usage_of(std::process::id()).unwrap();
        let fine = cpu_of(std::process::id()).unwrap();
        let start = Instant::now();
        // Well over one clock tick of work.
        while start.elapsed() < Duration::from_millis(60) {
            std::hint::black_box(start);
        }
        let after = usage_of(std::process::id()).unwrap();
        assert!(after.cpu > before.cpu, "{before:?} {after:?}");
        assert!(after.resident > 100_000);
        let fine = cpu_of(std::process::id()).unwrap().saturating_sub(fine);
        assert!(fine > Duration::from_millis(10), "{fine:?}");
    }

    #[test]
    fn metrics_give_cpu_and_memory() {
        let text = "# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total 12.5\n\
                    process_resident_memory_bytes 5e7\nother 1\n";
        let usage = parse_metrics(text).unwrap();
        assert_eq!(usage.cpu, Duration::from_millis(12_500));
        assert_eq!(usage.resident, 50_000_000);
        assert_eq!(parse_metrics("other 1\n"), None);
    }

    #[test]
    fn fdatasync_is_measured_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(fdatasync(folder.path()).unwrap() > Duration::ZERO);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
