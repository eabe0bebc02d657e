//! What the names of SDS stand for, and Envoy's messages for it.

use std::{collections::BTreeMap, sync::Arc};

use citadel_identity::{SpiffeId, TrustDomain, bundle::Bundle, pem};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
            secret::Type, spiffe_cert_validator_config::TrustDomain as SpiffeTrustDomain,
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name as _};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroize;

use super::{
    files::{self, FileSecret, Files},
    protocol::{Ready, version_of_all},
};
use crate::{
    gate::names_trust_domain,
    holders,
    identities::{Snapshot, Standing},
    secrets::Svid,
};

/// The peer's default identity.
pub const DEFAULT: &str = "default";

/// The bundle of the agent's own trust domain.
pub const ROOT_CA: &str = "ROOTCA";

/// The bundle of every trust domain that the CA sent, each for its own peers.
pub const ALL: &str = "ALL";

const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// The only resources served here.
pub fn type_url() -> String {
    Secret::type_url()
}

/// A snapshot as SDS names its parts.
pub struct Content<'s> {
    snapshot: &'s Snapshot,
    own: &'s TrustDomain,
    files: &'s Files,
}

enum Resource<'s> {
    Certificate(&'s Arc<Svid>),
    /// Whom they authenticate: each the peers of its own trust domain.
    Roots(Vec<&'s Bundle>),
    File(&'s FileSecret),
}

impl<'s> Content<'s> {
    /// `own` is the trust domain that `ROOTCA` stands for, `files` what was read of the
    /// files that the names of the subscription are of.
    pub fn new(snapshot: &'s Snapshot, own: &'s TrustDomain, files: &'s Files) -> Self {
        Self {
            snapshot,
            own,
            files,
        }
    }

    fn find(&self, name: &str) -> Option<Resource<'s>> {
        match name {
            DEFAULT => {
                let first = self
                    .snapshot
                    .svids
                    .first()
                    .filter(|_| self.snapshot.has_default)?;
                Some(Resource::Certificate(first))
            }
            ROOT_CA => self.roots(Some(self.own)),
            ALL => self.roots(None),
            name => {
                if let Some(trust_domain) = names_trust_domain(name) {
                    return self.roots(Some(&trust_domain));
                }
                if files::names_files(name) {
                    return self.files.get(name).map(Resource::File);
                }
                // Only among the caller's own: there is no way to name another's.
                let id = SpiffeId::new(name).ok()?;
                let svid = self.snapshot.svids.iter().find(|svid| svid.id == id)?;
                Some(Resource::Certificate(svid))
            }
        }
    }

    /// The bundles that authenticate somebody, of one trust domain or of all.
    fn roots(&self, of: Option<&TrustDomain>) -> Option<Resource<'s>> {
        let bundles: Vec<&Bundle> = self
            .snapshot
            .bundles
            .iter()
            .filter(|bundle| of.is_none_or(|of| bundle.trust_domain == *of))
            .filter(|bundle| !bundle.authorities.is_empty())
            .collect();
        (!bundles.is_empty()).then_some(Resource::Roots(bundles))
    }

    /// With one trust domain its authorities say all. With several, Envoy has to hold each
    /// peer against the authorities of the peer's own (requirement 36): an authority of one
    /// may not vouch for names of another.
    fn by_trust_domain(&self) -> bool {
        self.snapshot.bundles.len() > 1
    }

    fn validation_context(&self, bundles: &[&Bundle]) -> CertificateValidationContext {
        if let ([bundle], false) = (bundles, self.by_trust_domain()) {
            return CertificateValidationContext {
                trusted_ca: Some(inline(pem_chain(&bundle.authorities))),
                ..CertificateValidationContext::default()
            };
        }
        let trust_domains = bundles.iter().map(|bundle| spiffe_trust_domain(bundle));
        let config = SpiffeCertValidatorConfig {
            trust_domains: trust_domains.collect(),
            ..SpiffeCertValidatorConfig::default()
        };
        CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig {
                name: SPIFFE_VALIDATOR.to_owned(),
                typed_config: Some(Any {
                    type_url: SpiffeCertValidatorConfig::type_url(),
                    value: config.encode_to_vec(),
                }),
            }),
            ..CertificateValidationContext::default()
        }
    }

    /// Envoy's resource for `name`, under the name that was asked for.
    pub fn resource(&self, name: &str) -> Option<Any> {
        let value = match self.find(name)? {
            Resource::Certificate(svid) => {
                let whole = || {
                    let key = pem::encode(pem::PRIVATE_KEY, svid.key.pkcs8_der());
                    encode("", certificate(pem_chain(&svid.chain), key.as_bytes()))
                };
                // In protobuf a message is its fields one after the other: the name is what
                // differs between those who are sent the same certificate.
                let named = Secret {
                    name: name.to_owned(),
                    r#type: None,
                };
                [named.encode_to_vec().as_slice(), svid.encoded(whole)].concat()
            }
            Resource::Roots(bundles) => encode(
                name,
                Type::ValidationContext(self.validation_context(&bundles)),
            ),
            Resource::File(FileSecret::Certificate { chain, key, .. }) => {
                encode(name, certificate(chain.clone(), key))
            }
            Resource::File(FileSecret::Roots { roots, .. }) => {
                let context = CertificateValidationContext {
                    trusted_ca: Some(inline(roots.clone())),
                    ..CertificateValidationContext::default()
                };
                encode(name, Type::ValidationContext(context))
            }
        };
        Some(Any {
            type_url: type_url(),
            value,
        })
    }

    /// What `name` stands for, for the count of who runs on what.
    pub fn holding(&self, name: &str) -> Arc<holders::Content> {
        match self.find(name) {
            Some(Resource::Certificate(svid)) => svid.holding(),
            Some(Resource::Roots(bundles)) => bundles
                .iter()
                .find(|bundle| bundle.trust_domain == *self.own)
                .map_or(holders::Content::Other, |bundle| {
                    holders::Content::OwnBundle(bundle.authorities_sha256())
                })
                .into(),
            Some(Resource::File(_)) | None => holders::Content::Other.into(),
        }
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
            Resource::Roots(bundles) if self.by_trust_domain() => {
                let each = bundles.iter().map(|bundle| {
                    let name = bundle.trust_domain.to_string();
                    (name, bundle.authorities_sha256())
                });
                version_of_all(&each.collect::<BTreeMap<_, _>>())
            }
            Resource::Roots(bundles) => bundles.first()?.authorities_sha256(),
            Resource::File(secret) => secret.version().to_owned(),
        })
    }

    fn is_gone(&self, name: &str) -> bool {
        // What was read of a file stays: files come and go while they are exchanged.
        if files::names_files(name) || self.snapshot.standing != Standing::Complete {
            return false;
        }
        let of_bundles = name == ALL || name == ROOT_CA || names_trust_domain(name).is_some();
        (of_bundles || self.snapshot.entries_known) && self.find(name).is_none()
    }
}

/// Never through Debug: Envoy's types print private keys.
fn encode(name: &str, kind: Type) -> Vec<u8> {
    let mut secret = Secret {
        name: name.to_owned(),
        r#type: Some(kind),
    };
    let value = secret.encode_to_vec();
    wipe(&mut secret);
    value
}

fn certificate(chain: Vec<u8>, key: &[u8]) -> Type {
    Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key.to_vec())),
        ..TlsCertificate::default()
    })
}

fn spiffe_trust_domain(bundle: &Bundle) -> SpiffeTrustDomain {
    SpiffeTrustDomain {
        name: bundle.trust_domain.to_string(),
        trust_bundle: Some(inline(pem_chain(&bundle.authorities))),
        ..SpiffeTrustDomain::default()
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

    use citadel_identity::bundle::BundleSet;
    use rustls::pki_types::CertificateDer;

    use super::*;

    fn snapshot(bundles: &[(&str, &[&[u8]])]) -> Snapshot {
        let mut set = BundleSet::default();
        for (name, authorities) in bundles {
            let authorities = authorities
                .iter()
                .map(|der| CertificateDer::from(der.to_vec()));
            let name = TrustDomain::new(name).unwrap();
            set.insert(Bundle::new(name, authorities.collect()));
        }
        Snapshot {
            svids: Vec::new(),
            bundles: Arc::new(set),
            standing: Standing::Complete,
            entries_known: true,
            has_default: false,
        }
    }

    fn with<T>(snapshot: &Snapshot, look: impl FnOnce(&Content<'_>) -> T) -> T {
        let own = TrustDomain::new("example.org").unwrap();
        look(&Content::new(snapshot, &own, &Files::default()))
    }

    fn context(snapshot: &Snapshot, name: &str) -> Option<CertificateValidationContext> {
        let any = with(snapshot, |content| content.resource(name))?;
        match Secret::decode(any.value.as_slice())
            .unwrap()
            .r#type
            .unwrap()
        {
            Type::ValidationContext(context) => Some(context),
            _ => panic!("not a validation context"),
        }
    }

    /// Name and number of authorities of each trust domain that Envoy's validator knows.
    fn trust_domains(context: &CertificateValidationContext) -> Vec<(String, usize)> {
        assert!(context.trusted_ca.is_none());
        let config = context.custom_validator_config.as_ref().unwrap();
        assert_eq!(config.name, "envoy.tls.cert_validator.spiffe");
        let config = config.typed_config.as_ref().unwrap();
        let config = SpiffeCertValidatorConfig::decode(config.value.as_slice()).unwrap();
        config
            .trust_domains
            .into_iter()
            .map(|one| {
                let Some(Specifier::InlineBytes(pem)) = one.trust_bundle.unwrap().specifier else {
                    panic!("not inline")
                };
                let pem = String::from_utf8(pem).unwrap();
                (one.name, pem.matches("BEGIN CERTIFICATE").count())
            })
            .collect()
    }

    #[test]
    fn sds_req_11_14_with_one_trust_domain_all_names_of_its_bundle_are_plain_roots() {
        let one = snapshot(&[("example.org", &[b"1", b"2"])]);
        for name in [ROOT_CA, ALL, "spiffe://example.org"] {
            let context = context(&one, name).unwrap();
            assert!(context.trusted_ca.is_some() && context.custom_validator_config.is_none());
        }
        assert!(context(&one, "spiffe://other.org").is_none());
    }

    #[test]
    fn sds_req_11_14_with_several_each_peer_is_held_against_its_own_trust_domain() {
        let set: &[(&str, &[&[u8]])] = &[
            ("example.org", &[b"1", b"2"]),
            ("other.org", &[b"3"]),
            // Nobody of it is to be trusted (requirement 18).
            ("empty.org", &[]),
        ];
        let several = snapshot(set);
        let shown = |name: &str| context(&several, name).map(|context| trust_domains(&context));
        let own = ("example.org".to_owned(), 2);
        let other = ("other.org".to_owned(), 1);
        assert_eq!(shown(ALL).unwrap(), [own.clone(), other.clone()]);
        for name in [ROOT_CA, "spiffe://example.org"] {
            assert_eq!(shown(name).unwrap(), std::slice::from_ref(&own));
        }
        assert_eq!(shown("spiffe://other.org").unwrap(), [other]);
        assert!(shown("spiffe://empty.org").is_none());
        // Each of them is another version than what was plain before, so it is pushed.
        let plain = snapshot(&set[..1]);
        for name in [ALL, ROOT_CA] {
            let before = with(&plain, |content| content.version_of(name));
            let after = with(&several, |content| content.version_of(name));
            assert!(before.is_some() && after.is_some() && before != after);
        }
    }

    #[test]
    fn sds_req_18_only_the_cas_word_makes_something_gone() {
        let mut snapshot = snapshot(&[("example.org", &[b"1"])]);
        let gone = |snapshot: &Snapshot, name: &str| with(snapshot, |it| it.is_gone(name));
        let withdrawn = "spiffe://example.org/withdrawn";
        assert!(gone(&snapshot, withdrawn) && gone(&snapshot, "spiffe://other.org"));
        assert!(!gone(&snapshot, ROOT_CA) && !gone(&snapshot, "file-root:/absent"));
        // After a restart the account's identity is there before the entries are.
        snapshot.entries_known = false;
        assert!(!gone(&snapshot, withdrawn) && gone(&snapshot, "spiffe://other.org"));
        snapshot.entries_known = true;
        snapshot.standing = Standing::Waiting("the CA is away".into());
        assert!(!gone(&snapshot, withdrawn) && !gone(&snapshot, "spiffe://other.org"));
    }

    #[test]
    fn sds_req_13_a_key_is_wiped_once_it_is_encoded() {
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
