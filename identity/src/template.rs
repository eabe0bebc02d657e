//! ID templates, and the part of the ID space that is Citadel's own.

use std::str::FromStr;

use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
use thiserror::Error;

use crate::limits;

/// First path segment of every ID that no workload may have.
const RESERVED: &str = "citadel";

/// How a Kubernetes account's ID is made: a path with `{cluster}`, `{namespace}` and
/// `{account}` in it, such as `/ns/{namespace}/sa/{account}`.
///
/// A segment holds one variable at most, so that two different accounts never meet in
/// one ID by where their names happen to be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdTemplate {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    before: String,
    variable: Option<Variable>,
    after: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Cluster,
    Namespace,
    Account,
}

/// Why a template is not accepted, or gives no ID.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TemplateError {
    /// The template does not start with a slash.
    #[error("an ID template is a path and starts with '/', as in /ns/{{namespace}}/sa/{{account}}")]
    NoSlash,
    /// The template is too long.
    #[error("an ID template has at most {max} bytes; this one has {0}", max = limits::TEMPLATE_BYTES)]
    TooLong(usize),
    /// A brace is open, or closed without having been opened.
    #[error("the braces in segment {0:?} do not match")]
    Braces(String),
    /// A variable is not known.
    #[error(
        "{{{0}}} is no variable of an ID template; there are {{cluster}}, {{namespace}} and {{account}}"
    )]
    Variable(String),
    /// A segment has several variables.
    #[error("segment {0:?} has several variables; one in a segment keeps IDs unambiguous")]
    SeveralVariables(String),
    /// The path is not one of a SPIFFE ID.
    #[error("the path is not one of a SPIFFE ID: {0}")]
    Path(#[from] SpiffeIdError),
    /// A value that goes into the ID is empty or holds other characters.
    #[error("{value:?} can't be part of a SPIFFE ID's path: {reason}")]
    Value {
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The ID would lie under `/citadel/`.
    #[error("{0} lies under /citadel/, which is reserved for Citadel itself")]
    Reserved(String),
}

impl IdTemplate {
    /// Reads a template. `/citadel/…` is refused.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > limits::TEMPLATE_BYTES {
            return Err(TemplateError::TooLong(text.len()));
        }
        let path = text.strip_prefix('/').ok_or(TemplateError::NoSlash)?;
        let segments = path
            .split('/')
            .map(Segment::parse)
            .collect::<Result<Vec<_>, _>>()?;
        let template = Self {
            text: text.to_owned(),
            segments,
        };
        // With harmless values in place of the variables, the path must be one of an ID.
        let sample: Vec<String> = template
            .segments
            .iter()
            .map(|one| one.render("x", "x", "x"))
            .collect();
        let sample: Vec<&str> = sample.iter().map(String::as_str).collect();
        let id = SpiffeId::from_segments(TrustDomain::new("x")?, &sample)?;
        if is_reserved(&id) {
            return Err(TemplateError::Reserved(text.to_owned()));
        }
        Ok(template)
    }

    /// The ID of an account. Fails where a value can't be part of a path, where the ID
    /// is longer than 2048 bytes, and where it would lie under `/citadel/`.
    pub fn render(
        &self,
        trust_domain: &TrustDomain,
        cluster: &str,
        namespace: &str,
        account: &str,
    ) -> Result<SpiffeId, TemplateError> {
        for value in [cluster, namespace, account] {
            check_value(value)?;
        }
        let segments: Vec<String> = self
            .segments
            .iter()
            .map(|one| one.render(cluster, namespace, account))
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let id = SpiffeId::from_segments(trust_domain.clone(), &segments)?;
        if is_reserved(&id) {
            return Err(TemplateError::Reserved(id.to_string()));
        }
        Ok(id)
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for IdTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        Self::parse(text)
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, TemplateError> {
        let braces = || TemplateError::Braces(text.to_owned());
        let Some((before, rest)) = text.split_once('{') else {
            if text.contains('}') {
                return Err(braces());
            }
            return Ok(Self {
                before: text.to_owned(),
                variable: None,
                after: String::new(),
            });
        };
        let (name, after) = rest.split_once('}').ok_or_else(braces)?;
        if before.contains('}') || name.contains('{') {
            return Err(braces());
        }
        if after.contains(['{', '}']) {
            return Err(TemplateError::SeveralVariables(text.to_owned()));
        }
        let variable = match name {
            "cluster" => Variable::Cluster,
            "namespace" => Variable::Namespace,
            "account" => Variable::Account,
            _ => return Err(TemplateError::Variable(name.to_owned())),
        };
        Ok(Self {
            before: before.to_owned(),
            variable: Some(variable),
            after: after.to_owned(),
        })
    }

    fn render(&self, cluster: &str, namespace: &str, account: &str) -> String {
        let value = match self.variable {
            None => "",
            Some(Variable::Cluster) => cluster,
            Some(Variable::Namespace) => namespace,
            Some(Variable::Account) => account,
        };
        [self.before.as_str(), value, self.after.as_str()].concat()
    }
}

/// A value fills (a part of) one segment; it never makes another one.
fn check_value(value: &str) -> Result<(), TemplateError> {
    let wrong = |reason| TemplateError::Value {
        value: value.chars().take(64).collect(),
        reason,
    };
    if value.is_empty() {
        return Err(wrong("it is empty"));
    }
    if value == "." || value == ".." {
        return Err(wrong("it is a dot segment"));
    }
    if !value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    {
        return Err(wrong("only letters, digits, '.', '-' and '_' are allowed"));
    }
    Ok(())
}

/// Whether an ID lies in Citadel's own space: `/citadel` and all below it. No template,
/// entry or impersonation yields one.
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.path().split('/').nth(1) == Some(RESERVED)
}

/// The ID of a node's agent: `spiffe://<trust domain>/citadel/agent/<cluster>/<node>`.
pub fn agent_id(
    trust_domain: &TrustDomain,
    cluster: &str,
    node: &str,
) -> Result<SpiffeId, TemplateError> {
    for value in [cluster, node] {
        check_value(value)?;
    }
    Ok(SpiffeId::from_segments(
        trust_domain.clone(),
        &[RESERVED, "agent", cluster, node],
    )?)
}

/// Cluster and node of an agent's ID; `None` for any other ID.
pub fn parse_agent_id(id: &SpiffeId) -> Option<(String, String)> {
    let mut segments = id.path().split('/');
    let place = (segments.next(), segments.next(), segments.next());
    let names = (segments.next(), segments.next(), segments.next());
    match (place, names) {
        ((Some(""), Some(RESERVED), Some("agent")), (Some(cluster), Some(node), None)) => {
            Some((cluster.to_owned(), node.to_owned()))
        }
        _ => None,
    }
}

/// The ID of the CA server itself: `spiffe://<trust domain>/citadel/ca`.
pub fn ca_id(trust_domain: &TrustDomain) -> SpiffeId {
    match SpiffeId::from_segments(trust_domain.clone(), &[RESERVED, "ca"]) {
        Ok(id) => id,
        // Two fixed segments under a name of at most 255 bytes are always an ID.
        Err(error) => unreachable!("the CA's ID is not valid: {error}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn td() -> TrustDomain {
        TrustDomain::new("example.org").unwrap()
    }

    fn render(template: &str, namespace: &str, account: &str) -> Result<String, TemplateError> {
        IdTemplate::parse(template)?
            .render(&td(), "east", namespace, account)
            .map(|id| id.to_string())
    }

    #[test]
    fn templates_are_filled() {
        assert_eq!(
            render("/ns/{namespace}/sa/{account}", "shop", "web").unwrap(),
            "spiffe://example.org/ns/shop/sa/web"
        );
        assert_eq!(
            render("/k8s-{cluster}/{namespace}.ns/{account}", "shop", "web.v2").unwrap(),
            "spiffe://example.org/k8s-east/shop.ns/web.v2"
        );
        assert_eq!(
            render("/fixed", "shop", "web").unwrap(),
            "spiffe://example.org/fixed"
        );
    }

    #[test]
    fn mistakes_in_a_template_are_named() {
        let error = |text: &str| IdTemplate::parse(text).unwrap_err();
        assert_eq!(error("ns/{namespace}"), TemplateError::NoSlash);
        assert_eq!(error(""), TemplateError::NoSlash);
        assert_eq!(error("/{pod}"), TemplateError::Variable("pod".into()));
        for text in ["/{namespace", "/namespace}", "/}{", "/{{account}}"] {
            assert!(matches!(error(text), TemplateError::Braces(_)), "{text}");
        }
        assert!(matches!(
            error("/{namespace}-{account}"),
            TemplateError::SeveralVariables(_)
        ));
        for text in [
            "/", "/a//b", "/a/", "/a/../b", "/ä", "/a b", "/a%20", "/a?b", "/a#b", "/a:b",
        ] {
            assert!(matches!(error(text), TemplateError::Path(_)), "{text}");
        }
        assert_eq!(
            error(&format!("/{}", "x".repeat(1024))),
            TemplateError::TooLong(1025)
        );
    }

    #[test]
    fn citadels_own_space_is_refused_in_the_template_and_in_the_result() {
        for text in [
            "/citadel",
            "/citadel/agent/{cluster}/{account}",
            "/citadel/{account}",
        ] {
            assert!(
                matches!(IdTemplate::parse(text), Err(TemplateError::Reserved(_))),
                "{text}"
            );
        }
        for (template, namespace) in [
            ("/{namespace}/{account}", "citadel"),
            ("/cita{namespace}/x", "del"),
        ] {
            assert!(
                matches!(
                    render(template, namespace, "ca"),
                    Err(TemplateError::Reserved(_))
                ),
                "{template}"
            );
        }
        assert!(render("/{namespace}/{account}", "citadel2", "ca").is_ok());
        assert!(render("/ns/{namespace}", "citadel", "ca").is_ok());
    }

    #[test]
    fn values_never_make_segments() {
        for value in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "a b",
            "%2e",
            "ä",
            "a\0b",
            "{account}",
        ] {
            for template in ["/ns/{namespace}/sa/{account}", "/ns/x{namespace}x"] {
                assert!(
                    matches!(
                        render(template, value, "web"),
                        Err(TemplateError::Value { .. })
                    ),
                    "{value:?}"
                );
            }
        }
        // A dot segment that only literals and value together make.
        assert!(matches!(
            render("/.{namespace}", ".", "web"),
            Err(TemplateError::Value { .. })
        ));
    }

    #[test]
    fn spiffe_req_04_no_id_beyond_2048_bytes_is_made() {
        let template = "/{namespace}/{account}";
        let fits = 2048 - "spiffe://example.org//".len() - 1;
        assert_eq!(
            render(template, &"n".repeat(fits), "a").unwrap().len(),
            2048
        );
        assert!(matches!(
            render(template, &"n".repeat(fits + 1), "a"),
            Err(TemplateError::Path(SpiffeIdError::SpiffeIdTooLong { .. }))
        ));
    }

    #[test]
    fn agents_and_the_ca_have_ids_of_their_own() {
        let agent = agent_id(&td(), "east", "node-1.example.org").unwrap();
        assert_eq!(
            agent.to_string(),
            "spiffe://example.org/citadel/agent/east/node-1.example.org"
        );
        assert_eq!(
            parse_agent_id(&agent).unwrap(),
            ("east".into(), "node-1.example.org".into())
        );
        assert!(is_reserved(&agent));
        assert_eq!(ca_id(&td()).to_string(), "spiffe://example.org/citadel/ca");
        assert!(is_reserved(&ca_id(&td())));
        for (cluster, node) in [
            ("", "n"),
            ("c", ""),
            ("a/b", "n"),
            ("c", ".."),
            ("c", "a/b"),
        ] {
            assert!(agent_id(&td(), cluster, node).is_err());
        }
        for other in [
            "spiffe://example.org/citadel/ca",
            "spiffe://example.org/citadel/agent/east",
            "spiffe://example.org/citadel/agent/east/node/more",
            "spiffe://example.org/x/agent/east/node",
            "spiffe://example.org/citadel/agents/east/node",
            "spiffe://example.org",
        ] {
            assert_eq!(
                parse_agent_id(&SpiffeId::new(other).unwrap()),
                None,
                "{other}"
            );
        }
        let not_reserved = [
            "spiffe://example.org",
            "spiffe://example.org/citadels/x",
            "spiffe://example.org/x/citadel",
        ];
        for other in not_reserved {
            assert!(!is_reserved(&SpiffeId::new(other).unwrap()), "{other}");
        }
        assert!(is_reserved(
            &SpiffeId::new("spiffe://example.org/citadel").unwrap()
        ));
    }

    // SPIFFE IDs themselves are the spiffe crate's; these hold it to the standard.

    #[test]
    fn spiffe_req_01_scheme_trust_domain_no_query_no_fragment() {
        assert!(SpiffeId::new("spiffe://example.org/x").is_ok());
        for bad in [
            "https://example.org/x",
            "spiffe:///x",
            "spiffe:example.org/x",
            "//example.org/x",
            "spiffe://example.org/x?a=b",
            "spiffe://example.org?a",
            "spiffe://example.org/x#y",
            "spiffe://example.org#y",
        ] {
            assert!(SpiffeId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spiffe_req_02_trust_domain_characters_and_length() {
        for bad in [
            "user@example.org",
            "example.org:8443",
            "ex%61mple.org",
            "exämple.org",
            "a b",
            "[::1]",
        ] {
            assert!(TrustDomain::new(bad).is_err(), "{bad}");
            assert!(SpiffeId::new(format!("spiffe://{bad}/x")).is_err(), "{bad}");
        }
        for good in ["10.0.0.1", "a_b-c.d", "x"] {
            assert_eq!(TrustDomain::new(good).unwrap().as_str(), good);
        }
        assert!(TrustDomain::new("x".repeat(255)).is_ok());
        assert!(TrustDomain::new("x".repeat(256)).is_err());
    }

    #[test]
    fn spiffe_req_03_path_segments() {
        for bad in [
            "/", "/a/", "//a", "/a//b", "/.", "/..", "/a/./b", "/a/../b", "/a%41", "/ä", "/a:b",
            "/a~b",
        ] {
            assert!(
                SpiffeId::new(format!("spiffe://example.org{bad}")).is_err(),
                "{bad}"
            );
        }
        assert!(SpiffeId::new("spiffe://example.org/aZ9.-_/...").is_ok());
    }

    #[test]
    fn spiffe_req_04_ids_of_2048_bytes_are_supported() {
        let id = format!("spiffe://example.org/{}", "x".repeat(2048 - 21));
        assert_eq!(id.len(), 2048);
        assert!(SpiffeId::new(&id).is_ok());
    }

    #[test]
    fn spiffe_req_05_scheme_and_trust_domain_ignore_case_the_path_does_not() {
        let id = |text: &str| SpiffeId::new(text).unwrap();
        assert_eq!(
            id("SPIFFE://EXAMPLE.org/Web"),
            id("spiffe://example.org/Web")
        );
        assert_ne!(
            id("spiffe://example.org/Web"),
            id("spiffe://example.org/web")
        );
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_and_never_yields_reserved_ids(
            text in "/?([a-z{}./-]|\\{account\\}|\\{namespace\\}|citadel){0,12}",
            wild in ".{0,80}",
            namespace in "(citadel|[a-z./{}-]{0,8}|.{0,8})",
            account in ".{0,8}",
        ) {
            for text in [text, wild] {
                let Ok(template) = IdTemplate::parse(&text) else { continue };
                if let Ok(id) = template.render(&td(), "east", &namespace, &account) {
                    prop_assert!(!is_reserved(&id));
                    prop_assert_eq!(SpiffeId::new(id.to_string()), Ok(id));
                }
                let _ = SpiffeId::new(&text).map(|id| (parse_agent_id(&id), is_reserved(&id)));
            }
        }

        // One variable a segment: different accounts never share an ID.
        #[test]
        fn different_accounts_have_different_ids(
            a in ("[a-z0-9.-]{1,6}", "[a-z0-9.-]{1,6}"), b in ("[a-z0-9.-]{1,6}", "[a-z0-9.-]{1,6}"),
        ) {
            for template in ["/ns/{namespace}/sa/{account}", "/x-{namespace}-/{account}"] {
                if let (Ok(one), Ok(two)) = (render(template, &a.0, &a.1), render(template, &b.0, &b.1)) {
                    prop_assert_eq!(one == two, a == b);
                }
            }
        }

        #[test]
        fn any_bytes_as_a_spiffe_id_parse_or_fail(text in "(spiffe://)?.{0,60}") {
            if let Ok(id) = SpiffeId::new(&text) {
                prop_assert_eq!(SpiffeId::new(id.to_string()), Ok(id));
            }
        }
    }
}
