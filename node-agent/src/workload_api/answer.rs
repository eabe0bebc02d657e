//! The answers of the Workload API, and by what they are told apart: a stream keeps no
//! copy of a key.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use citadel_identity::{
    TrustDomain,
    bundle::{Bundle, BundleSet},
};
use citadel_proto::workload::{
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use prost::Message;
use rustls::pki_types::CertificateDer;

use crate::identities::Snapshot;

/// A message that shows a snapshot.
pub(super) trait Answer: Message + Sized + 'static {
    /// What it answers.
    type Request: Message + Default + 'static;

    /// For logs.
    const RPC: &'static str;

    /// Whether there are SVIDs in it, not bundles alone.
    const WITH_SVIDS: bool;

    /// The message. `own` is the caller's trust domain.
    fn of(snapshot: &Snapshot, own: &TrustDomain) -> Self;

    /// Equal where the messages are equal.
    fn shown(snapshot: &Snapshot) -> Shown;
}

/// What a message shows.
#[derive(Debug)]
pub(super) struct Shown {
    serials: Vec<String>,
    bundles: Arc<BundleSet>,
}

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        // A new sequence or refresh hint alone is nothing that a message shows.
        let same = |(a, b): (&Bundle, &Bundle)| {
            a.trust_domain == b.trust_domain && a.authorities == b.authorities
        };
        let (mine, theirs) = (&self.bundles, &other.bundles);
        self.serials == other.serials
            && (Arc::ptr_eq(mine, theirs)
                || (mine.len() == theirs.len() && mine.iter().zip(theirs.iter()).all(same)))
    }
}

impl Answer for X509svidResponse {
    type Request = X509svidRequest;

    const RPC: &'static str = "FetchX509SVID";
    const WITH_SVIDS: bool = true;

    fn of(snapshot: &Snapshot, own: &TrustDomain) -> Self {
        let bundle = snapshot
            .bundles
            .get(own)
            .map(concatenated)
            .unwrap_or_default();
        let mut hints = HashSet::new();
        let svids = snapshot.svids.iter().map(|svid| X509svid {
            spiffe_id: svid.id.to_string(),
            x509_svid: concatenate(&svid.chain),
            x509_svid_key: svid.key.pkcs8_der().to_vec(),
            bundle: bundle.clone(),
            // A hint that is taken would make the choice by hint ambiguous.
            hint: if hints.insert(&svid.hint) {
                svid.hint.clone()
            } else {
                String::new()
            },
        });
        let svids = svids.collect();
        let mut federated = bundles(snapshot);
        federated.remove(&own.id_string());
        Self {
            svids,
            crl: Vec::new(),
            federated_bundles: federated,
        }
    }

    fn shown(snapshot: &Snapshot) -> Shown {
        Shown {
            serials: snapshot.svids.iter().map(|s| s.serial.clone()).collect(),
            bundles: Arc::clone(&snapshot.bundles),
        }
    }
}

impl Answer for X509BundlesResponse {
    type Request = X509BundlesRequest;

    const RPC: &'static str = "FetchX509Bundles";
    const WITH_SVIDS: bool = false;

    fn of(snapshot: &Snapshot, _: &TrustDomain) -> Self {
        Self {
            crl: Vec::new(),
            bundles: bundles(snapshot),
        }
    }

    fn shown(snapshot: &Snapshot) -> Shown {
        Shown {
            serials: Vec::new(),
            bundles: Arc::clone(&snapshot.bundles),
        }
    }
}

/// By the SPIFFE ID of the trust domain.
fn bundles(snapshot: &Snapshot) -> HashMap<String, Vec<u8>> {
    snapshot
        .bundles
        .iter()
        .map(|bundle| (bundle.trust_domain.id_string(), concatenated(bundle)))
        .collect()
}

fn concatenated(bundle: &Bundle) -> Vec<u8> {
    concatenate(&bundle.authorities)
}

fn concatenate(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates
        .iter()
        .flat_map(AsRef::as_ref)
        .copied()
        .collect()
}
