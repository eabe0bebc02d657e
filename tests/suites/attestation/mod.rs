//! Who is on the agent's socket: by real cgroups, and by what becomes of processes.

mod ahead;
mod cgroups;
mod endings;
mod forged;
mod handed;
mod pid_reuse;
mod tokens;
mod watch;

use std::time::Duration;

use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_proto::workload::{X509svidRequest, X509svidResponse};
use citadel_tests::secrets;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// An answer that nothing holds up.
const PROMPT: Duration = Duration::from_secs(10);

/// The identities of whoever opened this connection.
async fn fetch(channel: Channel, token: Option<&str>) -> Result<Vec<String>, Status> {
    Ok(open(channel, token).await?.1)
}

/// A stream of identities, after its first message; the IDs in it.
async fn open(
    channel: Channel,
    token: Option<&str>,
) -> Result<(Streaming<X509svidResponse>, Vec<String>), Status> {
    let mut request = Request::new(X509svidRequest {});
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().expect("ASCII"));
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().expect("ASCII");
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let asked = async {
        let mut stream = client.fetch_x509svid(request).await?.into_inner();
        let message = stream.message().await?.expect("a message before the end");
        Ok((stream, ids_in(&message)))
    };
    tokio::time::timeout(PROMPT, asked)
        .await
        .expect("an answer in time")
}

/// How a stream ends, whatever comes before that.
async fn end_of(stream: &mut Streaming<X509svidResponse>, deadline: Duration) -> Status {
    let ended = tokio::time::timeout(deadline, async {
        loop {
            match stream.message().await {
                Ok(Some(message)) => drop(ids_in(&message)),
                Ok(None) => panic!("an end without a reason"),
                Err(status) => return status,
            }
        }
    });
    ended.await.expect("the stream ends in time")
}

fn ids_in(message: &X509svidResponse) -> Vec<String> {
    for svid in &message.svids {
        secrets::register_key("SVID key", &svid.x509_svid_key);
    }
    message
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.clone())
        .collect()
}
