//! The bytes of an SVID that are signed (RFC 5280 section 4.1.2), written in one pass.
//!
//! Every SVID has the same fields, so most of it is constant. They are the bytes that rcgen
//! writes for the same wishes, as the tests hold; its many small allocations were 4 % of the CPU
//! of an issuance, and this is 1 %. The linter reads them, by its own idea of them, before
//! anything is signed.

use time::{OffsetDateTime, UtcOffset};

use super::ProfileError;
use crate::der;
use crate::key::SigningAlgorithm;

/// What differs from SVID to SVID.
pub(super) struct Tbs<'a> {
    /// Big-endian, without leading zeros.
    pub(super) serial: &'a [u8],
    pub(super) algorithm: SigningAlgorithm,
    /// A `Name`, whole.
    pub(super) issuer: &'a [u8],
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// A `SubjectPublicKeyInfo`, whole.
    pub(super) spki: &'a [u8],
    pub(super) key_id: &'a [u8],
    pub(super) issuer_key_id: &'a [u8],
    /// The trust domain's name and the path of the SPIFFE ID, ASCII.
    pub(super) spiffe_id: (&'a str, &'a str),
    /// ASCII.
    pub(super) dns_names: &'a [String],
}

/// `[0]`, primitive: a key identifier within an AKI.
const KEY_IDENTIFIER: u8 = 0x80;
/// `[2]`, primitive: a DNS name within a SAN.
const DNS_NAME: u8 = 0x82;
/// `[6]`, primitive: a URI within a SAN.
const URI: u8 = 0x86;

/// `[0] { INTEGER 2 }`: version 3.
const VERSION_3: &[u8] = &[der::CONTEXT_0, 3, der::INTEGER, 1, 2];
/// No name at all: the SAN says who it is.
const NO_SUBJECT: &[u8] = &[der::SEQUENCE, 0];

/// 2.5.29.35, not critical.
const AUTHORITY_KEY_ID: &[u8] = &[0x06, 3, 0x55, 0x1d, 0x23];
/// 2.5.29.17, critical, as RFC 5280 section 4.2.1.6 has it beside an empty subject.
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 3, 0x55, 0x1d, 0x11, 0x01, 1, 0xff];
/// 2.5.29.14, not critical.
const SUBJECT_KEY_ID: &[u8] = &[0x06, 3, 0x55, 0x1d, 0x0e];
/// The whole extension: digitalSignature, critical.
#[rustfmt::skip]
const KEY_USAGE: &[u8] = &[
    0x30, 14, 0x06, 3, 0x55, 0x1d, 0x0f, 0x01, 1, 0xff, 0x04, 4, 0x03, 2, 7, 0x80,
];
/// The whole extension: serverAuth and clientAuth.
#[rustfmt::skip]
const EXTENDED_KEY_USAGE: &[u8] = &[
    0x30, 29, 0x06, 3, 0x55, 0x1d, 0x25, 0x04, 22, 0x30, 20,
    0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1,
    0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2,
];
/// The whole extension: cA is false, by DEFAULT; critical.
#[rustfmt::skip]
const NOT_A_CA: &[u8] = &[
    0x30, 12, 0x06, 3, 0x55, 0x1d, 0x13, 0x01, 1, 0xff, 0x04, 2, 0x30, 0,
];

impl Tbs<'_> {
    /// The `TBSCertificate`.
    pub(super) fn encode(&self) -> Result<Vec<u8>, ProfileError> {
        let extensions = self.extensions()?;
        let mut validity = Vec::with_capacity(2 * 17);
        time(&mut validity, self.not_before)?;
        time(&mut validity, self.not_after)?;
        let sign: &[u8] = match self.serial.first() {
            Some(0x80..) => &[0],
            _ => &[],
        };
        let serial = sign.len() + self.serial.len();
        let algorithm = self.algorithm.identifier();
        let list = der::size(extensions.len());
        let length = VERSION_3.len()
            + der::size(serial)
            + der::size(algorithm.len())
            + self.issuer.len()
            + der::size(validity.len())
            + NO_SUBJECT.len()
            + self.spki.len()
            + der::size(list);
        let mut out = Vec::with_capacity(der::size(length));
        der::header(&mut out, der::SEQUENCE, length);
        out.extend_from_slice(VERSION_3);
        der::header(&mut out, der::INTEGER, serial);
        out.extend_from_slice(sign);
        out.extend_from_slice(self.serial);
        der::header(&mut out, der::SEQUENCE, algorithm.len());
        out.extend_from_slice(algorithm);
        out.extend_from_slice(self.issuer);
        der::header(&mut out, der::SEQUENCE, validity.len());
        out.extend_from_slice(&validity);
        out.extend_from_slice(NO_SUBJECT);
        out.extend_from_slice(self.spki);
        der::header(&mut out, der::CONTEXT_3, list);
        der::header(&mut out, der::SEQUENCE, extensions.len());
        out.extend_from_slice(&extensions);
        Ok(out)
    }

    /// What the list of extensions holds.
    fn extensions(&self) -> Result<Vec<u8>, ProfileError> {
        let (trust_domain, path) = self.spiffe_id;
        let dns_names = self.dns_names.iter().map(String::as_str);
        if let Some(name) = [trust_domain, path]
            .into_iter()
            .chain(dns_names.clone())
            .find(|name| !name.is_ascii())
        {
            return Err(ProfileError::Build(format!("{name:.256} is not ASCII")));
        }
        let uri = "spiffe://".len() + trust_domain.len() + path.len();
        let names = der::size(uri)
            + dns_names
                .clone()
                .map(|it| der::size(it.len()))
                .sum::<usize>();
        let mut out = Vec::with_capacity(192 + names);

        let id = der::size(self.issuer_key_id.len());
        extension(&mut out, AUTHORITY_KEY_ID, der::size(id));
        der::header(&mut out, der::SEQUENCE, id);
        der::header(&mut out, KEY_IDENTIFIER, self.issuer_key_id.len());
        out.extend_from_slice(self.issuer_key_id);

        extension(&mut out, SUBJECT_ALT_NAME, der::size(names));
        der::header(&mut out, der::SEQUENCE, names);
        der::header(&mut out, URI, uri);
        for part in ["spiffe://", trust_domain, path] {
            out.extend_from_slice(part.as_bytes());
        }
        for name in dns_names {
            der::header(&mut out, DNS_NAME, name.len());
            out.extend_from_slice(name.as_bytes());
        }

        out.extend_from_slice(KEY_USAGE);
        out.extend_from_slice(EXTENDED_KEY_USAGE);

        extension(&mut out, SUBJECT_KEY_ID, der::size(self.key_id.len()));
        der::header(&mut out, der::OCTET_STRING, self.key_id.len());
        out.extend_from_slice(self.key_id);

        out.extend_from_slice(NOT_A_CA);
        Ok(out)
    }
}

/// The beginning of an extension, up to a value of that many bytes.
fn extension(out: &mut Vec<u8>, head: &[u8], value: usize) {
    der::header(out, der::SEQUENCE, head.len() + der::size(value));
    out.extend_from_slice(head);
    der::header(out, der::OCTET_STRING, value);
}

/// `UTCTime` through 2049, `GeneralizedTime` from then on (RFC 5280 section 4.1.2.5).
fn time(out: &mut Vec<u8>, at: OffsetDateTime) -> Result<(), ProfileError> {
    let at = at.to_offset(UtcOffset::UTC);
    let year = u16::try_from(at.year()).ok().filter(|year| *year <= 9999);
    let year = year.ok_or_else(|| ProfileError::Build(format!("a certificate can't say {at}")))?;
    let short = (1950..2050).contains(&year);
    if short {
        der::header(out, der::UTC_TIME, 13);
    } else {
        der::header(out, der::GENERALIZED_TIME, 15);
        two_digits(out, (year / 100).to_le_bytes()[0]);
    }
    two_digits(out, (year % 100).to_le_bytes()[0]);
    for field in [
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
    ] {
        two_digits(out, field);
    }
    out.push(b'Z');
    Ok(())
}

fn two_digits(out: &mut Vec<u8>, number: u8) {
    out.extend_from_slice(&[b'0' + number / 10, b'0' + number % 10]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use rcgen::{
        ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber,
    };

    use super::super::{Parent, blank, build, ia5};
    use super::*;
    use crate::csr::{ProvenKey, prove_possession};
    use crate::key::WorkloadKey;

    fn key() -> ProvenKey {
        prove_possession(&WorkloadKey::generate().unwrap().csr().unwrap()).unwrap()
    }

    /// The same wishes in rcgen's words.
    fn by_rcgen(tbs: &Tbs<'_>, key: &ProvenKey) -> Vec<u8> {
        let mut params = blank();
        params.not_before = tbs.not_before;
        params.not_after = tbs.not_after;
        params.serial_number = Some(SerialNumber::from_slice(tbs.serial));
        let (trust_domain, path) = tbs.spiffe_id;
        let id = format!("spiffe://{trust_domain}{path}");
        params.subject_alt_names = vec![SanType::URI(ia5(&id).unwrap())];
        for name in tbs.dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName(ia5(name).unwrap()));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_identifier_method = KeyIdMethod::PreSpecified(tbs.key_id.to_vec());
        let parent = Parent {
            subject: Some(tbs.issuer),
            key_id: Some(tbs.issuer_key_id),
        };
        build(&mut params, key, parent, tbs.algorithm).unwrap().tbs
    }

    fn algorithm() -> impl Strategy<Value = SigningAlgorithm> {
        prop_oneof![
            Just(SigningAlgorithm::EcdsaP256Sha256),
            Just(SigningAlgorithm::EcdsaP384Sha384),
            Just(SigningAlgorithm::RsaPkcs1Sha256),
        ]
    }

    /// A `Name` of one RDN with a string of that many bytes.
    fn name(length: usize) -> Vec<u8> {
        let text = der::value(0x0c, &[&vec![b'x'; length]]);
        let attribute = der::value(der::SEQUENCE, &[&[0x06, 3, 0x55, 4, 3], &text]);
        der::value(der::SEQUENCE, &[&der::value(0x31, &[&attribute])])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_bytes_are_rcgens(
            serial in prop::collection::vec(any::<u8>(), 1..20),
            algorithm in algorithm(),
            issuer in 0_usize..300,
            from in 0_i64..253_402_300_000,
            lasts in 1_i64..100_000_000,
            ids in prop::collection::vec(any::<u8>(), 1..64),
            issuer_ids in prop::collection::vec(any::<u8>(), 1..200),
            trust_domain in "[a-z0-9.-]{1,200}",
            path in "(/[a-zA-Z0-9._-]{1,90}){0,20}",
            dns_names in prop::collection::vec("[a-z0-9.-]{1,250}", 0..20),
        ) {
            // A number without leading zeros, as a Serial keeps it.
            prop_assume!(serial[0] != 0);
            let key = key();
            let issuer = name(issuer);
            let from = OffsetDateTime::from_unix_timestamp(from).unwrap();
            let to = (from.unix_timestamp() + lasts).min(253_402_300_799);
            let tbs = Tbs {
                serial: &serial,
                algorithm,
                issuer: &issuer,
                not_before: from,
                not_after: OffsetDateTime::from_unix_timestamp(to).unwrap(),
                spki: key.spki_der(),
                key_id: &ids,
                issuer_key_id: &issuer_ids,
                spiffe_id: (&trust_domain, &path),
                dns_names: &dns_names,
            };
            prop_assert_eq!(tbs.encode().unwrap(), by_rcgen(&tbs, &key));
        }
    }

    #[test]
    fn the_year_2050_is_written_out() {
        let at = |seconds| {
            let mut out = Vec::new();
            time(
                &mut out,
                OffsetDateTime::from_unix_timestamp(seconds).unwrap(),
            )
            .unwrap();
            out
        };
        assert_eq!(at(2_524_607_999), b"\x17\x0d491231235959Z");
        assert_eq!(at(2_524_608_000), b"\x18\x0f20500101000000Z");
    }
}
