//! A CA for unit tests, made with rcgen: it can make certificates that ours never would.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::fetch::update::Svid;

/// A root of example.org.
pub(crate) struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) root: Vec<u8>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        citadel_identity::crypto::install_default();
        let mut params = params("spiffe://example.org");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let root = issuer.der().to_vec();
        Self { issuer, root }
    }

    /// A valid SVID for `id`, from five minutes ago to in an hour.
    pub(crate) fn svid(&self, id: &str) -> Svid {
        self.altered(id, |_| {})
    }

    /// An SVID that is wrong in the way that `alter` makes it.
    pub(crate) fn altered(&self, id: &str, alter: impl FnOnce(&mut CertificateParams)) -> Svid {
        let key = KeyPair::generate().unwrap();
        let mut params = params(id);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        alter(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Svid::new(
            id,
            vec![certificate.der().to_vec()],
            Zeroizing::new(key.serialize_der()),
            vec![self.root.clone()],
        )
    }
}

fn params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 15]>()));
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params
}
