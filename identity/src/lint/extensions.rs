//! The extensions of the profile (RFC 5280 section 4.2.1), each read once, in strict DER.
//!
//! x509-parser is laxer than what verifies certificates out there: a SEQUENCE that lacks the bit
//! of a constructed value is one to it.

use x509_parser::asn1_rs::Oid;
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};

use super::Rule;
use super::parts::RawExtension;
use crate::der::{self, DerError, Reader};

/// `[2]` and `[6]` of a `GeneralName`, `[0]` of an `AuthorityKeyIdentifier`: primitive all.
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const KEY_IDENTIFIER: u8 = 0x80;

const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// One extension.
pub(super) struct Extension<T> {
    pub(super) critical: bool,
    pub(super) value: T,
}

/// What a certificate may have, and nothing else.
#[derive(Default)]
pub(super) struct Extensions<'a> {
    pub(super) names: Option<Extension<Names<'a>>>,
    /// Whether it is a CA's.
    pub(super) constraints: Option<Extension<bool>>,
    pub(super) usage: Option<Extension<KeyUsage>>,
    /// Whether it is for servers and clients, and nothing else.
    pub(super) purposes: Option<Extension<bool>>,
    pub(super) subject_key_id: Option<Extension<&'a [u8]>>,
    /// The key identifier, if there is nothing else.
    pub(super) authority_key_id: Option<Extension<Option<&'a [u8]>>>,
}

impl<'a> Extensions<'a> {
    /// Takes in one more, or says which rule it breaks.
    pub(super) fn add(&mut self, extension: &RawExtension<'a>) -> Result<(), Rule> {
        let is = |oid: &Oid<'_>| oid.as_bytes() == extension.oid;
        if is(&OID_X509_EXT_SUBJECT_ALT_NAME) {
            fill(&mut self.names, extension, names)
        } else if is(&OID_X509_EXT_BASIC_CONSTRAINTS) {
            fill(&mut self.constraints, extension, is_ca)
        } else if is(&OID_X509_EXT_KEY_USAGE) {
            fill(&mut self.usage, extension, key_usage)
        } else if is(&OID_X509_EXT_EXTENDED_KEY_USAGE) {
            fill(&mut self.purposes, extension, is_for_server_and_client)
        } else if is(&OID_X509_EXT_SUBJECT_KEY_IDENTIFIER) {
            fill(&mut self.subject_key_id, extension, subject_key_id)
        } else if is(&OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER) {
            fill(&mut self.authority_key_id, extension, authority_key_id)
        } else if extension.critical {
            Err(Rule::UnknownCritical)
        } else {
            Err(Rule::UnexpectedExtension)
        }
    }
}

fn fill<'a, T>(
    place: &mut Option<Extension<T>>,
    extension: &RawExtension<'a>,
    read: fn(&'a [u8]) -> Result<T, DerError>,
) -> Result<(), Rule> {
    if place.is_some() {
        return Err(Rule::DuplicateExtension);
    }
    let value = read(extension.value).map_err(|_| Rule::MalformedExtension)?;
    *place = Some(Extension {
        critical: extension.critical,
        value,
    });
    Ok(())
}

/// The names of a SAN.
#[derive(Clone, Copy, Default)]
pub(super) struct Names<'a>(&'a [u8]);

pub(super) enum Name<'a> {
    Uri(&'a str),
    Dns(&'a str),
    Other,
}

impl<'a> Names<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = Name<'a>> + Clone {
        let mut rest = Reader::new(self.0);
        // All of them were read once.
        std::iter::from_fn(move || name(&mut rest).ok())
    }
}

fn names(value: &[u8]) -> Result<Names<'_>, DerError> {
    let list = der::single(value, der::SEQUENCE)?.content;
    let mut rest = Reader::new(list);
    while !rest.is_empty() {
        name(&mut rest)?;
    }
    Ok(Names(list))
}

fn name<'a>(list: &mut Reader<'a>) -> Result<Name<'a>, DerError> {
    let name = list.any()?;
    // An IA5String.
    let text = || match str::from_utf8(name.content) {
        Ok(text) if text.is_ascii() => Ok(text),
        _ => Err(DerError::Ia5String),
    };
    Ok(match name.tag {
        URI => Name::Uri(text()?),
        DNS_NAME => Name::Dns(text()?),
        _ => Name::Other,
    })
}

fn is_ca(value: &[u8]) -> Result<bool, DerError> {
    let mut fields = Reader::new(der::single(value, der::SEQUENCE)?.content);
    let is_ca = fields.is_true()?;
    if !fields.is_empty() {
        let length = fields.expect(der::INTEGER)?.content;
        if !matches!(length, [0..=0x7f] | [0, 0x80..=0xff]) {
            return Err(DerError::Integer);
        }
    }
    fields.finish()?;
    Ok(is_ca)
}

/// The bits of a KeyUsage, bit 0 being the highest.
#[derive(Clone, Copy)]
pub(super) struct KeyUsage(u16);

impl KeyUsage {
    pub(super) const DIGITAL_SIGNATURE: u16 = 1 << 15;
    pub(super) const KEY_CERT_SIGN: u16 = 1 << 10;
    pub(super) const CRL_SIGN: u16 = 1 << 9;

    /// Whether it has one of these bits.
    pub(super) fn has(self, bits: u16) -> bool {
        self.0 & bits != 0
    }
}

fn key_usage(value: &[u8]) -> Result<KeyUsage, DerError> {
    let (unused, bits) = match *der::single(value, der::BIT_STRING)?.content {
        [0] => (16, [0, 0]),
        [unused @ 0..=7, high] => (u32::from(unused) + 8, [high, 0]),
        [unused @ 0..=7, high, low] => (u32::from(unused), [high, low]),
        _ => return Err(DerError::BitString),
    };
    let bits = u16::from_be_bytes(bits);
    // The last bit that is written is set: a list of named bits has no zeros at its end.
    if bits.trailing_zeros() == unused {
        Ok(KeyUsage(bits))
    } else {
        Err(DerError::BitString)
    }
}

fn is_for_server_and_client(value: &[u8]) -> Result<bool, DerError> {
    let mut list = Reader::new(der::single(value, der::SEQUENCE)?.content);
    let (mut server, mut client, mut others) = (false, false, false);
    while !list.is_empty() {
        match list.expect(der::OBJECT_IDENTIFIER)?.content {
            SERVER_AUTH if !server => server = true,
            CLIENT_AUTH if !client => client = true,
            _ => others = true,
        }
    }
    Ok(server && client && !others)
}

fn subject_key_id(value: &[u8]) -> Result<&[u8], DerError> {
    Ok(der::single(value, der::OCTET_STRING)?.content)
}

fn authority_key_id(value: &[u8]) -> Result<Option<&[u8]>, DerError> {
    let mut fields = Reader::new(der::single(value, der::SEQUENCE)?.content);
    let mut key_id = None;
    let mut others = false;
    while !fields.is_empty() {
        let field = fields.any()?;
        match field.tag {
            KEY_IDENTIFIER if key_id.is_none() => key_id = Some(field.content),
            _ => others = true,
        }
    }
    Ok(key_id.filter(|_| !others))
}
