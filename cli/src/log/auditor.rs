//! What the commands ask of a log, wherever it is: a store that they read themselves, or a
//! running CA.

use std::sync::Arc;

use async_trait::async_trait;
use citadel_ca_server::log::receipt;
use citadel_ca_server::store::{Filter, LogIndex, MAX_PAGE, Query, Store, StoredEntry, count};
use citadel_identity::serial::Serial;
use citadel_ledger::{Checkpoint, MAX_RECEIPT_BYTES};
use citadel_proto::v1::admin_service_client::AdminServiceClient;
use citadel_proto::v1::{self, get_receipt_request};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::source::{log_failure, store_failure};
use crate::exit::Failure;

/// Bytes of an answer at most: a page of the largest entries.
const MAX_ANSWER: usize = 80 << 20;

/// How far a log reaches.
pub(super) struct Extent {
    pub(super) size: u64,
    /// The newest checkpoint and the entries that it covers; none before the first.
    pub(super) checkpoint: Option<(String, u64)>,
    pub(super) minimum: u64,
}

/// A log that is asked.
#[async_trait]
pub(super) trait Auditor: Send + Sync {
    /// One page, newest first.
    async fn page(&self, query: &Query) -> Result<Vec<StoredEntry>, Failure>;

    /// How many entries pass.
    async fn count(&self, filter: Filter) -> Result<u64, Failure>;

    /// Up to so many (at most [`MAX_PAGE`]) entries from this index upwards.
    async fn read(&self, from: u64, limit: usize) -> Result<Vec<StoredEntry>, Failure>;

    /// The entry of a certificate, or a clear word that there is none.
    async fn issued(&self, serial: &Serial) -> Result<StoredEntry, Failure>;

    async fn extent(&self) -> Result<Extent, Failure>;

    /// The receipt of an entry; `None` until a checkpoint covers it.
    async fn receipt(&self, index: LogIndex) -> Result<Option<String>, Failure>;
}

/// A store that is read here.
pub(super) struct Local(pub(super) Arc<dyn Store>);

#[async_trait]
impl Auditor for Local {
    async fn page(&self, query: &Query) -> Result<Vec<StoredEntry>, Failure> {
        self.0
            .list(query)
            .await
            .map_err(|error| store_failure(&error))
    }

    async fn count(&self, filter: Filter) -> Result<u64, Failure> {
        let counted = count(self.0.as_ref(), filter, None, usize::MAX).await;
        let (count, _) = counted.map_err(|error| store_failure(&error))?;
        Ok(count)
    }

    async fn read(&self, from: u64, limit: usize) -> Result<Vec<StoredEntry>, Failure> {
        self.0
            .read(LogIndex(from), limit)
            .await
            .map_err(|error| store_failure(&error))
    }

    async fn issued(&self, serial: &Serial) -> Result<StoredEntry, Failure> {
        self.0
            .issued_by_serial(serial.as_bytes())
            .await
            .map_err(|error| store_failure(&error))?
            .ok_or_else(|| unknown(serial))
    }

    async fn extent(&self) -> Result<Extent, Failure> {
        let failed = |error| store_failure(&error);
        let tree = self.0.tree().await.map_err(failed)?;
        Ok(Extent {
            size: self.0.size().await.map_err(failed)?,
            checkpoint: tree.checkpoint.map(|note| (note, tree.size)),
            minimum: tree.minimum,
        })
    }

    async fn receipt(&self, index: LogIndex) -> Result<Option<String>, Failure> {
        let found = receipt(self.0.as_ref(), index).await;
        Ok(found
            .map_err(|error| log_failure(&error))?
            .map(|receipt| receipt.encode()))
    }
}

fn unknown(serial: &Serial) -> Failure {
    Failure::check(format!("serial {serial} is not in the log"))
}

/// A running CA.
pub(super) struct Remote {
    client: AdminServiceClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Remote {
    pub(super) fn new(channel: Channel, authorization: Option<MetadataValue<Ascii>>) -> Self {
        Self {
            client: AdminServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
            authorization,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", authorization.clone());
        }
        request
    }
}

#[async_trait]
impl Auditor for Remote {
    async fn page(&self, query: &Query) -> Result<Vec<StoredEntry>, Failure> {
        let request = self.request(v1::SearchLogRequest {
            filter: Some(to_wire(&query.filter)),
            limit: u32::try_from(query.page()).unwrap_or(u32::MAX),
            before: query.before.map(|before| before.0),
        });
        let answer = self.client.clone().search_log(request).await;
        let records = answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .records;
        Ok(records.into_iter().map(stored).collect())
    }

    async fn count(&self, filter: Filter) -> Result<u64, Failure> {
        let (mut count, mut before) = (0, None);
        loop {
            let request = self.request(v1::CountLogRequest {
                filter: Some(to_wire(&filter)),
                before,
            });
            let answer = self.client.clone().count_log(request).await;
            let answer = answer.map_err(|status| refused(&status))?.into_inner();
            count += answer.count;
            match answer.before {
                // It has to come down: a server that does not let it would keep us for ever.
                Some(next) if before.is_none_or(|before| next < before) => before = Some(next),
                _ => return Ok(count),
            }
        }
    }

    async fn read(&self, from: u64, limit: usize) -> Result<Vec<StoredEntry>, Failure> {
        let limit = u32::try_from(limit.min(MAX_PAGE)).unwrap_or(u32::MAX);
        let request = self.request(v1::ReadLogRequest { from, limit });
        let answer = self.client.clone().read_log(request).await;
        let records = answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .records;
        Ok(records.into_iter().map(stored).collect())
    }

    async fn issued(&self, serial: &Serial) -> Result<StoredEntry, Failure> {
        let serial_text = serial.to_string();
        let request = self.request(v1::GetCertificateRequest {
            serial: serial_text,
        });
        match self.client.clone().get_certificate(request).await {
            Ok(answer) => {
                let record = answer.into_inner();
                Ok(StoredEntry {
                    index: LogIndex(record.log_index),
                    bytes: record.entry,
                })
            }
            Err(status) if status.code() == Code::NotFound => Err(unknown(serial)),
            Err(status) => Err(refused(&status)),
        }
    }

    async fn extent(&self) -> Result<Extent, Failure> {
        let request = self.request(v1::GetServerInfoRequest {});
        let answer = self.client.clone().get_server_info(request).await;
        let info = answer.map_err(|status| refused(&status))?.into_inner();
        let checkpoint = match info.checkpoint {
            note if note.is_empty() => None,
            note => {
                let size = Checkpoint::unverified(note.as_bytes())
                    .map_err(|error| Failure::check(format!("the CA's checkpoint: {error}")))?
                    .size;
                Some((note, size))
            }
        };
        Ok(Extent {
            size: info.log_size,
            checkpoint,
            minimum: info.minimum_index,
        })
    }

    async fn receipt(&self, index: LogIndex) -> Result<Option<String>, Failure> {
        let request = self.request(v1::GetReceiptRequest {
            entry: Some(get_receipt_request::Entry::LogIndex(index.0)),
        });
        let mut client = self
            .client
            .clone()
            .max_decoding_message_size(MAX_RECEIPT_BYTES + 1024);
        match client.get_receipt(request).await {
            Ok(answer) => Ok(Some(answer.into_inner().receipt)),
            Err(status) => Err(refused(&status)),
        }
    }
}

fn stored(record: v1::LogRecord) -> StoredEntry {
    StoredEntry {
        index: LogIndex(record.log_index),
        bytes: record.entry,
    }
}

pub(crate) fn refused(status: &Status) -> Failure {
    let message = format!("the CA: {}", status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Failure::denied(message).next(
            "Auditors are named in the CA's admin.auditor; give --token-file or --svid, or use \
             the local socket.",
        ),
        Code::InvalidArgument => Failure::usage(message),
        Code::NotFound => Failure::check(message),
        _ => Failure::unavailable(message),
    }
}

fn to_wire(filter: &Filter) -> v1::LogFilter {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let hex = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(hex::encode).unwrap_or_default();
    v1::LogFilter {
        recorded_since_ms: filter.recorded_since_ms,
        recorded_until_ms: filter.recorded_until_ms,
        serial: hex(&filter.serial),
        spki_sha256: hex(&filter.spki_sha256),
        trust_domain: text(&filter.trust_domain),
        spiffe_id: text(&filter.spiffe_id),
        spiffe_id_prefix: text(&filter.spiffe_id_prefix),
        cluster: text(&filter.cluster),
        namespace: text(&filter.namespace),
        account: text(&filter.account),
        pod_uid: text(&filter.pod_uid),
        node: text(&filter.node),
        node_uid: text(&filter.node_uid),
        issuer_key_id: hex(&filter.issuer_key_id),
        valid_since: filter.valid_since,
        valid_until: filter.valid_until,
        expires_before: filter.expires_before,
    }
}
