//! The policy against a hand-fed inventory: who may be whom.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::{sync::Arc, time::Duration};

use citadel_identity::template;
use citadel_kubernetes::{Event, NodeRecord};

use super::{testing::*, *};
use crate::{
    caller::{Authority, Caller, Role, Subject},
    testing::{FakeApi, State},
};

#[test]
fn a_pod_gets_its_accounts_identity_and_no_more() {
    let web = by_token(subject("shop", "web", "web-1", "n1"));
    let grant = decide(&web, Ask::Own).unwrap();
    assert_eq!(
        grant.spiffe_id().to_string(),
        "spiffe://example.org/ns/shop/sa/web"
    );
    assert!(grant.dns_names().is_empty());
    assert_eq!(grant.lifetime(), Duration::from_secs(3600));
    assert!(matches!(
        decide(&web, Ask::AgentIdentity),
        Err(Denied::NotEntitled(_))
    ));
    assert!(matches!(
        decide(&web, pod_ask("web-1-uid")),
        Err(Denied::WrongCaller(_))
    ));
    assert!(matches!(
        decide(&web, Ask::CaServer),
        Err(Denied::WrongCaller(_))
    ));
}

#[test]
fn lifetimes_are_clamped_not_refused() {
    let web = by_token(subject("shop", "web", "web-1", "n1"));
    let lifetime = |seconds: u64| {
        let wish = Wish {
            ttl: Some(Duration::from_secs(seconds)),
            ..Wish::default()
        };
        policy()
            .authorize(&web, &Ask::Own, wish, now())
            .unwrap()
            .lifetime()
            .as_secs()
    };
    assert_eq!(
        (lifetime(1), lifetime(60), lifetime(10_000_000)),
        (10, 60, 86_400)
    );
}

#[test]
fn an_agent_is_a_listed_account_on_the_very_node_that_the_watch_shows() {
    let caller = by_token(subject("citadel-system", "citadel-agent", "agent-1", "n1"));
    let grant = decide(&caller, Ask::AgentIdentity).unwrap();
    assert_eq!(grant.spiffe_id().path(), "/citadel/agent/default/n1");

    let mut remade = caller.clone();
    subject_of(&mut remade).node.as_mut().unwrap().uid = "older".into();
    assert!(matches!(
        decide(&remade, Ask::AgentIdentity),
        Err(Denied::Unavailable(_))
    ));
    let mut elsewhere = caller.clone();
    subject_of(&mut elsewhere).node = Some(object("n2"));
    assert!(matches!(
        decide(&elsewhere, Ask::AgentIdentity),
        Err(Denied::NotEntitled(_))
    ));
    let mut unbound = caller.clone();
    subject_of(&mut unbound).node = None;
    assert!(matches!(
        decide(&unbound, Ask::AgentIdentity),
        Err(Denied::NotEntitled(_))
    ));
    // Where the watch shows the pod is no claim of the token's.
    let mut unclaimed = caller.clone();
    subject_of(&mut unclaimed)
        .node
        .as_mut()
        .unwrap()
        .uid
        .clear();
    assert!(matches!(
        decide(&unclaimed, Ask::AgentIdentity),
        Err(Denied::NotEntitled(_))
    ));
    let with_workload_svid =
        by_certificate(subject("citadel-system", "citadel-agent", "agent-1", "n1"));
    assert!(matches!(
        decide(&with_workload_svid, Ask::AgentIdentity),
        Err(Denied::WrongCaller(_))
    ));
}

#[test]
fn an_agent_gets_what_runs_on_its_node_and_nothing_else() {
    let grant = decide(&agent(), pod_ask("web-1-uid")).unwrap();
    assert_eq!(grant.spiffe_id().path(), "/ns/shop/sa/web");
    assert_eq!(grant.pod_uid(), Some("web-1-uid"));
    assert!(matches!(
        decide(&agent(), pod_ask("db-1-uid")),
        Err(Denied::NotEntitled(_))
    ));
    assert!(matches!(
        decide(&agent(), pod_ask("made-up")),
        Err(Denied::UnknownPod(_))
    ));
    assert!(matches!(
        decide(&agent(), pod_ask("mirror-uid")),
        Err(Denied::NotEntitled(_))
    ));
    assert!(matches!(
        decide(&agent(), pod_ask(HASH)),
        Err(Denied::NotEntitled(_))
    ));
    // Its binding is on its way to the watch.
    assert!(matches!(
        decide(&agent(), pod_ask("unbound-uid")),
        Err(Denied::UnknownPod(_))
    ));
    let other_account = Ask::Pod {
        uid: "web-1-uid".into(),
        namespace: Some("shop".into()),
        account: Some("db".into()),
    };
    assert!(matches!(
        decide(&agent(), other_account),
        Err(Denied::NotEntitled(_))
    ));
    assert!(matches!(
        decide(&agent(), Ask::Own),
        Err(Denied::WrongCaller(_))
    ));
}

#[test]
fn entries_hold_on_their_nodes_and_for_what_they_select() {
    let ask = |entry: usize, pod_uid: Option<&str>| Ask::Entry {
        entry_id: policy()
            .registered()
            .entries
            .get(entry)
            .unwrap()
            .entry_id
            .clone(),
        pod_uid: pod_uid.map(Into::into),
    };
    let unix = decide(&agent(), ask(0, None)).unwrap();
    assert_eq!(unix.spiffe_id().path(), "/unix/alice");
    assert_eq!(unix.dns_names(), ["db.example.org"]);
    assert_eq!(unix.lifetime(), Duration::from_secs(600));
    assert_eq!(unix.hint(), "extra");

    assert!(decide(&agent(), ask(1, Some("web-1-uid"))).is_ok());
    assert!(matches!(
        decide(&agent(), ask(1, None)),
        Err(Denied::Invalid(_))
    ));
    assert!(matches!(
        decide(&agent(), ask(1, Some("agent-1-uid"))),
        Err(Denied::NotEntitled(_))
    ));
    // A mirror pod in the right namespace: the entry does not name its node.
    assert!(matches!(
        decide(&agent(), ask(1, Some("mirror-uid"))),
        Err(Denied::NotEntitled(_))
    ));
    assert!(matches!(
        decide(&agent(), ask(2, Some("web-1-uid"))),
        Err(Denied::NotEntitled(_))
    ));
}

#[test]
fn impersonation_is_for_listed_accounts_and_pods_of_their_node() {
    let ztunnel = by_token(subject("ambient", "ztunnel", "zt-1", "n1"));
    let ask = |id: &str| Ask::Impersonated(id.into());
    let grant = decide(&ztunnel, ask("spiffe://example.org/ns/shop/sa/web")).unwrap();
    assert_eq!(grant.origin().authority, Authority::Impersonation);
    for wrong in [
        "spiffe://other.org/ns/shop/sa/web",
        "spiffe://example.org/ns/shop/sa/db",
        "spiffe://EXAMPLE.org/ns/shop/sa/web",
        "spiffe://example.org/citadel/agent/default/n1",
        "",
    ] {
        assert!(
            matches!(decide(&ztunnel, ask(wrong)), Err(Denied::NotEntitled(_))),
            "{wrong}"
        );
    }
    let web = by_token(subject("shop", "web", "web-1", "n1"));
    let wanted = ask("spiffe://example.org/ns/shop/sa/web");
    assert!(matches!(
        decide(&web, wanted.clone()),
        Err(Denied::NotEntitled(_))
    ));
    let mut unclaimed = ztunnel;
    subject_of(&mut unclaimed)
        .node
        .as_mut()
        .unwrap()
        .uid
        .clear();
    assert!(matches!(
        decide(&unclaimed, wanted),
        Err(Denied::NotEntitled(_))
    ));
}

#[test]
fn a_relayed_token_is_of_the_agents_node_and_of_the_attested_pod() {
    let relayed = |workload: Subject, pod_uid: Option<&str>| {
        let workload = Box::new(by_token(workload));
        decide(
            &agent(),
            Ask::Relayed {
                workload,
                pod_uid: pod_uid.map(Into::into),
            },
        )
    };
    let web = subject("shop", "web", "web-1", "n1");
    let grant = relayed(web.clone(), Some("web-1-uid")).unwrap();
    assert_eq!(grant.origin().authority, Authority::RelayedToken);
    assert!(relayed(web.clone(), None).is_ok());
    assert!(matches!(
        relayed(web.clone(), Some("other")),
        Err(Denied::NotEntitled(_))
    ));
    let db = subject("shop", "db", "db-1", "n2");
    assert!(matches!(relayed(db, None), Err(Denied::NotEntitled(_))));
    let mut remade = web.clone();
    remade.node.as_mut().unwrap().uid = "older".into();
    assert!(matches!(relayed(remade, None), Err(Denied::NotEntitled(_))));
    let mut unclaimed = web.clone();
    unclaimed.node.as_mut().unwrap().uid.clear();
    assert!(matches!(
        relayed(unclaimed, None),
        Err(Denied::NotEntitled(_))
    ));
    let unbound = Subject { pod: None, ..web };
    assert!(matches!(
        relayed(unbound, None),
        Err(Denied::NotEntitled(_))
    ));
}

#[test]
fn chains_of_renewals_end_where_they_must() {
    let web = subject("shop", "web", "web-1", "n1");
    assert!(decide(&by_certificate(web.clone()), Ask::Own).is_ok());

    let mut impersonated = by_certificate(web.clone());
    impersonated.origin.authority = Authority::Impersonation;
    assert!(matches!(
        decide(&impersonated, Ask::Own),
        Err(Denied::RenewalEnded(_))
    ));

    let mut unix = by_certificate(web.clone());
    unix.subject = None;
    assert!(matches!(
        decide(&unix, Ask::Own),
        Err(Denied::RenewalEnded(_))
    ));

    let mut policy = policy();
    policy.options.allow_unbound.insert("shop/web".into());
    let mut unbound = by_certificate(Subject { pod: None, ..web });
    unbound.origin.first_authenticated = now() - Duration::from_secs(6 * 86_400);
    let decide = |caller: &Caller| policy.authorize(caller, &Ask::Own, Wish::default(), now());
    assert!(decide(&unbound).is_ok());
    unbound.origin.first_authenticated = now() - Duration::from_secs(8 * 86_400);
    assert!(matches!(decide(&unbound), Err(Denied::RenewalEnded(_))));
}

#[test]
fn what_only_the_agent_can_tell_renews_only_through_the_agent() {
    let policy = policy();
    let mut registered = (*policy.registered()).clone();
    let by_agent = [
        "k8s:container-name:main",
        "k8s:container-image:web:1",
        "unix:path:/bin/web",
    ];
    for selector in by_agent {
        let path = format!("/told/{}", registered.entries.len());
        let told = entry(&path, on("n1"), &["k8s:ns:shop", selector]);
        registered.entries.push(told);
    }
    policy.register(registered.clone());
    for entry in &registered.entries {
        let path = entry.spiffe_id.path();
        if path != "/extra" && !path.starts_with("/told/") {
            continue;
        }
        let mut caller = by_certificate(subject("shop", "web", "web-1", "n1"));
        caller.origin.entry_id = Some(entry.entry_id.clone());
        let decided = policy.authorize(&caller, &Ask::Own, Wish::default(), now());
        match path {
            "/extra" => assert!(decided.is_ok(), "{decided:?}"),
            told => assert!(
                matches!(decided, Err(Denied::RenewalEnded(_))),
                "{told}: {decided:?}"
            ),
        }
    }
}

#[test]
fn whatever_a_rule_yields_the_reserved_path_stays_reserved() {
    let policy = policy();
    let agent_id = template::agent_id(&policy.options.trust_domain, "default", "n1").unwrap();
    let mut registered = (*policy.registered()).clone();
    let entry = registered.entries.first_mut().unwrap();
    entry.spiffe_id = agent_id;
    let ask = Ask::Entry {
        entry_id: entry.entry_id.clone(),
        pod_uid: None,
    };
    policy.register(registered);
    let decided = policy.authorize(&agent(), &ask, Wish::default(), now());
    assert!(
        matches!(decided, Err(Denied::NotEntitled(_))),
        "{decided:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_decides_nothing() {
    let policy = policy();
    tokio::time::advance(Duration::from_secs(601)).await;
    let decided = policy.authorize(&agent(), &pod_ask("web-1-uid"), Wish::default(), now());
    assert!(
        matches!(decided, Err(Denied::Unavailable(_))),
        "{decided:?}"
    );
}

#[test]
fn a_static_pod_gets_what_an_entry_of_its_very_node_gives_and_no_account() {
    let ask = |entry: usize, pod_uid: &str| Ask::Entry {
        entry_id: policy()
            .registered()
            .entries
            .get(entry)
            .unwrap()
            .entry_id
            .clone(),
        pod_uid: Some(pod_uid.into()),
    };
    // The agent knows the hash alone; who knows the mirror pod's UID may use that.
    for uid in [HASH, "mirror-uid"] {
        let grant = decide(&agent(), ask(3, uid)).unwrap();
        assert_eq!(grant.spiffe_id().path(), "/static");
        assert_eq!(grant.pod_uid(), Some("mirror-uid"));
        let subject = grant.origin().subject.clone().unwrap();
        assert!(!subject.has_account(), "{subject:?}");
        // An entry of all nodes, one that selects an account, one of another node.
        for entry in [1, 4, 2] {
            assert!(
                matches!(
                    decide(&agent(), ask(entry, uid)),
                    Err(Denied::NotEntitled(_))
                ),
                "{uid} {entry}"
            );
        }
        // A renewal by itself takes the same rule, and no other way leads to an account.
        let mut renewing = by_certificate(subject);
        renewing.origin = grant.origin().clone();
        let renewed = decide(&renewing, Ask::Own).unwrap();
        assert_eq!(renewed.spiffe_id().path(), "/static");
        renewing.origin.entry_id = None;
        assert!(matches!(
            decide(&renewing, Ask::Own),
            Err(Denied::NotEntitled(_))
        ));
    }
    // Of the same node name in another cluster, or on another node, it is unknown.
    let mut other = agent();
    other.role = Role::Agent {
        cluster: "default".into(),
        node: object("n2"),
    };
    assert!(matches!(
        decide(&other, ask(2, HASH)),
        Err(Denied::UnknownPod(_))
    ));
}

#[tokio::test]
async fn a_node_that_the_watch_has_not_shown_is_asked_for_by_name() {
    let caller = {
        let mut caller = by_token(subject("citadel-system", "citadel-agent", "agent-1", "n1"));
        subject_of(&mut caller).node.as_mut().unwrap().uid = "newer".into();
        caller
    };
    let named = |uid: &str| NodeRecord {
        uid: uid.into(),
        ..node("n1")
    };
    let ask = Ask::AgentIdentity;
    for (nodes, is_entitled, is_final) in [
        (Some(vec![named("newer")]), true, true),
        (Some(vec![named("another")]), false, true),
        (Some(vec![]), false, true),
        (None, false, false),
    ] {
        let api = Arc::new(FakeApi::default());
        *api.state.lock().unwrap() = State {
            nodes,
            ..State::default()
        };
        let policy = policy_with(api.clone());
        let decided = look_up_and_decide(&policy, &caller, &ask).await;
        assert_eq!(decided.is_ok(), is_entitled, "{decided:?}");
        let undecided = matches!(decided, Err(Denied::Unavailable(_)));
        assert_eq!(!undecided, is_final, "{decided:?}");
        assert_eq!(api.asked(), 1);
    }
    // An account that is no agent's costs the API server nothing.
    let api = Arc::new(FakeApi::default());
    let mut web = by_token(subject("shop", "web", "web-1", "n1"));
    subject_of(&mut web).node.as_mut().unwrap().uid = "made-up".into();
    let decided = look_up_and_decide(&policy_with(api.clone()), &web, &ask).await;
    assert!(matches!(decided, Err(Denied::NotEntitled(_))));
    assert_eq!(api.asked(), 0);
}

#[tokio::test]
async fn a_node_that_the_watch_saw_go_is_final() {
    let policy = policy();
    let inventory = policy.clusters.get("default").unwrap().inventory().clone();
    let now = tokio::time::Instant::now().into_std();
    inventory.apply_node(Event::Deleted(node("n1")), now);
    let caller = by_token(subject("citadel-system", "citadel-agent", "agent-1", "n1"));
    let decided = look_up_and_decide(&policy, &caller, &Ask::AgentIdentity).await;
    assert!(
        matches!(decided, Err(Denied::NotEntitled(_))),
        "{decided:?}"
    );
}

#[tokio::test]
async fn an_account_that_the_watch_has_not_shown_is_asked_for_by_name() {
    let ztunnel = by_token(subject("ambient", "ztunnel", "zt-1", "n1"));
    let impersonated = Ask::Impersonated("spiffe://example.org/ns/shop/sa/new".into());
    for (accounts, is_entitled, is_final) in [
        (Some(vec![account("shop", "new")]), true, true),
        (Some(vec![]), false, true),
        (None, false, false),
    ] {
        for (caller, ask) in [(&agent(), &pod_ask("new-1-uid")), (&ztunnel, &impersonated)] {
            let api = Arc::new(FakeApi::default());
            api.state.lock().unwrap().accounts.clone_from(&accounts);
            let policy = policy_with(api.clone());
            let decided = look_up_and_decide(&policy, caller, ask).await;
            assert_eq!(decided.is_ok(), is_entitled, "{decided:?}");
            let undecided = matches!(decided, Err(Denied::Unavailable(_)));
            assert_eq!(!undecided, is_final, "{decided:?}");
            assert_eq!(api.asked(), 1);
        }
    }
    // What is known costs nothing; nor does what another node runs.
    let api = Arc::new(FakeApi::default());
    let policy = policy_with(api.clone());
    for uid in ["web-1-uid", "db-1-uid", "mirror-uid", "made-up"] {
        let _ = look_up_and_decide(&policy, &agent(), &pod_ask(uid)).await;
    }
    assert_eq!(api.asked(), 0);
}
