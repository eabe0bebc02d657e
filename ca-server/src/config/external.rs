//! `external.x509pop`: whose certificates let nodes in, and as what.

use std::path::Path;

use citadel_identity::bundle;
use citadel_runtime::config::Checker;
use rustls::pki_types::CertificateDer;

use super::{
    NameField, NodeRule, X509PopConfig,
    file::{Rule, X509Pop},
};

const FIX: &str = "write { dns: \"{node}.vms.example.org\" }, or { common_name: NAME, node: vm-1 }";

/// Bytes of the roots' file at most.
const MAX_ROOTS: u64 = 1024 * 1024;

pub(super) fn x509pop(checker: &mut Checker<'_>, file: X509Pop) -> Option<X509PopConfig> {
    let key = "external.x509pop.roots_file";
    let fix = "name a PEM file with the roots of the nodes' certificates";
    let roots = checker.take(key, roots(&file.roots_file), fix);
    if file.rules.is_empty() {
        checker.problem(
            "external.x509pop.rules",
            "is empty: no node could join",
            FIX,
        );
    }
    let mut rules = Vec::with_capacity(file.rules.len());
    for (index, rule) in file.rules.into_iter().enumerate() {
        let key = format!("external.x509pop.rules[{index}]");
        rules.extend(checker.take(key, node_rule(&rule), FIX));
    }
    Some(X509PopConfig {
        roots: roots?,
        rules,
    })
}

fn node_rule(rule: &Rule) -> Result<NodeRule, &'static str> {
    let (field, pattern) = match (&rule.dns, &rule.common_name) {
        (Some(pattern), None) => (NameField::Dns, pattern),
        (None, Some(pattern)) => (NameField::CommonName, pattern),
        _ => return Err("needs either dns or common_name"),
    };
    NodeRule::new(field, pattern, rule.node.as_deref())
}

fn roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |reason: String| format!("{}: {reason}", path.display());
    let size = std::fs::metadata(path)
        .map_err(|error| failed(error.to_string()))?
        .len();
    if size > MAX_ROOTS {
        return Err(failed("it has more than 1 MiB".into()));
    }
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let roots = bundle::certificates_from_pem(&text).map_err(|error| failed(error.to_string()))?;
    if roots.is_empty() {
        return Err(failed("it holds no certificate".into()));
    }
    Ok(roots)
}
