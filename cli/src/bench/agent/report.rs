//! The figures, as JSON and beside their marks.
#![allow(
    clippy::struct_field_names,
    reason = "a field is called as in the JSON, where all are together"
)]

use serde::Serialize;

use crate::output::Table;

/// All that was measured; what was not is left out.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) reissue: Option<Reissue>,
    #[serde(flatten)]
    pub(super) push: Option<Push>,
    #[serde(flatten)]
    pub(super) first: Option<First>,
    #[serde(flatten)]
    pub(super) fetch: Option<Fetch>,
    #[serde(flatten)]
    pub(super) idle: Option<Idle>,
}

/// All identities again.
#[derive(Debug, Serialize)]
pub(super) struct Reissue {
    #[serde(rename = "reissue_identities")]
    pub(super) identities: usize,
    /// From the start of the agent to the last of them.
    #[serde(rename = "reissue_10k_s")]
    pub(super) reissue_s: f64,
    pub(super) reissue_first_to_last_s: f64,
    pub(super) reissue_agent_cpu_s: f64,
    pub(super) reissue_ca_cpu_s: f64,
    /// Units of 10^6 bytes.
    #[serde(rename = "agent_rss_mb_10k")]
    pub(super) reissue_rss_mb: f64,
}

/// Streams and pushes.
#[derive(Debug, Serialize)]
pub(super) struct Push {
    pub(super) streams: usize,
    /// Resident memory for one stream, units of 1,000 bytes: the larger of that before and
    /// that after the pushes.
    pub(super) sds_kb_per_stream: f64,
    pub(super) sds_kb_per_stream_opened: f64,
    #[serde(rename = "push_p50_ms_5k")]
    pub(super) push_p50_ms: f64,
    #[serde(rename = "push_p99_ms_5k")]
    pub(super) push_p99_ms: f64,
    #[serde(rename = "push_last_ms_5k")]
    pub(super) push_last_ms: f64,
    /// The agent's CPU for one push to one stream and its acknowledgement.
    pub(super) push_cpu_us: f64,
}

/// First requests: medians, and the slowest of a hundred.
#[derive(Debug, Serialize)]
pub(super) struct First {
    #[serde(rename = "first_fetch_pods")]
    pub(super) pods: usize,
    pub(super) first_fetch_prepared_ms: f64,
    pub(super) first_fetch_prepared_p99_ms: f64,
    pub(super) first_fetch_ms: f64,
    pub(super) first_fetch_p99_ms: f64,
}

/// `FetchX509SVID` from what is there.
#[derive(Debug, Serialize)]
pub(super) struct Fetch {
    #[serde(rename = "cached_fetch_concurrency")]
    pub(super) concurrency: usize,
    pub(super) cached_fetch_cpu_us: f64,
    pub(super) cached_fetch_per_s: f64,
}

/// An agent with nothing to do.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    #[serde(rename = "idle_identities")]
    pub(super) identities: usize,
    /// Without any stream.
    #[serde(rename = "agent_rss_mb_1k")]
    pub(super) agent_rss_mb: f64,
    #[serde(rename = "agent_rss_mb_1k_with_streams")]
    pub(super) agent_rss_mb_with_streams: f64,
    /// Of one core, without any stream.
    #[serde(rename = "idle_cpu_percent_1k")]
    pub(super) idle_cpu_percent: f64,
    #[serde(rename = "idle_cpu_percent_1k_with_streams")]
    pub(super) idle_cpu_percent_with_streams: f64,
}

/// A line of the table: what, in which unit, how much; and the mark where it has one.
type Line = (&'static str, f64, Option<f64>);

impl Report {
    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if let Some(it) = &self.reissue {
            lines.extend([
                (
                    "all issued again after a restart, s",
                    it.reissue_s,
                    Some(2.5),
                ),
                (
                    "- of that from the first to the last",
                    it.reissue_first_to_last_s,
                    None,
                ),
                ("- CPU of the agent, s", it.reissue_agent_cpu_s, None),
                ("- CPU of the CA, s", it.reissue_ca_cpu_s, None),
                ("- agent RSS afterwards, MB", it.reissue_rss_mb, None),
            ]);
        }
        if let Some(it) = &self.push {
            lines.extend([
                ("an SDS stream, KB", it.sds_kb_per_stream, Some(20.0)),
                ("- before any push", it.sds_kb_per_stream_opened, None),
                ("a push to all streams, p99 ms", it.push_p99_ms, Some(250.0)),
                ("- p50 ms", it.push_p50_ms, None),
                ("- the last one, ms", it.push_last_ms, None),
                ("- agent CPU a stream, µs", it.push_cpu_us, None),
            ]);
        }
        if let Some(it) = &self.first {
            lines.extend([
                (
                    "first request, prepared, ms",
                    it.first_fetch_prepared_ms,
                    Some(1.5),
                ),
                ("- p99", it.first_fetch_prepared_p99_ms, None),
                (
                    "from pod bound to SVID, not prepared, ms",
                    it.first_fetch_ms,
                    Some(50.0),
                ),
                ("- p99", it.first_fetch_p99_ms, None),
            ]);
        }
        if let Some(it) = &self.fetch {
            lines.extend([
                (
                    "FetchX509SVID, agent CPU µs",
                    it.cached_fetch_cpu_us,
                    Some(70.0),
                ),
                ("- calls a second", it.cached_fetch_per_s, None),
            ]);
        }
        if let Some(it) = &self.idle {
            lines.extend([
                (
                    "agent RSS with the identities, MB",
                    it.agent_rss_mb,
                    Some(60.0),
                ),
                (
                    "- and a stream for each",
                    it.agent_rss_mb_with_streams,
                    None,
                ),
                ("idle, % of a core", it.idle_cpu_percent, Some(0.1)),
                (
                    "- with a stream for each",
                    it.idle_cpu_percent_with_streams,
                    None,
                ),
            ]);
        }
        lines
    }

    /// Each figure beside its mark.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new(1, &["", "measured", "mark", ""]);
        for (what, value, mark) in self.lines() {
            let kept = match mark {
                Some(mark) if value < mark => "kept",
                Some(_) => "MISSED",
                None => "",
            };
            table.row(vec![
                what.to_owned(),
                figure(value),
                mark.map(|mark| format!("< {mark}")).unwrap_or_default(),
                kept.to_owned(),
            ]);
        }
        table.render()
    }
}

/// Three digits that tell something.
fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn each_figure_is_shown_beside_its_mark() {
        let report = Report {
            fetch: Some(Fetch {
                concurrency: 64,
                cached_fetch_cpu_us: 71.0,
                cached_fetch_per_s: 9_000.0,
            }),
            idle: Some(Idle {
                identities: 1_000,
                agent_rss_mb: 42.5,
                agent_rss_mb_with_streams: 61.0,
                idle_cpu_percent: 0.05,
                idle_cpu_percent_with_streams: 0.2,
            }),
            ..Report::default()
        };
        let table = report.table();
        let line = |name: &str| {
            let line = table.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_ascii_whitespace()
                .rev()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("FetchX509SVID"), "MISSED 70");
        assert_eq!(line("agent RSS"), "kept 60");
        assert_eq!(line("idle"), "kept 0.1");
        // What was not measured is not in it.
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["cached_fetch_cpu_us"], 71.0);
        assert_eq!(json["agent_rss_mb_1k"], 42.5);
        assert!(json.get("push_p99_ms_5k").is_none(), "{json}");
    }
}
