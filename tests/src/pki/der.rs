//! DER written by hand, for structures that no tool would make.

/// Tags of the universal class, and the two context tags that requests use.
pub mod tag {
    #![allow(missing_docs, reason = "these are ASN.1's own names")]
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OBJECT_IDENTIFIER: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    /// `[0]` constructed: a request's attributes.
    pub const CONTEXT_0: u8 = 0xa0;
    /// `[1]` of a general name: an email address.
    pub const EMAIL: u8 = 0x81;
    /// `[2]` of a general name: a DNS name.
    pub const DNS_NAME: u8 = 0x82;
    /// `[6]` of a general name: a URI.
    pub const URI: u8 = 0x86;
    /// `[7]` of a general name: an IP address, 4 or 16 bytes.
    pub const IP_ADDRESS: u8 = 0x87;
}

/// One element.
pub fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.extend(u8::try_from(length));
    } else {
        let bytes = length.to_be_bytes();
        let used = &bytes[bytes.iter().take_while(|&&byte| byte == 0).count()..];
        out.extend(u8::try_from(0x80 + used.len()));
        out.extend(used);
    }
    out.extend(content);
    out
}

/// A SEQUENCE of these.
pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(tag::SEQUENCE, &parts.concat())
}

/// An OBJECT IDENTIFIER, from its numbers.
pub fn oid(numbers: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    let first = numbers[0] * 40 + numbers[1];
    for &number in std::iter::once(&first).chain(&numbers[2..]) {
        let groups = (u32::BITS - number.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let more = if group > 0 { 0x80 } else { 0 };
            content.push(u8::try_from((number >> (7 * group)) & 0x7f).expect("seven bits") | more);
        }
    }
    element(tag::OBJECT_IDENTIFIER, &content)
}

/// A BIT STRING of whole bytes.
pub fn bit_string(bytes: &[u8]) -> Vec<u8> {
    element(tag::BIT_STRING, &[&[0], bytes].concat())
}

/// An X.509 extension.
pub fn extension(id: &[u32], critical: bool, value: &[u8]) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if critical {
        parts.push(element(tag::BOOLEAN, &[0xff]));
    }
    parts.push(element(tag::OCTET_STRING, value));
    sequence(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lengths_as_x690_has_them() {
        assert_eq!(
            oid(&[1, 2, 840, 113_549, 1, 9, 14]),
            hex::decode("06092a864886f70d01090e").unwrap()
        );
        assert_eq!(oid(&[2, 5, 29, 17]), hex::decode("0603551d11").unwrap());
        assert_eq!(element(tag::INTEGER, &[0]), [2, 1, 0]);
        assert_eq!(
            element(tag::OCTET_STRING, &[7; 300])[..4],
            [4, 0x82, 1, 0x2c]
        );
    }
}
