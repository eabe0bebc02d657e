//! What the CA counts.

use citadel_tests::citadel::Ca;

/// A gauge or counter of the CA, by its name in `/metrics`, with its labels.
pub(crate) async fn metric(ca: &Ca, name: &str) -> f64 {
    let metrics = ca.metrics().await;
    series(&metrics, name).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// The value of a series in the text of `/metrics`; a counter's ends in `_total`.
pub(crate) fn series(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.trim().parse().expect("a number"))
}
