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
mod tests;
