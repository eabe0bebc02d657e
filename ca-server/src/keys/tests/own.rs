#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use citadel_identity::key::SigningAlgorithm;
use nix::unistd::geteuid;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::{
    config::Config,
    keys::{
        CaKeys, KeyError,
        files::Directory,
        testing::{config, now, root_of},
    },
};

const FILES: [&str; 4] = ["root-key.pem", "root-cert.pem", "ca-key.pem", "ca-cert.pem"];

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn load(directory: &Path) -> Result<CaKeys, KeyError> {
    load_at(directory, now())
}

fn load_at(directory: &Path, now: OffsetDateTime) -> Result<CaKeys, KeyError> {
    CaKeys::load_or_create(&config(directory, None), now)
}

fn refusal(directory: &Path) -> String {
    load(directory).unwrap_err().to_string()
}

/// Every file with its content.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (name(&entry), fs::read(entry.path()).unwrap()))
        .collect()
}

#[tokio::test]
async fn the_first_start_makes_a_ca_and_the_next_loads_it() {
    let directory = directory();
    let data = directory.path().join("deep/data");
    let made = load(&data).unwrap();
    assert_eq!(made.signer.algorithm(), SigningAlgorithm::EcdsaP256Sha256);
    assert!(made.signer.in_process());
    assert!(!made.signer.sign(b"bytes").await.unwrap().is_empty());
    assert_eq!(root_of(&made).not_after, now() + Duration::days(3650));
    assert_eq!(made.issuer.not_after(), now() + Duration::days(365));
    assert_eq!(made.issuer.path_length(), Some(0));
    assert_eq!(made.issuer.trust_domain().unwrap().as_str(), "example.org");
    assert_eq!(made.issuer.chain().len(), 1);
    assert_eq!(
        made.bundle.authorities,
        std::slice::from_ref(made.issuer.root())
    );
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    for (name, mode) in FILES.iter().zip([0o600, 0o644, 0o600, 0o644]) {
        assert_eq!(
            fs::metadata(data.join(name)).unwrap().mode() & 0o7777,
            mode,
            "{name}"
        );
    }
    let before = contents(&data);
    assert_eq!(before.len(), 4, "{:?}", before.keys());

    let loaded = load(&data).unwrap();
    assert_eq!(loaded.issuer, made.issuer);
    assert_eq!(contents(&data), before);
    let debug = format!("{loaded:?}");
    assert!(!debug.to_lowercase().contains("pkcs"), "{debug}");
    for name in ["root-key.pem", "ca-key.pem"] {
        let pem = String::from_utf8(before[name].clone()).unwrap();
        assert!(!debug.contains(pem.lines().nth(1).unwrap()));
    }
}

#[test]
fn after_a_crash_the_next_start_completes_what_was_begun() {
    for kept in 0..4 {
        let directory = directory();
        load(directory.path()).unwrap();
        for name in &FILES[kept..] {
            fs::remove_file(directory.path().join(name)).unwrap();
        }
        let half_written = directory.path().join(".citadel-new-0011");
        fs::write(&half_written, "-----BEGIN").unwrap();
        let before = contents(directory.path());
        load(directory.path()).unwrap();
        let after = contents(directory.path());
        assert_eq!(after.len(), 4, "{:?}", after.keys());
        for name in &FILES[..kept] {
            assert_eq!(after[*name], before[*name], "{name} with {kept} kept");
        }
        load(directory.path()).unwrap();
    }
}

#[test]
fn every_other_incomplete_set_is_refused_and_left_alone() {
    let complete = directory();
    load(complete.path()).unwrap();
    // Bits in the order of FILES: the beginnings of the list, and all without the root key.
    let accepted = [0b0000, 0b0001, 0b0011, 0b0111, 0b1111, 0b1110];
    for set in (0..16_u32).filter(|set| !accepted.contains(set)) {
        let has = |index: usize| set & (1 << index) != 0;
        let missing = match [has(0), has(1), has(2), has(3)] {
            [_, _, false, true] => "ca-key.pem is missing",
            [_, false, _, _] => "root-cert.pem is missing",
            _ => "root-key.pem is missing",
        };
        let directory = directory();
        for (index, name) in FILES.iter().enumerate().filter(|(index, _)| has(*index)) {
            fs::copy(complete.path().join(name), directory.path().join(name)).unwrap();
            assert!(has(index));
        }
        let before = contents(directory.path());
        let refusal = refusal(directory.path());
        assert!(refusal.contains(missing), "{set:04b}: {refusal}");
        assert!(refusal.contains("restore it from a backup"), "{refusal}");
        assert_eq!(contents(directory.path()), before);
    }
}

#[test]
fn a_key_that_others_may_read_or_own_is_refused() {
    for name in ["root-key.pem", "ca-key.pem"] {
        let directory = directory();
        load(directory.path()).unwrap();
        let path = directory.path().join(name);
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refusal = refusal(directory.path());
            assert!(
                refusal.contains(&format!("mode is {mode:04o}")),
                "{refusal}"
            );
            assert!(
                refusal.contains(&format!("chmod 600 {}", path.display())),
                "{refusal}"
            );
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        load(directory.path()).unwrap();
        // Only root can give a file away.
        if geteuid().is_root() {
            chown(&path, Some(12_345), None).unwrap();
            let refusal = refusal(directory.path());
            assert!(refusal.contains("belongs to uid 12345"), "{refusal}");
            assert!(refusal.contains("chown 0"), "{refusal}");
        }
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(refusal(directory.path()).contains("is not a regular file"));
    }
}

#[test]
fn a_directory_that_anyone_may_write_is_refused() {
    let directory = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let refusal = refusal(directory.path());
    assert!(refusal.contains("replace the files in it"), "{refusal}");
    assert!(refusal.contains("chmod 770"), "{refusal}");
    assert_eq!(contents(directory.path()).len(), 0);
}

#[test]
fn keys_and_certificates_of_different_cas_are_refused() {
    for (name, says) in [
        ("root-key.pem", "does not match the certificate"),
        ("ca-key.pem", "does not match the certificate"),
        ("ca-cert.pem", "does not match the certificate"),
    ] {
        let (one, other) = (directory(), directory());
        load(one.path()).unwrap();
        load(other.path()).unwrap();
        fs::copy(other.path().join(name), one.path().join(name)).unwrap();
        let refusal = refusal(one.path());
        assert!(refusal.contains(says), "{name}: {refusal}");
    }
    let (one, other) = (directory(), directory());
    load(one.path()).unwrap();
    load(other.path()).unwrap();
    fs::remove_file(one.path().join("root-key.pem")).unwrap();
    fs::copy(
        other.path().join("root-cert.pem"),
        one.path().join("root-cert.pem"),
    )
    .unwrap();
    assert!(refusal(one.path()).contains("does not lead to a root"));
}

#[test]
fn garbage_is_refused_with_the_files_name() {
    for (name, content, says) in [
        ("root-key.pem", "", "root-key.pem: one private key"),
        ("ca-key.pem", "garbage", "ca-key.pem: one private key"),
        (
            "ca-cert.pem",
            "garbage",
            "ca-cert.pem: holds no certificate",
        ),
        (
            "root-cert.pem",
            "-----BEGIN CERTIFICATE-----\n",
            "root-cert.pem: ",
        ),
    ] {
        let directory = directory();
        load(directory.path()).unwrap();
        fs::write(directory.path().join(name), content).unwrap();
        let refusal = refusal(directory.path());
        assert!(refusal.contains(says), "{name}: {refusal}");
    }
}

#[test]
fn the_intermediate_is_renewed_for_its_key_in_the_last_third_of_its_life() {
    let directory = directory();
    let made = load(directory.path()).unwrap();
    let same = load_at(directory.path(), now() + Duration::days(200)).unwrap();
    assert_eq!(same.issuer, made.issuer);
    // Also when it has expired already.
    for days in [300, 700] {
        let later = now() + Duration::days(days);
        let renewed = load_at(directory.path(), later).unwrap();
        assert_eq!(renewed.issuer.not_after(), later + Duration::days(365));
        assert_eq!(renewed.issuer.spki_der(), made.issuer.spki_der());
        assert_eq!(
            renewed.issuer.subject_key_id(),
            made.issuer.subject_key_id()
        );
        assert_eq!(renewed.issuer.root(), made.issuer.root());
        let again = load_at(directory.path(), later).unwrap();
        assert_eq!(again.issuer, renewed.issuer);
    }
    // Never beyond the root.
    let last = load_at(directory.path(), now() + Duration::days(3_600)).unwrap();
    assert_eq!(last.issuer.not_after(), root_of(&last).not_after);
}

#[test]
fn the_root_key_may_be_kept_elsewhere() {
    let directory = directory();
    let made = load(directory.path()).unwrap();
    fs::remove_file(directory.path().join("root-key.pem")).unwrap();
    assert_eq!(load(directory.path()).unwrap().issuer, made.issuer);
    load_at(directory.path(), now() + Duration::days(364)).unwrap();
    let error = load_at(directory.path(), now() + Duration::days(366))
        .unwrap_err()
        .to_string();
    assert!(error.contains("expired at"), "{error}");
    assert!(error.contains("have the certificate renewed"), "{error}");
}

#[test]
fn a_clock_before_the_certificates_is_named() {
    let directory = directory();
    load(directory.path()).unwrap();
    let error = load_at(directory.path(), now() - Duration::days(1))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is not valid before") && error.contains("clock"),
        "{error}"
    );
}

#[test]
fn another_trust_domain_is_refused() {
    let directory = directory();
    load(directory.path()).unwrap();
    let text = format!(
        "trust_domain: other.org\ndata_dir: {}",
        directory.path().display()
    );
    let other = Config::from_yaml("test", &text).unwrap();
    let error = CaKeys::load_or_create(&other, now())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is for the trust domain example.org, but trust_domain is other.org"));
}

#[test]
fn two_starts_at_once_do_not_mix_their_keys() {
    let directory = directory();
    let held = Directory::open(directory.path()).unwrap();
    assert!(refusal(directory.path()).contains("another process is starting"));
    drop(held);
    load(directory.path()).unwrap();
}

#[test]
fn a_file_that_exists_is_never_overwritten() {
    let directory = directory();
    let open = Directory::open(directory.path()).unwrap();
    open.create("a", 0o600, b"first").unwrap();
    open.create("a", 0o600, b"second").unwrap_err();
    assert_eq!(
        contents(directory.path()),
        BTreeMap::from([("a".into(), b"first".to_vec())])
    );
}
