//! The result of one run, as JSON and as a line of the table.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::args::Path;
use crate::output::Table;

/// What one path on one store gave.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) path: Path,
    /// `sqlite`; `target` where the server was not ours.
    pub(crate) store: String,
    #[serde(serialize_with = "tenths")]
    pub(crate) certificates_per_s: f64,
    /// Of a request: with batches, of the whole batch.
    #[serde(serialize_with = "thousandths")]
    pub(crate) p50_ms: f64,
    #[serde(serialize_with = "thousandths")]
    pub(crate) p90_ms: f64,
    #[serde(serialize_with = "thousandths")]
    pub(crate) p99_ms: f64,
    /// CPU of the server's process per certificate; null where it is unknown.
    #[serde(serialize_with = "maybe_tenths")]
    pub(crate) server_cpu_us: Option<f64>,
    /// What the path can't do without, on one idle thread.
    #[serde(serialize_with = "tenths")]
    pub(crate) floor_us: f64,
    /// Floor ÷ server CPU per certificate.
    #[serde(serialize_with = "maybe_thousandths")]
    pub(crate) cpu_ratio: Option<f64>,
    /// Rate × floor ÷ cores.
    #[serde(serialize_with = "thousandths")]
    pub(crate) throughput_ratio: f64,
    /// Resident at the end of the run, in units of 10^6 bytes.
    #[serde(serialize_with = "maybe_tenths")]
    pub(crate) server_rss_mb: Option<f64>,
    /// Median fdatasync of 4 KB in the store's folder before the run.
    #[serde(serialize_with = "maybe_thousandths")]
    pub(crate) fsync_ms: Option<f64>,
    /// Certificates that arrived while it was measured.
    pub(crate) certificates: u64,
    /// Calls and batch items that brought none, from start to end.
    pub(crate) errors: u64,
}

/// Figures of one run, from which the row follows.
pub(crate) struct Figures {
    pub(crate) certificates: u64,
    pub(crate) measured: Duration,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) server_rss: Option<u64>,
    pub(crate) floor: Duration,
    pub(crate) fsync: Option<Duration>,
    pub(crate) cores: usize,
    /// Percentiles 50, 90 and 99.
    pub(crate) latencies: [Duration; 3],
    pub(crate) errors: u64,
}

impl Row {
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn new(path: Path, store: &str, figures: &Figures) -> Self {
        let certificates = figures.certificates as f64;
        let rate = certificates / figures.measured.as_secs_f64();
        let floor = figures.floor.as_secs_f64();
        let cpu = figures
            .server_cpu
            .filter(|_| figures.certificates > 0)
            .map(|cpu| cpu.as_secs_f64() / certificates);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let [p50, p90, p99] = figures.latencies;
        Self {
            path,
            store: store.to_owned(),
            certificates_per_s: rate,
            p50_ms: ms(p50),
            p90_ms: ms(p90),
            p99_ms: ms(p99),
            server_cpu_us: cpu.map(|cpu| cpu * 1e6),
            floor_us: floor * 1e6,
            cpu_ratio: cpu.filter(|cpu| *cpu > 0.0).map(|cpu| floor / cpu),
            throughput_ratio: rate * floor / figures.cores as f64,
            server_rss_mb: figures.server_rss.map(|bytes| bytes as f64 / 1e6),
            fsync_ms: figures.fsync.map(ms),
            certificates: figures.certificates,
            errors: figures.errors,
        }
    }
}

/// All runs as a table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new(
        2,
        &[
            "path",
            "store",
            "certs/s",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "CPU µs",
            "floor µs",
            "CPU ratio",
            "rate ratio",
            "RSS MB",
            "fsync ms",
            "errors",
        ],
    );
    let maybe = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    for row in rows {
        table.row(vec![
            row.path.name().to_owned(),
            row.store.clone(),
            format!("{:.0}", row.certificates_per_s),
            format!("{:.2}", row.p50_ms),
            format!("{:.2}", row.p90_ms),
            format!("{:.2}", row.p99_ms),
            maybe(row.server_cpu_us, 1),
            format!("{:.1}", row.floor_us),
            maybe(row.cpu_ratio, 3),
            format!("{:.3}", row.throughput_ratio),
            maybe(row.server_rss_mb, 1),
            maybe(row.fsync_ms, 3),
            row.errors.to_string(),
        ]);
    }
    table.render()
}

fn rounded(value: f64, unit: f64) -> f64 {
    (value * unit).round() / unit
}

// serde hands over references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn tenths<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(rounded(*value, 10.0))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn thousandths<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(rounded(*value, 1000.0))
}

#[allow(clippy::ref_option)]
fn maybe_tenths<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    value.map(|value| rounded(value, 10.0)).serialize(to)
}

#[allow(clippy::ref_option)]
fn maybe_thousandths<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    value.map(|value| rounded(value, 1000.0)).serialize(to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn figures() -> Figures {
        Figures {
            certificates: 80_000,
            measured: Duration::from_secs(10),
            server_cpu: Some(Duration::from_secs(16)),
            server_rss: Some(90_000_000),
            floor: Duration::from_micros(64),
            fsync: Some(Duration::from_micros(120)),
            cores: 2,
            latencies: [7, 10, 15].map(Duration::from_millis),
            errors: 0,
        }
    }

    #[test]
    fn ratios_follow_from_the_figures() {
        let row = serde_json::to_value(Row::new(Path::Token, "sqlite", &figures())).unwrap();
        let wanted = serde_json::json!({
            "path": "token", "store": "sqlite", "certificates_per_s": 8000.0,
            "p50_ms": 7.0, "p90_ms": 10.0, "p99_ms": 15.0,
            "server_cpu_us": 200.0, "floor_us": 64.0, "cpu_ratio": 0.32,
            "throughput_ratio": 0.256, "server_rss_mb": 90.0, "fsync_ms": 0.12,
            "certificates": 80_000, "errors": 0,
        });
        assert_eq!(row, wanted);
    }

    #[test]
    fn what_is_unknown_is_null() {
        let figures = Figures {
            server_cpu: None,
            server_rss: None,
            fsync: None,
            ..figures()
        };
        let row = serde_json::to_value(Row::new(Path::Agent, "target", &figures)).unwrap();
        for name in ["server_cpu_us", "cpu_ratio", "server_rss_mb", "fsync_ms"] {
            assert!(row[name].is_null(), "{name}");
        }
        let nothing = Figures {
            certificates: 0,
            ..figures
        };
        assert_eq!(Row::new(Path::Agent, "target", &nothing).cpu_ratio, None);
    }

    #[test]
    fn the_table_has_a_line_for_each_run() {
        let row = Row::new(Path::Token, "sqlite", &figures());
        let text = table(&[row.clone(), row]);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.contains("8000"))
        );
    }
}
