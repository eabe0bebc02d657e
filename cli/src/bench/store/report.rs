//! What the store costs at one size.

use serde::Serialize;

use crate::output::Table;

/// At one size of the log.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) entries: u64,
    /// Bytes of all the store's files for one certificate.
    pub(super) bytes_per_certificate: f64,
    /// Wall time of one certificate, 64 appended at once, in floor units.
    pub(super) append_floors: f64,
    /// CPU of the whole process for it: commit, index, tree.
    pub(super) append_cpu_floors: f64,
    /// P-256 verification and signature, on one thread.
    pub(super) floor_us: f64,
    /// Entries that waited for the index when the load ended.
    pub(super) index_backlog: u64,
    /// The rate at which the log and its index were filled, tree and commits included.
    pub(super) fill_per_s: f64,
    /// The index made such an entry in this time, on average, while it worked.
    pub(super) indexed_per_s: f64,
    pub(super) warm_identity_p99_ms: f64,
    pub(super) warm_serial_p99_ms: f64,
    pub(super) cold_identity_p99_ms: f64,
    pub(super) cold_serial_p99_ms: f64,
    /// From the server's start until it is ready.
    pub(super) start_ms: f64,
    /// The server's memory then, in units of 10^6 bytes.
    pub(super) server_rss_mb: f64,
    /// Whole-log verification.
    pub(super) verified_per_s: f64,
}

/// All sizes as a table: one column each.
pub(super) fn table(rows: &[Row]) -> String {
    let mut header = vec!["entries".to_owned()];
    header.extend(rows.iter().map(|row| row.entries.to_string()));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(1, &header);
    let mut line = |name: &str, value: fn(&Row) -> f64, digits: usize| {
        let mut cells = vec![name.to_owned()];
        cells.extend(rows.iter().map(|row| format!("{:.digits$}", value(row))));
        table.row(cells);
    };
    line("bytes a certificate", |row| row.bytes_per_certificate, 0);
    line("append, floors", |row| row.append_floors, 2);
    line("append, CPU in floors", |row| row.append_cpu_floors, 2);
    line("floor µs", |row| row.floor_us, 1);
    line("filled/s", |row| row.fill_per_s, 0);
    line("indexed/s", |row| row.indexed_per_s, 0);
    #[allow(clippy::cast_precision_loss)]
    line(
        "index backlog after the load",
        |row| row.index_backlog as f64,
        0,
    );
    line("identity p99 ms, warm", |row| row.warm_identity_p99_ms, 2);
    line("serial p99 ms, warm", |row| row.warm_serial_p99_ms, 2);
    line("identity p99 ms, cold", |row| row.cold_identity_p99_ms, 2);
    line("serial p99 ms, cold", |row| row.cold_serial_p99_ms, 2);
    line("server ready after ms", |row| row.start_ms, 0);
    line("server RSS MB", |row| row.server_rss_mb, 1);
    line("verified/s", |row| row.verified_per_s, 0);
    table.render()
}
