//! A CA that somebody else made: Istio's `cacerts` files, each kind of key,
//! and each defect with its reason.

mod accepted;
pub(crate) mod made;
mod refused;
