//! The way to the CA's administrators' service.

use citadel_proto::v1::admin_service_client::AdminServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::exit::Failure;
use crate::log::{ServerArgs, refused};

/// Bytes of an answer at most: 100,000 nodes.
const MAX_ANSWER: usize = 64 << 20;

/// A running CA, and who asks it.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
pub(crate) struct CaArgs {
    /// A running CA: host:port of its gRPC, or unix:///path of its local administrators'
    /// socket.
    #[arg(long = "server", value_name = "ADDRESS")]
    address: String,

    #[command(flatten)]
    server: ServerArgs,
}

impl CaArgs {
    pub(super) fn client(&self) -> Result<AdminServiceClient<Channel>, Failure> {
        let channel = self.server.channel(&self.address)?;
        Ok(AdminServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        if let Some(authorization) = self.server.authorization()? {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", authorization);
        }
        Ok(request)
    }
}

/// What the CA refused to change.
pub(super) fn unchanged(status: &Status) -> Failure {
    let message = format!("the CA: {}", status.message());
    match status.code() {
        Code::FailedPrecondition => Failure::check(message),
        Code::Unauthenticated | Code::PermissionDenied => Failure::denied(message).next(
            "Operators are named in the CA's admin.operator; give --token-file or --svid, or use \
             the local socket.",
        ),
        _ => refused(status),
    }
}
