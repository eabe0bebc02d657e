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
        "/", "/a/", "//a", "/a//b", "/.", "/..", "/a/./b", "/a/../b", "/a%41", "/ä", "/a:b", "/a~b",
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
