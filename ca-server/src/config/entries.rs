//! Registration entries: what must hold before any node may hand one out.

use citadel_identity::{SpiffeId, TrustDomain, limits, selector::Selector, template};
use citadel_runtime::config::Checker;

use super::{
    EXTERNAL_CLUSTER, EntryConfig, EntryNodes, Lifetimes, NodeRef,
    accounts::is_subdomain,
    dns,
    file::{self, Nodes},
};

/// What entries are checked against.
pub(super) struct Surroundings<'a> {
    /// `None` where it did not parse.
    pub(super) trust_domain: Option<&'a TrustDomain>,
    pub(super) clusters: Vec<&'a str>,
    pub(super) ca_dns_names: &'a [String],
    pub(super) lifetimes: Lifetimes,
}

/// Longest hint in bytes: it travels with each of a workload's SVIDs.
const LONGEST_HINT: usize = 256;

pub(super) fn check(
    checker: &mut Checker<'_>,
    entries: Vec<file::Entry>,
    around: &Surroundings<'_>,
) -> Vec<EntryConfig> {
    let mut checked: Vec<EntryConfig> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("entries[{index}]");
        let Some(entry) = one(checker, &at, entry, around) else {
            continue;
        };
        let same = |other: &EntryConfig| {
            other.id == entry.id && other.nodes == entry.nodes && other.selectors == entry.selectors
        };
        if let Some(first) = checked.iter().position(same) {
            let problem = format_args!("has the id, nodes and selectors of entries[{first}]");
            checker.problem(&at, problem, "keep one of the two");
        }
        checked.push(entry);
    }
    checked
}

fn one(
    checker: &mut Checker<'_>,
    at: &str,
    entry: file::Entry,
    around: &Surroundings<'_>,
) -> Option<EntryConfig> {
    let id = id(checker, &format!("{at}.id"), &entry.id, around.trust_domain);
    let dns_names = dns_names(checker, at, &entry.dns_names, around.ca_dns_names);
    if let Some(ttl) = entry.ttl {
        let Lifetimes { min, max, .. } = around.lifetimes;
        if ttl < min || ttl > max {
            let problem = format_args!("{ttl} is outside of lifetimes.min … max ({min} … {max})");
            checker.problem(
                format!("{at}.ttl"),
                problem,
                "choose a lifetime between them",
            );
        }
    }
    let selectors = selectors(checker, at, &entry.selectors);
    let nodes = nodes(checker, at, entry.nodes, &around.clusters);
    if nodes == Some(EntryNodes::All) && selectors.iter().any(Selector::is_unix) {
        checker.problem(
            format!("{at}.nodes"),
            "is `all` beside unix selectors: any compromised node could take the identity",
            "list the nodes that it holds on, as <cluster>/<node>",
        );
    }
    let on_external = |nodes: &EntryNodes| match nodes {
        EntryNodes::All => false,
        EntryNodes::Listed(nodes) => nodes.iter().any(|node| node.cluster == EXTERNAL_CLUSTER),
    };
    if nodes.as_ref().is_some_and(on_external) && !selectors.iter().all(Selector::is_unix) {
        checker.problem(
            format!("{at}.nodes"),
            "names a node outside Kubernetes beside selectors of pods: none runs there",
            "write an entry of unix selectors for it",
        );
    }
    let long_hint = entry.hint.len() > LONGEST_HINT || entry.hint.contains(char::is_control);
    if long_hint {
        let problem =
            format_args!("is longer than {LONGEST_HINT} bytes, or has control characters");
        checker.problem(format!("{at}.hint"), problem, "write a short word");
    }
    Some(EntryConfig {
        id: id?,
        dns_names,
        ttl: entry.ttl,
        nodes: nodes?,
        selectors,
        hint: entry.hint,
    })
}

fn id(
    checker: &mut Checker<'_>,
    key: &str,
    path: &str,
    trust_domain: Option<&TrustDomain>,
) -> Option<SpiffeId> {
    let fix = "write the path of a SPIFFE ID, such as /unix/alice";
    if path.contains("://") {
        checker.problem(key, format_args!("`{path}` is a whole SPIFFE ID"), fix);
        return None;
    }
    if !path.starts_with('/') {
        checker.problem(key, format_args!("`{path}` does not begin with /"), fix);
        return None;
    }
    let id = SpiffeId::new(format!("spiffe://{}{path}", trust_domain?.as_str()))
        .map_err(|error| format!("`{path}` is not the path of a SPIFFE ID: {error}"));
    let id = checker.take(key, id, fix)?;
    if template::is_reserved(&id) {
        let problem = format_args!("`{path}` is under /citadel/, which is reserved");
        checker.problem(key, problem, "choose another path");
        return None;
    }
    Some(id)
}

fn dns_names(
    checker: &mut Checker<'_>,
    at: &str,
    names: &[String],
    ca_dns_names: &[String],
) -> Vec<String> {
    if names.len() > limits::DNS_NAMES {
        let problem = format_args!("has {} names", names.len());
        let fix = format_args!("list at most {}", limits::DNS_NAMES);
        checker.problem(format!("{at}.dns_names"), problem, fix);
    }
    let mut checked = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let key = format!("{at}.dns_names[{index}]");
        let Some(name) = checker.take(&key, dns::parse(name, true), "write a host name") else {
            continue;
        };
        if let Some(own) = ca_dns_names.iter().find(|own| dns::overlap(own, &name)) {
            let problem = format_args!("`{name}` covers `{own}`, which is the CA's own name");
            checker.problem(&key, problem, "choose a name that is not in ca.dns_names");
        } else if name.starts_with("*.") {
            // One such certificate could speak for services that are not the entry's.
            let problem = format_args!("`{name}` is a wildcard, which no certificate of ours has");
            checker.problem(&key, problem, "list the names themselves");
        }
        if checked.contains(&name) {
            checker.problem(
                &key,
                format_args!("`{name}` is there twice"),
                "remove one of the two",
            );
        }
        checked.push(name);
    }
    checked
}

fn selectors(checker: &mut Checker<'_>, at: &str, texts: &[String]) -> Vec<Selector> {
    if texts.is_empty() {
        checker.problem(
            format!("{at}.selectors"),
            "is empty: every process would match",
            "say whom it is for, such as [\"unix:uid:1000\"] or [\"k8s:ns:shop\", \"k8s:sa:web\"]",
        );
    }
    let mut selectors = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let key = format!("{at}.selectors[{index}]");
        let fix = "write type:value, such as k8s:ns:shop or unix:uid:1000";
        selectors.extend(checker.take(&key, text.parse::<Selector>(), fix));
    }
    selectors
}

fn nodes(
    checker: &mut Checker<'_>,
    at: &str,
    nodes: Option<Nodes>,
    clusters: &[&str],
) -> Option<EntryNodes> {
    let key = format!("{at}.nodes");
    let fix = "list the nodes that it holds on, as <cluster>/<node>, or write all";
    let texts = match nodes {
        Some(Nodes::Word(word)) if word == "all" => return Some(EntryNodes::All),
        Some(Nodes::Word(word)) => {
            checker.problem(
                key,
                format_args!("`{word}` is neither `all` nor a list"),
                fix,
            );
            return None;
        }
        Some(Nodes::Listed(texts)) if !texts.is_empty() => texts,
        Some(Nodes::Listed(_)) => {
            checker.problem(key, "is empty: the entry would hold nowhere", fix);
            return None;
        }
        None => {
            checker.problem(key, "is missing", fix);
            return None;
        }
    };
    let mut listed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let Some((cluster, node)) = text
            .split_once('/')
            .filter(|(cluster, node)| !cluster.is_empty() && is_subdomain(node))
        else {
            let problem = format_args!("`{text}` is not <cluster>/<node>");
            checker.problem(key, problem, "write for example default/node-1");
            continue;
        };
        if cluster != EXTERNAL_CLUSTER && !clusters.contains(&cluster) {
            let problem = format_args!("there is no cluster `{cluster}`");
            let fix = format_args!(
                "the clusters are {} and {EXTERNAL_CLUSTER}",
                clusters.join(", ")
            );
            checker.problem(key, problem, fix);
            continue;
        }
        listed.push(NodeRef {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
        });
    }
    Some(EntryNodes::Listed(listed))
}
