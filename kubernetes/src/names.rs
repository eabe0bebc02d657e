//! Names that go into a request's path.

/// Whether `name` can be the name of a pod, account, node, namespace or `ConfigMap` (RFC 1123
/// subdomain). Any other name belongs to no object, and must not reach a path, where `/` and `..`
/// would ask for something else.
pub(crate) fn is_object_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let edge =
                |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            let bytes = label.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes
                    .iter()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_an_object_can_have() {
        for good in ["web", "web-0", "10.0.0.7", "ip-10-0-0-7.ec2.internal", "0"] {
            assert!(is_object_name(good), "{good}");
        }
        let long = "a".repeat(254);
        for bad in [
            "", ".", "..", "a/b", "a..b", "../x", "web%2f", "Web", "-web", "web-", "wéb", "a?b",
            &long,
        ] {
            assert!(!is_object_name(bad), "{bad}");
        }
    }
}
