//! DNS names of certificates, and which of them cover one another.

use std::net::IpAddr;

/// Checks a DNS name for a certificate and gives it in lower case. A wildcard may stand for
/// the first label alone, above at least two others.
pub(super) fn parse(name: &str, wildcard: bool) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("`{name}` is not a DNS name: {why}"));
    if name.parse::<IpAddr>().is_ok() {
        return refuse("it is an IP address");
    }
    let lower = name.to_ascii_lowercase();
    let labels = match lower.strip_prefix("*.") {
        Some(rest) if wildcard && rest.contains('.') => rest,
        Some(_) if wildcard => return refuse("the wildcard covers a whole top-level domain"),
        Some(_) => return refuse("it may not be a wildcard"),
        None => &lower,
    };
    if lower.len() > 253 {
        return refuse("it is longer than 253 characters");
    }
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let good = |label: &str| {
        label.len() <= 63
            && outer(label.bytes().next())
            && outer(label.bytes().last())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if !labels.split('.').all(good) {
        return refuse("labels are letters, digits and inner hyphens, 1 to 63 of them");
    }
    Ok(lower)
}

/// Whether some host name is meant by both names, as TLS clients match them. Both are in
/// lower case.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let covers = |pattern: &str, name: &str| match pattern.strip_prefix("*.") {
        Some(suffix) => name.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => pattern == name,
    };
    covers(one, other) || covers(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        for (one, other, expected) in [
            ("ca.example.org", "ca.example.org", true),
            ("*.example.org", "ca.example.org", true),
            ("ca.example.org", "*.example.org", true),
            ("*.example.org", "*.example.org", true),
            ("*.example.org", "a.ca.example.org", false),
            ("*.example.org", "example.org", false),
            ("ca.example.org", "cb.example.org", false),
            ("*.b.org", "*.a.org", false),
        ] {
            assert_eq!(overlap(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn names_are_checked_and_lowered() {
        assert_eq!(
            parse("CA.Example.org", false).as_deref(),
            Ok("ca.example.org")
        );
        assert_eq!(parse("*.example.org", true).as_deref(), Ok("*.example.org"));
        assert_eq!(parse("localhost", false).as_deref(), Ok("localhost"));
        for (name, wildcard) in [
            ("", true),
            (".", true),
            ("a..b", true),
            ("a.", true),
            ("-a.b", true),
            ("a_b.c", true),
            ("10.0.0.1", true),
            ("::1", true),
            ("*.example.org", false),
            ("*.org", true),
            ("*", true),
            ("a.*.org", true),
            ("*a.example.org", true),
        ] {
            assert!(parse(name, wildcard).is_err(), "{name}");
        }
        assert!(parse(&"a.".repeat(200), true).is_err());
        assert!(parse(&"a".repeat(64), true).is_err());
    }
}
