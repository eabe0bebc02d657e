//! A CA that somebody else made: Istio's `cacerts` files, or those of a TLS secret.

use std::path::{Path, PathBuf};

use citadel_identity::profile::Issuer;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    KeyError, Material, files,
    pem::{certificates, key},
};

/// The names of one set of files.
struct Names {
    /// The issuing certificate, and in a TLS secret the intermediates after it.
    certificate: &'static str,
    key: &'static str,
    root: &'static str,
    /// What leads from the issuing certificate to the root, in a file of its own.
    chain: Option<&'static str>,
}

const ISTIO: Names = Names {
    certificate: "ca-cert.pem",
    key: "ca-key.pem",
    root: "root-cert.pem",
    chain: Some("cert-chain.pem"),
};

const TLS_SECRET: Names = Names {
    certificate: "tls.crt",
    key: "tls.key",
    root: "ca.crt",
    chain: None,
};

const FIX: &str = "put ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem there, or \
                   tls.crt, tls.key and ca.crt";

pub(super) fn load(directory: &Path, now: OffsetDateTime) -> Result<Material, KeyError> {
    let snapshot = snapshot(directory);
    let names = choose(directory, &snapshot)?;
    let read = |name: &'static str| {
        let path = snapshot.join(name);
        let content = files::read(&path)?.ok_or_else(|| KeyError::Incomplete {
            directory: directory.to_owned(),
            missing: vec![name],
            fix: FIX,
        })?;
        // Errors name the file as the user knows it.
        Ok::<_, KeyError>((directory.join(name), content))
    };
    let (key_path, key_text) = read(names.key)?;
    warn_if_readable(&key_path);
    let key = key(&key_path, &key_text)?;
    let read_certificates = |name| {
        let (path, text) = read(name)?;
        certificates(&path, &text)
    };
    let mut chain = read_certificates(names.certificate)?;
    if let Some(name) = names.chain {
        chain.extend(read_certificates(name)?);
    }
    let chain = distinct(chain);
    let roots = distinct(read_certificates(names.root)?);
    let issuer = Issuer::from_chain(&chain, &roots, key.spki_der(), now).map_err(|source| {
        KeyError::Issuer {
            directory: directory.to_owned(),
            source,
        }
    })?;
    Ok(Material { key, issuer, roots })
}

/// Kubernetes replaces all files of a volume at once by turning one link, `..data`. Reading
/// behind it gives files of one moment.
fn snapshot(directory: &Path) -> PathBuf {
    directory
        .join("..data")
        .canonicalize()
        .unwrap_or_else(|_| directory.to_owned())
}

fn choose(directory: &Path, snapshot: &Path) -> Result<&'static Names, KeyError> {
    let missing = |names: &Names| {
        let all = [
            Some(names.certificate),
            Some(names.key),
            Some(names.root),
            names.chain,
        ];
        let present = |name: &&'static str| snapshot.join(name).exists();
        let count = all.iter().flatten().count();
        let missing: Vec<_> = all
            .into_iter()
            .flatten()
            .filter(|name| !present(name))
            .collect();
        (missing.len() < count, missing)
    };
    let (any_istio, missing_istio) = missing(&ISTIO);
    let (any_tls, missing_tls) = missing(&TLS_SECRET);
    let (names, missing) = match (any_istio, any_tls) {
        (true, true) => return Err(KeyError::TwoSets(directory.to_owned())),
        (false, true) => (&TLS_SECRET, missing_tls),
        (_, false) => (&ISTIO, missing_istio),
    };
    if missing.is_empty() {
        return Ok(names);
    }
    Err(KeyError::Incomplete {
        directory: directory.to_owned(),
        missing,
        fix: FIX,
    })
}

/// The certificates without repetitions: `cert-chain.pem` begins with the issuing one again.
fn distinct(certificates: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    let mut distinct: Vec<CertificateDer<'static>> = Vec::with_capacity(certificates.len());
    for certificate in certificates {
        if !distinct.contains(&certificate) {
            distinct.push(certificate);
        }
    }
    distinct
}

/// A Secret's volume has mode 0644 unless told otherwise, and only this container sees it:
/// reason for a word, not for a refusal.
fn warn_if_readable(path: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0) {
        let file = path.display();
        tracing::warn!(%file, "others may read the CA key: give the file or volume mode 0400");
    }
}
