//! An entry as people and programs want to read it.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use citadel_ca_server::log::{caller_facts, enum_name, without_empty};
use citadel_ca_server::store::StoredEntry;
use citadel_identity::pem;
use citadel_proto::log::{self as wire, entry::Kind};
use prost::Message as _;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::output::instant;

/// The entry as JSON: the field names of `citadel.log.v1`, times in RFC 3339, serials and
/// key ids in hex. What is empty is left out.
pub(crate) fn to_json(stored: &StoredEntry) -> Value {
    let entry = wire::Entry::decode(stored.bytes.as_slice()).ok();
    let (kind, fields) = match entry.as_ref().and_then(|entry| entry.kind.as_ref()) {
        Some(kind) => known(kind),
        // A kind of a newer version: kept and shown as such.
        None => ("unknown", unknown(stored)),
    };
    let mut shown = Map::new();
    shown.insert("index".into(), stored.index.0.into());
    if let Some(entry) = &entry {
        shown.insert("time".into(), at_ms(entry.time_ms));
    }
    shown.insert("kind".into(), kind.into());
    if let Value::Object(fields) = fields {
        shown.extend(fields);
    }
    without_empty(Value::Object(shown))
}

fn unknown(stored: &StoredEntry) -> Value {
    json!({ "entry_base64": STANDARD.encode(&stored.bytes) })
}

fn known(kind: &Kind) -> (&'static str, Value) {
    match kind {
        Kind::Issued(issued) => ("issued", of_issued(issued)),
        Kind::Intended(intended) => (
            "intended",
            json!({
                "serial": hex::encode(&intended.serial),
                "spiffe_id": intended.spiffe_id,
                "issuer_key_id": hex::encode(&intended.issuer_key_id),
                "caller": intended.caller.as_ref().map(caller_facts),
                "origin": intended.origin.as_ref().map(origin),
            }),
        ),
        Kind::Abandoned(abandoned) => (
            "abandoned",
            json!({ "serial": hex::encode(&abandoned.serial), "reason": abandoned.reason }),
        ),
        Kind::Revoked(revoked) => (
            "revoked",
            json!({
                "serial": hex::encode(&revoked.serial),
                "reason": revoked.reason,
                "by": revoked.by,
            }),
        ),
        Kind::CaKeyChanged(changed) => (
            "ca_key_changed",
            json!({
                "key_id": hex::encode(&changed.key_id),
                "state": enum_name(changed.state().as_str_name(), "CA_KEY_STATE_"),
                "certificate": &*pem::encode(pem::CERTIFICATE, &changed.certificate),
            }),
        ),
        Kind::LogKeyChanged(changed) => (
            "log_key_changed",
            json!({ "old": changed.old, "new": changed.new }),
        ),
        Kind::PolicyChanged(changed) => (
            "policy_changed",
            json!({ "old_revision": changed.old_revision, "new_revision": changed.new_revision }),
        ),
        Kind::AdministratorAct(act) => (
            "administrator_act",
            json!({ "act": act.act, "by": act.by, "details": act.details }),
        ),
        Kind::ServerStarted(started) => (
            "server_started",
            json!({
                "version": started.version,
                "config_sha256": hex::encode(&started.config_sha256),
                "replica": started.replica,
            }),
        ),
        Kind::NodeAttested(attested) => (
            "node_attested",
            json!({
                "node": attested.node,
                "node_uid": attested.node_uid,
                "method": enum_name(attested.method().as_str_name(), "AUTHENTICATION_METHOD_"),
                "evidence": attested.evidence,
                "address": attested.address,
            }),
        ),
        Kind::ServerStopped(stopped) => ("server_stopped", json!({ "replica": stopped.replica })),
    }
}

fn of_issued(issued: &wire::Issued) -> Value {
    json!({
        "serial": hex::encode(&issued.serial),
        "spiffe_id": issued.spiffe_id,
        "dns_names": issued.dns_names,
        "use": enum_name(issued.r#use().as_str_name(), "CERTIFICATE_USE_"),
        "not_before": at_s(issued.not_before),
        "not_after": at_s(issued.not_after),
        "issuer_key_id": hex::encode(&issued.issuer_key_id),
        "spki_sha256": hex::encode(&issued.spki_sha256),
        "previous_serial": hex::encode(&issued.previous_serial),
        "policy_revision": format!("{:016x}", issued.policy_revision),
        "caller": issued.caller.as_ref().map(caller_facts),
        "origin": issued.origin.as_ref().map(origin),
        "certificate": &*pem::encode(pem::CERTIFICATE, &issued.certificate),
    })
}

fn origin(origin: &wire::Origin) -> Value {
    json!({
        "method": enum_name(origin.method().as_str_name(), "AUTHENTICATION_METHOD_"),
        "authority": enum_name(origin.authority().as_str_name(), "AUTHORITY_"),
        "first_authenticated": at_ms(origin.first_authenticated_ms),
        "entry_id": origin.entry_id,
        "cluster": origin.cluster,
        "namespace": origin.namespace,
        "service_account": origin.service_account,
        "service_account_uid": origin.service_account_uid,
        "pod": origin.pod,
        "pod_uid": origin.pod_uid,
        "node": origin.node,
        "node_uid": origin.node_uid,
    })
}

fn at_s(seconds: i64) -> Value {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_or_else(|_| seconds.into(), |at| instant(at).into())
}

fn at_ms(ms: i64) -> Value {
    at_s(ms.div_euclid(1000))
}

/// The same for people: a line a field, what belongs together indented.
pub(crate) fn to_text(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

fn write(text: &mut String, value: &Value, indent: usize) {
    let Value::Object(fields) = value else {
        return;
    };
    let margin = " ".repeat(indent);
    for (key, value) in fields {
        let key = key.replace('_', " ");
        let line = match value {
            Value::Object(_) => {
                text.extend([margin.as_str(), &key, "\n"]);
                write(text, value, indent + 2);
                continue;
            }
            // A certificate: its lines have no margin, so that they can be copied.
            Value::String(lines) if lines.contains('\n') => {
                text.extend([margin.as_str(), &key, "\n", lines]);
                continue;
            }
            Value::String(line) => line.clone(),
            Value::Array(items) => {
                let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                items.join(", ")
            }
            other => other.to_string(),
        };
        let width = 22_usize.saturating_sub(indent);
        // Writing to a String can't fail.
        let _ = writeln!(text, "{margin}{key:width$} {line}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use citadel_ca_server::store::LogIndex;

    use super::*;

    fn stored(bytes: Vec<u8>) -> StoredEntry {
        StoredEntry {
            index: LogIndex(7),
            bytes,
        }
    }

    #[test]
    fn what_is_empty_is_left_out_and_enumerations_are_words() {
        let entry = wire::Entry {
            version: 1,
            time_ms: 1_767_268_800_123,
            kind: Some(Kind::Issued(wire::Issued {
                serial: vec![1, 0xab],
                spiffe_id: "spiffe://example.org/a".into(),
                r#use: wire::CertificateUse::Agent.into(),
                caller: Some(wire::Caller {
                    method: wire::AuthenticationMethod::Self_.into(),
                    ..Default::default()
                }),
                ..Default::default()
            })),
        };
        let shown = to_json(&stored(entry.encode_to_vec()));
        assert_eq!(shown["time"], "2026-01-01T12:00:00Z");
        assert_eq!(
            (&shown["kind"], &shown["use"]),
            (&json!("issued"), &json!("agent"))
        );
        assert_eq!(shown["serial"], "01ab");
        assert_eq!(shown["caller"], json!({ "method": "self" }));
        assert!(shown.get("dns_names").is_none());
        assert!(to_text(&shown).contains("spiffe id              spiffe://example.org/a\n"));
    }

    #[test]
    fn what_a_newer_version_wrote_is_shown_as_such() {
        // Field 99 of the oneof to come, and bytes that are no entry at all.
        for bytes in [vec![0x08, 2, 0x9a, 0x06, 1, 0], vec![0xff; 5]] {
            let shown = to_json(&stored(bytes.clone()));
            assert_eq!(shown["kind"], "unknown");
            assert_eq!(shown["entry_base64"], STANDARD.encode(&bytes));
        }
    }
}
