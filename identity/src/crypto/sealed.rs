//! Bytes that only the holder of a one-time key can read (AES-256-GCM, NIST SP 800-38D).

use zeroize::{Zeroize, Zeroizing};

use super::{
    backend::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    random,
};

/// Seals one message and no more. Wipes itself and prints nothing.
pub struct OneTimeKey(Zeroizing<[u8; 32]>);

/// The bytes were not sealed by this key, or were changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed bytes do not belong to this key")]
pub struct NotSealed;

/// Seals `plain` in place. A key of its own for each message makes the nonce's being
/// always the same one no matter.
///
/// # Panics
/// Never within the 64 GiB that the algorithm has room for.
pub fn seal(mut plain: Zeroizing<Vec<u8>>) -> (OneTimeKey, Vec<u8>) {
    let key = OneTimeKey(Zeroizing::new(random()));
    // Room for the tag first: growing later would leave a copy behind.
    let mut sealed = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
    sealed.extend_from_slice(&plain);
    plain.zeroize();
    let done = key.cipher().and_then(|cipher| {
        cipher
            .seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)
            .ok()
    });
    assert!(done.is_some(), "AES-256-GCM has room for the message");
    (key, sealed)
}

impl OneTimeKey {
    /// A key that came from who sealed; `None` for another length than 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.try_into().ok()?;
        Some(Self(Zeroizing::new(bytes)))
    }

    /// For who is to open the message.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Opens what [`seal`] made.
    pub fn open(self, sealed: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, NotSealed> {
        let mut bytes = Zeroizing::new(sealed);
        let cipher = self.cipher().ok_or(NotSealed)?;
        let plain = cipher
            .open_in_place(nonce(), Aad::empty(), &mut bytes)
            .map_err(|_| NotSealed)?
            .len();
        bytes.truncate(plain);
        Ok(bytes)
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM, self.0.as_slice()).ok()?;
        Some(LessSafeKey::new(key))
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

impl std::fmt::Debug for OneTimeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OneTimeKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sealed(text: &[u8]) -> (OneTimeKey, Vec<u8>) {
        seal(Zeroizing::new(text.to_vec()))
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_unchanged_alone() {
        let (key, bytes) = sealed(b"a private key");
        assert!(!bytes.windows(7).any(|part| part == b"private"));
        let same = OneTimeKey::from_bytes(key.expose()).unwrap();
        assert_eq!(
            same.open(bytes.clone()).unwrap().as_slice(),
            b"a private key"
        );
        let (other, _) = sealed(b"");
        assert_eq!(other.open(bytes.clone()), Err(NotSealed));
        for changed in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[changed] ^= 1;
            let key = OneTimeKey::from_bytes(key.expose()).unwrap();
            assert_eq!(key.open(bytes), Err(NotSealed), "byte {changed}");
        }
        assert_eq!(key.open(bytes[1..].to_vec()), Err(NotSealed));
        assert!(OneTimeKey::from_bytes(&[0; 31]).is_none());
    }

    #[test]
    fn no_two_messages_have_the_same_key() {
        let (first, second) = (sealed(b"same"), sealed(b"same"));
        assert_ne!(first.1, second.1);
        assert_eq!(format!("{:?}", first.0), "OneTimeKey(redacted)");
    }
}
