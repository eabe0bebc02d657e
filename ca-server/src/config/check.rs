//! From what stands in the file to what the server works with. All problems are collected
//! before any is shown.

use std::{collections::HashSet, net::SocketAddr};

use citadel_identity::{SpiffeId, TrustDomain, crypto, template};
use citadel_runtime::{
    HumanDuration,
    config::{Checker, Document},
    telemetry,
};

use super::{
    AccountRef, Accounts, AdminConfig, AdminSubject, CaConfig, ClusterConfig, Config, ConfigError,
    ConfigMapRef, EXTERNAL_CLUSTER, ExternalConfig, Lifetimes, Limits, LogConfig,
    accounts::{is_label, is_subdomain},
    dns,
    entries::{self, Surroundings},
    external,
    file::{self, File},
    store,
};

/// Nothing shorter is worth a signature: clocks differ by more.
const SHORTEST: HumanDuration = HumanDuration::from_secs(1);
/// Token keys are fetched every ten seconds at most: nothing shorter can be kept.
const FRESHEST: HumanDuration = HumanDuration::from_secs(20);
/// Beyond it a certificate is not short-lived any more.
const LONGEST: HumanDuration = HumanDuration::from_days(90);

const ACCOUNT_FIX: &str = "write namespace/account, such as shop/web";

pub(super) fn check(mut file: File, document: &Document) -> Result<Config, ConfigError> {
    let mut checker = document.checker();
    let whole = digest(&file);
    let entries = std::mem::take(&mut file.entries);
    let fixed = digest(&file);
    let trust_domain = trust_domain(&mut checker, file.trust_domain.as_deref());
    let listen = address(&mut checker, "listen", &file.listen);
    let admin_listen = address(&mut checker, "admin_listen", &file.admin_listen);
    let public_listen = file
        .public_listen
        .as_ref()
        .and_then(|listen| address(&mut checker, "public_listen", listen));
    let store = store::check(&mut checker, file.store, &file.data_dir);
    if file.data_dir.as_os_str().is_empty() {
        checker.problem(
            "data_dir",
            "is empty",
            "name a directory for keys and the store",
        );
    }
    let ca = ca(&mut checker, file.ca);
    let clusters = clusters(&mut checker, file.clusters);
    audiences(&mut checker, &file.audiences);
    let id_template = checker.take(
        "id_template",
        template::IdTemplate::parse(&file.id_template),
        "write a path such as /ns/{namespace}/sa/{account}",
    );
    let allow_unbound = accounts(&mut checker, "allow_unbound", &file.allow_unbound);
    let agents = accounts(&mut checker, "agents.accounts", &file.agents.accounts);
    let impersonation = accounts(
        &mut checker,
        "impersonation.accounts",
        &file.impersonation.accounts,
    );
    let lifetimes = lifetimes(&mut checker, &file.lifetimes);
    // As long as any certificate may live, where nothing is said.
    let external_ttl = file.external.svid_ttl.unwrap_or(lifetimes.max);
    within(
        &mut checker,
        "external.svid_ttl",
        external_ttl,
        lifetimes.min,
        lifetimes.max,
    );
    let x509pop = file
        .external
        .x509pop
        .and_then(|x509pop| external::x509pop(&mut checker, x509pop));
    within(
        &mut checker,
        "max_renewal_age",
        file.max_renewal_age,
        SHORTEST,
        HumanDuration::from_days(3650),
    );
    within(
        &mut checker,
        "log.retention",
        file.log.retention,
        HumanDuration::from_days(1),
        HumanDuration::from_days(36_500),
    );
    let entries = entries::check(
        &mut checker,
        entries,
        &Surroundings {
            trust_domain: trust_domain.as_ref(),
            clusters: clusters
                .iter()
                .map(|cluster| cluster.name.as_str())
                .collect(),
            ca_dns_names: &ca.dns_names,
            lifetimes,
        },
    );
    let bundle_configmap = file
        .bundle_configmap
        .and_then(|map| configmap(&mut checker, map));
    let admin = AdminConfig {
        auditor: subjects(
            &mut checker,
            "admin.auditor",
            &file.admin.auditor,
            trust_domain.as_ref(),
        ),
        operator: subjects(
            &mut checker,
            "admin.operator",
            &file.admin.operator,
            trust_domain.as_ref(),
        ),
    };
    let limits = limits(&mut checker, &file.limits);
    if let Err(error) = telemetry::check_filter(&file.log.level) {
        checker.problem("log.level", error, "the default is info");
    }
    checker.finish()?;
    // Each of these is only missing where a problem was noted, so `finish` has returned.
    let (Some(trust_domain), Some(listen), Some(admin_listen), Some(store), Some(id_template)) =
        (trust_domain, listen, admin_listen, store, id_template)
    else {
        return Err(ConfigError::Invalid(Vec::new()));
    };
    Ok(Config {
        trust_domain,
        listen,
        admin_listen,
        public_listen,
        admin_socket: file.admin_socket,
        data_dir: file.data_dir,
        store,
        ca,
        clusters,
        audiences: file.audiences,
        id_template,
        allow_unbound,
        agents: Accounts { accounts: agents },
        external: ExternalConfig {
            svid_ttl: external_ttl,
            x509pop,
        },
        impersonation: Accounts {
            accounts: impersonation,
        },
        lifetimes,
        max_renewal_age: file.max_renewal_age,
        entries,
        bundle_configmap,
        admin,
        limits,
        log: LogConfig {
            level: file.log.level,
            format: file.log.format,
            public_hashes: file.log.public_hashes,
            refusals: file.log.refusals,
            retention: file.log.retention,
        },
        digest: whole,
        fixed_digest: fixed,
    })
}

/// Over the values that count, defaults included: the same however they were given.
fn digest(file: &File) -> String {
    let bytes = serde_json::to_vec(file).unwrap_or_default();
    hex::encode(crypto::sha256(&bytes))
}

fn trust_domain(checker: &mut Checker<'_>, name: Option<&str>) -> Option<TrustDomain> {
    let Some(name) = name else {
        checker.problem(
            "trust_domain",
            "is not set",
            "set it, or give --trust-domain or CITADEL_TRUST_DOMAIN (for example example.org)",
        );
        return None;
    };
    let parsed = TrustDomain::new(name).map_err(|e| format!("`{name}` is not a trust domain: {e}"));
    checker.take("trust_domain", parsed, "write a name such as example.org")
}

fn address(checker: &mut Checker<'_>, key: &str, text: &str) -> Option<SocketAddr> {
    let parsed = text
        .parse()
        .map_err(|_| format!("`{text}` is not an address"));
    checker.take(
        key,
        parsed,
        "write address:port, such as [::]:15012 or 127.0.0.1:15012",
    )
}

fn ca(checker: &mut Checker<'_>, ca: file::Ca) -> CaConfig {
    let mut dns_names = Vec::with_capacity(ca.dns_names.len());
    for (index, name) in ca.dns_names.iter().enumerate() {
        let key = format!("ca.dns_names[{index}]");
        let Some(name) = checker.take(&key, dns::parse(name, false), "write a host name") else {
            continue;
        };
        if dns_names.contains(&name) {
            checker.problem(
                &key,
                format_args!("`{name}` is there twice"),
                "remove one of the two",
            );
        }
        dns_names.push(name);
    }
    within(
        checker,
        "ca.serving_ttl",
        ca.serving_ttl,
        HumanDuration::from_secs(5),
        LONGEST,
    );
    let replaces_key = ca.replaces_key.as_ref().and_then(|text| {
        let key = hex::decode(text).ok().filter(|key| !key.is_empty());
        if key.is_none() {
            checker.problem(
                "ca.replaces_key",
                format_args!("`{text}` is no key id"),
                "write the hex digits that the refused start shows for the store's key",
            );
        }
        key
    });
    if replaces_key.is_some() && ca.cacerts_dir.is_none() {
        checker.problem(
            "ca.replaces_key",
            "there is no other key: the CA made its own",
            "set ca.cacerts_dir too, or remove it",
        );
    }
    CaConfig {
        cacerts_dir: ca.cacerts_dir,
        replaces_key,
        dns_names,
        serving_ttl: ca.serving_ttl,
    }
}

fn clusters(checker: &mut Checker<'_>, clusters: Vec<file::Cluster>) -> Vec<ClusterConfig> {
    let mut checked: Vec<ClusterConfig> = Vec::with_capacity(clusters.len());
    for (index, cluster) in clusters.into_iter().enumerate() {
        let key = |field: &str| format!("clusters[{index}].{field}");
        let name = &cluster.name;
        if let Some(first) = checked.iter().position(|other| other.name == *name) {
            checker.problem(
                key("name"),
                format_args!("`{name}` is the name of clusters[{first}] too"),
                "give each cluster its own name",
            );
        }
        // The name is a segment of the agents' SPIFFE IDs.
        let segment = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > 63 || !name.bytes().all(segment) || name.starts_with('.')
        {
            checker.problem(
                key("name"),
                format_args!("`{name}` is not a cluster's name"),
                "write up to 63 letters, digits, hyphens, underscores and dots",
            );
        }
        if name == EXTERNAL_CLUSTER {
            checker.problem(
                key("name"),
                "`external` is reserved for nodes outside Kubernetes",
                "choose another name",
            );
        }
        let same = checked
            .iter()
            .position(|other| other.kubeconfig == cluster.kubeconfig);
        match (same, &cluster.kubeconfig) {
            (Some(first), None) => checker.problem(
                key("kubeconfig"),
                format_args!("is missing, as in clusters[{first}]: both would be the own cluster"),
                "name the kubeconfig of all but one",
            ),
            (Some(first), Some(path)) => checker.problem(
                key("kubeconfig"),
                format_args!(
                    "{} is the kubeconfig of clusters[{first}] too",
                    path.display()
                ),
                "give each cluster its own: a token's key must tell its cluster",
            ),
            (None, _) => {}
        }
        within(
            checker,
            &key("api_deadline"),
            cluster.api_deadline,
            HumanDuration::from_millis(100),
            HumanDuration::from_mins(1),
        );
        within(
            checker,
            &key("max_staleness"),
            cluster.max_staleness,
            FRESHEST,
            HumanDuration::from_days(1),
        );
        checked.push(ClusterConfig {
            name: cluster.name,
            kubeconfig: cluster.kubeconfig,
            mode: cluster.mode,
            issuers: cluster.issuers,
            api_deadline: cluster.api_deadline,
            max_staleness: cluster.max_staleness,
        });
    }
    checked
}

fn audiences(checker: &mut Checker<'_>, audiences: &[String]) {
    if audiences.is_empty() {
        checker.problem(
            "audiences",
            "is empty: no token could be for us",
            "list one, such as citadel",
        );
    }
    let mut seen = HashSet::new();
    for (index, audience) in audiences.iter().enumerate() {
        let key = format!("audiences[{index}]");
        if audience.is_empty() || audience.len() > 512 || audience.contains(char::is_whitespace) {
            checker.problem(
                &key,
                format_args!("`{audience}` is not an audience"),
                "write a word or URL",
            );
        } else if !seen.insert(audience) {
            checker.problem(
                &key,
                format_args!("`{audience}` is there twice"),
                "remove one of the two",
            );
        }
    }
}

fn accounts(checker: &mut Checker<'_>, key: &str, texts: &[String]) -> Vec<AccountRef> {
    let mut accounts = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        accounts.extend(checker.take(format!("{key}[{index}]"), text.parse(), ACCOUNT_FIX));
    }
    accounts
}

fn subjects(
    checker: &mut Checker<'_>,
    key: &str,
    texts: &[String],
    trust_domain: Option<&TrustDomain>,
) -> Vec<AdminSubject> {
    let mut subjects = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let parsed = text.parse();
        let fix = "write a SPIFFE ID (spiffe://example.org/…) or namespace/account";
        let Some(subject) = checker.take(&key, parsed, fix) else {
            continue;
        };
        if let AdminSubject::SpiffeId(id) = &subject {
            administrator(checker, &key, id, trust_domain);
        }
        subjects.push(subject);
    }
    subjects
}

fn administrator(
    checker: &mut Checker<'_>,
    key: &str,
    id: &SpiffeId,
    trust_domain: Option<&TrustDomain>,
) {
    if trust_domain.is_some_and(|own| own.as_str() != id.trust_domain_name()) {
        checker.problem(
            key,
            format_args!("`{id}` is of another trust domain, whose certificates are not accepted"),
            "name an identity of this trust domain",
        );
    } else if template::is_reserved(id) {
        checker.problem(
            key,
            format_args!("`{id}` is one of Citadel's own identities, which administer nothing"),
            "name a workload's identity",
        );
    }
}

fn lifetimes(checker: &mut Checker<'_>, file: &file::Lifetimes) -> Lifetimes {
    let file::Lifetimes {
        default,
        istio_default,
        min,
        max,
    } = *file;
    within(checker, "lifetimes.min", min, SHORTEST, LONGEST);
    within(checker, "lifetimes.max", max, SHORTEST, LONGEST);
    if min > max {
        let problem = format_args!("{min} is longer than lifetimes.max ({max})");
        checker.problem("lifetimes.min", problem, "make min at most max");
    } else {
        for (key, value) in [
            ("lifetimes.default", default),
            ("lifetimes.istio_default", istio_default),
        ] {
            if value < min {
                let problem = format_args!("{value} is shorter than lifetimes.min ({min})");
                checker.problem(key, problem, "make it at least min");
            } else if value > max {
                let problem = format_args!("{value} is longer than lifetimes.max ({max})");
                checker.problem(key, problem, "make it at most max");
            }
        }
    }
    Lifetimes {
        default,
        istio_default,
        min,
        max,
    }
}

fn configmap(checker: &mut Checker<'_>, map: file::ConfigMap) -> Option<ConfigMapRef> {
    let (good_namespace, good_name) = (is_label(&map.namespace), is_subdomain(&map.name));
    if !good_namespace {
        let problem = format_args!("`{}` is not the name of a namespace", map.namespace);
        checker.problem(
            "bundle_configmap.namespace",
            problem,
            "write one such as citadel-system",
        );
    }
    if !good_name {
        let problem = format_args!("`{}` is not the name of a ConfigMap", map.name);
        checker.problem(
            "bundle_configmap.name",
            problem,
            "write one such as citadel-bundle",
        );
    }
    (good_namespace && good_name).then_some(ConfigMapRef {
        namespace: map.namespace,
        name: map.name,
    })
}

fn limits(checker: &mut Checker<'_>, file: &file::Limits) -> Limits {
    let mut count = |key: &str, value: u32| {
        if value == 0 {
            checker.problem(key, "is 0, which refuses everything", "make it at least 1");
        }
        usize::try_from(value).unwrap_or(usize::MAX)
    };
    let limits = Limits {
        in_flight: count("limits.in_flight", file.in_flight),
        queue: count("limits.queue", file.queue),
        queue_per_node: count("limits.queue_per_node", file.queue_per_node),
        request_deadline: file.request_deadline,
        connections: count("limits.connections", file.connections),
        connections_per_address: count(
            "limits.connections_per_address",
            file.connections_per_address,
        ),
        streams_per_connection: file.streams_per_connection,
    };
    count("limits.streams_per_connection", file.streams_per_connection);
    within(
        checker,
        "limits.request_deadline",
        file.request_deadline,
        HumanDuration::from_millis(100),
        HumanDuration::from_mins(5),
    );
    limits
}

fn within(
    checker: &mut Checker<'_>,
    key: &str,
    value: HumanDuration,
    least: HumanDuration,
    most: HumanDuration,
) {
    if value < least || value > most {
        let problem = format_args!("{value} is out of range");
        checker.problem(
            key,
            problem,
            format_args!("choose between {least} and {most}"),
        );
    }
}
