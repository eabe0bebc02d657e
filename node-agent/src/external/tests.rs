#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::testing::{Pki, trust_domain};

fn token() -> JoinToken {
    let addresses = vec!["ca.example.org:15012".to_owned()];
    JoinToken::generate(trust_domain(), addresses, [7; 32], "vm-1".into())
}

fn bundle() -> Bundle {
    Bundle::new(trust_domain(), vec![Pki::new().root()])
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_state_is_its_owner_s_alone_and_refused_where_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let folder = StateFolder::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    assert_eq!(folder.read().unwrap(), None);
    let external = External::open(folder.clone(), None).unwrap();
    let key = WorkloadKey::generate().unwrap();
    let chain = vec![vec![1, 2, 3]];
    let addresses = vec!["ca.example.org:15012".to_owned()];
    external
        .keep(chain.clone(), &key, &bundle(), addresses, Some([9; 16]))
        .unwrap();
    let file = path.join("agent.json");
    assert_eq!(mode(&file), 0o600);
    let kept = folder.read().unwrap().unwrap();
    assert_eq!(kept.chain, chain);
    assert_eq!(kept.key.as_slice(), key.pkcs8_der());
    assert_eq!(kept.joined_with, Some([9; 16]));
    assert!(!format!("{kept:?}").contains("key"));

    for (what, bad, good) in [(&file, 0o640, 0o600), (&path, 0o750, 0o700)] {
        set_mode(what, bad);
        let error = folder.read().unwrap_err();
        assert!(matches!(error, StateError::OpenToOthers { .. }), "{error}");
        set_mode(what, good);
        folder.read().unwrap();
    }
    fs::write(&file, "{}").unwrap();
    assert!(matches!(folder.read(), Err(StateError::Damaged(_))));
    // A link may lead to a file that another one owns.
    fs::remove_file(&file).unwrap();
    fs::write(dir.path().join("elsewhere"), "{}").unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &file).unwrap();
    assert!(matches!(folder.read(), Err(StateError::Io { .. })));
}

#[test]
fn roots_that_changed_are_kept_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let folder = StateFolder::open(&dir.path().join("state")).unwrap();
    let external = External::open(folder.clone(), None).unwrap();
    // Nothing to add them to.
    external.keep_bundle(&bundle()).unwrap();
    assert_eq!(folder.read().unwrap(), None);
    let key = WorkloadKey::generate().unwrap();
    external
        .keep(vec![vec![1]], &key, &bundle(), vec!["a:1".into()], None)
        .unwrap();
    let before = folder.read().unwrap().unwrap();
    let other = bundle();
    external.keep_bundle(&other).unwrap();
    let after = folder.read().unwrap().unwrap();
    assert_ne!(after.authorities, before.authorities);
    assert_eq!(
        after.bundles().get(&trust_domain()).unwrap().authorities,
        other.authorities
    );
    assert_eq!((after.chain, after.key), (before.chain, before.key));
}

#[test]
fn a_token_is_shown_with_one_key_and_never_again_once_it_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let folder = StateFolder::open(&dir.path().join("state")).unwrap();
    let external = External::open(folder.clone(), Some(path.clone())).unwrap();
    let error = external.token(&trust_domain()).unwrap_err();
    assert!(matches!(error, ExternalError::NotJoined), "{error}");
    let first = token();
    fs::write(&path, first.encode().as_str()).unwrap();
    let (shown, key) = external.token(&trust_domain()).unwrap();
    assert_eq!(shown, first);
    // The answer was lost: the same key is asked for again.
    let (_, again) = external.token(&trust_domain()).unwrap();
    assert_eq!(again.spki_der(), key.spki_der());
    let other = TrustDomain::new("other.org").unwrap();
    let error = external.token(&other).unwrap_err();
    assert!(
        matches!(error, ExternalError::OtherTrustDomain(_)),
        "{error}"
    );

    external
        .keep(
            vec![vec![1]],
            &key,
            &bundle(),
            vec!["a:1".into()],
            Some(first.id),
        )
        .unwrap();
    let error = external.token(&trust_domain()).unwrap_err().to_string();
    assert!(error.contains("citadel node join"), "{error}");
    assert!(error.contains(&hex::encode(first.id)), "{error}");
    // The file is gone, or holds another one.
    fs::remove_file(&path).unwrap();
    external.token(&trust_domain()).unwrap_err();
    let second = token();
    fs::write(&path, second.encode().as_str()).unwrap();
    let (shown, new_key) = external.token(&trust_domain()).unwrap();
    assert_eq!(shown, second);
    assert_ne!(new_key.spki_der(), key.spki_der());
    fs::write(&path, "nonsense").unwrap();
    let error = external.token(&trust_domain()).unwrap_err();
    assert!(matches!(error, ExternalError::TokenFile { .. }), "{error}");
}
