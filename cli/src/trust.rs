//! Trust bundles from files, and TLS to a CA that is known by its SPIFFE ID.

use std::path::Path;
use std::sync::Arc;

use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_identity::tls::{BundleHandle, ServerVerifier, Trust};
use citadel_identity::{TrustDomain, crypto, template};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificate::{self, Facts};
use crate::exit::Failure;

/// A certificate chain (leaf first, DER) with its key.
pub(crate) struct ClientIdentity {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// A trust domain from the command line.
pub(crate) fn domain(name: &str) -> Result<TrustDomain, Failure> {
    // The library also takes a whole SPIFFE ID, and mends upper case.
    let parsed = TrustDomain::new(name)
        .ok()
        .filter(|parsed| parsed.as_str() == name);
    parsed.ok_or_else(|| {
        Failure::usage(format!("{name:?} is no trust domain")).next(
            "Write a name of lowercase letters, digits, dots, dashes and underscores, such as \
             example.org.",
        )
    })
}

/// A bundle from a file's bytes: PEM, DER certificates one after another, or SPIFFE JSON.
pub(crate) fn parse(trust_domain: &TrustDomain, content: &[u8]) -> Result<Bundle, String> {
    let first = content.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'{') {
        return Bundle::from_jwks(trust_domain.clone(), content).map_err(|error| error.to_string());
    }
    let authorities = certificate::read(content).map_err(|error| error.to_string())?;
    Ok(of(trust_domain, &authorities))
}

/// The bundle of these authorities, DER.
pub(crate) fn of(trust_domain: &TrustDomain, authorities: &[Vec<u8>]) -> Bundle {
    let authorities = authorities
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    Bundle::new(trust_domain.clone(), authorities)
}

/// The trust domain and its bundle from the content of this file. A name of the trust domain
/// that is not given is the one in the first root's SPIFFE ID.
pub(crate) fn bundles(
    path: &Path,
    content: &[u8],
    name: Option<&str>,
) -> Result<(TrustDomain, BundleSet), Failure> {
    let trust_domain = match name {
        Some(name) => domain(name)?,
        None => named_by_root(content).ok_or_else(|| {
            Failure::usage(format!("{} does not name its trust domain", path.display()))
                .next("Give it with --trust-domain.")
        })?,
    };
    let bundles = bundles_of(&trust_domain, content)?;
    Ok((trust_domain, bundles))
}

/// The same of a trust domain whose name is known.
pub(crate) fn bundles_of(trust_domain: &TrustDomain, content: &[u8]) -> Result<BundleSet, Failure> {
    let bundle = parse(trust_domain, content)
        .map_err(|error| Failure::local(format!("the trust bundle: {error}")))?;
    Ok(BundleSet::from(bundle))
}

/// The trust domain in the first root's SPIFFE ID.
fn named_by_root(content: &[u8]) -> Option<TrustDomain> {
    let roots = certificate::read(content).ok()?;
    let facts = Facts::of(roots.first()?, 1).ok()?;
    let id = facts.uris.iter().find(|uri| uri.starts_with("spiffe://"))?;
    TrustDomain::new(id.strip_prefix("spiffe://")?).ok()
}

/// What `citadel fetch --write` wrote to this folder.
pub(crate) fn identity(folder: &Path) -> Result<ClientIdentity, Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        let failed = |error: &dyn std::fmt::Display| {
            Failure::local(format!("can't read {}: {error}", path.display()))
        };
        std::fs::read(&path).map_err(|error| failed(&error))
    };
    let named = |name: &str, error: &dyn std::fmt::Display| {
        Failure::local(format!("{}: {error}", folder.join(name).display()))
    };
    let chain = certificate::read(&read("svid.pem")?).map_err(|error| named("svid.pem", &error))?;
    if chain.is_empty() {
        return Err(named("svid.pem", &"no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read("svid_key.pem")?)
        .map_err(|error| named("svid_key.pem", &error))?;
    Ok(ClientIdentity { chain, key })
}

/// TLS to the CA of this trust domain, with a client certificate where there is one.
pub(crate) fn client_config(
    trust_domain: &TrustDomain,
    bundles: &BundleSet,
    identity: Option<ClientIdentity>,
) -> Result<Arc<rustls::ClientConfig>, Failure> {
    let failed = |error: rustls::Error| Failure::local(format!("can't set up TLS: {error}"));
    let trust = Trust::Bundles(BundleHandle::new(bundles.clone()));
    let verifier = ServerVerifier::new(template::ca_id(trust_domain), trust);
    let builder = rustls::ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(ClientIdentity { chain, key }) => {
            let chain = chain.into_iter().map(CertificateDer::from).collect();
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn a_bundle_is_read_from_pem_der_and_json() {
        let root = TestCa::new().root;
        let trust_domain = domain("example.org").unwrap();
        let from_der = parse(&trust_domain, &root).unwrap();
        let from_pem = parse(&trust_domain, from_der.to_pem().as_bytes()).unwrap();
        let json = format!(" \n{}", from_der.to_jwks().unwrap());
        let from_json = parse(&trust_domain, json.as_bytes()).unwrap();
        for bundle in [from_der, from_pem, from_json] {
            assert_eq!(bundle.authorities, [CertificateDer::from(root.clone())]);
        }
        parse(&trust_domain, b"nonsense").unwrap_err();
        parse(&trust_domain, b"").unwrap_err();
    }

    #[test]
    fn spiffe_req_02_trust_domains_are_names() {
        domain("example.org").unwrap();
        for wrong in [
            "",
            "Example.org",
            "spiffe://example.org",
            "a/b",
            "a:1",
            "a b",
        ] {
            domain(wrong).unwrap_err();
        }
    }
}
