//! Conditions of a filter that an index can check.

use crate::store::Filter;

/// A comparison, and the value to bind behind it.
pub(in crate::store) type Condition<'f> = (&'static str, Value<'f>);

/// A value to bind.
pub(in crate::store) enum Value<'f> {
    Integer(i64),
    Text(&'f str),
    /// Greater than every text that begins so: the upper end of a prefix.
    EndOf(&'f str),
    Bytes(&'f [u8]),
}

/// Conditions on an epoch's bounds.
pub(in crate::store) fn on_bounds(filter: &Filter) -> Vec<Condition<'static>> {
    integers([
        ("e.max_time_ms >= ", filter.recorded_since_ms),
        ("e.min_time_ms < ", filter.recorded_until_ms),
        ("e.max_not_after >= ", filter.valid_since),
        ("e.min_not_before <= ", filter.valid_until),
        ("e.min_not_after < ", filter.expires_before),
    ])
}

/// Conditions on a certificate's validity.
pub(in crate::store) fn on_validity(filter: &Filter) -> Vec<Condition<'static>> {
    integers([
        ("i.not_after >= ", filter.valid_since),
        ("i.not_before <= ", filter.valid_until),
        ("i.not_after < ", filter.expires_before),
    ])
}

fn integers<const N: usize>(
    conditions: [(&'static str, Option<i64>); N],
) -> Vec<Condition<'static>> {
    conditions
        .into_iter()
        .filter_map(|(comparison, value)| Some((comparison, Value::Integer(value?))))
        .collect()
}

/// Conditions on whose certificate it is.
pub(in crate::store) fn on_subjects(filter: &Filter) -> Vec<Condition<'_>> {
    let mut conditions = Vec::new();
    for (comparison, value) in [
        ("spiffe_id = ", &filter.spiffe_id),
        ("trust_domain = ", &filter.trust_domain),
        ("cluster = ", &filter.cluster),
        ("namespace = ", &filter.namespace),
        ("account = ", &filter.account),
        ("node = ", &filter.node),
        ("pod_uid = ", &filter.pod_uid),
        ("node_uid = ", &filter.node_uid),
    ] {
        if let Some(value) = value {
            conditions.push((comparison, Value::Text(value)));
        }
    }
    if let Some(wanted) = filter.certificate_use {
        conditions.push(("certificate_use = ", Value::Integer(wanted.into())));
    }
    if let Some(key) = &filter.issuer_key_id {
        conditions.push(("issuer_key_id = ", Value::Bytes(key)));
    }
    if let Some(prefix) = &filter.spiffe_id_prefix {
        conditions.push(("spiffe_id >= ", Value::Text(prefix)));
        conditions.push(("spiffe_id < ", Value::EndOf(prefix)));
    }
    conditions
}
