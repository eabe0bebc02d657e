//! `istio.v1.auth.IstioCertificateService`: what istio-proxy and ztunnel call.

use std::{pin::pin, time::Duration};

use citadel_identity::{bundle, csr};
use citadel_proto::istio::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::SERVICE_NAME,
};
use citadel_runtime::grpc::{self, Handler};
use http::{Request, Response};
use prost_types::value::Kind;
use time::OffsetDateTime;
use tonic::{Status, body::Body};

use super::{
    front::{Front, single},
    refusal::Refusal,
};
use crate::{
    authz::{Ask, Wish},
    issuance::{CSR_ERROR, Item, Svid},
};

pub(super) const CREATE_CERTIFICATE: &str =
    "istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The service; requests without a lifetime get `default_ttl`.
#[derive(Clone)]
pub(crate) struct IstioApi {
    /// What the services share.
    pub(crate) front: Front,
    /// 24 h unless configured otherwise.
    pub(crate) default_ttl: Duration,
}

impl Handler for IstioApi {
    const NAME: &'static str = SERVICE_NAME;

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        match grpc::method(&request) {
            "CreateCertificate" => grpc::answer_once(self.create_certificate(request).await),
            _ => Status::unimplemented("the service has no such method").into_http(),
        }
    }
}

impl IstioApi {
    async fn create_certificate(
        &self,
        request: Request<Body>,
    ) -> Result<IstioCertificateResponse, Status> {
        let (credentials, request) = single::<IstioCertificateRequest>(request).await?;
        let front = &self.front;
        front
            .serve(
                CREATE_CERTIFICATE,
                &credentials,
                pin!(async {
                    let now = OffsetDateTime::now_utc();
                    front.metrics.csrs(1);
                    let caller = front.caller(&credentials, now).await?;
                    let ask = Self::ask(&request)?;
                    let csr = csr::pem_to_der(request.csr.as_bytes()).map_err(|error| {
                        front.metrics.not_signed(CSR_ERROR);
                        Refusal::invalid(format!("csr: {error}"))
                    })?;
                    let ttl = u64::try_from(request.validity_duration).map_err(|_| {
                        Refusal::invalid(
                            "validity_duration: must not be negative; 0 is the default",
                        )
                    })?;
                    let wish = Wish {
                        ttl: (ttl > 0).then(|| Duration::from_secs(ttl)),
                        default_ttl: Some(self.default_ttl),
                        previous_serial: None,
                    };
                    let item = Item { ask, wish, csr };
                    let svid = front.issuance.issue(&caller, &item, now).await;
                    let svid = svid.map_err(|error| Refusal::from(error).of(&caller))?;
                    Ok(self.response(&svid))
                }),
            )
            .await
    }

    /// ztunnel names the workload that it speaks for; istio-proxy names none. `CertSigner`
    /// chooses among signers of a cluster in Istio: here there is one, and a caller that
    /// insists on another is told so.
    fn ask(request: &IstioCertificateRequest) -> Result<Ask, Refusal> {
        let text = |key: &str| {
            let value = request.metadata.as_ref()?.fields.get(key)?;
            match &value.kind {
                Some(Kind::StringValue(text)) if !text.is_empty() => Some(Ok(text.clone())),
                Some(Kind::StringValue(_) | Kind::NullValue(_)) | None => None,
                Some(_) => Some(Err(Refusal::invalid(format!(
                    "metadata.{key}: must be a string"
                )))),
            }
        };
        if let Some(signer) = text("CertSigner").transpose()? {
            return Err(Refusal::invalid(format!(
                "metadata.CertSigner: there is no signer {signer:.100}; leave it empty"
            )));
        }
        Ok(match text("ImpersonatedIdentity").transpose()? {
            Some(id) => Ask::Impersonated(id),
            None => Ask::Own,
        })
    }

    /// Leaf, intermediates, and all roots together in the last element, which the proxy
    /// takes as its ROOTCA.
    fn response(&self, svid: &Svid) -> IstioCertificateResponse {
        let trust_domain = svid.spiffe_id.trust_domain();
        let roots = self
            .front
            .bundles
            .borrow()
            .get(trust_domain)
            .map(bundle::Bundle::to_pem)
            .unwrap_or_default();
        let cert_chain = self
            .front
            .chain(&svid.certificate)
            .iter()
            .map(|der| bundle::certificate_pem(der))
            .chain([roots])
            .collect();
        IstioCertificateResponse { cert_chain }
    }
}
