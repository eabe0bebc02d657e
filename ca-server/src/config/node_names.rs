//! From a certificate's names to the name of a node: the CA's rules, never the caller's choice.

use citadel_identity::x509pop::NodeCertificate;

use super::accounts::is_subdomain;

const PLACE: &str = "{node}";

/// Which of a certificate's names a rule reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameField {
    /// A DNS name among its subject alternative names.
    Dns,
    /// The common name of its subject.
    CommonName,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRule {
    field: NameField,
    pattern: Pattern,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// This very name is that of this node.
    Fixed { name: String, node: String },
    /// The node's name stands between these.
    Place { before: String, after: String },
}

impl NodeRule {
    /// From what stands in the configuration.
    pub(super) fn new(
        field: NameField,
        pattern: &str,
        node: Option<&str>,
    ) -> Result<Self, &'static str> {
        let pattern = match (pattern.split_once(PLACE), node) {
            (Some((before, after)), None) if !after.contains(PLACE) => {
                if before.is_empty() && after.is_empty() {
                    return Err("takes any name of any certificate of these roots");
                }
                Pattern::Place {
                    before: before.to_owned(),
                    after: after.to_owned(),
                }
            }
            (None, Some(node)) if !pattern.is_empty() && is_subdomain(node) => Pattern::Fixed {
                name: pattern.to_owned(),
                node: node.to_owned(),
            },
            _ => return Err("needs either {node} once in its pattern, or the name of a node"),
        };
        Ok(Self { field, pattern })
    }

    fn nodes<'r>(&'r self, certificate: &'r NodeCertificate) -> Vec<&'r str> {
        let names: Vec<&str> = match self.field {
            NameField::Dns => certificate.dns_names.iter().map(String::as_str).collect(),
            NameField::CommonName => certificate.common_name.iter().map(String::as_str).collect(),
        };
        names
            .into_iter()
            .filter_map(|name| self.node(name))
            .collect()
    }

    fn node<'r>(&'r self, name: &'r str) -> Option<&'r str> {
        match &self.pattern {
            Pattern::Fixed { name: wanted, node } => (name == wanted).then_some(node.as_str()),
            // One label: nothing that the issuer wrote beyond it becomes part of the name.
            Pattern::Place { before, after } => name
                .strip_prefix(before.as_str())?
                .strip_suffix(after.as_str())
                .filter(|node| is_subdomain(node) && !node.contains('.')),
        }
    }
}

/// The node of a certificate: what all rules agree on.
///
/// # Errors
/// None of them says a name, or they say several.
pub fn node_of(rules: &[NodeRule], certificate: &NodeCertificate) -> Result<String, String> {
    let mut nodes: Vec<&str> = rules
        .iter()
        .flat_map(|rule| rule.nodes(certificate))
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    match nodes[..] {
        [node] => Ok(node.to_owned()),
        [] => Err("no rule of external.x509pop makes a node's name of its names".into()),
        _ => Err(format!(
            "its names are those of several nodes: {}",
            nodes.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn certificate(dns: &[&str], common_name: Option<&str>) -> NodeCertificate {
        NodeCertificate {
            sha256: [0; 32],
            dns_names: dns.iter().map(ToString::to_string).collect(),
            common_name: common_name.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn a_certificate_is_one_node_by_the_rules_or_none() {
        let rules = [
            NodeRule::new(NameField::Dns, "{node}.vms.example.org", None).unwrap(),
            NodeRule::new(NameField::CommonName, "db.corp", Some("db-1")).unwrap(),
        ];
        let node = |dns: &[&str], cn| node_of(&rules, &certificate(dns, cn));
        assert_eq!(node(&["vm-1.vms.example.org"], None).unwrap(), "vm-1");
        assert_eq!(
            node(&["other.org", "vm-1.vms.example.org"], Some("x")).unwrap(),
            "vm-1"
        );
        assert_eq!(node(&[], Some("db.corp")).unwrap(), "db-1");
        for (dns, cn) in [
            (&["vm-1.example.org"][..], None),
            (&["a.b.vms.example.org"], None),
            (&[".vms.example.org"], None),
            (&["*.vms.example.org"], None),
            (&["vm-1.vms.example.org.evil.org"], None),
            // A common name is no DNS name, and the other way round.
            (&["db.corp"], Some("vm-1.vms.example.org")),
            (&["vm-1.vms.example.org", "vm-2.vms.example.org"], None),
            (&["vm-1.vms.example.org"], Some("db.corp")),
        ] {
            node(dns, cn).unwrap_err();
        }
    }

    #[test]
    fn a_rule_that_takes_everything_or_says_nothing_is_refused() {
        for (pattern, node) in [
            ("{node}", None),
            ("{node}-{node}.x", None),
            ("name", None),
            ("{node}.x", Some("vm-1")),
            ("name", Some("Not A Node")),
            ("", Some("vm-1")),
        ] {
            NodeRule::new(NameField::Dns, pattern, node).unwrap_err();
        }
    }
}
