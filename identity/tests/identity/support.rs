//! Certificates for tests: by openssl's command, by rcgen, and by changing bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use citadel_identity::TrustDomain;
use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_identity::key::CaKey;
use citadel_identity::pem;
use citadel_identity::profile::{Issuer, intermediate, self_signed_root};
use citadel_identity::serial::Serial;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

/// The time of everything that is not made by openssl's command.
pub(crate) const NOW: OffsetDateTime = datetime!(2026-11-21 12:00 UTC);

pub(crate) fn td() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

pub(crate) fn serial(now: OffsetDateTime) -> Serial {
    Serial::new(u64::try_from(now.unix_timestamp()).unwrap() * 1000)
}

// === openssl ===

/// A folder in which openssl's command runs.
pub(crate) struct OpenSsl {
    folder: TempDir,
}

impl OpenSsl {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Runs openssl with arguments separated by spaces; its output must not matter.
    pub(crate) fn run(&self, arguments: &str) -> Vec<u8> {
        let (ok, output, errors) = self.attempt(arguments);
        assert!(ok, "openssl {arguments}: {errors}");
        output
    }

    pub(crate) fn attempt(&self, arguments: &str) -> (bool, Vec<u8>, String) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .output()
            .expect("these tests need openssl's command");
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        (
            output.status.success(),
            output.stdout,
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    /// A private key in `<name>.key`: `ec:<curve>`, `rsa:<bits>` or `ed25519`.
    pub(crate) fn key(&self, name: &str, kind: &str) {
        let how = match kind.split_once(':') {
            Some(("ec", curve)) => format!("EC -pkeyopt ec_paramgen_curve:{curve}"),
            Some(("rsa", bits)) => format!("RSA -pkeyopt rsa_keygen_bits:{bits}"),
            _ => kind.to_owned(),
        };
        self.run(&format!("genpkey -algorithm {how} -out {name}.key"));
    }

    /// The DER in a file of one PEM block.
    pub(crate) fn der(&self, name: &str) -> Vec<u8> {
        pem::decode(&self.read(name), 1 << 20)
            .unwrap()
            .remove(0)
            .der
            .to_vec()
    }

    pub(crate) fn spki(&self, name: &str) -> Vec<u8> {
        self.run(&format!("pkey -in {name}.key -pubout -outform DER"))
    }
}

// === Citadel's own CA ===

/// A root and an intermediate as the self-signed mode makes them.
pub(crate) struct OwnCa {
    pub(crate) root_key: CaKey,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) key: CaKey,
    pub(crate) issuer: Issuer,
}

impl OwnCa {
    pub(crate) fn new() -> Self {
        Self::at(NOW)
    }

    pub(crate) fn at(now: OffsetDateTime) -> Self {
        let (start, end) = (now - Duration::hours(1), now + Duration::days(365));
        let root_key = CaKey::generate_p256().unwrap();
        let root = self_signed_root(&root_key, &td(), start, end, &serial(now)).unwrap();
        let root = CertificateDer::from(root);
        let roots = [root.clone()];
        let parent = Issuer::from_chain(&roots, &roots, root_key.spki_der(), now).unwrap();
        let key = CaKey::generate_p256().unwrap();
        let made = intermediate(&key, &td(), start, end, &serial(now), &parent, &root_key).unwrap();
        let chain = [CertificateDer::from(made)];
        let issuer = Issuer::from_chain(&chain, &roots, key.spki_der(), now).unwrap();
        Self {
            root_key,
            root,
            key,
            issuer,
        }
    }

    pub(crate) fn bundles(&self) -> BundleSet {
        Bundle::new(td(), vec![self.root.clone()]).into()
    }
}

// === rcgen by hand ===

/// A CA whose parameters a test may bend.
pub(crate) struct Authority {
    pub(crate) key: KeyPair,
    pub(crate) params: CertificateParams,
    pub(crate) der: CertificateDer<'static>,
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(serial(NOW).as_bytes()));
    params.not_before = NOW - Duration::hours(1);
    params.not_after = NOW + Duration::days(30);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(serial(NOW).as_bytes()));
    params.not_before = NOW - Duration::minutes(1);
    params.not_after = NOW + Duration::hours(1);
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Authority {
    pub(crate) fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { key, params, der }
    }

    /// A CA below this one.
    pub(crate) fn child(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = self.sign(&params, &key);
        Self { key, params, der }
    }

    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> CertificateDer<'static> {
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().der().clone()
    }

    pub(crate) fn leaf(&self, params: &CertificateParams) -> CertificateDer<'static> {
        self.sign(params, &KeyPair::generate().unwrap())
    }

    pub(crate) fn bundles(&self) -> BundleSet {
        Bundle::new(td(), vec![self.der.clone()]).into()
    }
}

// === changed bytes ===

/// Replaces the only occurrence of `from`, of the same length.
pub(crate) fn patch(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = (0..=bytes.len() - from.len())
        .filter(|at| bytes[*at..].starts_with(from))
        .collect();
    assert_eq!(places.len(), 1, "{places:?}");
    let mut out = bytes.to_vec();
    out[places[0]..places[0] + to.len()].copy_from_slice(to);
    out
}

/// Changes the validity of a certificate with `UTCTime` in both places.
pub(crate) fn with_validity(
    certificate: &[u8],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
) -> Vec<u8> {
    let utc_time = |time: OffsetDateTime| {
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second) = time.to_hms();
        let month = u8::from(month);
        format!(
            "{:02}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z",
            year % 100
        )
    };
    let tag = [0x30, 0x1e, 0x17, 0x0d];
    let at = (0..certificate.len())
        .find(|at| certificate[*at..].starts_with(&tag))
        .unwrap();
    let mut out = certificate.to_vec();
    out[at + 4..at + 17].copy_from_slice(utc_time(not_before).as_bytes());
    out[at + 19..at + 32].copy_from_slice(utc_time(not_after).as_bytes());
    out
}

/// A TLV in DER.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..0x80 => out.push(u8::try_from(short).unwrap()),
        long => {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(long).unwrap().to_be_bytes());
            if long < 0x100 {
                out.truncate(1);
                out.extend_from_slice(&[0x81, u8::try_from(long).unwrap()]);
            }
        }
    }
    out.extend_from_slice(content);
    out
}

/// The values in a constructed one's content, each whole.
pub(crate) fn children(mut content: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while !content.is_empty() {
        let length = header_length(content) + content_length(content);
        let (one, rest) = content.split_at(length);
        out.push(one);
        content = rest;
    }
    out
}

/// The content of a value in DER.
pub(crate) fn content(value: &[u8]) -> &[u8] {
    &value[header_length(value)..]
}

fn header_length(value: &[u8]) -> usize {
    if value[1] < 0x80 {
        2
    } else {
        2 + usize::from(value[1] & 0x7f)
    }
}

fn content_length(value: &[u8]) -> usize {
    match value[1] {
        short @ 0..0x80 => usize::from(short),
        _ => value[2..header_length(value)]
            .iter()
            .fold(0, |sum, octet| (sum << 8) | usize::from(*octet)),
    }
}
