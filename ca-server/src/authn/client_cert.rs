//! Renewal: a caller that presents an SVID of this CA. The record of that certificate says
//! what it rests on, and that is checked again.

mod proven;

use std::sync::Arc;

use citadel_identity::{SpiffeId, serial::Serial, template, verify};
use citadel_proto::log;
use prost::Message as _;
use time::OffsetDateTime;

use self::proven::Proven;
pub(super) use self::proven::ProvenChains;
use super::{Authenticator, AuthnError, Credentials};
use crate::{
    caller::{Caller, EXTERNAL_CLUSTER, Evidence, Method, Origin, Role},
    clusters::ClusterHandle,
};

impl Authenticator {
    pub(super) async fn client_certificate(
        &self,
        credentials: &Credentials,
        now: OffsetDateTime,
    ) -> Result<Caller, AuthnError> {
        let proven = self.proven(credentials, now).await?;
        if proven.issuer_key_id != self.issuer_key_id {
            return Err(AuthnError::rejected(
                "the client certificate's issuer is retired",
            ));
        }
        let origin = self.check_origin(proven.origin.clone()).await?;
        let role = self.role(proven.certificate_use, &proven.spiffe_id, &origin)?;
        Ok(Caller {
            role,
            subject: origin.subject.clone(),
            evidence: Evidence {
                method: Method::ClientCertificate,
                token_id: None,
                certificate: Some((proven.serial.clone(), proven.spiffe_id.clone())),
            },
            origin,
            address: credentials.address,
        })
    }

    /// What the presented chain and the log prove together. The TLS handshake verified the
    /// chain too, but that may be long ago.
    async fn proven(
        &self,
        credentials: &Credentials,
        now: OffsetDateTime,
    ) -> Result<Arc<Proven>, AuthnError> {
        let bundles = self.bundles.borrow().clone();
        let key = ProvenChains::key(&credentials.client_chain);
        if let Some(proven) = self.proven_chains.get(&key, &bundles, now) {
            return Ok(proven);
        }
        let rejected = |reason: String| AuthnError::Rejected(reason);
        let verified = verify::verify_svid(&credentials.client_chain, &bundles, now)
            .map_err(|error| rejected(format!("client certificate: {error}")))?;
        let issued = self.record_of(&verified.serial).await?;
        if credentials.client_chain.first().map(AsRef::as_ref)
            != Some(issued.certificate.as_slice())
        {
            return Err(rejected(format!(
                "the client certificate is not the one recorded under serial {}",
                verified.serial
            )));
        }
        let origin = issued
            .origin
            .as_ref()
            .and_then(Origin::from_record)
            .ok_or_else(|| rejected("the record of the client certificate has no origin".into()))?;
        let proven = Arc::new(Proven {
            spiffe_id: verified.spiffe_id,
            serial: verified.serial,
            certificate_use: issued.r#use(),
            issuer_key_id: issued.issuer_key_id,
            origin,
            valid: verified.path_valid,
            bundles,
        });
        self.proven_chains.keep(key, Arc::clone(&proven), now);
        Ok(proven)
    }

    async fn record_of(&self, serial: &Serial) -> Result<log::Issued, AuthnError> {
        let stored = self
            .store
            .issued_by_serial(serial.as_bytes())
            .await
            .map_err(|error| AuthnError::Unavailable(format!("store: {error}")))?
            .ok_or_else(|| AuthnError::Rejected(format!("serial {serial} is not in the log")))?;
        match log::Entry::decode(stored.bytes.as_slice()).map(|entry| entry.kind) {
            Ok(Some(log::entry::Kind::Issued(issued))) => Ok(issued),
            _ => Err(AuthnError::Rejected(format!(
                "the log entry of serial {serial} is no certificate"
            ))),
        }
    }

    /// Pod, account and node that the chain of renewals rests on must be the same ones still.
    pub(super) async fn check_origin(&self, mut origin: Origin) -> Result<Origin, AuthnError> {
        if let Some(subject) = origin.subject.take() {
            let cluster = self.cluster_of_origin(&subject.cluster)?;
            origin.subject = Some(self.check_alive(cluster, subject, true).await?);
        }
        if let Some((cluster, node)) = &origin.node {
            if cluster == EXTERNAL_CLUSTER {
                self.check_external(node).await?;
            } else {
                Self::check_vouching_node(self.cluster_of_origin(cluster)?, node).await?;
            }
        }
        Ok(origin)
    }

    fn cluster_of_origin(&self, name: &str) -> Result<&ClusterHandle, AuthnError> {
        self.clusters
            .get(name)
            .ok_or_else(|| AuthnError::Rejected(format!("there is no cluster {name} any more")))
    }

    fn role(
        &self,
        usage: log::CertificateUse,
        id: &SpiffeId,
        origin: &Origin,
    ) -> Result<Role, AuthnError> {
        match usage {
            log::CertificateUse::Workload => Ok(Role::Workload),
            log::CertificateUse::Agent if origin.subject.is_none() => {
                match (&origin.node, template::parse_agent_id(id)) {
                    (Some((cluster, node)), Some(named))
                        if cluster == EXTERNAL_CLUSTER
                            && named == (cluster.clone(), node.name.clone()) =>
                    {
                        Ok(Role::Agent {
                            cluster: cluster.clone(),
                            node: node.clone(),
                        })
                    }
                    _ => Err(AuthnError::rejected("the agent's SVID rests on no node")),
                }
            }
            log::CertificateUse::Agent => {
                let subject = origin.subject.as_ref();
                let node = subject.and_then(|s| s.node.clone());
                let (Some(subject), Some(node), Some((cluster, name))) =
                    (subject, node, template::parse_agent_id(id))
                else {
                    return Err(AuthnError::rejected("the agent's SVID rests on no node"));
                };
                if cluster != subject.cluster || name != node.name {
                    return Err(AuthnError::rejected("the agent's SVID names another node"));
                }
                if !self
                    .policy
                    .is_agent_account(&subject.namespace, &subject.account.name)
                {
                    return Err(AuthnError::rejected(
                        "the agent's account is no longer listed in agents.accounts",
                    ));
                }
                Ok(Role::Agent {
                    cluster: subject.cluster.clone(),
                    node,
                })
            }
            log::CertificateUse::CaServer | log::CertificateUse::Unspecified => Err(
                AuthnError::rejected("this certificate authenticates no caller"),
            ),
        }
    }
}
