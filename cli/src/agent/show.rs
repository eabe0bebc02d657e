//! An agent's status as text and as JSON.

use std::fmt::Write as _;

use citadel_proto::agent::{AgentStatus, ServedResource, ServedStream};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::output::{Table, instant, span};

/// A hash is shown so far in tables.
const SHORT: usize = 16;

pub(super) fn text(status: &AgentStatus) -> String {
    let ca = status.ca.clone().unwrap_or_default();
    let mut text = format!(
        "citadel-agent {} of {}\n\n",
        status.version, status.trust_domain
    );
    let standing = match (ca.connected, ca.last_contact_ms) {
        (true, _) => "connected".to_owned(),
        (false, 0) => format!("never reached: {}", ca.last_trouble),
        (false, at) => format!("last reached {} ago: {}", ago(status, at), ca.last_trouble),
    };
    let own = match ca.agent_id.as_str() {
        "" => "none yet".to_owned(),
        id => format!("{id}, until {}", seconds(ca.agent_not_after)),
    };
    let next = status.identities.first();
    let next = next.map_or("nothing to renew".to_owned(), |next| {
        format!("in {}", from_now(status, next.next_renewal_ms))
    });
    for (name, value) in [
        ("CA", standing),
        ("agent's identity", own),
        (
            "clock",
            format!("{:+.1} s against the CA's", ca.clock_skew_seconds),
        ),
        ("identities", status.identities_total.to_string()),
        ("next renewal", next),
        ("streams", status.streams_total.to_string()),
    ] {
        // Writing to a String can't fail.
        let _ = writeln!(text, "  {name:<18} {value}");
    }
    for failures in &status.attestation_failures {
        let name = format!("refused: {}", failures.reason);
        let _ = writeln!(text, "  {name:<18} {}", failures.count);
    }
    if status.untracked > 0 {
        let _ = writeln!(
            text,
            "  {} resources of streams are too many to be kept count of",
            status.untracked
        );
    }
    text.push_str(&bundles(status));
    text.push_str(&identities(status));
    text.push_str(&streams(status));
    text
}

fn bundles(status: &AgentStatus) -> String {
    let mut table = Table::new(2, &["BUNDLE", "SHA-256", "ROOTS"]);
    for bundle in &status.bundles {
        table.row(vec![
            bundle.trust_domain.clone(),
            short(&bundle.sha256),
            bundle.authorities.to_string(),
        ]);
    }
    format!("\n{}", table.render())
}

fn identities(status: &AgentStatus) -> String {
    if status.identities.is_empty() {
        return String::new();
    }
    let mut table = Table::new(4, &["IDENTITY", "FOR", "SERIAL", "UNTIL", "RENEWAL"]);
    for held in &status.identities {
        let renewal = match held.failures {
            0 => format!("in {}", from_now(status, held.next_renewal_ms)),
            failures => format!(
                "in {}, {failures} failed",
                from_now(status, held.next_renewal_ms)
            ),
        };
        let (id, until) = match held.spiffe_id.as_str() {
            "" => ("(awaited)".to_owned(), String::new()),
            id => (id.to_owned(), seconds(held.not_after)),
        };
        table.row(vec![
            id,
            held.subject.clone(),
            held.serial.clone(),
            until,
            renewal,
        ]);
    }
    let rest = status
        .identities_total
        .saturating_sub(status.identities.len() as u64);
    format!("\n{}{}", table.render(), more(rest))
}

fn streams(status: &AgentStatus) -> String {
    if status.streams.is_empty() {
        return String::new();
    }
    let header = [
        "STREAM", "PROTOCOL", "PID", "PEER", "RESOURCE", "RUNS ON", "STATE",
    ];
    let mut table = Table::new(header.len(), &header);
    for stream in &status.streams {
        let nothing = ServedResource::default();
        let resources = match stream.resources.as_slice() {
            [] => std::slice::from_ref(&nothing),
            some => some,
        };
        for resource in resources {
            table.row(vec![
                stream.id.to_string(),
                stream.protocol.clone(),
                stream.pid.to_string(),
                stream.peer.clone(),
                resource.name.clone(),
                short(&resource.acknowledged),
                state(stream, resource, status),
            ]);
        }
    }
    let rest = status
        .streams_total
        .saturating_sub(status.streams.len() as u64);
    format!("\n{}{}", table.render(), more(rest))
}

fn state(stream: &ServedStream, resource: &ServedResource, status: &AgentStatus) -> String {
    if resource.name.is_empty() {
        return "nothing sent".to_owned();
    }
    if !resource.refused.is_empty() {
        return format!("refused {}: {}", short(&resource.sent), resource.refused);
    }
    if resource.sent == resource.acknowledged {
        return format!("acknowledged {} ago", ago(status, resource.acknowledged_ms));
    }
    let sent = format!(
        "sent {} {} ago",
        short(&resource.sent),
        ago(status, resource.sent_ms)
    );
    // Nothing is acknowledged there.
    if stream.protocol == "workload_api" {
        return sent;
    }
    format!("{sent}, not acknowledged yet")
}

fn more(rest: u64) -> String {
    match rest {
        0 => String::new(),
        rest => format!("… and {rest} more (--limit)\n"),
    }
}

fn short(hash: &str) -> String {
    hash.chars().take(SHORT).collect()
}

fn ago(status: &AgentStatus, ms: i64) -> String {
    span(status.time_ms.saturating_sub(ms).max(0) / 1000)
}

fn from_now(status: &AgentStatus, ms: i64) -> String {
    span(ms.saturating_sub(status.time_ms).max(0) / 1000)
}

fn seconds(at: i64) -> String {
    OffsetDateTime::from_unix_timestamp(at).map_or_else(|_| at.to_string(), instant)
}

pub(super) fn json(status: &AgentStatus) -> Value {
    let ca = status.ca.clone().unwrap_or_default();
    let time = |at: i64| (at != 0).then(|| seconds(at));
    let time_ms = |at: i64| time(at.div_euclid(1000));
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let bundles = status.bundles.iter().map(|bundle| {
        json!({
            "trust_domain": bundle.trust_domain,
            "sha256": bundle.sha256,
            "authorities": bundle.authorities,
            "sequence": bundle.sequence,
        })
    });
    let identities = status.identities.iter().map(|held| {
        json!({
            "subject": held.subject,
            "spiffe_id": given(&held.spiffe_id),
            "serial": given(&held.serial),
            "not_after": time(held.not_after),
            "next_renewal": time_ms(held.next_renewal_ms),
            "failures": held.failures,
        })
    });
    let resource = |resource: &ServedResource| {
        json!({
            "name": resource.name,
            "spiffe_id": given(&resource.spiffe_id),
            "sent": resource.sent,
            "sent_at": time_ms(resource.sent_ms),
            "acknowledged": given(&resource.acknowledged),
            "acknowledged_at": time_ms(resource.acknowledged_ms),
            "refused": given(&resource.refused),
        })
    };
    let streams = status.streams.iter().map(|stream| {
        json!({
            "id": stream.id,
            "protocol": stream.protocol,
            "pid": stream.pid,
            "peer": stream.peer,
            "opened": time_ms(stream.opened_ms),
            "resources": stream.resources.iter().map(resource).collect::<Vec<_>>(),
        })
    });
    let failures = status
        .attestation_failures
        .iter()
        .map(|failures| (failures.reason.clone(), json!(failures.count)));
    json!({
        "version": status.version,
        "trust_domain": status.trust_domain,
        "time": time_ms(status.time_ms),
        "ca": {
            "connected": ca.connected,
            "last_contact": time_ms(ca.last_contact_ms),
            "last_trouble": given(&ca.last_trouble),
            "agent_id": given(&ca.agent_id),
            "agent_not_after": time(ca.agent_not_after),
            "clock_skew_seconds": ca.clock_skew_seconds,
        },
        "bundles": bundles.collect::<Vec<_>>(),
        "identities_total": status.identities_total,
        "next_renewal": status.identities.first().and_then(|it| time_ms(it.next_renewal_ms)),
        "identities": identities.collect::<Vec<_>>(),
        "streams_total": status.streams_total,
        "streams": streams.collect::<Vec<_>>(),
        "untracked_resources": status.untracked,
        "attestation_failures": failures.collect::<serde_json::Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use citadel_proto::agent::{AttestationFailures, CaConnection, HeldBundle, HeldIdentity};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn status() -> AgentStatus {
        let resource = |name: &str, sent: &str, acknowledged: &str, refused: &str| ServedResource {
            name: name.into(),
            spiffe_id: String::new(),
            sent: sent.into(),
            sent_ms: (NOW - 60) * 1000,
            acknowledged: acknowledged.into(),
            acknowledged_ms: if acknowledged.is_empty() {
                0
            } else {
                (NOW - 59) * 1000
            },
            refused: refused.into(),
        };
        AgentStatus {
            version: "1".into(),
            trust_domain: "example.org".into(),
            time_ms: NOW * 1000,
            ca: Some(CaConnection {
                last_contact_ms: (NOW - 125) * 1000,
                last_trouble: "no route".into(),
                clock_skew_seconds: -1.5,
                ..CaConnection::default()
            }),
            bundles: vec![HeldBundle {
                trust_domain: "example.org".into(),
                sha256: "ab".repeat(32),
                authorities: 2,
                sequence: 3,
            }],
            identities_total: 3,
            identities: vec![HeldIdentity {
                subject: "pod 1".into(),
                spiffe_id: "spiffe://example.org/x".into(),
                serial: "0f".into(),
                not_after: NOW + 60,
                next_renewal_ms: (NOW + 30) * 1000,
                failures: 2,
            }],
            streams_total: 1,
            streams: vec![ServedStream {
                id: 7,
                protocol: "sds".into(),
                pid: 42,
                peer: "pod 1".into(),
                opened_ms: NOW * 1000,
                resources: vec![
                    resource("default", "0f", "0f", ""),
                    resource("ROOTCA", "new", "old", "no PEM"),
                    resource("ALL", "new", "", ""),
                ],
            }],
            attestation_failures: vec![AttestationFailures {
                reason: "cgroup".into(),
                count: 5,
            }],
            untracked: 0,
        }
    }

    #[test]
    fn text_says_who_runs_on_what() {
        let text = text(&status());
        for part in [
            "last reached 2m 5s ago: no route",
            "next renewal       in 30s",
            "refused: cgroup    5",
            "in 30s, 2 failed",
            "… and 2 more",
            "acknowledged 59s ago",
            "refused new: no PEM",
            "sent new 1m ago, not acknowledged yet",
            "abababababababab  ",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn json_has_all_of_it() {
        let json = json(&status());
        assert_eq!(json["ca"]["connected"], false);
        assert_eq!(json["attestation_failures"]["cgroup"], 5);
        assert_eq!(json["streams"][0]["resources"][1]["refused"], "no PEM");
        assert_eq!(
            json["streams"][0]["resources"][2]["acknowledged"],
            Value::Null
        );
        assert_eq!(json["identities"][0]["next_renewal"], json["next_renewal"]);
    }
}
