//! The floor: the cryptography that a path can't do without, on one thread of an idle
//! machine, with the provider that the server uses too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use citadel_identity::crypto;
use citadel_identity::key::WorkloadKey;
use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, SignatureVerificationAlgorithm};
use rustls::sign::SigningKey;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::args::Path;
use super::rsa_key::RsaKey;
use crate::exit::Failure;

/// How long one operation is repeated, and how often: the fastest repetition counts,
/// because whatever else runs can only slow it down.
const REPETITION: Duration = Duration::from_millis(40);
const REPETITIONS: usize = 4;

/// About as long as a CSR's and a certificate's signed part.
const MESSAGE: [u8; 300] = [0x42; 300];

/// Keys and signatures to repeat the operations on.
#[derive(Clone)]
pub(crate) struct Floor {
    ec_key: Arc<dyn SigningKey>,
    ec: Verification,
    rsa: Verification,
}

#[derive(Clone)]
struct Verification {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    public_key: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Floor {
    pub(crate) fn new(rsa: &RsaKey) -> Result<Self, Failure> {
        let provider = crypto::provider();
        let wrong = |what: &str| Failure::local(format!("can't measure the floor: {what}"));
        let key = WorkloadKey::generate().map_err(|error| wrong(&error.to_string()))?;
        let der = PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec());
        let ec_key = provider
            .key_provider
            .load_private_key(PrivateKeyDer::from(der))
            .map_err(|error| wrong(&error.to_string()))?;
        // As long as a pod-bound token.
        let message = vec![0x42; 1_000];
        let rsa_signature = rsa.sign(&message)?;
        Ok(Self {
            ec: Verification {
                algorithm: algorithm(&provider, SignatureScheme::ECDSA_NISTP256_SHA256)
                    .ok_or_else(|| wrong("no P-256"))?,
                public_key: public_key(key.spki_der()).ok_or_else(|| wrong("no public key"))?,
                message: MESSAGE.to_vec(),
                signature: sign(&ec_key).ok_or_else(|| wrong("P-256 does not sign"))?,
            },
            rsa: Verification {
                algorithm: algorithm(&provider, SignatureScheme::RSA_PKCS1_SHA256)
                    .ok_or_else(|| wrong("no RSA"))?,
                public_key: public_key(&rsa.spki_der()).ok_or_else(|| wrong("no public key"))?,
                message,
                signature: rsa_signature,
            },
            ec_key,
        })
    }

    /// Measures a path's floor: for `token` one RSA-2048 verification, for both one P-256
    /// verification and one P-256 signature.
    pub(crate) async fn measure(&self, path: Path) -> Result<Duration, Failure> {
        let floor = self.clone();
        tokio::task::spawn_blocking(move || floor.measure_here(path))
            .await
            .map_err(|_| Failure::local("the thread that measures the floor panicked"))?
            .ok_or_else(|| Failure::local("can't measure the floor: a signature does not verify"))
    }

    fn measure_here(&self, path: Path) -> Option<Duration> {
        let both = fastest(|| self.ec.verify())? + fastest(|| sign(&self.ec_key).is_some())?;
        match path {
            Path::Token => Some(both + fastest(|| self.rsa.verify())?),
            Path::Agent => Some(both),
        }
    }
}

impl Verification {
    fn verify(&self) -> bool {
        self.algorithm
            .verify_signature(&self.public_key, &self.message, &self.signature)
            .is_ok()
    }
}

fn algorithm(
    provider: &CryptoProvider,
    scheme: SignatureScheme,
) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let mapping = provider.signature_verification_algorithms.mapping;
    mapping
        .iter()
        .find(|(found, _)| *found == scheme)?
        .1
        .first()
        .copied()
}

/// The key itself, without the algorithm around it.
fn public_key(spki: &[u8]) -> Option<Vec<u8>> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    Some(info.subject_public_key.data.to_vec())
}

fn sign(key: &Arc<dyn SigningKey>) -> Option<Vec<u8>> {
    key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])?
        .sign(&MESSAGE)
        .ok()
}

/// The mean of the fastest repetition; nothing where the operation fails.
fn fastest(operation: impl Fn() -> bool) -> Option<Duration> {
    let mut fastest = Duration::MAX;
    for _ in 0..REPETITIONS {
        let (start, mut count) = (Instant::now(), 0_u32);
        let elapsed = loop {
            // In tens: reading the clock is not part of it.
            for _ in 0..10 {
                if !operation() {
                    return None;
                }
            }
            count += 10;
            let elapsed = start.elapsed();
            if elapsed >= REPETITION {
                break elapsed;
            }
        };
        fastest = fastest.min(elapsed / count);
    }
    Some(fastest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_tokens_floor_has_its_verification_too() {
        let mut floor = Floor::new(&RsaKey::generate().unwrap()).unwrap();
        for path in [Path::Token, Path::Agent] {
            assert!(floor.measure_here(path).is_some());
        }
        floor.rsa.signature[10] ^= 1;
        assert_eq!(floor.measure_here(Path::Token), None);
        assert!(floor.measure_here(Path::Agent).is_some());
    }

    #[test]
    fn an_operation_that_fails_has_no_floor() {
        let mut floor = Floor::new(&RsaKey::generate().unwrap()).unwrap();
        floor.ec.signature[10] ^= 1;
        assert_eq!(floor.measure_here(Path::Agent), None);
    }
}
