//! `citadel agent status`.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use citadel_proto::agent::GetAgentStatusRequest;
use citadel_proto::agent::agent_admin_service_client::AgentAdminServiceClient;
use tonic::{Code, Status};

use super::show;
use crate::exit::{Ended, Failure, Outcome};
use crate::log::local_channel;
use crate::output::{self, Format};

/// Bytes of an answer at most: 20,000 identities and as many streams with a few resources.
const MAX_ANSWER: usize = 64 << 20;

/// Shows the identities, renewals, streams and acknowledgements of the agent on this host.
///
/// Asks over the agent's socket for administrators, which serves root and the agent's own
/// user.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// The agent's `admin_socket`.
    #[arg(
        long,
        value_name = "PATH",
        env = "CITADEL_AGENT_ADMIN_SOCKET",
        default_value = "/run/citadel-admin/agent.sock"
    )]
    socket: PathBuf,

    /// The most identities and the most streams that are shown.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
}

impl StatusArgs {
    pub(crate) async fn run(self, format: Format) -> Result<Outcome, Ended> {
        // Asked first, since gRPC does not say why a socket can't be used.
        UnixStream::connect(&self.socket).map_err(|error| unreachable(&self.socket, &error))?;
        let mut client = AgentAdminServiceClient::new(local_channel(self.socket))
            .max_decoding_message_size(MAX_ANSWER);
        let request = GetAgentStatusRequest { limit: self.limit };
        let answer = client.get_agent_status(request).await;
        let status = answer.map_err(|status| refused(&status))?.into_inner();
        match format {
            Format::Json => output::json(&show::json(&status))?,
            Format::Text => output::text(&show::text(&status))?,
        }
        Ok(Outcome::Done)
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let message = format!("{}: {error}", socket.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::denied(message).next("It is for root and the agent's own user: try with sudo.")
        }
        _ => Failure::unavailable(message)
            .next("Does citadel-agent run here? Give --socket what its admin_socket says."),
    }
}

fn refused(status: &Status) -> Failure {
    let message = format!("the agent: {}", status.message());
    match status.code() {
        Code::PermissionDenied => Failure::denied(message),
        Code::Unimplemented => {
            Failure::check(message).next("This socket is not that of an agent's administrators.")
        }
        _ => Failure::unavailable(message),
    }
}
