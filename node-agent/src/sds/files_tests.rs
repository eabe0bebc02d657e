#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

use rcgen::{CertificateParams, KeyPair};

use super::*;

const CALLER: &str = "spiffe://example.org/proxy";

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        citadel_identity::crypto::install_default();
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(folder.path("shared")).unwrap();
        folder.write_pair("shared/cert.pem", "shared/key.pem");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_pair(&self, cert: &str, key: &str) {
        let pair = KeyPair::generate().unwrap();
        let made = CertificateParams::default().self_signed(&pair).unwrap();
        fs::write(
            self.path(cert),
            pem::encode(pem::CERTIFICATE, made.der()).as_bytes(),
        )
        .unwrap();
        fs::write(self.path(key), pair.serialize_pem()).unwrap();
    }

    fn rules(&self) -> Vec<FolderRule> {
        vec![FolderRule {
            folder: self.path("shared"),
            spiffe_ids: [SpiffeId::new(CALLER).unwrap()].into(),
        }]
    }

    fn cert_name(&self, cert: &str, key: &str) -> String {
        let (cert, key) = (self.path(cert), self.path(key));
        format!("file-cert:{}~{}", cert.display(), key.display())
    }

    fn root_name(&self, root: &str) -> String {
        format!("file-root:{}", self.path(root).display())
    }

    fn read(&self, name: &str) -> Result<FileSecret, FileError> {
        read(&self.rules(), &[SpiffeId::new(CALLER).unwrap()], name)
    }
}

#[test]
fn certificate_and_roots_are_read_where_a_rule_names_folder_and_caller() {
    let folder = Folder::new();
    let name = folder.cert_name("shared/cert.pem", "shared/key.pem");
    let FileSecret::Certificate { chain, key, .. } = folder.read(&name).unwrap() else {
        panic!("not a certificate")
    };
    assert_eq!(chain, fs::read(folder.path("shared/cert.pem")).unwrap());
    assert!(key.starts_with(b"-----BEGIN PRIVATE KEY-----\n"));
    let FileSecret::Roots { roots, .. } =
        folder.read(&folder.root_name("shared/cert.pem")).unwrap()
    else {
        panic!("not roots")
    };
    assert_eq!(roots, chain);
}

#[test]
fn sds_req_20_without_a_rule_for_both_nothing_is_read() {
    let folder = Folder::new();
    let name = folder.cert_name("shared/cert.pem", "shared/key.pem");
    let other = SpiffeId::new("spiffe://example.org/other").unwrap();
    let caller = SpiffeId::new(CALLER).unwrap();
    for (rules, callers) in [
        (vec![], vec![caller.clone()]),
        (folder.rules(), vec![other]),
        (folder.rules(), vec![]),
    ] {
        let refused = read(&rules, &callers, &name).err().unwrap();
        assert!(matches!(refused, FileError::NotAllowed(_)), "{refused}");
    }
    // Of what no rule allows it is not even told whether it is there.
    let absent = folder.root_name("elsewhere/absent.pem");
    let refused = folder.read(&absent).err().unwrap();
    assert!(matches!(refused, FileError::NotAllowed(_)), "{refused}");
}

#[test]
fn sds_req_20_no_path_leads_out_of_the_folder() {
    let folder = Folder::new();
    fs::create_dir(folder.path("private")).unwrap();
    folder.write_pair("private/cert.pem", "private/key.pem");
    fs::create_dir(folder.path("shared2")).unwrap();
    folder.write_pair("shared2/cert.pem", "shared2/key.pem");
    symlink(
        folder.path("private/key.pem"),
        folder.path("shared/link.pem"),
    )
    .unwrap();
    symlink(folder.path("private"), folder.path("shared/linked")).unwrap();
    for name in [
        folder.cert_name("private/cert.pem", "private/key.pem"),
        // The same beginning is not the same folder.
        folder.cert_name("shared2/cert.pem", "shared2/key.pem"),
        folder.cert_name("shared/cert.pem", "shared/../private/key.pem"),
        folder.cert_name("shared/cert.pem", "shared/link.pem"),
        folder.cert_name("shared/linked/cert.pem", "shared/linked/key.pem"),
        folder.root_name("shared/linked/cert.pem"),
        "file-root:relative.pem".to_owned(),
        "file-root:".to_owned(),
        folder.root_name("shared"),
    ] {
        let refused = folder.read(&name).err().unwrap();
        assert!(
            matches!(refused, FileError::NotAllowed(_) | FileError::Path(_)),
            "{name}: {refused}"
        );
    }
}

/// As the kubelet lays a Secret out: links within the folder.
#[test]
fn links_within_the_folder_are_followed() {
    let folder = Folder::new();
    fs::create_dir(folder.path("shared/..1")).unwrap();
    folder.write_pair("shared/..1/tls.crt", "shared/..1/tls.key");
    symlink("..1", folder.path("shared/..data")).unwrap();
    symlink("..data/tls.crt", folder.path("shared/tls.crt")).unwrap();
    symlink("..data/tls.key", folder.path("shared/tls.key")).unwrap();
    let name = folder.cert_name("shared/tls.crt", "shared/tls.key");
    folder.read(&name).unwrap();
}

#[test]
fn what_is_no_such_file_is_named_and_not_served() {
    let folder = Folder::new();
    fs::write(folder.path("shared/text"), "hello").unwrap();
    fs::write(folder.path("shared/huge"), vec![b' '; MAX_FILE + 1]).unwrap();
    fs::write(folder.path("shared/open.pem"), "x").unwrap();
    fs::set_permissions(
        folder.path("shared/open.pem"),
        fs::Permissions::from_mode(0o666),
    )
    .unwrap();
    nix::unistd::mkfifo(
        &folder.path("shared/fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    folder.write_pair("shared/other.pem", "shared/other-key.pem");
    for name in [
        folder.root_name("shared/text"),
        folder.root_name("shared/huge"),
        folder.root_name("shared/open.pem"),
        folder.root_name("shared/fifo"),
        folder.root_name("shared/absent"),
        folder.root_name("shared/key.pem"),
        folder.cert_name("shared/cert.pem", "shared/cert.pem"),
        // Half exchanged.
        folder.cert_name("shared/cert.pem", "shared/other-key.pem"),
        "file-root:system".to_owned(),
        "file-cert:/a".to_owned(),
        "file-cert:/a~/b~/c".to_owned(),
    ] {
        let refused = folder.read(&name).err().unwrap();
        assert!(
            !matches!(refused, FileError::NotAllowed(_)),
            "{name}: {refused}"
        );
    }
}

#[test]
fn what_was_read_stays_through_trouble_and_a_problem_is_told_once() {
    let folder = Folder::new();
    let caller = [SpiffeId::new(CALLER).unwrap()];
    let name = folder.cert_name("shared/cert.pem", "shared/key.pem");
    let mut names = vec![name.clone()];
    let mut files = Files::default();
    let look = |files: &mut Files, rules: &[FolderRule], names: &[String]| {
        files.refresh(rules, &caller, names).len()
    };
    assert_eq!(look(&mut files, &folder.rules(), &names), 0);
    let first = files.get(&name).unwrap().version().to_owned();
    // Gone for a moment, and back as another one.
    fs::remove_file(folder.path("shared/key.pem")).unwrap();
    assert_eq!(look(&mut files, &folder.rules(), &names), 1);
    assert_eq!(look(&mut files, &folder.rules(), &names), 0);
    assert_eq!(files.get(&name).unwrap().version(), first);
    folder.write_pair("shared/cert.pem", "shared/key.pem");
    assert_eq!(look(&mut files, &folder.rules(), &names), 0);
    assert_ne!(files.get(&name).unwrap().version(), first);
    // More than a stream may have.
    names.extend((0..20).map(|n| folder.root_name(&format!("shared/{n}"))));
    assert_eq!(look(&mut files, &folder.rules(), &names), 20);
    // Who may have it no more has no more of it.
    look(&mut files, &[], &names);
    assert!(files.get(&name).is_none());
}
