//! Every cap on untrusted sizes and counts, in one place.

use std::time::Duration;

/// Largest certificate signing request in DER, bytes.
pub const CSR_DER_BYTES: usize = 16 * 1024;
/// Largest certificate signing request in PEM, bytes: the DER limit in base64 with
/// line ends, and room for the text that some tools write in front of it.
pub const CSR_PEM_BYTES: usize = 32 * 1024;
/// Smallest RSA modulus that a workload or CA key may have, bits.
pub const RSA_MIN_BITS: usize = 2048;
/// Largest RSA modulus that a workload or CA key may have, bits.
pub const RSA_MAX_BITS: usize = 4096;
/// Largest single certificate in DER, bytes.
pub const CERTIFICATE_BYTES: usize = 16 * 1024;
/// Most certificates in a presented chain, leaf and root included.
pub const CHAIN_CERTIFICATES: usize = 6;
/// Longest serial number, octets (RFC 5280 section 4.1.2.2).
pub const SERIAL_OCTETS: usize = 20;
/// Longest SPIFFE ID, bytes (SPIFFE requirement 4).
pub const SPIFFE_ID_BYTES: usize = 2048;
/// Longest DNS name, bytes without the final dot (RFC 1035 section 2.3.4).
pub const DNS_NAME_BYTES: usize = 253;
/// Most DNS names in one certificate.
pub const DNS_NAMES: usize = 64;
/// Largest trust bundle document, bytes, in PEM or JWKS.
pub const BUNDLE_BYTES: usize = 4 * 1024 * 1024;
/// Most authorities in one trust domain's bundle.
pub const BUNDLE_AUTHORITIES: usize = 128;
/// Most trust domains in one bundle set.
pub const BUNDLE_TRUST_DOMAINS: usize = 1024;
/// Largest private key file, bytes.
pub const KEY_BYTES: usize = 32 * 1024;
/// Longest ID template, bytes.
pub const TEMPLATE_BYTES: usize = 1024;
/// Longest selector, bytes.
pub const SELECTOR_BYTES: usize = 4096;
/// How far a new certificate's `notBefore` may lie before the linter's clock.
pub const NOT_BEFORE_PAST: Duration = Duration::from_mins(10);
/// How far a new certificate's `notBefore` may lie after the linter's clock.
pub const NOT_BEFORE_FUTURE: Duration = Duration::from_secs(10);
