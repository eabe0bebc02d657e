//! What the names of SDS stand for, and Envoy's messages for it.

use std::{collections::BTreeMap, sync::Arc};

use citadel_identity::{SpiffeId, TrustDomain, bundle::Bundle, crypto, pem};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, TlsCertificate, secret::Type,
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name as _};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroize;

use super::protocol::Ready;
use crate::{gate::names_trust_domain, identities::Snapshot, secrets::Svid};

/// The peer's default identity.
pub const DEFAULT: &str = "default";

/// The bundle of the agent's own trust domain.
pub const ROOT_CA: &str = "ROOTCA";

/// The only resources served here.
pub fn type_url() -> String {
    Secret::type_url()
}

/// A snapshot as SDS names its parts.
pub struct Content<'s> {
    snapshot: &'s Snapshot,
    own: &'s TrustDomain,
}

enum Resource<'s> {
    Certificate(&'s Arc<Svid>),
    Roots(&'s Bundle),
}

impl<'s> Content<'s> {
    /// `own` is the trust domain that `ROOTCA` stands for.
    pub fn new(snapshot: &'s Snapshot, own: &'s TrustDomain) -> Self {
        Self { snapshot, own }
    }

    fn find(&self, name: &str) -> Option<Resource<'s>> {
        let roots = |trust_domain: &TrustDomain| {
            self.snapshot
                .bundles
                .get(trust_domain)
                .filter(|bundle| !bundle.authorities.is_empty())
                .map(Resource::Roots)
        };
        match name {
            DEFAULT => {
                let first = self
                    .snapshot
                    .svids
                    .first()
                    .filter(|_| self.snapshot.has_default)?;
                Some(Resource::Certificate(first))
            }
            ROOT_CA => roots(self.own),
            name => {
                if let Some(trust_domain) = names_trust_domain(name) {
                    return roots(&trust_domain);
                }
                // Only among the caller's own: there is no way to name another's.
                let id = SpiffeId::new(name).ok()?;
                let svid = self.snapshot.svids.iter().find(|svid| svid.id == id)?;
                Some(Resource::Certificate(svid))
            }
        }
    }

    /// Envoy's resource for `name`, under the name that was asked for.
    pub fn resource(&self, name: &str) -> Option<Any> {
        let kind = match self.find(name)? {
            Resource::Certificate(svid) => Type::TlsCertificate(TlsCertificate {
                certificate_chain: Some(inline(pem_chain(&svid.chain))),
                private_key: Some(inline(
                    pem::encode("PRIVATE KEY", svid.key.pkcs8_der())
                        .as_bytes()
                        .to_vec(),
                )),
                ..TlsCertificate::default()
            }),
            Resource::Roots(bundle) => Type::ValidationContext(CertificateValidationContext {
                trusted_ca: Some(inline(pem_chain(&bundle.authorities))),
                ..CertificateValidationContext::default()
            }),
        };
        let mut secret = Secret {
            name: name.to_owned(),
            r#type: Some(kind),
        };
        // Never through Debug: Envoy's types print private keys.
        let value = secret.encode_to_vec();
        wipe(&mut secret);
        Some(Any {
            type_url: type_url(),
            value,
        })
    }

    /// All of `names` that are there, with their versions.
    pub fn versions(&self, names: &[String]) -> BTreeMap<String, String> {
        names
            .iter()
            .filter_map(|name| Some((name.clone(), self.version_of(name)?)))
            .collect()
    }
}

impl Ready for Content<'_> {
    fn version_of(&self, name: &str) -> Option<String> {
        Some(match self.find(name)? {
            Resource::Certificate(svid) => svid.serial.clone(),
            Resource::Roots(bundle) => {
                let all: Vec<u8> = bundle
                    .authorities
                    .iter()
                    .flat_map(AsRef::as_ref)
                    .copied()
                    .collect();
                hex::encode(crypto::sha256(&all))
            }
        })
    }
}

/// Envoy's types do not wipe themselves. (The encoded bytes are gRPC's from here on.)
fn wipe(secret: &mut Secret) {
    if let Some(Type::TlsCertificate(certificate)) = &mut secret.r#type
        && let Some(DataSource {
            specifier: Some(Specifier::InlineBytes(key)),
            ..
        }) = &mut certificate.private_key
    {
        key.zeroize();
    }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
        ..DataSource::default()
    }
}

fn pem_chain(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    chain
        .iter()
        .flat_map(|der| pem::encode("CERTIFICATE", der).as_bytes().to_vec())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_key_is_wiped_once_it_is_encoded() {
        let mut secret = Secret {
            name: DEFAULT.to_owned(),
            r#type: Some(Type::TlsCertificate(TlsCertificate {
                private_key: Some(inline(b"a key".to_vec())),
                ..TlsCertificate::default()
            })),
        };
        wipe(&mut secret);
        let encoded = secret.encode_to_vec();
        assert!(!encoded.windows(5).any(|bytes| bytes == b"a key"));
    }
}
