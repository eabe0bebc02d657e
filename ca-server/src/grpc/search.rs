//! Questions to the log, from the wire.

use citadel_proto::v1;
use tonic::Status;

use crate::store::Filter;

/// The conditions; an empty text is none.
pub(super) fn filter(wire: Option<v1::LogFilter>) -> Result<Filter, Status> {
    let wire = wire.unwrap_or_default();
    Ok(Filter {
        recorded_since_ms: wire.recorded_since_ms,
        recorded_until_ms: wire.recorded_until_ms,
        serial: hex("filter.serial", &wire.serial)?,
        spki_sha256: hex("filter.spki_sha256", &wire.spki_sha256)?,
        trust_domain: text(wire.trust_domain),
        spiffe_id: text(wire.spiffe_id),
        spiffe_id_prefix: text(wire.spiffe_id_prefix),
        certificate_use: None,
        cluster: text(wire.cluster),
        namespace: text(wire.namespace),
        account: text(wire.account),
        pod_uid: text(wire.pod_uid),
        node: text(wire.node),
        node_uid: text(wire.node_uid),
        issuer_key_id: hex("filter.issuer_key_id", &wire.issuer_key_id)?,
        valid_since: wire.valid_since,
        valid_until: wire.valid_until,
        expires_before: wire.expires_before,
    })
}

fn text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn hex(field: &str, text: &str) -> Result<Option<Vec<u8>>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    hex::decode(text)
        .map(Some)
        .map_err(|_| Status::invalid_argument(format!("{field}: write it in hex")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_hex_is_named() {
        let wire = v1::LogFilter {
            spki_sha256: "xyz".into(),
            ..v1::LogFilter::default()
        };
        let error = filter(Some(wire)).unwrap_err();
        assert!(error.message().starts_with("filter.spki_sha256"), "{error}");
        let none = filter(None).unwrap_or_default();
        assert_eq!(none, Filter::default());
    }
}
