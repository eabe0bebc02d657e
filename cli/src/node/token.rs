//! `citadel node token`.

use std::time::Duration;

use citadel_proto::v1::{
    CreateJoinTokenRequest, JoinTokenRecord, ListJoinTokensRequest, RevokeJoinTokenRequest,
};
use clap::Subcommand;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::admin::{CaArgs, unchanged};
use crate::duration::parse_duration;
use crate::exit::{Ended, Outcome};
use crate::log::refused;
use crate::output::{self, Format, Table, instant};

/// Makes, lists and revokes the tokens that nodes outside Kubernetes join with.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Create(CreateArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// Makes a join token and prints it: whoever has it first joins, once, as the node that it
/// names.
///
/// It carries the addresses of the CA and the hash of its root, so that the node needs
/// nothing else. The CA keeps a hash of its secret alone: it can't be shown again.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Name of the node. Its agent will be spiffe://TRUST-DOMAIN/citadel/agent/external/NAME.
    #[arg(long, value_name = "NAME")]
    node: String,

    /// How long it can be used, such as 10m; at most 7d.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    ttl: Duration,

    /// Address of the CA as the node reaches it, host:port; more than once for several.
    /// [default: the CA's ca.dns_names]
    #[arg(long = "ca-address", value_name = "HOST:PORT")]
    ca_addresses: Vec<String>,

    #[command(flatten)]
    ca: CaArgs,
}

/// Lists the join tokens of the last days, newest first, without their secrets.
#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    ca: CaArgs,
}

/// Revokes a join token that was not used.
#[derive(Debug, clap::Args)]
struct RevokeArgs {
    /// The token's id, as the list shows it.
    #[arg(value_name = "ID")]
    id: String,

    #[command(flatten)]
    ca: CaArgs,
}

impl TokenArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        match self.what {
            What::Create(args) => crate::asynchronous(args.run(format)),
            What::List(args) => crate::asynchronous(args.run(format)),
            What::Revoke(args) => crate::asynchronous(args.run()),
        }
    }
}

impl CreateArgs {
    async fn run(self, format: Format) -> Result<Outcome, Ended> {
        let request = self.ca.request(CreateJoinTokenRequest {
            node: self.node.clone(),
            ttl_seconds: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            ca_addresses: self.ca_addresses.clone(),
        })?;
        let answer = self.ca.client()?.create_join_token(request).await;
        let created = answer.map_err(|status| unchanged(&status))?.into_inner();
        let record = created.record.clone().unwrap_or_default();
        match format {
            Format::Json => {
                let mut shown = to_json(&record);
                shown["token"] = created.token.as_str().into();
                output::json(&shown)?;
            }
            Format::Text => {
                output::text(&format!("{}\n", created.token))?;
                output::note(&format!(
                    "It works once, until {}, for node {}: `citadel node join` there.",
                    at(record.expires_ms).unwrap_or_default(),
                    record.node
                ));
            }
        }
        Ok(Outcome::Done)
    }
}

impl ListArgs {
    async fn run(self, format: Format) -> Result<Outcome, Ended> {
        let request = self.ca.request(ListJoinTokensRequest {})?;
        let answer = self.ca.client()?.list_join_tokens(request).await;
        let tokens = answer
            .map_err(|status| refused(&status))?
            .into_inner()
            .tokens;
        match format {
            Format::Json => {
                output::json(&tokens.iter().map(to_json).collect::<Vec<_>>())?;
            }
            Format::Text => {
                output::text(&to_text(&tokens, OffsetDateTime::now_utc()))?;
            }
        }
        Ok(Outcome::Done)
    }
}

impl RevokeArgs {
    async fn run(self) -> Result<Outcome, Ended> {
        let request = self.ca.request(RevokeJoinTokenRequest {
            id: self.id.clone(),
        })?;
        let answer = self.ca.client()?.revoke_join_token(request).await;
        answer.map_err(|status| unchanged(&status))?;
        Ok(Outcome::Done)
    }
}

fn to_text(tokens: &[JoinTokenRecord], now: OffsetDateTime) -> String {
    let header = ["ID", "NODE", "STATE", "EXPIRES", "MADE BY"];
    let mut table = Table::new(header.len(), &header);
    for token in tokens {
        table.row(vec![
            token.id.clone(),
            token.node.clone(),
            state(token, now).to_owned(),
            at(token.expires_ms).unwrap_or_default(),
            token.created_by.clone(),
        ]);
    }
    table.render()
}

fn state(token: &JoinTokenRecord, now: OffsetDateTime) -> &'static str {
    if token.used_ms > 0 {
        "used"
    } else if token.revoked_ms > 0 {
        "revoked"
    } else if i128::from(token.expires_ms) * 1_000_000 <= now.unix_timestamp_nanos() {
        "expired"
    } else {
        "open"
    }
}

fn to_json(token: &JoinTokenRecord) -> Value {
    json!({
        "id": token.id,
        "node": token.node,
        "state": state(token, OffsetDateTime::now_utc()),
        "created": at(token.created_ms),
        "expires": at(token.expires_ms),
        "created_by": token.created_by,
        "used": at(token.used_ms),
        "revoked": at(token.revoked_ms),
    })
}

/// `None` for never.
pub(super) fn at(ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).ok();
    time.filter(|_| ms != 0).map(instant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_s_state_is_what_ended_it() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(100);
        let token = |expires_ms, used_ms, revoked_ms| JoinTokenRecord {
            expires_ms,
            used_ms,
            revoked_ms,
            ..JoinTokenRecord::default()
        };
        for (token, wanted) in [
            (token(200_000, 0, 0), "open"),
            (token(100_000, 0, 0), "expired"),
            (token(50_000, 40_000, 0), "used"),
            (token(200_000, 0, 60_000), "revoked"),
        ] {
            assert_eq!(state(&token, now), wanted);
            assert!(to_text(&[token], now).contains(wanted));
        }
    }
}
