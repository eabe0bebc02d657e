//! `citadel.v1.AdminService`: over the local Unix socket, or with an identity that the
//! configuration's `admin` section names.

use std::{net::SocketAddr, sync::Arc};

use citadel_identity::serial::Serial;
use citadel_proto::v1::{self, admin_service_server::AdminService};
use time::OffsetDateTime;
use tonic::{Code, Request, Response, Status, transport::server::UdsConnectInfo};

use super::{
    access::{AdminAccess, AdminRole},
    front::{Front, peer_of},
    nodes::{self, Joining},
    refusal::Refusal,
    search,
};
use crate::{
    admission::Lane,
    caller::unix_ms,
    log::Log,
    store::{Filter, LogIndex, Query, StoreError, StoredEntry, count},
};

pub(super) const INFO: &str = "citadel.v1.AdminService/GetServerInfo";
pub(super) const GET: &str = "citadel.v1.AdminService/GetCertificate";
pub(super) const LIST: &str = "citadel.v1.AdminService/ListCertificates";
pub(super) const READ: &str = "citadel.v1.AdminService/ReadLog";
pub(super) const SEARCH: &str = "citadel.v1.AdminService/SearchLog";
pub(super) const HOLDERS: &str = "citadel.v1.AdminService/ListHolders";
pub(super) const COUNT: &str = "citadel.v1.AdminService/CountLog";

/// Pages that one count looks at: then the caller goes on where it ended, and others get their
/// turn.
const COUNTED_PAGES: usize = 20;
pub(super) const RECEIPT: &str = "citadel.v1.AdminService/GetReceipt";
pub(super) const CREATE_TOKEN: &str = "citadel.v1.AdminService/CreateJoinToken";
pub(super) const TOKENS: &str = "citadel.v1.AdminService/ListJoinTokens";
pub(super) const REVOKE_TOKEN: &str = "citadel.v1.AdminService/RevokeJoinToken";
pub(super) const NODES: &str = "citadel.v1.AdminService/ListNodes";
pub(super) const EVICT: &str = "citadel.v1.AdminService/EvictNode";
pub(super) const ADMIT: &str = "citadel.v1.AdminService/AdmitNode";

/// The most records of one answer.
const MAX_RECORDS: u32 = 1000;
const DEFAULT_RECORDS: u32 = 100;

/// The service.
pub(crate) struct AdminApi {
    /// What the services share.
    pub(crate) front: Front,
    /// Who may call it.
    pub(crate) access: AdminAccess,
    /// The log and its proofs.
    pub(crate) log: Arc<Log>,
    /// What join tokens tell of this CA.
    pub(crate) joining: Arc<Joining>,
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::ServerInfo>, Status> {
        self.auditor(INFO, &request).await?;
        let line = self.front.issuance.line();
        let failed = |error| store_status(&error);
        let log_size = line.store.size().await.map_err(failed)?;
        let minimum_index = line.store.tree().await.map_err(failed)?.minimum;
        Ok(Response::new(v1::ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: line.issuer.trust_domain().to_string(),
            issuer_key_id: hex::encode(line.issuer.key_id()),
            log_size,
            minimum_index,
            bundles: self.front.bundles(),
            log_key: self.log.verifier().to_string(),
            checkpoint: self
                .log
                .newest()
                .map(|newest| newest.note.clone())
                .unwrap_or_default(),
        }))
    }

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<v1::ReadLogResponse>, Status> {
        self.auditor(READ, &request).await?;
        let request = request.into_inner();
        let limit = limit(request.limit);
        let entries = self
            .log
            .store()
            .read(LogIndex(request.from), limit)
            .await
            .map_err(|error| store_status(&error))?;
        let records = entries.into_iter().map(log_record).collect();
        Ok(Response::new(v1::ReadLogResponse { records }))
    }

    async fn search_log(
        &self,
        request: Request<v1::SearchLogRequest>,
    ) -> Result<Response<v1::SearchLogResponse>, Status> {
        self.auditor(SEARCH, &request).await?;
        let request = request.into_inner();
        let query = Query {
            filter: search::filter(request.filter)?,
            before: request.before.map(LogIndex),
            limit: limit(request.limit),
        };
        let found = self.log.store().list(&query).await;
        let found = found.map_err(|error| store_status(&error))?;
        let records = found.into_iter().map(log_record).collect();
        Ok(Response::new(v1::SearchLogResponse { records }))
    }

    async fn count_log(
        &self,
        request: Request<v1::CountLogRequest>,
    ) -> Result<Response<v1::CountLogResponse>, Status> {
        self.auditor(COUNT, &request).await?;
        let request = request.into_inner();
        let filter = search::filter(request.filter)?;
        let before = request.before.map(LogIndex);
        let (count, before) = count(self.log.store(), filter, before, COUNTED_PAGES)
            .await
            .map_err(|error| store_status(&error))?;
        Ok(Response::new(v1::CountLogResponse {
            count,
            before: before.map(|before| before.0),
        }))
    }

    async fn get_receipt(
        &self,
        request: Request<v1::GetReceiptRequest>,
    ) -> Result<Response<v1::GetReceiptResponse>, Status> {
        self.auditor(RECEIPT, &request).await?;
        let index = match request.into_inner().entry {
            Some(v1::get_receipt_request::Entry::LogIndex(index)) => LogIndex(index),
            Some(v1::get_receipt_request::Entry::Serial(serial)) => {
                self.recorded(&serial).await?.index
            }
            None => return Err(Status::invalid_argument("entry: give log_index or serial")),
        };
        let size = self.log.store().size().await;
        if index.0 >= size.map_err(|error| store_status(&error))? {
            return Err(Status::not_found(format!("the log has no entry {index}")));
        }
        match self.log.receipt(index).await {
            Ok(Some(receipt)) => Ok(Response::new(v1::GetReceiptResponse {
                receipt: receipt.encode(),
            })),
            Ok(None) => Err(Status::unavailable(
                "no checkpoint covers the entry yet: try again in a second",
            )),
            Err(error) => {
                tracing::warn!(%error, "no receipt");
                Err(Status::unavailable(
                    "the log can't answer right now: try again",
                ))
            }
        }
    }

    async fn get_certificate(
        &self,
        request: Request<v1::GetCertificateRequest>,
    ) -> Result<Response<v1::CertificateRecord>, Status> {
        self.auditor(GET, &request).await?;
        let stored = self.recorded(&request.into_inner().serial).await?;
        Ok(Response::new(record(stored)))
    }

    async fn list_holders(
        &self,
        request: Request<v1::ListHoldersRequest>,
    ) -> Result<Response<v1::ListHoldersResponse>, Status> {
        self.auditor(HOLDERS, &request).await?;
        let nodes = self.front.holders.list(OffsetDateTime::now_utc());
        let nodes = nodes
            .into_iter()
            .map(|((cluster, node), received)| v1::NodeHolders {
                cluster,
                node,
                received_ms: unix_ms(received.at),
                report: Some(received.report),
            });
        Ok(Response::new(v1::ListHoldersResponse {
            bundle_sha256: self.front.bundle_sha256(),
            nodes: nodes.collect(),
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let by = self.operator(CREATE_TOKEN, &request).await?;
        let created = self
            .joining
            .create(self.log.store(), &by, request.into_inner());
        Ok(Response::new(created.await?))
    }

    async fn list_join_tokens(
        &self,
        request: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::ListJoinTokensResponse>, Status> {
        self.auditor(TOKENS, &request).await?;
        Ok(Response::new(nodes::tokens(self.log.store()).await?))
    }

    async fn revoke_join_token(
        &self,
        request: Request<v1::RevokeJoinTokenRequest>,
    ) -> Result<Response<v1::RevokeJoinTokenResponse>, Status> {
        let by = self.operator(REVOKE_TOKEN, &request).await?;
        nodes::revoke(self.log.store(), &by, &request.into_inner().id).await?;
        Ok(Response::new(v1::RevokeJoinTokenResponse {}))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.auditor(NODES, &request).await?;
        Ok(Response::new(nodes::list(self.log.store()).await?))
    }

    async fn evict_node(
        &self,
        request: Request<v1::EvictNodeRequest>,
    ) -> Result<Response<v1::EvictNodeResponse>, Status> {
        let by = self.operator(EVICT, &request).await?;
        nodes::evict(self.log.store(), &by, &request.into_inner().node).await?;
        Ok(Response::new(v1::EvictNodeResponse {}))
    }

    async fn admit_node(
        &self,
        request: Request<v1::AdmitNodeRequest>,
    ) -> Result<Response<v1::AdmitNodeResponse>, Status> {
        let by = self.operator(ADMIT, &request).await?;
        nodes::admit(self.log.store(), &by, &request.into_inner().node).await?;
        Ok(Response::new(v1::AdmitNodeResponse {}))
    }

    async fn list_certificates(
        &self,
        request: Request<v1::ListCertificatesRequest>,
    ) -> Result<Response<v1::ListCertificatesResponse>, Status> {
        self.auditor(LIST, &request).await?;
        let request = request.into_inner();
        let limit = limit(request.limit);
        let filter = Filter {
            spiffe_id: (!request.spiffe_id.is_empty()).then_some(request.spiffe_id),
            // Any certificate, but no entry of another kind.
            valid_since: Some(i64::MIN),
            ..Filter::default()
        };
        let before = (request.before > 0).then_some(LogIndex(request.before));
        let query = Query {
            filter,
            before,
            limit,
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
    /// The entry of a certificate, by its serial in hex.
    async fn recorded(&self, serial: &str) -> Result<StoredEntry, Status> {
        let serial: Serial = serial
            .parse()
            .map_err(|_| Status::invalid_argument("serial: give it in hex, as the CA did"))?;
        let store = &self.front.issuance.line().store;
        match store.issued_by_serial(serial.as_bytes()).await {
            Ok(Some(stored)) => Ok(stored),
            Ok(None) => Err(Status::not_found(format!(
                "serial {serial} is not in the log"
            ))),
            Err(error) => Err(store_status(&error)),
        }
    }

    async fn auditor<T>(&self, rpc: &'static str, request: &Request<T>) -> Result<(), Status> {
        let role = AdminRole::Auditor;
        self.administrator(rpc, role, request).await.map(|_| ())
    }

    /// Who changes something, as the log names it.
    async fn operator<T>(&self, rpc: &'static str, request: &Request<T>) -> Result<String, Status> {
        self.administrator(rpc, AdminRole::Operator, request).await
    }

    async fn administrator<T>(
        &self,
        rpc: &'static str,
        role: AdminRole,
        request: &Request<T>,
    ) -> Result<String, Status> {
        if let Some(local) = request.extensions().get::<UdsConnectInfo>() {
            let uid = local.peer_cred.as_ref().map(tokio::net::unix::UCred::uid);
            return match uid {
                Some(uid) if uid == 0 || uid == self.access.own_uid => {
                    Ok(format!("local uid {uid}"))
                }
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
        let peer = peer_of(request.extensions())?;
        self.access
            .check(&self.front, rpc, role, peer, request.metadata())
            .await
    }
}

/// Entries of one answer.
fn limit(wanted: u32) -> usize {
    match wanted {
        0 => DEFAULT_RECORDS as usize,
        wanted => wanted.min(MAX_RECORDS) as usize,
    }
}

fn log_record(stored: StoredEntry) -> v1::LogRecord {
    v1::LogRecord {
        log_index: stored.index.0,
        entry: stored.bytes,
    }
}

fn record(stored: StoredEntry) -> v1::CertificateRecord {
    v1::CertificateRecord {
        log_index: stored.index.0,
        entry: stored.bytes,
    }
}

pub(super) fn store_status(error: &StoreError) -> Status {
    tracing::warn!(%error, "store");
    Status::unavailable("the store can't answer right now: try again")
}
