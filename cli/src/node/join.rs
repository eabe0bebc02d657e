//! `citadel node join`.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use citadel_identity::join_token::{self, JoinToken};
use citadel_node_agent::ca_client::{Credential, FirstTrust, Session, SessionConfig};
use citadel_node_agent::clock::SystemClock;
use citadel_node_agent::external::{DEFAULT_STATE_DIR, External, StateFolder};
use citadel_node_agent::metrics::Metrics;
use citadel_runtime::admin::Readiness;
use serde_json::json;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format, instant};

/// Lets this node join with a token of `citadel node token create`.
///
/// The CA is known by the hash in the token: to any other one nothing of the token is sent. The
/// agent's certificate and key are kept in the state folder, where citadel-agent finds them, a
/// running one too. The node's name is the token's.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    /// The token, or - to read it from standard input, where no list of processes shows it.
    #[arg(
        value_name = "TOKEN",
        env = "CITADEL_JOIN_TOKEN",
        hide_env_values = true
    )]
    token: String,

    /// The agent's `external.state_dir`: of the user that it runs as, made with mode 0700.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

impl JoinArgs {
    pub(crate) async fn run(self, format: Format) -> Result<Outcome, Ended> {
        let text = Zeroizing::new(self.token);
        let token = match text.as_str() {
            "-" => JoinToken::parse(&from_stdin()?),
            given => JoinToken::parse(given),
        };
        let token = token.map_err(|error| Failure::usage(error.to_string()))?;
        // First: a token that could not be kept would be lost.
        let folder = StateFolder::open(&self.state_dir)
            .map_err(|error| Failure::local(error.to_string()))?;
        let addresses: Result<Vec<_>, _> =
            token.ca_addresses.iter().map(|text| text.parse()).collect();
        let config = SessionConfig {
            trust_domain: token.trust_domain.clone(),
            addresses: addresses.map_err(|_| Failure::usage("the join token names no address"))?,
            first_trust: FirstTrust::RootSha256(token.root_sha256),
            cluster: String::new(),
            knows_containers: false,
        };
        let external = Arc::new(External::with_token(folder, token));
        let session = Session::new(
            config,
            Credential::External(external),
            Arc::new(SystemClock),
            Metrics::default(),
            Readiness::new().part("ca"),
        );
        let (id, until) = session.join().await.map_err(|reason| {
            Failure::unavailable(format!("this node could not join: {reason}")).next(
                "The CA's log says why it refuses a token: it may be used, expired or revoked.",
            )
        })?;
        let until = OffsetDateTime::from_unix_timestamp(until).map(instant);
        let until = until.unwrap_or_default();
        match format {
            Format::Json => output::json(&json!({ "spiffe_id": id.to_string(), "until": until }))?,
            Format::Text => output::text(&format!(
                "{id}, until {until}: citadel-agent renews it from here on\n"
            ))?,
        }
        Ok(Outcome::Done)
    }
}

fn from_stdin() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .lock()
        .take(join_token::MAX_TEXT as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::local(format!("can't read standard input: {error}")))?;
    Ok(text)
}
