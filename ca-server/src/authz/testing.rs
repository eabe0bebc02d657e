//! A hand-fed inventory and callers, for the policy's tests.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::{collections::HashSet, sync::Arc, time::Duration};

use citadel_kubernetes::{AccountRecord, Inventory, NodeRecord, Phase, PodRecord, records::Labels};
use time::OffsetDateTime;

use super::{Ask, Denied, Entry, EntryNodes, Grant, Policy, PolicyOptions, Registered, Wish};
use crate::{
    caller::{Authority, Caller, Evidence, Method, ObjectRef, Origin, Role, Subject},
    clusters::{ClusterHandle, ClusterParts, Clusters, Mode},
    testing::{FakeApi, policy_options},
};

/// The configuration hash of the static pod on n1.
pub(super) const HASH: &str = "0123456789abcdef0123456789abcdef";

pub(super) fn object(name: &str) -> ObjectRef {
    ObjectRef {
        name: name.into(),
        uid: format!("{name}-uid"),
    }
}

pub(super) fn pod(namespace: &str, account: &str, name: &str, node: &str) -> PodRecord {
    PodRecord {
        uid: format!("{name}-uid").into(),
        name: name.into(),
        namespace: namespace.into(),
        account: account.into(),
        node: Some(node.into()),
        phase: Phase::Running,
        labels: Labels::default(),
        containers: Arc::from([]),
        mirror: None,
    }
}

pub(super) fn account(namespace: &str, name: &str) -> AccountRecord {
    AccountRecord {
        uid: format!("{name}-uid").into(),
        name: name.into(),
        namespace: namespace.into(),
    }
}

pub(super) fn node(name: &str) -> NodeRecord {
    NodeRecord {
        uid: format!("{name}-uid").into(),
        name: name.into(),
    }
}

pub(super) fn inventory() -> Arc<Inventory> {
    let inventory = Inventory::default();
    let now = tokio::time::Instant::now().into_std();
    let mirror = PodRecord {
        mirror: Some(HASH.into()),
        ..pod("shop", "web", "mirror", "n1")
    };
    let unbound = PodRecord {
        node: None,
        ..pod("shop", "web", "unbound", "n1")
    };
    inventory.load_pods(
        vec![
            pod("citadel-system", "citadel-agent", "agent-1", "n1"),
            pod("shop", "web", "web-1", "n1"),
            pod("shop", "db", "db-1", "n2"),
            pod("ambient", "ztunnel", "zt-1", "n1"),
            mirror,
            unbound,
            pod("shop", "new", "new-1", "n1"),
        ],
        now,
    );
    inventory.load_accounts(
        vec![
            account("citadel-system", "citadel-agent"),
            account("shop", "web"),
            account("shop", "db"),
            account("ambient", "ztunnel"),
        ],
        now,
    );
    inventory.load_nodes(vec![node("n1"), node("n2")], now);
    Arc::new(inventory)
}

pub(super) fn entry(path: &str, nodes: EntryNodes, selectors: &[&str]) -> Entry {
    let spiffe_id = format!("spiffe://example.org{path}").parse().unwrap();
    let selectors: Vec<_> = selectors.iter().map(|s| s.parse().unwrap()).collect();
    Entry {
        entry_id: Entry::make_id(&spiffe_id, &nodes, &selectors),
        spiffe_id,
        dns_names: vec!["db.example.org".into()],
        ttl: Some(Duration::from_secs(600)),
        nodes,
        selectors,
        hint: "extra".into(),
    }
}

pub(super) fn on(node: &str) -> EntryNodes {
    EntryNodes::Listed(vec![("default".into(), node.into())])
}

pub(super) fn policy() -> Policy {
    policy_with(FakeApi::default())
}

/// With an API server behind what the watches show.
pub(super) fn policy_with(api: impl Into<Arc<FakeApi>>) -> Policy {
    let set = |name: &str| HashSet::from([name.to_owned()]);
    let cluster = ClusterHandle::new(ClusterParts {
        name: "default".into(),
        mode: Mode::Local,
        issuers: Vec::new(),
        api: api.into(),
        inventory: inventory(),
        max_staleness: Duration::from_secs(600),
    });
    let options = PolicyOptions {
        agent_accounts: set("citadel-system/citadel-agent"),
        impersonating_accounts: set("ambient/ztunnel"),
        ..policy_options()
    };
    let registered = Registered {
        entries: vec![
            entry("/unix/alice", on("n1"), &["unix:uid:1000"]),
            entry("/extra", EntryNodes::All, &["k8s:ns:shop"]),
            entry("/elsewhere", on("n2"), &["k8s:ns:shop"]),
            entry("/static", on("n1"), &["k8s:ns:shop"]),
            entry("/static-sa", on("n1"), &["k8s:ns:shop", "k8s:sa:web"]),
        ],
        revision: 7,
    };
    Policy::new(options, registered, Arc::new(Clusters::new(vec![cluster])))
}

pub(super) fn subject(namespace: &str, account: &str, pod: &str, node: &str) -> Subject {
    Subject {
        cluster: "default".into(),
        namespace: namespace.into(),
        account: object(account),
        pod: Some(object(pod)),
        node: Some(object(node)),
    }
}

pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

pub(super) fn subject_of(caller: &mut Caller) -> &mut Subject {
    Arc::make_mut(caller.subject.as_mut().unwrap())
}

pub(super) fn by_token(subject: impl Into<Arc<Subject>>) -> Caller {
    let subject = subject.into();
    Caller {
        role: Role::Workload,
        subject: Some(subject.clone()),
        evidence: Evidence {
            method: Method::Jwks,
            token_id: Some("jti".into()),
            certificate: None,
        },
        origin: Origin {
            method: Method::Jwks,
            subject: Some(subject),
            node: None,
            entry_id: None,
            first_authenticated: now(),
            authority: Authority::Itself,
        },
        address: ([127, 0, 0, 1], 1).into(),
    }
}

pub(super) fn by_certificate(subject: impl Into<Arc<Subject>>) -> Caller {
    let mut caller = by_token(subject);
    let id = "spiffe://example.org/x".parse().unwrap();
    let serial = citadel_identity::serial::Serial::new(1);
    caller.evidence = Evidence {
        method: Method::ClientCertificate,
        token_id: None,
        certificate: Some((serial, id)),
    };
    caller
}

pub(super) fn agent() -> Caller {
    let mut caller = by_certificate(subject("citadel-system", "citadel-agent", "agent-1", "n1"));
    caller.role = Role::Agent {
        cluster: "default".into(),
        node: object("n1"),
    };
    caller
}

pub(super) fn decide(caller: &Caller, ask: Ask) -> Result<Grant, Denied> {
    policy().authorize(caller, &ask, Wish::default(), now())
}

/// As the issuance line does it.
pub(super) async fn look_up_and_decide(
    policy: &Policy,
    caller: &Caller,
    ask: &Ask,
) -> Result<Grant, Denied> {
    policy.look_up(caller, ask).await?;
    policy.authorize(caller, ask, Wish::default(), now())
}

pub(super) fn pod_ask(uid: &str) -> Ask {
    Ask::Pod {
        uid: uid.into(),
        namespace: None,
        account: None,
    }
}
