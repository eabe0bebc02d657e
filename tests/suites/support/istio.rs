//! Requests as istio-proxy and ztunnel make them.

use citadel_proto::istio::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// A request as istio-proxy sends it: its own lifetime, an empty `CertSigner`.
pub(crate) fn certificate_request(csr_pem: &str, seconds: i64) -> IstioCertificateRequest {
    with_metadata(csr_pem, seconds, &[("CertSigner", "")])
}

/// A request with this metadata.
pub(crate) fn with_metadata(
    csr_pem: &str,
    seconds: i64,
    metadata: &[(&str, &str)],
) -> IstioCertificateRequest {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.into())),
    };
    let fields = metadata
        .iter()
        .map(|&(key, value)| (key.to_owned(), text(value)));
    IstioCertificateRequest {
        csr: csr_pem.into(),
        validity_duration: seconds,
        metadata: Some(Struct {
            fields: fields.collect(),
        }),
    }
}

/// The roots: the last element, which may hold several.
pub(crate) fn roots_of(answer: &IstioCertificateResponse) -> &str {
    assert!(answer.cert_chain.len() >= 2, "{answer:?}");
    answer.cert_chain.last().expect("two elements at least")
}
