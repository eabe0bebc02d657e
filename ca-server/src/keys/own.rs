//! The CA's own root and intermediate, made at the first start.
//!
//! The four files come into being one after the other, each whole and on the disk before the
//! next: root key, root certificate, CA key, CA certificate. A crash leaves a beginning of
//! this list, and the next start makes the rest from it: nothing was issued from a set that
//! was not complete. Any other incomplete set is somebody's loss, and refused.

use std::path::Path;

use citadel_identity::{
    TrustDomain,
    key::CaKey,
    pem,
    profile::{self, Issuer, IssuerError},
    serial::Serial,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::{
    KeyError, Material,
    files::{Directory, PRIVATE, PUBLIC},
    pem::{certificates, key},
};

const ROOT_KEY: &str = "root-key.pem";
const ROOT_CERTIFICATE: &str = "root-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const CA_CERTIFICATE: &str = "ca-cert.pem";

/// Ten years of 365 days.
const ROOT_LIFETIME: Duration = Duration::days(3650);
const CA_LIFETIME: Duration = Duration::days(365);
/// Hosts whose clocks are a little behind must accept what was made just now.
const BACKDATE: Duration = Duration::minutes(2);

const RESTORE: &str = "restore it from a backup; only if nothing trusts this root, remove \
                       root-key.pem, root-cert.pem, ca-key.pem and ca-cert.pem for a new CA";

pub(super) fn load_or_create(
    path: &Path,
    trust_domain: &TrustDomain,
    now: OffsetDateTime,
) -> Result<Material, KeyError> {
    let directory = Directory::open(path)?;
    let found = Found::read(&directory)?;
    found.check_complete(&directory)?;
    let maker = Maker {
        directory: &directory,
        trust_domain,
        now,
    };

    let root_key = match (found.root_key, &found.root) {
        (None, None) => Some(maker.key(ROOT_KEY)?),
        (key, _) => key,
    };
    let (root_key, roots) = match (root_key, found.root) {
        (key, Some(roots)) => (key, roots),
        (Some(key), None) => {
            let root = maker.root(&key)?;
            (Some(key), vec![root])
        }
        (None, None) => return Err(incomplete(&directory, vec![ROOT_KEY, ROOT_CERTIFICATE])),
    };
    // Also checks that the root's key and certificate belong together.
    let root = root_key
        .map(|key| Ok::<_, KeyError>((maker.issuer(&roots, &roots, &key)?, key)))
        .transpose()?;

    let ca_key = match found.ca_key {
        Some(key) => key,
        None => maker.key(CA_KEY)?,
    };
    let issuer = match (found.ca_certificate, &root) {
        (Some(chain), None) => {
            let issuer = maker.issuer(&chain, &roots, &ca_key)?;
            if ends_soon(&issuer, now) {
                let not_after = issuer.not_after();
                tracing::warn!(%not_after, "have ca-cert.pem renewed: root-key.pem is not here");
            }
            issuer
        }
        (Some(chain), Some(root)) => match maker.issuer(&chain, &roots, &ca_key) {
            Ok(issuer) if !ends_soon(&issuer, now) => issuer,
            Ok(_)
            | Err(KeyError::Issuer {
                source: IssuerError::Expired { .. },
                ..
            }) => {
                tracing::info!("renewing the certificate of the intermediate");
                let renewed = [maker.intermediate(&ca_key, root)?];
                directory.replace(CA_CERTIFICATE, PUBLIC, &encoded(&renewed[0]))?;
                maker.issuer(&renewed, &roots, &ca_key)?
            }
            Err(error) => return Err(error),
        },
        (None, Some(root)) => {
            let made = [maker.intermediate(&ca_key, root)?];
            directory.create(CA_CERTIFICATE, PUBLIC, &encoded(&made[0]))?;
            maker.issuer(&made, &roots, &ca_key)?
        }
        (None, None) => return Err(incomplete(&directory, vec![ROOT_KEY])),
    };
    Ok(Material {
        key: ca_key,
        issuer,
        roots,
    })
}

fn ends_soon(issuer: &Issuer, now: OffsetDateTime) -> bool {
    now > issuer.not_after() - CA_LIFETIME / 3
}

fn encoded(certificate: &CertificateDer<'_>) -> Vec<u8> {
    pem::encode(pem::CERTIFICATE, certificate)
        .as_bytes()
        .to_vec()
}

/// What is in the directory.
struct Found {
    root_key: Option<CaKey>,
    root: Option<Vec<CertificateDer<'static>>>,
    ca_key: Option<CaKey>,
    ca_certificate: Option<Vec<CertificateDer<'static>>>,
}

impl Found {
    fn read(directory: &Directory<'_>) -> Result<Self, KeyError> {
        let read_key = |name: &str| -> Result<Option<CaKey>, KeyError> {
            let text = directory.read_private(name)?;
            text.map(|text| key(&directory.path().join(name), &text))
                .transpose()
        };
        let read_certificates = |name: &str| {
            let text = directory.read_public(name)?;
            text.map(|text| certificates(&directory.path().join(name), &text))
                .transpose()
        };
        Ok(Self {
            root_key: read_key(ROOT_KEY)?,
            root: read_certificates(ROOT_CERTIFICATE)?,
            ca_key: read_key(CA_KEY)?,
            ca_certificate: read_certificates(CA_CERTIFICATE)?,
        })
    }

    /// Refuses every set that no crash can have left.
    fn check_complete(&self, directory: &Directory<'_>) -> Result<(), KeyError> {
        let have = [
            self.root_key.is_some(),
            self.root.is_some(),
            self.ca_key.is_some(),
            self.ca_certificate.is_some(),
        ];
        let begun = have.iter().take_while(|file| **file).count();
        let is_beginning = !have[begun..].contains(&true);
        let root_key_is_elsewhere = have == [false, true, true, true];
        if is_beginning || root_key_is_elsewhere {
            return Ok(());
        }
        let missing = match have {
            [_, _, false, true] => vec![CA_KEY],
            [_, false, _, _] => vec![ROOT_CERTIFICATE],
            _ => vec![ROOT_KEY],
        };
        Err(incomplete(directory, missing))
    }
}

fn incomplete(directory: &Directory<'_>, missing: Vec<&'static str>) -> KeyError {
    KeyError::Incomplete {
        directory: directory.path().to_owned(),
        missing,
        fix: RESTORE,
    }
}

/// Makes what is missing.
struct Maker<'a> {
    directory: &'a Directory<'a>,
    trust_domain: &'a TrustDomain,
    now: OffsetDateTime,
}

impl Maker<'_> {
    fn key(&self, name: &'static str) -> Result<CaKey, KeyError> {
        let key = CaKey::generate_p256()?;
        self.directory
            .create(name, PRIVATE, key.to_pkcs8_pem().as_bytes())?;
        tracing::info!(file = name, directory = %self.directory.path().display(), "made a key");
        Ok(key)
    }

    fn root(&self, key: &CaKey) -> Result<CertificateDer<'static>, KeyError> {
        let root = profile::self_signed_root(
            key,
            self.trust_domain,
            self.now - BACKDATE,
            self.now + ROOT_LIFETIME,
            &self.serial(),
        )?;
        let root = CertificateDer::from(root);
        self.directory
            .create(ROOT_CERTIFICATE, PUBLIC, &encoded(&root))?;
        Ok(root)
    }

    fn intermediate(
        &self,
        key: &CaKey,
        (root, root_key): &(Issuer, CaKey),
    ) -> Result<CertificateDer<'static>, KeyError> {
        let intermediate = profile::intermediate(
            key,
            self.trust_domain,
            (self.now - BACKDATE).max(root.not_before()),
            (self.now + CA_LIFETIME).min(root.not_after()),
            &self.serial(),
            root,
            root_key,
        )?;
        Ok(CertificateDer::from(intermediate))
    }

    fn issuer(
        &self,
        chain: &[CertificateDer<'static>],
        roots: &[CertificateDer<'static>],
        key: &CaKey,
    ) -> Result<Issuer, KeyError> {
        let directory = self.directory.path().to_owned();
        Issuer::from_chain(chain, roots, key.spki_der(), self.now)
            .map_err(|source| KeyError::Issuer { directory, source })
    }

    fn serial(&self) -> Serial {
        let ms = self.now.unix_timestamp_nanos() / 1_000_000;
        Serial::new(u64::try_from(ms).unwrap_or_default())
    }
}
