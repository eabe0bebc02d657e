#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, os::unix::fs::symlink, path::Path};

use citadel_identity::key::SigningAlgorithm;
use proptest::{prelude::*, sample::Index};
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose, SanType};
use tempfile::TempDir;
use time::Duration;

use crate::keys::{
    CaKeys, KeyError, Place,
    testing::{
        Authority, Cacerts, Kind, authority, config, key, now, openssl, openssl_rsa, root_of,
    },
};

fn load(cacerts: &Path) -> Result<CaKeys, KeyError> {
    let data = tempfile::tempdir().unwrap();
    let loaded = CaKeys::load_or_create(&config(data.path(), Some(cacerts)), now());
    assert_eq!(
        fs::read_dir(data.path()).unwrap().count(),
        0,
        "nothing is made in data_dir"
    );
    loaded
}

fn written(files: &Cacerts) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    files.write(directory.path());
    directory
}

fn refusal(files: &Cacerts) -> String {
    load(written(files).path()).unwrap_err().to_string()
}

fn root() -> Authority {
    authority("root", Kind::P256, None, |_| {})
}

fn issuing(root: &Authority) -> Authority {
    authority("issuing", Kind::P256, Some(root), |_| {})
}

#[tokio::test]
async fn all_kinds_of_keys_are_accepted() {
    for (kind, algorithm) in [
        (Kind::P256, SigningAlgorithm::EcdsaP256Sha256),
        (Kind::P384, SigningAlgorithm::EcdsaP384Sha384),
        (Kind::Rsa(2048), SigningAlgorithm::RsaPkcs1Sha256),
        (Kind::Rsa(4096), SigningAlgorithm::RsaPkcs1Sha256),
    ] {
        let root = authority("root", kind, None, |_| {});
        let issuing = authority("issuing", kind, Some(&root), |_| {});
        let keys = load(written(&Cacerts::of(&issuing, &root)).path()).unwrap();
        assert_eq!(keys.signer.algorithm(), algorithm, "{kind:?}");
        assert!(!keys.signer.sign(b"bytes").await.unwrap().is_empty());
        assert_eq!(keys.issuer.chain().len(), 1);
        assert_eq!(keys.bundle.authorities.len(), 1);
        assert_eq!(root_of(&keys).not_after, now() + Duration::days(90));
    }
}

#[test]
fn keys_may_be_encoded_as_openssl_does_it() {
    let directory = tempfile::tempdir().unwrap();
    for kind in [Kind::P256, Kind::P384, Kind::Rsa(2048)] {
        let root = root();
        let issuing = authority("issuing", kind, Some(&root), |_| {});
        let plain = directory.path().join("key.pem");
        fs::write(&plain, issuing.key.serialize_pem()).unwrap();
        let traditional = openssl(&["pkey", "-traditional", "-in", plain.to_str().unwrap()]);
        assert!(!traditional.contains("BEGIN PRIVATE KEY"), "{kind:?}");
        let files = Cacerts {
            key: traditional,
            ..Cacerts::of(&issuing, &root)
        };
        load(written(&files).path()).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
    }
}

#[test]
fn chains_of_several_intermediates_and_none_are_accepted() {
    let root = root();
    let middle = authority("middle", Kind::P384, Some(&root), |_| {});
    let issuing = authority("issuing", Kind::P256, Some(&middle), |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let chain = format!("{}{}", issuing.pem, middle.pem);
    let files = Cacerts {
        chain,
        ..Cacerts::of(&issuing, &root)
    };
    let keys = load(written(&files).path()).unwrap();
    assert_eq!(keys.issuer.chain().len(), 2);
    assert_eq!(keys.issuer.path_length(), Some(0));

    // The root itself issues.
    let keys = load(written(&Cacerts::of(&root, &root)).path()).unwrap();
    assert!(keys.issuer.chain().is_empty());

    // Two roots while one takes over from the other: both are in the bundle.
    let next = authority("next", Kind::P256, None, |_| {});
    let roots = format!("{}{}{}", root.pem, next.pem, root.pem);
    let files = Cacerts {
        root: roots,
        chain: files.chain.clone(),
        ..Cacerts::of(&issuing, &root)
    };
    assert_eq!(
        load(written(&files).path())
            .unwrap()
            .bundle
            .authorities
            .len(),
        2
    );
}

#[test]
fn every_certificate_is_described() {
    let root = root();
    let middle = authority("middle", Kind::P256, Some(&root), |params| {
        params.not_after = now() + Duration::days(30);
    });
    let issuing = issuing(&middle);
    let next = authority("next", Kind::P256, None, |_| {});
    let files = Cacerts {
        chain: format!("{}{}", issuing.pem, middle.pem),
        root: format!("{}{}", next.pem, root.pem),
        ..Cacerts::of(&issuing, &root)
    };
    let keys = load(written(&files).path()).unwrap();
    let (soon, late) = (now() + Duration::days(30), now() + Duration::days(90));
    let all = keys.certificates().iter();
    assert_eq!(
        all.map(|one| (one.place, one.subject.as_str(), one.not_after))
            .collect::<Vec<_>>(),
        [
            (Place::Issuer, "CN=issuing", late),
            (Place::Intermediate, "CN=middle", soon),
            (Place::Root, "CN=root", late),
            (Place::OtherRoot, "CN=next", late),
        ]
    );
}

#[test]
fn a_tls_secret_and_a_secrets_volume_are_read() {
    let root = root();
    let issuing = issuing(&root);
    let write_tls = |directory: &Path| {
        fs::write(directory.join("tls.crt"), &issuing.pem).unwrap();
        fs::write(directory.join("tls.key"), issuing.key.serialize_pem()).unwrap();
        fs::write(directory.join("ca.crt"), &root.pem).unwrap();
    };
    let directory = tempfile::tempdir().unwrap();
    write_tls(directory.path());
    load(directory.path()).unwrap();

    Cacerts::of(&issuing, &root).write(directory.path());
    let both = load(directory.path()).unwrap_err().to_string();
    assert!(both.contains("keep one of the two sets"), "{both}");

    // As the kubelet lays it out: files are links through `..data`.
    let volume = tempfile::tempdir().unwrap();
    let moment = volume.path().join("..2026_11_20");
    fs::create_dir(&moment).unwrap();
    write_tls(&moment);
    symlink("..2026_11_20", volume.path().join("..data")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), volume.path().join(name)).unwrap();
    }
    load(volume.path()).unwrap();
}

#[test]
fn defect_1_a_key_of_another_certificate() {
    let root = root();
    let files = Cacerts {
        key: key(Kind::P256).serialize_pem(),
        ..Cacerts::of(&issuing(&root), &root)
    };
    let refusal = refusal(&files);
    assert!(
        refusal.contains("the CA key does not match the certificate"),
        "{refusal}"
    );
    assert!(
        refusal.contains("certificate and the key of the same CA"),
        "{refusal}"
    );
}

#[test]
fn defect_2_a_chain_that_does_not_lead_to_the_root() {
    let root = root();
    let other = authority("other", Kind::P256, None, |_| {});
    let files = Cacerts {
        root: other.pem.clone(),
        ..Cacerts::of(&issuing(&root), &root)
    };
    let stranger = refusal(&files);
    assert!(stranger.contains("does not lead to a root"), "{stranger}");

    let middle = authority("middle", Kind::P256, Some(&root), |_| {});
    let issuing = authority("issuing", Kind::P256, Some(&middle), |_| {});
    let gap = refusal(&Cacerts::of(&issuing, &root));
    assert!(gap.contains("which is missing"), "{gap}");

    // A root of the right name that did not sign.
    let twin = authority("root", Kind::P256, None, |_| {});
    let files = Cacerts {
        root: twin.pem.clone(),
        chain: issuing.pem.clone(),
        ..Cacerts::of(&self::issuing(&root), &root)
    };
    let forged = refusal(&Cacerts {
        chain: files.certificate.clone(),
        ..files
    });
    assert!(
        forged.contains("did not sign") || forged.contains("does not lead"),
        "{forged}"
    );
}

#[test]
fn defect_3_certificates_out_of_their_validity() {
    let root = root();
    let expired = authority("issuing", Kind::P256, Some(&root), |params| {
        params.not_before = now() - Duration::days(9);
        params.not_after = now() - Duration::days(1);
    });
    let old = refusal(&Cacerts::of(&expired, &root));
    assert!(
        old.contains("expired at") && old.contains("have the certificate renewed"),
        "{old}"
    );

    let future = authority("issuing", Kind::P256, Some(&root), |params| {
        params.not_before = now() + Duration::days(1);
    });
    let early = refusal(&Cacerts::of(&future, &root));
    assert!(
        early.contains("is not valid before") && early.contains("clock"),
        "{early}"
    );

    let old_root = authority("root", Kind::P256, None, |params| {
        params.not_before = now() - Duration::days(9);
        params.not_after = now() - Duration::days(1);
    });
    let under = refusal(&Cacerts::of(&issuing(&old_root), &old_root));
    assert!(under.contains("expired at"), "{under}");
}

#[test]
fn defect_4_a_certificate_that_may_not_issue() {
    let root = root();
    let leaf = authority("leaf", Kind::P256, Some(&root), |params| {
        params.is_ca = IsCa::ExplicitNoCa;
    });
    let no_ca = refusal(&Cacerts::of(&leaf, &root));
    assert!(no_ca.contains("is not a CA's"), "{no_ca}");

    let usage = authority("issuing", Kind::P256, Some(&root), |params| {
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    let usage = refusal(&Cacerts::of(&usage, &root));
    assert!(usage.contains("lacks keyCertSign"), "{usage}");

    let short = authority("short", Kind::P256, Some(&root), |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = authority("below", Kind::P256, Some(&short), |_| {});
    let chain = format!("{}{}", below.pem, short.pem);
    let length = refusal(&Cacerts {
        chain,
        ..Cacerts::of(&below, &root)
    });
    assert!(length.contains("path length"), "{length}");
}

#[test]
fn defect_5_an_incomplete_set() {
    let root = root();
    let files = Cacerts::of(&issuing(&root), &root);
    for name in [
        "ca-cert.pem",
        "ca-key.pem",
        "root-cert.pem",
        "cert-chain.pem",
    ] {
        let directory = written(&files);
        fs::remove_file(directory.path().join(name)).unwrap();
        let error = load(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("incomplete: {name} is missing; put")),
            "{error}"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let all = load(directory.path()).unwrap_err().to_string();
    assert!(all.contains("ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem are missing"));
    fs::write(directory.path().join("tls.crt"), &files.certificate).unwrap();
    let tls = load(directory.path()).unwrap_err().to_string();
    assert!(
        tls.contains("incomplete: tls.key, ca.crt are missing"),
        "{tls}"
    );
    let nowhere = load(Path::new("/nonexistent/cacerts"))
        .unwrap_err()
        .to_string();
    assert!(
        nowhere.contains("/nonexistent/cacerts: incomplete"),
        "{nowhere}"
    );
}

#[test]
fn defect_6_files_that_hold_something_else() {
    let root = root();
    let issuing = issuing(&root);
    let good = || Cacerts::of(&issuing, &root);
    for (files, says) in [
        (
            Cacerts {
                certificate: "garbage".into(),
                ..good()
            },
            "ca-cert.pem: holds no certificate",
        ),
        (
            Cacerts {
                certificate: issuing.key.serialize_pem(),
                ..good()
            },
            "ca-cert.pem: holds a PEM block \"PRIVATE KEY\" instead of a certificate",
        ),
        (
            Cacerts {
                chain: String::new(),
                ..good()
            },
            "cert-chain.pem: holds no certificate",
        ),
        (
            Cacerts {
                root: root.pem.replace("END", "AND"),
                ..good()
            },
            "root-cert.pem: the PEM block \"CERTIFICATE\" has no matching END line",
        ),
        (
            Cacerts {
                key: issuing.pem.clone(),
                ..good()
            },
            "ca-key.pem: one private key",
        ),
        (
            Cacerts {
                key: issuing.key.serialize_pem().repeat(2),
                ..good()
            },
            "ca-key.pem: one private key",
        ),
        (
            Cacerts {
                key: openssl_rsa(1024),
                ..good()
            },
            "ca-key.pem: ",
        ),
        (
            Cacerts {
                key: openssl(&["genpkey", "-algorithm", "ED25519"]),
                ..good()
            },
            "ca-key.pem: ",
        ),
    ] {
        let refusal = refusal(&files);
        assert!(refusal.contains(says), "{says}: {refusal}");
        assert!(!refusal.contains("does not match"), "{refusal}");
    }
}

#[test]
fn an_encrypted_key_is_named_as_one() {
    let root = root();
    let issuing = issuing(&root);
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("key.pem");
    fs::write(&plain, issuing.key.serialize_pem()).unwrap();
    let plain = plain.to_str().unwrap();
    for args in [
        &["pkcs8", "-topk8", "-in", plain, "-passout", "pass:x"][..],
        &["ec", "-aes128", "-in", plain, "-passout", "pass:x"][..],
    ] {
        let encrypted = openssl(args);
        assert!(encrypted.contains("ENCRYPTED"), "{encrypted}");
        let refusal = refusal(&Cacerts {
            key: encrypted,
            ..Cacerts::of(&issuing, &root)
        });
        assert!(
            refusal.contains("ca-key.pem: the private key is encrypted"),
            "{refusal}"
        );
        assert!(refusal.contains("openssl pkey -in"), "{refusal}");
    }
}

#[test]
fn a_ca_of_another_trust_domain_is_refused() {
    let root = root();
    let with_id = |id: &str| {
        let id = id.to_owned();
        authority("issuing", Kind::P256, Some(&root), |params| {
            params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        })
    };
    load(written(&Cacerts::of(&with_id("spiffe://example.org"), &root)).path()).unwrap();
    let refusal = refusal(&Cacerts::of(&with_id("spiffe://other.org"), &root));
    assert!(
        refusal.contains("is for the trust domain other.org"),
        "{refusal}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn mutated_files_are_refused_or_mean_the_same(
        file in 0..4_usize,
        at in any::<Index>(),
        cut in 0..40_usize,
        noise in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let root = root();
        let issuing = issuing(&root);
        let directory = written(&Cacerts::of(&issuing, &root));
        let good = load(directory.path()).unwrap();
        let names = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];
        let path = directory.path().join(names[file]);
        let mut content = fs::read(&path).unwrap();
        let begin = at.index(content.len());
        let end = (begin + cut).min(content.len());
        content.splice(begin..end, noise);
        fs::write(&path, content).unwrap();
        if let Ok(loaded) = load(directory.path()) {
            prop_assert_eq!(loaded.issuer, good.issuer);
        }
    }
}
