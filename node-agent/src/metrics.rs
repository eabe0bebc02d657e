//! What `/metrics` says of the agent.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    ca_client::{ConflictKind, Entries},
    secrets::Prepared,
};

/// The agent's metrics. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    identities: Gauge,
    entries: Family<Outcome, Gauge>,
    next_expiry: Gauge,
    pods: Gauge,
    pods_age: Gauge<f64, AtomicU64>,
    prepared: Family<Outcome, Counter>,
    prepared_waiting: Gauge,
    next_renewal: Gauge,
    renewals: Family<Outcome, Counter>,
    attestation_failures: Counter,
    peers: Family<Outcome, Counter>,
    connections: Gauge,
    streams: Family<Protocol, Gauge>,
    acks: Counter,
    ack_lag: Lag,
    nacks: Counter,
    files: Family<Outcome, Counter>,
    refused_peers: Family<Reason, Counter>,
    skew: Gauge<f64, AtomicU64>,
}

/// 1 ms to 65 s in powers of two.
#[derive(Debug)]
struct Lag(Histogram);

impl Default for Lag {
    fn default() -> Self {
        let buckets = (0..17).map(|power| 1e-3 * f64::from(1u32 << power));
        Self(Histogram::new(buckets))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Protocol {
    protocol: &'static str,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        let m = &self.inner;
        let registry = registry.sub_registry_with_prefix("citadel_agent");
        registry.register("identities", "Identities held", m.identities.clone());
        registry.register(
            "entries",
            "Entries of this node: those that are ignored nobody gets, those that are shadowed or \
             ambiguous stand in another one's way; the log says why",
            m.entries.clone(),
        );
        registry.register(
            "next_expiry_timestamp_seconds",
            "When the first of the certificates held ends, seconds since the epoch; 0 without any",
            m.next_expiry.clone(),
        );
        registry.register(
            "pods",
            "Pods of this node that its source shows; 0 without a source",
            m.pods.clone(),
        );
        registry.register(
            "pods_age_seconds",
            "How long ago the source of this node's pods last showed that what is known is current; \
             +Inf before its first list",
            m.pods_age.clone(),
        );
        registry.register(
            "prepared",
            "Identities that were asked for before their pod did: made, and of these used by \
             their pod or dropped unused",
            m.prepared.clone(),
        );
        registry.register(
            "prepared_waiting",
            "Identities that are ready for pods that have not asked yet",
            m.prepared_waiting.clone(),
        );
        registry.register(
            "next_renewal_timestamp_seconds",
            "When the CA is asked next, seconds since the epoch; 0 without anything to ask for",
            m.next_renewal.clone(),
        );
        registry.register(
            "renewals",
            "Certificates asked of the CA",
            m.renewals.clone(),
        );
        registry.register(
            "ca_attestation_failures",
            "Times that the agent could not prove itself to its CA",
            m.attestation_failures.clone(),
        );
        registry.register(
            "peers",
            "Connections by outcome of attestation",
            m.peers.clone(),
        );
        registry.register(
            "connections",
            "Open connections of workloads",
            m.connections.clone(),
        );
        registry.register("streams", "Open streams of workloads", m.streams.clone());
        registry.register(
            "sds_acks",
            "SDS responses that a proxy took",
            m.acks.clone(),
        );
        registry.register(
            "sds_ack_seconds",
            "From the push of a secret to its acknowledgement",
            m.ack_lag.0.clone(),
        );
        registry.register(
            "attestation_failures",
            "Connections of workloads that got nothing, by reason",
            m.refused_peers.clone(),
        );
        registry.register(
            "sds_nacks",
            "SDS responses that a proxy refused",
            m.nacks.clone(),
        );
        registry.register(
            "files",
            "Certificates written as files; a failure is one of writing or of telling the reader",
            m.files.clone(),
        );
        registry.register(
            "clock_skew_seconds",
            "This machine's clock minus the CA's",
            m.skew.clone(),
        );
    }

    pub(crate) fn files_written(&self) {
        let outcome = "written";
        self.inner.files.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn files_failed(&self) {
        let outcome = "failed";
        self.inner.files.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn holding(
        &self,
        identities: usize,
        next_expiry: Option<i64>,
        next_renewal: Option<i64>,
    ) {
        self.inner.next_renewal.set(next_renewal.unwrap_or(0));
        self.inner
            .identities
            .set(i64::try_from(identities).unwrap_or(i64::MAX));
        self.inner.next_expiry.set(next_expiry.unwrap_or(0));
    }

    pub(crate) fn pods(&self, count: usize, age: Duration) {
        let age = match age {
            Duration::MAX => f64::INFINITY,
            age => age.as_secs_f64(),
        };
        self.inner.pods_age.set(age);
        self.inner
            .pods
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn prepared(&self, waiting: usize, since: Prepared) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.inner.prepared_waiting.set(waiting);
        for (outcome, count) in [
            ("made", since.made),
            ("used", since.used),
            ("dropped", since.dropped),
        ] {
            let outcome = Outcome { outcome };
            self.inner.prepared.get_or_create(&outcome).inc_by(count);
        }
    }

    pub(crate) fn entries(&self, entries: &Entries) {
        let of_kind = |kind| entries.conflicts.iter().filter(|c| c.kind == kind).count();
        for (outcome, count) in [
            ("served", entries.list.len()),
            ("ignored", entries.ignored.len()),
            ("shadowed", of_kind(ConflictKind::Shadowed)),
            ("ambiguous", of_kind(ConflictKind::Ambiguous)),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.inner
                .entries
                .get_or_create(&Outcome { outcome })
                .set(count);
        }
    }

    pub(crate) fn renewed(&self) {
        self.inner
            .renewals
            .get_or_create(&Outcome { outcome: "ok" })
            .inc();
    }

    pub(crate) fn renewal_failed(&self, denied: bool) {
        let outcome = if denied { "denied" } else { "failed" };
        self.inner
            .renewals
            .get_or_create(&Outcome { outcome })
            .inc();
    }

    pub(crate) fn attestation_failed(&self) {
        self.inner.attestation_failures.inc();
    }

    /// `attested`, `refused` (and told so) or `dropped`.
    pub(crate) fn peer(&self, outcome: &'static str) {
        self.inner.peers.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn connected(&self) -> Counted {
        Counted::new(self.inner.connections.clone())
    }

    pub(crate) fn streaming(&self, protocol: &'static str) -> Counted {
        Counted::new(
            self.inner
                .streams
                .get_or_create_owned(&Protocol { protocol }),
        )
    }

    pub(crate) fn acknowledged(&self) {
        self.inner.acks.inc();
    }

    pub(crate) fn acknowledged_after(&self, lag: Duration) {
        self.inner.ack_lag.0.observe(lag.as_secs_f64());
    }

    /// A peer was not attested, or could not be let in.
    pub(crate) fn peer_refused(&self, reason: &'static str) {
        self.inner
            .refused_peers
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// How many were refused for this reason.
    pub(crate) fn peers_refused(&self, reason: &'static str) -> u64 {
        let of = self.inner.refused_peers.get(&Reason { reason });
        of.map_or(0, |counter| counter.get())
    }

    /// This machine's clock minus the CA's, seconds.
    pub(crate) fn skew(&self) -> f64 {
        self.inner.skew.get()
    }

    pub(crate) fn refused(&self) {
        self.inner.nacks.inc();
    }

    pub(crate) fn clock_skew(&self, seconds: f64) {
        self.inner.skew.set(seconds);
    }
}

/// Counts as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn every_metric_is_shown() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.holding(3, Some(1_800_000_000), Some(1_700_000_000));
        metrics.peer_refused("cgroup");
        metrics.acknowledged_after(Duration::from_millis(3));
        metrics.renewed();
        metrics.renewal_failed(true);
        metrics.peer("refused");
        metrics.entries(&Entries::default());
        metrics.pods(4, Duration::from_secs(2));
        metrics.prepared(
            2,
            Prepared {
                made: 3,
                used: 1,
                dropped: 0,
            },
        );
        metrics.refused();
        metrics.clock_skew(-1.5);
        let stream = metrics.streaming("sds");
        let show = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        let text = show();
        for line in [
            "citadel_agent_identities 3",
            "citadel_agent_next_expiry_timestamp_seconds 1800000000",
            "citadel_agent_next_renewal_timestamp_seconds 1700000000",
            "citadel_agent_attestation_failures_total{reason=\"cgroup\"} 1",
            "citadel_agent_sds_ack_seconds_count 1",
            "citadel_agent_renewals_total{outcome=\"ok\"} 1",
            "citadel_agent_renewals_total{outcome=\"denied\"} 1",
            "citadel_agent_peers_total{outcome=\"refused\"} 1",
            "citadel_agent_entries{outcome=\"ignored\"} 0",
            "citadel_agent_pods 4",
            "citadel_agent_pods_age_seconds 2.0",
            "citadel_agent_prepared_waiting 2",
            "citadel_agent_prepared_total{outcome=\"used\"} 1",
            "citadel_agent_sds_nacks_total 1",
            "citadel_agent_clock_skew_seconds -1.5",
            "citadel_agent_streams{protocol=\"sds\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(stream);
        assert!(show().contains("citadel_agent_streams{protocol=\"sds\"} 0"));
    }
}
