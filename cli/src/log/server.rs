//! The way to a running CA: its address, how it is known, and who asks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use citadel_runtime::client::{Address, ChannelOptions, channel};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Uri};

use super::source::read_bounded;
use crate::endpoint::Endpoint;
use crate::exit::Failure;
use crate::trust;

/// As the CA bounds it.
const MAX_TOKEN: u64 = 8 * 1024;
/// As much as any trust bundle has.
const MAX_BUNDLE: u64 = 4 << 20;

/// How a running CA is known, and who asks it.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ServerArgs {
    /// The CA's trust bundle, for a CA over the network: PEM, DER or SPIFFE JSON.
    #[arg(long, global = true, value_name = "FILE")]
    trust_bundle: Option<PathBuf>,

    /// The trust domain. [default: as the bundle's first root says]
    #[arg(long, global = true, value_name = "NAME")]
    trust_domain: Option<String>,

    /// File with an auditor's service-account token.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Folder with an auditor's svid.pem and svid_key.pem, as citadel fetch --write makes it.
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "token_file")]
    svid: Option<PathBuf>,
}

impl ServerArgs {
    /// A channel to this address: `unix:///path` of the CA's local socket, or `host:port`.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Failure> {
        if address.starts_with("unix:") {
            let parsed = address
                .parse()
                .map_err(|error| Failure::usage(format!("--server {address}: {error}")))?;
            let Endpoint::Unix(socket) = parsed else {
                return Err(Failure::usage(format!("--server {address}: no socket")));
            };
            return Ok(local(socket));
        }
        let Some(bundle) = &self.trust_bundle else {
            return Err(Failure::usage("--trust-bundle is needed for a CA over the network").next(
                "Give the CA's roots; on its own host --server unix:///path/admin.sock needs none.",
            ));
        };
        let bytes = read_bounded(bundle, MAX_BUNDLE)?;
        let (trust_domain, bundles) = trust::bundles(bundle, &bytes, self.trust_domain.as_deref())?;
        let identity = self.svid.as_deref().map(trust::identity).transpose()?;
        let tls = trust::client_config(&trust_domain, &bundles, identity)?;
        let address: Address = address
            .parse()
            .map_err(|error| Failure::usage(format!("the CA's address: {error}")))?;
        let source = Arc::new(move || tls.clone());
        channel(vec![address], source, ChannelOptions::default())
            .map_err(|error| Failure::usage(error.to_string()))
    }

    /// The token, as a header.
    pub(crate) fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let Some(path) = &self.token_file else {
            return Ok(None);
        };
        let token = String::from_utf8(read_bounded(path, MAX_TOKEN)?).unwrap_or_default();
        let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| no_token(path))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn no_token(path: &Path) -> Failure {
    Failure::usage(format!("{} holds no token", path.display()))
}

/// Over a socket for administrators.
pub(crate) fn local(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name decides nothing: the connector knows where to go.
    tonic::transport::Endpoint::from_static("http://admin.invalid")
        .connect_with_connector_lazy(connector)
}
