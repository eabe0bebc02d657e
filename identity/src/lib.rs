//! What a SPIFFE identity is, without I/O and without a clock: IDs and templates,
//! the SVID profile and the linter that checks it, trust bundles, workload and CA
//! keys, verification of presented chains, and the TLS verifiers built on it.
//!
//! Wall time is always passed in. The crypto provider is named in [`crypto`] alone.

pub mod bundle;
pub mod crypto;
pub mod csr;
mod der;
mod facts;
pub mod issuer;
pub mod join_token;
pub mod key;
pub mod limits;
pub mod lint;
pub mod pem;
pub mod profile;
pub mod selector;
pub mod serial;
pub mod slot;
mod spki;
pub mod template;
pub mod tls;
pub mod verify;
pub mod x509pop;

pub use facts::{FactsError, SpiffeIdFault};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use spki::{KeyType, SpkiError};
