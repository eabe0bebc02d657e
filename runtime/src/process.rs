//! What this process uses, for `/metrics`: read when scraped, never in between.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// CPU time that this process has used so far, user and system, all threads.
///
/// From `getrusage`, which counts in microseconds; `/proc/self/stat` counts in ticks of
/// 10 ms, too coarse for the cost of one request.
pub fn cpu_time() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).ok()?;
        let micros = u64::try_from(time.tv_usec()).ok()?;
        Some(Duration::from_secs(seconds) + Duration::from_micros(micros))
    };
    Some(micros(usage.user_time())? + micros(usage.system_time())?)
}

/// Memory of this process that is in RAM, in bytes.
pub fn resident_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    resident_memory_of(&status)
}

/// Registers `process_cpu_seconds_total`, `process_resident_memory_bytes`,
/// `process_open_fds`, `process_max_fds` and `process_start_time_seconds`.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process {
        started: SystemTime::now(),
    }));
}

#[derive(Debug)]
struct Process {
    started: SystemTime,
}

fn resident_memory_of(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn open_files() -> Option<u64> {
    // The directory handle of this very count is one of them.
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count).ok()?.checked_sub(1)
}

// === impl Process ===

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        if let Some(cpu) = cpu_time() {
            let metric = ConstCounter::new(cpu.as_secs_f64());
            let encoder = encoder.encode_descriptor(
                "process_cpu",
                "User and system CPU time of this process",
                Some(&Unit::Seconds),
                metric.metric_type(),
            )?;
            metric.encode(encoder)?;
        }
        if let Some(bytes) = resident_memory() {
            gauge(
                &mut encoder,
                "process_resident_memory",
                "Resident memory",
                Some(&Unit::Bytes),
                bytes,
            )?;
        }
        if let Some(count) = open_files() {
            gauge(
                &mut encoder,
                "process_open_fds",
                "Open file descriptors",
                None,
                count,
            )?;
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            gauge(
                &mut encoder,
                "process_max_fds",
                "Limit of open file descriptors",
                None,
                soft,
            )?;
        }
        if let Ok(since_epoch) = self.started.duration_since(SystemTime::UNIX_EPOCH) {
            let metric = ConstGauge::new(since_epoch.as_secs_f64());
            let encoder = encoder.encode_descriptor(
                "process_start_time",
                "Start of this process, seconds since the epoch",
                Some(&Unit::Seconds),
                metric.metric_type(),
            )?;
            metric.encode(encoder)?;
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let encoder = encoder.encode_descriptor(name, help, unit, metric.metric_type())?;
    metric.encode(encoder)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_names_are_the_usual_ones_and_the_values_plausible() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} is missing in\n{text}"))
                .parse()
                .unwrap()
        };
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 500_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_start_time_seconds") > 1.7e9);
    }

    #[test]
    fn cpu_time_grows_with_work_and_finer_than_a_tick() {
        let before = cpu_time().unwrap();
        let mut grown = Duration::ZERO;
        while grown.is_zero() {
            std::hint::black_box((0..1_000_u64).sum::<u64>());
            grown = cpu_time().unwrap().saturating_sub(before);
        }
        assert!(grown < Duration::from_millis(10), "{grown:?}");
    }

    #[test]
    fn odd_status_files_give_nothing() {
        assert_eq!(resident_memory_of("VmRSS:\t  2048 kB\n"), Some(2_097_152));
        assert_eq!(resident_memory_of("VmRSS: 2048\n"), None);
        assert_eq!(resident_memory_of("VmRSS: x kB\n"), None);
        assert_eq!(resident_memory_of(""), None);
    }
}
