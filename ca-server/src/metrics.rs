//! What the server counts. Istio's `citadel_server_*` names stand beside ours, so that its
//! dashboards go on working.

use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::Instant,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    holders::Sums,
    keys::{CaCertificate, Place},
};

/// A part of the issuance path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Stage {
    /// Token or certificate to caller.
    Authenticate,
    /// Caller to grant.
    Authorize,
    /// CSR to proven key.
    ProvePossession,
    /// Build and lint.
    Prepare,
    /// The signature.
    Sign,
    /// Until the commit is durable.
    Record,
}

const STAGES: [Stage; 6] = [
    Stage::Authenticate,
    Stage::Authorize,
    Stage::ProvePossession,
    Stage::Prepare,
    Stage::Sign,
    Stage::Record,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: Stage,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `citadel.v1.AgentService/IssueBatch` and so on.
    pub rpc: &'static str,
    /// The gRPC code's name.
    pub code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
    subject: String,
    serial: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabel {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HolderLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    outcome: &'static str,
}

/// The server's metrics.
#[derive(Clone)]
pub struct Metrics {
    /// In the order of the stages: a family looks its members up, for every request six.
    stages: [Histogram; STAGES.len()],
    requests: Family<Outcome, Counter>,
    issued: Counter,
    queue_waiting: Gauge,
    clock_skew: Family<ClusterLabel, Gauge<f64, AtomicU64>>,
    cluster_ready: Family<ClusterLabel, Gauge>,
    ca_expiry: Family<CertificateLabel, Gauge>,
    reloads: Family<ReloadLabel, Counter>,
    holders: Family<HolderLabel, Gauge<u64, AtomicU64>>,
    holder_reports: Gauge<u64, AtomicU64>,
    holder_reports_incomplete: Gauge<u64, AtomicU64>,
    // Istio's counters have no `_total` suffix: as gauges they keep their exact names.
    istio_csrs: Gauge<u64, AtomicU64>,
    istio_authentication_failures: Gauge<u64, AtomicU64>,
    istio_sign_errors: Family<ErrorLabel, Gauge<u64, AtomicU64>>,
    istio_issued: Gauge<u64, AtomicU64>,
    istio_root_expiry: Gauge<i64, AtomicI64>,
    istio_chain_expiry: Gauge<i64, AtomicI64>,
}

/// 16 µs to 8 s in powers of two.
fn stage_histogram() -> Histogram {
    Histogram::new((0..20).map(|power| 16e-6 * f64::from(1u32 << power)))
}

/// Measures one stage; a stage that failed is not counted.
pub struct StageTimer<'a> {
    metrics: &'a Metrics,
    stage: Stage,
    start: Instant,
}

impl StageTimer<'_> {
    /// The stage succeeded.
    pub fn end(self) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.metrics.stages[self.stage as usize].observe(seconds);
    }
}

impl Metrics {
    /// Counts a change of the registration entries, taken over or refused.
    pub fn reloaded(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "refused" };
        self.reloads.get_or_create(&ReloadLabel { outcome }).inc();
    }

    /// Makes all metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let stages = Family::<StageLabel, Histogram>::new_with_constructor(stage_histogram);
        let metrics = Self {
            stages: STAGES.map(|stage| stages.get_or_create_owned(&StageLabel { stage })),
            requests: Family::default(),
            issued: Counter::default(),
            queue_waiting: Gauge::default(),
            clock_skew: Family::default(),
            cluster_ready: Family::default(),
            ca_expiry: Family::default(),
            reloads: Family::default(),
            holders: Family::default(),
            holder_reports: Gauge::default(),
            holder_reports_incomplete: Gauge::default(),
            istio_csrs: Gauge::default(),
            istio_authentication_failures: Gauge::default(),
            istio_sign_errors: Family::default(),
            istio_issued: Gauge::default(),
            istio_root_expiry: Gauge::default(),
            istio_chain_expiry: Gauge::default(),
        };
        let m = &metrics;
        registry.register(
            "citadel_ca_stage_seconds",
            "Latency of each stage of the issuance path",
            stages,
        );
        registry.register(
            "citadel_ca_requests",
            "Requests by RPC and gRPC code",
            m.requests.clone(),
        );
        registry.register(
            "citadel_ca_certificates_issued",
            "Certificates recorded and released",
            m.issued.clone(),
        );
        registry.register(
            "citadel_ca_queue_waiting",
            "Requests waiting for their turn",
            m.queue_waiting.clone(),
        );
        registry.register(
            "citadel_ca_clock_skew_seconds",
            "The clock of each cluster's API server minus ours, as its answers show it",
            m.clock_skew.clone(),
        );
        registry.register(
            "citadel_ca_cluster_ready",
            "Whether the callers of each cluster are served: 1 or 0",
            m.cluster_ready.clone(),
        );
        registry.register(
            "citadel_ca_certificate_expiry_timestamp_seconds",
            "Expiry of each CA certificate, seconds since the epoch",
            m.ca_expiry.clone(),
        );
        registry.register(
            "citadel_ca_config_reloads",
            "Changed registration entries that were taken over or refused while the server ran",
            m.reloads.clone(),
        );
        registry.register(
            "citadel_ca_holders",
            "Workloads by what they have shown of the trust bundle of now: acknowledged over SDS \
             (current_a), renewed over the Workload API since (current_b), or not yet (behind)",
            m.holders.clone(),
        );
        registry.register(
            "citadel_ca_holder_reports",
            "Nodes whose agents have reported their workloads to this server",
            m.holder_reports.clone(),
        );
        registry.register(
            "citadel_ca_holder_reports_incomplete",
            "Of those the ones that could not keep count of all",
            m.holder_reports_incomplete.clone(),
        );
        registry.register(
            "citadel_server_csr_count",
            "CSRs received",
            m.istio_csrs.clone(),
        );
        registry.register(
            "citadel_server_authentication_failure_count",
            "Requests whose caller was not authenticated",
            m.istio_authentication_failures.clone(),
        );
        registry.register(
            "citadel_server_csr_sign_err_count",
            "CSRs that were not signed, by reason",
            m.istio_sign_errors.clone(),
        );
        registry.register(
            "citadel_server_success_cert_issuance_count",
            "Certificates issued",
            m.istio_issued.clone(),
        );
        registry.register(
            "citadel_server_root_cert_expiry_timestamp",
            "Expiry of the root certificate, seconds since the epoch",
            m.istio_root_expiry.clone(),
        );
        registry.register(
            "citadel_server_cert_chain_expiry_timestamp",
            "Earliest expiry in the issuing chain, seconds since the epoch",
            m.istio_chain_expiry.clone(),
        );
        metrics
    }

    /// Starts to measure a stage.
    pub fn stage(&self, stage: Stage) -> StageTimer<'_> {
        StageTimer {
            metrics: self,
            stage,
            start: Instant::now(),
        }
    }

    /// A request ended.
    pub fn request(&self, rpc: &'static str, code: &'static str) {
        self.requests.get_or_create(&Outcome { rpc, code }).inc();
    }

    /// CSRs arrived.
    pub fn csrs(&self, count: usize) {
        self.istio_csrs.inc_by(count as u64);
    }

    /// A caller was not authenticated.
    pub fn authentication_failed(&self) {
        self.istio_authentication_failures.inc();
    }

    /// A CSR was not signed.
    pub fn not_signed(&self, error: &'static str) {
        self.istio_sign_errors
            .get_or_create(&ErrorLabel { error })
            .inc();
    }

    /// A certificate was released.
    pub fn issued(&self) {
        self.issued.inc();
        self.istio_issued.inc();
    }

    /// Requests waiting now.
    pub fn waiting(&self, count: usize) {
        self.queue_waiting
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// What agents report.
    pub(crate) fn holders(&self, sums: Sums) {
        for (state, count) in [
            ("current_a", sums.current_a),
            ("current_b", sums.current_b),
            ("behind", sums.behind),
        ] {
            self.holders
                .get_or_create(&HolderLabel { state })
                .set(count);
        }
        self.holder_reports.set(sums.nodes);
        self.holder_reports_incomplete.set(sums.incomplete);
    }

    /// The clock of this cluster's API server minus ours.
    pub fn clock_skew(&self, cluster: &str, skew: time::Duration) {
        self.clock_skew
            .get_or_create_owned(&ClusterLabel {
                cluster: cluster.to_owned(),
            })
            .set(skew.as_seconds_f64());
    }

    /// Whether a cluster's callers are served.
    pub fn cluster_ready(&self, cluster: &str, ready: bool) {
        self.cluster_ready
            .get_or_create_owned(&ClusterLabel {
                cluster: cluster.to_owned(),
            })
            .set(ready.into());
    }

    /// The CA's own certificates and the roots beside them. What Istio calls the chain ends
    /// with the root that it leads to; a root that is only trusted can't end it earlier.
    pub fn ca_expiries(&self, certificates: &[CaCertificate]) {
        for one in certificates {
            self.ca_expiry
                .get_or_create_owned(&CertificateLabel {
                    certificate: one.place.name(),
                    subject: one.subject.clone(),
                    serial: one.serial.clone(),
                })
                .set(one.not_after.unix_timestamp());
        }
        let earliest = |of: &dyn Fn(Place) -> bool| {
            let expiries = certificates.iter().filter(|one| of(one.place));
            expiries.map(|one| one.not_after.unix_timestamp()).min()
        };
        if let Some(root) = earliest(&|place| place == Place::Root) {
            self.istio_root_expiry.set(root);
        }
        if let Some(chain) = earliest(&|place| place != Place::OtherRoot) {
            self.istio_chain_expiry.set(chain);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use time::{Duration, OffsetDateTime};

    use super::*;

    fn shown(use_metrics: impl FnOnce(&Metrics)) -> String {
        let mut registry = Registry::default();
        use_metrics(&Metrics::register(&mut registry));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap_or_default();
        text
    }

    fn certificate(place: Place, serial: &str, seconds: i64) -> CaCertificate {
        CaCertificate {
            place,
            subject: format!("CN={serial}"),
            serial: serial.into(),
            not_after: OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds),
        }
    }

    #[test]
    fn each_certificate_of_the_chain_is_there_and_the_earliest_ends_it() {
        let text = shown(|metrics| {
            metrics.ca_expiries(&[
                certificate(Place::Issuer, "1", 4000),
                certificate(Place::Intermediate, "2", 3000),
                certificate(Place::Intermediate, "3", 5000),
                certificate(Place::Root, "4", 9000),
                certificate(Place::OtherRoot, "5", 1000),
            ]);
        });
        for line in [
            r#"citadel_ca_certificate_expiry_timestamp_seconds{certificate="issuer",subject="CN=1",serial="1"} 4000"#,
            r#"citadel_ca_certificate_expiry_timestamp_seconds{certificate="intermediate",subject="CN=2",serial="2"} 3000"#,
            r#"citadel_ca_certificate_expiry_timestamp_seconds{certificate="intermediate",subject="CN=3",serial="3"} 5000"#,
            r#"citadel_ca_certificate_expiry_timestamp_seconds{certificate="root",subject="CN=4",serial="4"} 9000"#,
            r#"citadel_ca_certificate_expiry_timestamp_seconds{certificate="other_root",subject="CN=5",serial="5"} 1000"#,
            "citadel_server_cert_chain_expiry_timestamp 3000",
            "citadel_server_root_cert_expiry_timestamp 9000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        // A root that expires before what it signed ends the chain.
        let text = shown(|metrics| {
            metrics.ca_expiries(&[
                certificate(Place::Issuer, "1", 4000),
                certificate(Place::Root, "2", 2000),
            ]);
        });
        assert!(text.contains("\ncitadel_server_cert_chain_expiry_timestamp 2000\n"));
    }

    #[test]
    fn each_cluster_has_its_own_clock() {
        let text = shown(|metrics| {
            metrics.clock_skew("east", Duration::milliseconds(-1500));
            metrics.clock_skew("west", Duration::seconds(40));
            metrics.clock_skew("west", Duration::ZERO);
        });
        for line in [
            r#"citadel_ca_clock_skew_seconds{cluster="east"} -1.5"#,
            r#"citadel_ca_clock_skew_seconds{cluster="west"} 0.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
