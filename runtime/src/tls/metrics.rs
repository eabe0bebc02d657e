//! What a listener counts.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Counters of one listener. Clones share the values.
#[derive(Clone, Debug, Default)]
pub struct ConnectionMetrics {
    open: Gauge,
    accepted: Counter,
    refused: Family<RefusedLabel, Counter>,
    handshake_failures: Family<FailureLabel, Counter>,
    idle_closed: Counter,
    accept_errors: Counter,
}

/// Which limit refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Refused {
    Total,
    PerAddress,
    /// The rest is kept for connections with a client certificate.
    WithoutCertificate,
}

/// Why a handshake did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Failure {
    Deadline,
    /// The peer left before the handshake was complete.
    Closed,
    Tls,
    /// TLS was complete, and no HTTP/2 connection preface came in time.
    Preface,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabel {
    limit: Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabel {
    reason: Failure,
}

impl ConnectionMetrics {
    /// Registers the metrics as `<prefix>_connections_open` and so on.
    pub fn register(&self, registry: &mut Registry, prefix: &str) {
        let registry = registry.sub_registry_with_prefix(prefix);
        registry.register(
            "connections_open",
            "Connections, handshakes in progress included",
            self.open.clone(),
        );
        registry.register(
            "connections_accepted",
            "Connections accepted",
            self.accepted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed at once because a limit was reached",
            self.refused.clone(),
        );
        registry.register(
            "handshake_failures",
            "TLS handshakes that did not complete",
            self.handshake_failures.clone(),
        );
        registry.register(
            "connections_idle_closed",
            "Connections without a client certificate closed for want of a request",
            self.idle_closed.clone(),
        );
        registry.register(
            "accept_errors",
            "Errors of accept(), such as too many open files",
            self.accept_errors.clone(),
        );
    }

    /// Connections at this moment, handshakes in progress included.
    pub fn open(&self) -> i64 {
        self.open.get()
    }

    pub(super) fn opened(&self) {
        self.open.inc();
        self.accepted.inc();
    }

    pub(super) fn closed(&self) {
        self.open.dec();
    }

    pub(super) fn refused(&self, limit: Refused) {
        self.refused.get_or_create(&RefusedLabel { limit }).inc();
    }

    pub(super) fn handshake_failed(&self, reason: Failure) {
        self.handshake_failures
            .get_or_create(&FailureLabel { reason })
            .inc();
    }

    pub(super) fn idle_closed(&self) {
        self.idle_closed.inc();
    }

    pub(super) fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    #[cfg(test)]
    pub(super) fn refused_so_far(&self, limit: Refused) -> u64 {
        self.refused.get_or_create(&RefusedLabel { limit }).get()
    }

    #[cfg(test)]
    pub(super) fn failed_so_far(&self, reason: Failure) -> u64 {
        self.handshake_failures
            .get_or_create(&FailureLabel { reason })
            .get()
    }

    #[cfg(test)]
    pub(super) fn idle_closed_so_far(&self) -> u64 {
        self.idle_closed.get()
    }

    #[cfg(test)]
    pub(super) fn accept_errors_so_far(&self) -> u64 {
        self.accept_errors.get()
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Total => "too many connections",
            Self::PerAddress => "too many connections from this address",
            Self::WithoutCertificate => "too many connections without a client certificate",
        })
    }
}
