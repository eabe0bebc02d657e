//! Which part of a secret to look for.
//!
//! The whole would be missed when a log cuts it off, wraps it, or holds it
//! inside of something larger. Public parts (a key's public half, a token's
//! claims) may be logged.

/// How many bytes at least. Fewer could turn up by accident.
const ENOUGH: usize = 16;

/// From a token: the middle of its signature, as it is spelt; from an unsigned
/// one or a random one, the middle of the whole.
pub(super) fn of_token(token: &str) -> Vec<u8> {
    let signature = token.rsplit('.').next().unwrap_or_default();
    let secret = if signature.is_empty() {
        token
    } else {
        signature
    };
    middle(secret.as_bytes(), 40).to_vec()
}

/// From a private key: the scalar or seed of an elliptic-curve key, the end of
/// an RSA key (its CRT coefficient).
pub(super) fn of_key(der: &[u8]) -> Vec<u8> {
    let fragment = scalar(der).unwrap_or_else(|| &der[der.len().saturating_sub(40)..]);
    assert!(
        fragment.len() >= ENOUGH,
        "a private key is longer than {} bytes",
        fragment.len()
    );
    fragment.to_vec()
}

/// `ECPrivateKey` (RFC 5915) begins with version 1, then the scalar; RSA keys
/// have version 0.
fn scalar(der: &[u8]) -> Option<&[u8]> {
    const VERSION_1_THEN_OCTETS: [u8; 4] = [0x02, 0x01, 0x01, 0x04];
    let head = &der[..der.len().min(64)];
    let at = head
        .windows(4)
        .position(|window| window == VERSION_1_THEN_OCTETS)?;
    let length = usize::from(*der.get(at + 4)?);
    der.get(at + 5..at + 5 + length)
}

fn middle(bytes: &[u8], length: usize) -> &[u8] {
    let length = length.min(bytes.len());
    assert!(
        length >= ENOUGH,
        "too short for a secret: {} bytes",
        bytes.len()
    );
    let start = (bytes.len() - length) / 2;
    &bytes[start..start + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_each_kind_give_a_private_part() {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = key.serialized_der();
        let fragment = of_key(der);
        assert_eq!(fragment.len(), 32);
        let public = key.public_key_raw();
        assert!(
            !public.windows(32).any(|window| window == fragment),
            "that is the public half"
        );
        let seed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(of_key(seed.serialized_der()).len() >= ENOUGH);
    }

    #[test]
    fn tokens_are_known_by_their_signature() {
        let signature = "0123456789abcdefghij0123456789";
        assert_eq!(
            of_token(&format!("header.claims.{signature}")),
            signature.as_bytes()
        );
        assert_eq!(
            of_token("abcdefghijklmnop.qrstuv."),
            b"abcdefghijklmnop.qrstuv."
        );
    }
}
