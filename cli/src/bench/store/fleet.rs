//! What a mesh leaves in the log: the renewals of a fleet of pods, one after the other, and now
//! and then a pod in place of another. The same for the same number, so that any entry can be
//! asked for without remembering it.

use citadel_ca_server::store::NewEntry;
use citadel_identity::crypto;
use citadel_proto::log::{
    AuthenticationMethod, Authority, Caller, CertificateUse, Entry, Issued, Origin, entry::Kind,
};
use prost::Message as _;
use time::OffsetDateTime;

use super::super::server::TRUST_DOMAIN;
use crate::uid;

/// Pods alive at once.
const PODS: u64 = 20_000;
const PODS_PER_NODE: u64 = 100;
const PODS_PER_ACCOUNT: u64 = 10;
const ACCOUNTS_PER_NAMESPACE: u64 = 50;
/// Certificates of one pod until another one takes its place: half a day's.
const RENEWALS: u64 = 24;
/// A certificate lives an hour, and is renewed halfway.
const LIFETIME_S: i64 = 3_600;
/// From one entry to the next: each pod renews every half hour.
const STEP_MS: i64 = 1_800_000 / PODS.cast_signed();
/// Spreads neighbours in the order of renewal over the fleet; has no factor of [`PODS`].
const STRIDE: u64 = 7_919;

/// A fleet whose first certificate was issued so that its last one is issued now.
pub(super) struct Fleet {
    begun_ms: i64,
    /// A real one, as long as all of them are.
    certificate: Vec<u8>,
    issuer_key_id: Vec<u8>,
}

/// A pod at one time of the fleet's life.
struct Pod {
    number: u64,
    generation: u64,
}

impl Fleet {
    pub(super) fn new(entries: u64, real: Issued) -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp() * 1000;
        let spans = i64::try_from(entries).unwrap_or(i64::MAX);
        Self {
            begun_ms: now - spans.saturating_mul(STEP_MS),
            certificate: real.certificate,
            issuer_key_id: real.issuer_key_id,
        }
    }

    /// The entry of the fleet's certificate number `n`.
    pub(super) fn entry(&self, n: u64) -> NewEntry {
        let pod = Pod::of(n);
        let time_ms = self.time_ms(n);
        let serial = self.serial(n);
        let spki_sha256 = digest("key", n);
        // Serial, key and signature are what differs, and what no compression shortens.
        let mut certificate = self.certificate.clone();
        let random = [spki_sha256, digest("signature", n), digest("more", n)].concat();
        if let Some(end) = certificate.last_chunk_mut::<96>() {
            end.copy_from_slice(&random);
        }
        let not_before = time_ms / 1000;
        let issued = Issued {
            certificate,
            serial: serial.clone(),
            spiffe_id: Self::spiffe_id(n),
            issuer_key_id: self.issuer_key_id.clone(),
            spki_sha256: spki_sha256.to_vec(),
            not_before,
            not_after: not_before + LIFETIME_S,
            r#use: CertificateUse::Workload.into(),
            caller: Some(Caller {
                method: AuthenticationMethod::ClientCertificate.into(),
                spiffe_id: format!("spiffe://{TRUST_DOMAIN}/citadel/agent/bench/{}", pod.node()),
                client_serial: digest("agent", pod.number / PODS_PER_NODE)[..18].to_vec(),
                cluster: "bench".into(),
                node: pod.node(),
                node_uid: uid("node", pod.number / PODS_PER_NODE),
                address: "10.0.0.1:40000".into(),
                ..Caller::default()
            }),
            origin: Some(Origin {
                method: AuthenticationMethod::ClientCertificate.into(),
                cluster: "bench".into(),
                namespace: pod.namespace(),
                service_account: pod.account(),
                service_account_uid: uid("account", pod.number / PODS_PER_ACCOUNT),
                pod: pod.name(),
                pod_uid: uid("pod", pod.number + pod.generation * PODS),
                node: pod.node(),
                node_uid: uid("node", pod.number / PODS_PER_NODE),
                first_authenticated_ms: time_ms,
                authority: Authority::Agent.into(),
                ..Origin::default()
            }),
            policy_revision: 1,
            previous_serial: n
                .checked_sub(PODS)
                .map(|n| self.serial(n))
                .unwrap_or_default(),
            dns_names: Vec::new(),
        };
        NewEntry {
            bytes: Entry {
                version: 1,
                time_ms,
                kind: Some(Kind::Issued(issued)),
            }
            .encode_to_vec(),
            serial: Some(serial),
        }
    }

    /// Whose the certificate number `n` is.
    pub(super) fn spiffe_id(n: u64) -> String {
        let pod = Pod::of(n);
        format!(
            "spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}",
            pod.namespace(),
            pod.account()
        )
    }

    /// The serial of certificate number `n`: like ours, its time and 96 bits.
    pub(super) fn serial(&self, n: u64) -> Vec<u8> {
        let time = self.time_ms(n).to_be_bytes();
        [&time[2..], &digest("serial", n)[..12]].concat()
    }

    fn time_ms(&self, n: u64) -> i64 {
        let steps = i64::try_from(n).unwrap_or(i64::MAX);
        self.begun_ms.saturating_add(steps.saturating_mul(STEP_MS))
    }
}

impl Pod {
    fn of(n: u64) -> Self {
        Self {
            number: n.wrapping_mul(STRIDE) % PODS,
            generation: n / PODS / RENEWALS,
        }
    }

    fn node(&self) -> String {
        format!("node-{}", self.number / PODS_PER_NODE)
    }

    fn account(&self) -> String {
        format!("account-{}", self.number / PODS_PER_ACCOUNT)
    }

    fn namespace(&self) -> String {
        let namespace = self.number / PODS_PER_ACCOUNT / ACCOUNTS_PER_NAMESPACE;
        format!("namespace-{namespace}")
    }

    fn name(&self) -> String {
        let random = hex::encode(&digest("name", self.number + self.generation * PODS)[..5]);
        format!("{}-{random}", self.account())
    }
}

fn digest(what: &str, n: u64) -> [u8; 32] {
    crypto::sha256(format!("{what} {n}").as_bytes())
}

/// Always the same for the same.
fn uid(what: &str, n: u64) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest(what, n)[..16]);
    uid::text(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::HashSet;

    use citadel_ca_server::store::IndexRow;

    use super::*;

    fn fleet() -> Fleet {
        let real = Issued {
            certificate: vec![7; 600],
            ..Issued::default()
        };
        Fleet::new(10 * PODS, real)
    }

    #[test]
    fn entries_are_what_their_number_says_and_serials_go_up() {
        let fleet = fleet();
        let mut serials: Vec<Vec<u8>> = Vec::new();
        for n in (0..200_000).step_by(997) {
            let entry = fleet.entry(n);
            let row = IndexRow::of(&entry.bytes).certificate.unwrap();
            assert_eq!(entry.serial.as_deref(), Some(&row.serial[..]));
            assert_eq!(row.serial, fleet.serial(n));
            assert_eq!(row.subject.spiffe_id, Fleet::spiffe_id(n));
            assert!(serials.last().is_none_or(|last| *last < row.serial));
            serials.push(row.serial);
        }
    }

    #[test]
    fn a_pod_renews_and_is_followed_by_another_one() {
        let fleet = fleet();
        let pods = |from: u64| -> HashSet<String> {
            (from..from + PODS)
                .map(|n| IndexRow::of(&fleet.entry(n).bytes).certificate.unwrap())
                .map(|row| row.subject.pod_uid)
                .collect()
        };
        let first = pods(0);
        assert_eq!(first.len() as u64, PODS);
        assert_eq!(pods(PODS), first);
        assert!(pods(PODS * RENEWALS).is_disjoint(&first));
    }
}
