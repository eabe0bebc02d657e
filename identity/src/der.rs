//! The little DER that this crate reads and writes by itself: the frame around
//! certificates, requests and keys (ITU-T X.690), and what the linter judges. What is
//! inside a certificate that others made is x509-parser's job; a frame reader of our own never
//! looks into fields that we must ignore, so their content can't make it fail.

use thiserror::Error;

const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
/// `[0]`, constructed.
pub(crate) const CONTEXT_0: u8 = 0xa0;
/// `[3]`, constructed.
pub(crate) const CONTEXT_3: u8 = 0xa3;

/// Why bytes are not the DER that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum DerError {
    #[error("the data ends in the middle of a value")]
    Truncated,
    #[error("a length is not in DER's shortest definite form")]
    Length,
    #[error("unexpected tag {found:#04x} where {expected:#04x} belongs")]
    Tag { expected: u8, found: u8 },
    #[error("bytes follow the last value")]
    Trailing,
    #[error("an INTEGER is not a positive number in shortest form")]
    Integer,
    #[error("a BIT STRING does not hold whole bytes")]
    BitString,
    #[error("a BOOLEAN is written that is not TRUE")]
    Boolean,
    #[error("an IA5String is not ASCII")]
    Ia5String,
}

/// One tag, its content, and both with the length between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tlv<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    pub(crate) whole: &'a [u8],
}

/// Reads values one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read yet.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// The next value, whatever its tag.
    pub(crate) fn any(&mut self) -> Result<Tlv<'a>, DerError> {
        let [tag, first, after @ ..] = self.rest else {
            return Err(DerError::Truncated);
        };
        let (length, content) = if *first < 0x80 {
            (usize::from(*first), after)
        } else {
            let octets = usize::from(*first & 0x7f);
            // 0x80 is the indefinite form; four octets hold more than any input here.
            if octets == 0 || octets > 4 {
                return Err(DerError::Length);
            }
            let (digits, content) = after.split_at_checked(octets).ok_or(DerError::Truncated)?;
            let length = digits
                .iter()
                .fold(0_usize, |sum, octet| (sum << 8) | usize::from(*octet));
            if length < 0x80 || digits.first() == Some(&0) {
                return Err(DerError::Length);
            }
            (length, content)
        };
        let (content, rest) = content
            .split_at_checked(length)
            .ok_or(DerError::Truncated)?;
        let whole = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        Ok(Tlv {
            tag: *tag,
            content,
            whole,
        })
    }

    /// The next value, which must have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<Tlv<'a>, DerError> {
        let value = self.any()?;
        if value.tag == tag {
            Ok(value)
        } else {
            Err(DerError::Tag {
                expected: tag,
                found: value.tag,
            })
        }
    }

    /// A positive INTEGER's magnitude, without a sign octet.
    pub(crate) fn positive_integer(&mut self) -> Result<&'a [u8], DerError> {
        magnitude(self.expect(INTEGER)?.content)
    }

    /// A BIT STRING of whole bytes.
    pub(crate) fn bit_string(&mut self) -> Result<&'a [u8], DerError> {
        match self.expect(BIT_STRING)?.content {
            [0, bytes @ ..] => Ok(bytes),
            _ => Err(DerError::BitString),
        }
    }

    /// A BOOLEAN DEFAULT FALSE: DER writes it only where it is TRUE.
    pub(crate) fn is_true(&mut self) -> Result<bool, DerError> {
        if self.rest.first() != Some(&BOOLEAN) {
            return Ok(false);
        }
        match self.any()?.content {
            [0xff] => Ok(true),
            _ => Err(DerError::Boolean),
        }
    }

    pub(crate) fn finish(self) -> Result<(), DerError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DerError::Trailing)
        }
    }
}

/// The magnitude of a positive INTEGER with this content, without a sign octet.
pub(crate) fn magnitude(content: &[u8]) -> Result<&[u8], DerError> {
    match content {
        [] | [0] | [0x80..=0xff, ..] | [0, 0..=0x7f, ..] => Err(DerError::Integer),
        [0, magnitude @ ..] | magnitude => Ok(magnitude),
    }
}

/// One value that fills `bytes` to the end.
pub(crate) fn single(bytes: &[u8], tag: u8) -> Result<Tlv<'_>, DerError> {
    let mut reader = Reader::new(bytes);
    let value = reader.expect(tag)?;
    reader.finish()?;
    Ok(value)
}

/// The three parts of a signed structure (certificate, request, CRL), each whole:
/// what is signed, the algorithm, and the signature's bytes.
pub(crate) struct Signed<'a> {
    pub(crate) message: &'a [u8],
    /// The `AlgorithmIdentifier`'s content, as `rustls_pki_types` spells it.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

pub(crate) fn signed(bytes: &[u8]) -> Result<Signed<'_>, DerError> {
    let mut outer = Reader::new(single(bytes, SEQUENCE)?.content);
    let message = outer.expect(SEQUENCE)?.whole;
    let algorithm = outer.expect(SEQUENCE)?.content;
    let signature = outer.bit_string()?;
    outer.finish()?;
    Ok(Signed {
        message,
        algorithm,
        signature,
    })
}

/// Bytes of a value whose content has `length` bytes: tag and length with it.
pub(crate) fn size(length: usize) -> usize {
    let digits = usize::try_from(length.checked_ilog2().unwrap_or(0) / 8).unwrap_or(0) + 1;
    2 + length + if length < 0x80 { 0 } else { digits }
}

/// Appends tag and length of a value whose content has `length` bytes.
pub(crate) fn header(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    if length < 0x80 {
        out.push(u8::try_from(length).unwrap_or(0));
        return;
    }
    let octets = length.to_be_bytes();
    let zeros = octets.iter().take_while(|octet| **octet == 0).count();
    let digits = &octets[zeros..];
    out.push(0x80 | u8::try_from(digits.len()).unwrap_or(0));
    out.extend_from_slice(digits);
}

/// A value made of parts that are laid one after another.
pub(crate) fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    header(&mut out, tag, length);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn lengths_are_written_and_read_in_the_shortest_form() {
        for length in [0_usize, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let content = vec![7_u8; length];
            let written = value(OCTET_STRING, &[&content]);
            assert_eq!(written.len(), size(length));
            assert_eq!(single(&written, OCTET_STRING).unwrap().content, content);
        }
    }

    #[test]
    fn other_spellings_of_a_length_are_refused() {
        for bytes in [
            &[0x04, 0x80, 1, 0, 0][..],
            &[0x04, 0x81, 0x01, 9],
            &[0x04, 0x82, 0x00, 0x01, 9],
            &[0x04, 0x85, 0, 0, 0, 0, 1, 9],
        ] {
            assert_eq!(
                Reader::new(bytes).any().unwrap_err(),
                DerError::Length,
                "{bytes:?}"
            );
        }
        assert_eq!(
            Reader::new(&[0x04, 2, 9]).any().unwrap_err(),
            DerError::Truncated
        );
        assert_eq!(Reader::new(&[0x04]).any().unwrap_err(), DerError::Truncated);
        assert_eq!(
            single(&[0x04, 1, 9, 9], 0x04).unwrap_err(),
            DerError::Trailing
        );
    }

    #[test]
    fn integers_have_one_spelling() {
        for bad in [&[2, 0][..], &[2, 1, 0], &[2, 1, 0x80], &[2, 2, 0, 1]] {
            assert_eq!(
                Reader::new(bad).positive_integer().unwrap_err(),
                DerError::Integer
            );
        }
        assert_eq!(
            Reader::new(&[2, 2, 0, 0x80]).positive_integer().unwrap(),
            [0x80]
        );
        assert_eq!(
            Reader::new(&[2, 1, 0x7f]).positive_integer().unwrap(),
            [0x7f]
        );
    }
}
