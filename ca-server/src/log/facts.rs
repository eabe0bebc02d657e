//! Records as JSON: the field names of `citadel.log.v1`, serials in hex.

use citadel_proto::log;
use serde_json::{Value, json};

/// Who asked.
pub fn caller_facts(caller: &log::Caller) -> Value {
    json!({
        "method": enum_name(caller.method().as_str_name(), "AUTHENTICATION_METHOD_"),
        "address": caller.address,
        "token_id": caller.token_id,
        "client_serial": hex::encode(&caller.client_serial),
        "spiffe_id": caller.spiffe_id,
        "cluster": caller.cluster,
        "namespace": caller.namespace,
        "service_account": caller.service_account,
        "service_account_uid": caller.service_account_uid,
        "pod": caller.pod,
        "pod_uid": caller.pod_uid,
        "node": caller.node,
        "node_uid": caller.node_uid,
    })
}

/// `AUTHORITY_AGENT` without its prefix, in lower case.
pub fn enum_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .trim_end_matches('_')
        .to_ascii_lowercase()
}

/// Takes out what is empty, at every depth.
pub fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(name, value)| (name, without_empty(value)))
                .filter(|(_, value)| !is_empty(value))
                .collect(),
        ),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
