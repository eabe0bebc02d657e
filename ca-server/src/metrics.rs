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
use time::OffsetDateTime;

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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    error: &'static str,
}

/// The server's metrics.
#[derive(Clone)]
pub struct Metrics {
    stages: Family<StageLabel, Histogram>,
    requests: Family<Outcome, Counter>,
    issued: Counter,
    queue_waiting: Gauge,
    clock_skew_ms: Gauge,
    ca_expiry: Family<CertificateLabel, Gauge>,
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
        self.metrics
            .stages
            .get_or_create(&StageLabel { stage: self.stage })
            .observe(seconds);
    }
}

impl Metrics {
    /// Makes all metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            stages: Family::new_with_constructor(stage_histogram),
            requests: Family::default(),
            issued: Counter::default(),
            queue_waiting: Gauge::default(),
            clock_skew_ms: Gauge::default(),
            ca_expiry: Family::default(),
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
            m.stages.clone(),
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
            "citadel_ca_clock_skew_ms",
            "The API server's clock minus ours, milliseconds, as its answers show it",
            m.clock_skew_ms.clone(),
        );
        registry.register(
            "citadel_ca_certificate_expiry_timestamp_seconds",
            "Expiry of each CA certificate, seconds since the epoch",
            m.ca_expiry.clone(),
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

    /// The API server's clock minus ours.
    pub fn clock_skew(&self, skew: time::Duration) {
        self.clock_skew_ms
            .set(i64::try_from(skew.whole_milliseconds()).unwrap_or(i64::MAX));
    }

    /// Expiry of the root and of the issuing certificate.
    pub fn ca_expiries(&self, root: OffsetDateTime, issuer: OffsetDateTime) {
        for (certificate, expiry) in [("root", root), ("issuer", issuer)] {
            self.ca_expiry
                .get_or_create(&CertificateLabel { certificate })
                .set(expiry.unix_timestamp());
        }
        self.istio_root_expiry.set(root.unix_timestamp());
        self.istio_chain_expiry
            .set(root.min(issuer).unix_timestamp());
    }
}
