//! The frame of a certificate (RFC 5280 section 4.1): which bytes are which field. Read in
//! strict DER, with nothing between the fields, and nothing behind them.

use super::Rule;
use crate::der::{self, DerError, Reader};

/// A certificate's fields.
pub(super) struct Parts<'a> {
    /// What is in `[0]`.
    pub(super) version: &'a [u8],
    /// The serial number's octets, a sign octet with them.
    pub(super) serial: &'a [u8],
    /// The content of the `AlgorithmIdentifier` that is signed.
    pub(super) inner_algorithm: &'a [u8],
    /// And of the one that is not.
    pub(super) outer_algorithm: &'a [u8],
    /// The issuer's name, whole.
    pub(super) issuer: &'a [u8],
    /// Start of its validity, a Time, whole.
    pub(super) not_before: &'a [u8],
    /// And its end.
    pub(super) not_after: &'a [u8],
    /// The subject's name, whole.
    pub(super) subject: &'a [u8],
    /// The `SubjectPublicKeyInfo`, whole.
    pub(super) spki: &'a [u8],
    /// Its extensions, one after the other.
    pub(super) extensions: Reader<'a>,
}

/// One extension, its value not looked at.
pub(super) struct RawExtension<'a> {
    pub(super) oid: &'a [u8],
    pub(super) critical: bool,
    pub(super) value: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Or the rule that it breaks.
    pub(super) fn read(certificate: &'a [u8]) -> Result<Self, Rule> {
        Self::fields(certificate).map_err(|error| match error {
            DerError::Trailing => Rule::NothingBehind,
            _ => Rule::Parses,
        })
    }

    fn fields(certificate: &'a [u8]) -> Result<Self, DerError> {
        let signed = der::signed(certificate)?;
        let mut fields = Reader::new(der::single(signed.message, der::SEQUENCE)?.content);
        let version = fields.expect(der::CONTEXT_0)?.content;
        let serial = fields.expect(der::INTEGER)?.content;
        let inner_algorithm = fields.expect(der::SEQUENCE)?.content;
        let issuer = fields.expect(der::SEQUENCE)?.whole;
        let mut validity = Reader::new(fields.expect(der::SEQUENCE)?.content);
        let not_before = time(&mut validity)?;
        let not_after = time(&mut validity)?;
        validity.finish()?;
        let subject = fields.expect(der::SEQUENCE)?.whole;
        let spki = fields.expect(der::SEQUENCE)?.whole;
        // Unique IDs (section 4.1.2.8) would come before, and are none of ours.
        let extensions = fields.expect(der::CONTEXT_3)?.content;
        fields.finish()?;
        Ok(Self {
            version,
            serial,
            inner_algorithm,
            outer_algorithm: signed.algorithm,
            issuer,
            not_before,
            not_after,
            subject,
            spki,
            extensions: Reader::new(der::single(extensions, der::SEQUENCE)?.content),
        })
    }
}

impl<'a> RawExtension<'a> {
    /// The next of a list. After an error nothing is read on.
    pub(super) fn next(list: &mut Reader<'a>) -> Result<Self, Rule> {
        Self::fields(list).map_err(|_| Rule::MalformedExtension)
    }

    fn fields(list: &mut Reader<'a>) -> Result<Self, DerError> {
        let mut fields = Reader::new(list.expect(der::SEQUENCE)?.content);
        let oid = fields.expect(der::OBJECT_IDENTIFIER)?.content;
        let critical = fields.is_true()?;
        let value = fields.expect(der::OCTET_STRING)?.content;
        fields.finish()?;
        Ok(Self {
            oid,
            critical,
            value,
        })
    }
}

/// A Time, whole.
fn time<'a>(validity: &mut Reader<'a>) -> Result<&'a [u8], DerError> {
    let time = validity.any()?;
    match time.tag {
        der::UTC_TIME | der::GENERALIZED_TIME => Ok(time.whole),
        found => Err(DerError::Tag {
            expected: der::UTC_TIME,
            found,
        }),
    }
}
