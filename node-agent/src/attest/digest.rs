//! SHA-256 of a file, piece by piece: executables can be larger than the agent.

use std::io::{self, Read};

use rustls::crypto::{CryptoProvider, hash::HashAlgorithm};

/// The SHA-256 of everything that `reader` yields, in lowercase hex.
pub(super) fn sha256_hex(provider: &CryptoProvider, mut reader: impl Read) -> io::Result<String> {
    // rustls knows the provider's hash functions by its cipher suites.
    let hash = provider
        .cipher_suites
        .iter()
        .filter_map(rustls::SupportedCipherSuite::tls13)
        .map(|suite| suite.common.hash_provider)
        .find(|hash| hash.algorithm() == HashAlgorithm::SHA256)
        .ok_or_else(|| io::Error::other("the crypto provider has no SHA-256"))?;
    let mut context = hash.start();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(context.finish().as_ref())),
            Ok(read) => context.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn digests_are_the_standards() {
        let provider = citadel_identity::crypto::provider();
        assert_eq!(
            sha256_hex(&provider, &b"abc"[..]).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long = vec![7u8; 200_000];
        let whole = hex::encode(citadel_identity::crypto::sha256(&long));
        assert_eq!(sha256_hex(&provider, long.as_slice()).unwrap(), whole);
    }
}
