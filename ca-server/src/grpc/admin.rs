//! `citadel.v1.AdminService`: over the local Unix socket, or with an identity that the
//! configuration's `admin` section names.

use std::{collections::HashSet, net::SocketAddr};

use citadel_identity::serial::Serial;
use citadel_proto::v1::{self, admin_service_server::AdminService};
use time::OffsetDateTime;
use tonic::{Code, Request, Response, Status, transport::server::UdsConnectInfo};

use super::{
    front::{Front, credentials},
    refusal::Refusal,
};
use crate::{
    admission::Lane,
    caller::Caller,
    store::{Filter, LogIndex, Query, StoreError, StoredEntry},
};

pub(super) const INFO: &str = "citadel.v1.AdminService/GetServerInfo";
pub(super) const GET: &str = "citadel.v1.AdminService/GetCertificate";
pub(super) const LIST: &str = "citadel.v1.AdminService/ListCertificates";

/// The most records of one answer.
const MAX_RECORDS: u32 = 1000;
const DEFAULT_RECORDS: u32 = 100;

/// Who may read: SPIFFE IDs (`spiffe://…`) and service accounts (`namespace/account`).
#[derive(Clone, Debug, Default)]
pub(crate) struct AdminAccess {
    /// Subjects of the role auditor, and of operator, which includes it.
    pub(crate) auditors: HashSet<String>,
    /// The uid that the server runs as: beside root, the one that the local socket serves.
    pub(crate) own_uid: u32,
}

/// The service.
pub(crate) struct AdminApi {
    /// What the services share.
    pub(crate) front: Front,
    /// Who may call it.
    pub(crate) access: AdminAccess,
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::ServerInfo>, Status> {
        self.auditor(INFO, &request).await?;
        let line = self.front.issuance.line();
        let log_size = line
            .store
            .size()
            .await
            .map_err(|error| store_status(&error))?;
        Ok(Response::new(v1::ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: line.issuer.trust_domain().to_string(),
            issuer_key_id: hex::encode(line.issuer.key_id()),
            log_size,
            bundles: self.front.bundles(),
        }))
    }

    async fn get_certificate(
        &self,
        request: Request<v1::GetCertificateRequest>,
    ) -> Result<Response<v1::CertificateRecord>, Status> {
        self.auditor(GET, &request).await?;
        let serial: Serial = request
            .into_inner()
            .serial
            .parse()
            .map_err(|_| Status::invalid_argument("serial: give it in hex, as the CA did"))?;
        let store = &self.front.issuance.line().store;
        match store.issued_by_serial(serial.as_bytes()).await {
            Ok(Some(stored)) => Ok(Response::new(record(stored))),
            Ok(None) => Err(Status::not_found(format!(
                "serial {serial} is not in the log"
            ))),
            Err(error) => Err(store_status(&error)),
        }
    }

    async fn list_certificates(
        &self,
        request: Request<v1::ListCertificatesRequest>,
    ) -> Result<Response<v1::ListCertificatesResponse>, Status> {
        self.auditor(LIST, &request).await?;
        let request = request.into_inner();
        let limit = match request.limit {
            0 => DEFAULT_RECORDS,
            limit => limit.min(MAX_RECORDS),
        };
        let filter = Filter {
            spiffe_id: (!request.spiffe_id.is_empty()).then_some(request.spiffe_id),
            ..Filter::default()
        };
        let before = (request.before > 0).then_some(LogIndex(request.before));
        let query = Query {
            filter,
            before,
            limit: limit as usize,
        };
        let store = &self.front.issuance.line().store;
        let found = store
            .list(&query)
            .await
            .map_err(|error| store_status(&error))?;
        let records = found.into_iter().map(record).collect();
        Ok(Response::new(v1::ListCertificatesResponse { records }))
    }
}

impl AdminApi {
    async fn auditor<T>(&self, rpc: &'static str, request: &Request<T>) -> Result<(), Status> {
        if let Some(local) = request.extensions().get::<UdsConnectInfo>() {
            let uid = local.peer_cred.as_ref().map(tokio::net::unix::UCred::uid);
            return match uid {
                Some(uid) if uid == 0 || uid == self.access.own_uid => Ok(()),
                _ => {
                    let refusal = Refusal::new(
                        Code::PermissionDenied,
                        "only root and the server's own user may use this socket",
                        format!("local admin socket: peer uid {uid:?}"),
                    );
                    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
                    let lane = Lane::of_peer(nowhere.ip());
                    self.front.refusals.record(rpc, &lane, nowhere, &refusal);
                    Err(refusal.into())
                }
            };
        }
        let credentials = credentials(request)?;
        self.front
            .serve(rpc, &credentials, async {
                let caller = self
                    .front
                    .caller(&credentials, OffsetDateTime::now_utc())
                    .await?;
                if self.is_auditor(&caller) {
                    return Ok(());
                }
                Err(Refusal::new(
                    Code::PermissionDenied,
                    "the caller has no administrator's role",
                    "the caller is named neither in admin.auditor nor in admin.operator",
                ))
            })
            .await
    }

    fn is_auditor(&self, caller: &Caller) -> bool {
        let by_id = caller
            .evidence
            .certificate
            .as_ref()
            .is_some_and(|(_, id)| self.access.auditors.contains(&id.to_string()));
        let by_account = caller.subject.as_ref().is_some_and(|subject| {
            let key = format!("{}/{}", subject.namespace, subject.account.name);
            self.access.auditors.contains(&key)
        });
        by_id || by_account
    }
}

fn record(stored: StoredEntry) -> v1::CertificateRecord {
    v1::CertificateRecord {
        log_index: stored.index.0,
        entry: stored.bytes,
    }
}

fn store_status(error: &StoreError) -> Status {
    tracing::warn!(%error, "store");
    Status::unavailable("the store can't answer right now: try again")
}
