//! Certificates as files, for programs that read nothing else: PEM and PKCS#12, written the
//! way the kubelet writes its volumes, so that a reader never sees a key beside another
//! certificate; and then a word to the program that reads them.
//!
//! `citadel fetch --write` uses the same folder and formats.

pub mod config;
pub mod folder;
pub mod formats;
pub mod keeper;
pub mod reload;

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

/// An SVID and what its holder trusts, as it goes into files.
#[derive(Clone)]
pub struct Material {
    /// Leaf first, then intermediates; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Unencrypted PKCS#8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// The authorities of the SVID's own trust domain.
    pub authorities: Vec<CertificateDer<'static>>,
}
