//! `citadel.v1.AdminService` over the CA's local socket.

use std::path::PathBuf;

use citadel_proto::log;
use citadel_proto::v1::admin_service_client::AdminServiceClient;
use citadel_proto::v1::{
    CertificateRecord, GetCertificateRequest, GetReceiptRequest, GetServerInfoRequest,
    ListCertificatesRequest, ReadLogRequest, ServerInfo, get_receipt_request,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::citadel::Ca;

/// An administrator on the CA's host.
#[derive(Clone)]
pub struct Admin(AdminServiceClient<Channel>);

/// One certificate's record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it is in the log.
    pub index: u64,
    /// The entry's bytes, as they are in the log.
    pub bytes: Vec<u8>,
    /// The same, decoded.
    pub issued: log::Issued,
}

impl Admin {
    /// One of this CA.
    pub fn of(ca: &Ca) -> Self {
        Self::at(ca.admin_socket())
    }

    /// One at this socket.
    pub fn at(socket: PathBuf) -> Self {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://admin.invalid").connect_with_connector_lazy(connector);
        Self(AdminServiceClient::new(channel))
    }

    /// Facts about the server.
    pub async fn info(&self) -> ServerInfo {
        let answer = self.try_info().await;
        answer.expect("the local socket serves us")
    }

    /// The same of a server that may be away.
    pub async fn try_info(&self) -> Result<ServerInfo, Status> {
        let request = GetServerInfoRequest {};
        Ok(self.0.clone().get_server_info(request).await?.into_inner())
    }

    /// How many entries the log holds.
    pub async fn size(&self) -> u64 {
        self.info().await.log_size
    }

    /// The receipt of a certificate, by its serial in hex.
    pub async fn receipt(&self, serial: &str) -> Result<String, Status> {
        let request = GetReceiptRequest {
            entry: Some(get_receipt_request::Entry::Serial(serial.into())),
        };
        let answer = self.0.clone().get_receipt(request).await?;
        Ok(answer.into_inner().receipt)
    }

    /// The record of a certificate, by its serial in hex.
    pub async fn certificate(&self, serial: &str) -> Result<Record, Status> {
        let request = GetCertificateRequest {
            serial: serial.into(),
        };
        let answer = self.0.clone().get_certificate(request).await?;
        Ok(Record::decode(answer.into_inner()))
    }

    /// Entries of every kind, oldest first, from this index upwards, with their indexes.
    pub async fn read_log(&self, from: u64) -> Vec<(u64, log::Entry)> {
        let request = ReadLogRequest { from, limit: 1000 };
        let answer = self.0.clone().read_log(request).await;
        let records = answer
            .expect("the local socket serves us")
            .into_inner()
            .records;
        let entry = |bytes: &[u8]| log::Entry::decode(bytes).expect("an entry");
        records
            .iter()
            .map(|record| (record.log_index, entry(&record.entry)))
            .collect()
    }

    /// The newest records, newest first, of one SPIFFE ID or of all (empty).
    pub async fn list(&self, spiffe_id: &str, limit: u32, before: u64) -> Vec<Record> {
        let request = ListCertificatesRequest {
            spiffe_id: spiffe_id.into(),
            limit,
            before,
        };
        let answer = self.0.clone().list_certificates(request).await;
        let records = answer
            .expect("the local socket serves us")
            .into_inner()
            .records;
        records.into_iter().map(Record::decode).collect()
    }

    /// All records of one SPIFFE ID or of all (empty), newest first.
    pub async fn all(&self, spiffe_id: &str) -> Vec<Record> {
        let mut records = self.list(spiffe_id, 1000, 0).await;
        while let Some(oldest) = records.last().filter(|oldest| oldest.index > 0) {
            let more = self.list(spiffe_id, 1000, oldest.index).await;
            if more.is_empty() {
                break;
            }
            records.extend(more);
        }
        records
    }
}

impl Record {
    fn decode(record: CertificateRecord) -> Self {
        let entry = log::Entry::decode(record.entry.as_slice()).expect("an entry");
        let Some(log::entry::Kind::Issued(issued)) = entry.kind else {
            panic!("an entry of another kind: {entry:?}");
        };
        Self {
            index: record.log_index,
            bytes: record.entry,
            issued,
        }
    }

    /// The certificate's serial in hex.
    pub fn serial(&self) -> String {
        hex::encode(&self.issued.serial)
    }

    /// Who asked.
    pub fn caller(&self) -> &log::Caller {
        self.issued.caller.as_ref().expect("a caller")
    }

    /// What the identity rests on.
    pub fn origin(&self) -> &log::Origin {
        self.issued.origin.as_ref().expect("an origin")
    }
}
