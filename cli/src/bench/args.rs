//! The flags of `citadel bench issue`.

use std::path::PathBuf;
use std::time::Duration;

use citadel_ca_server::store::{PostgresOptions, UrlError};
use serde::Serialize;

use crate::duration::parse_duration;
use crate::exit::Failure;

/// Measures issuance: a load generator over real gRPC and TLS.
///
/// Without --target it starts the `citadel-ca` that lies beside this program, as a process
/// of its own on a fresh store, and stands in for the API server on loopback: list, watch
/// and signing keys of --pods live pods. Tokens and CSRs are made beforehand.
// clap shows these comments as they are: no Markdown in them.
#[allow(clippy::doc_markdown)]
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct IssueArgs {
    /// What to measure; repeatable. [default: both]
    #[arg(long = "path", value_name = "PATH", value_enum)]
    pub(crate) paths: Vec<Path>,

    /// The store of the server that is started: sqlite, or postgres://USER@HOST/DATABASE;
    /// repeatable. Of a database each run makes a schema citadel_bench_…, and drops it at the
    /// end: the role has to have the right CREATE on the database. The password comes from
    /// PGPASSFILE or PGPASSWORD, never from the URL.
    #[arg(long = "store", value_name = "STORE", default_value = "sqlite")]
    pub(crate) stores: Vec<Store>,

    /// Requests in flight.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,

    /// How long to measure, after a second of warming up.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,

    /// Certificates in one request of the `agent` path.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) batch: u32,

    /// HTTP/2 connections that the requests share.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) connections: u32,

    /// Live pods, and as many tokens.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=200_000))]
    pub(crate) pods: u32,

    /// Where the started server keeps its store; on the disk to be measured. [default: a new
    /// folder under the temporary folder, elsewhere where that is in memory]
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    pub(crate) dir: Option<PathBuf>,

    /// The `citadel-ca` to start. [default: the one beside this program]
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    pub(crate) server_binary: Option<PathBuf>,

    /// Measure a server that runs already: HOST:PORT of its gRPC.
    #[arg(long, value_name = "ADDRESS", requires = "trust_bundle")]
    pub(crate) target: Option<String>,

    /// With --target: HOST:PORT of its admin HTTP, for its CPU and memory. [default: port
    /// 15014 of --target's host]
    #[arg(long, value_name = "ADDRESS", requires = "target")]
    pub(crate) target_admin: Option<String>,

    /// With --target: the roots that its certificate must chain to, PEM.
    #[arg(long, value_name = "FILE", requires = "target")]
    pub(crate) trust_bundle: Option<PathBuf>,

    /// With --target: its trust domain. [default: the one that the roots name]
    #[arg(long, value_name = "NAME", requires = "target")]
    pub(crate) trust_domain: Option<String>,

    /// With --target: service-account tokens, one a line.
    #[arg(long, value_name = "FILE", requires = "target")]
    pub(crate) tokens: Option<PathBuf>,

    /// With --target: a folder with an agent's svid.pem and svid_key.pem, for the path
    /// `agent`. It asks for the pods of --tokens that are on its node.
    #[arg(long, value_name = "DIR", requires = "target")]
    pub(crate) agent_svid: Option<PathBuf>,

    /// Write each certificate that arrives to this folder, as SERIAL.pem.
    #[arg(long, value_name = "DIR")]
    pub(crate) received: Option<PathBuf>,
}

/// A way to get a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Path {
    /// A workload's own request: another bearer token and one CSR each.
    Token,
    /// An authenticated agent's batches for the pods of its node.
    Agent,
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Agent => "agent",
        }
    }
}

/// A store for the server that is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Store {
    /// A fresh file in the server's folder.
    Sqlite,
    /// A fresh schema in this database.
    Postgres(String),
}

impl std::str::FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "sqlite" => Ok(Self::Sqlite),
            Some(("sqlite", _)) => Err(
                "the bench makes a fresh SQLite store of its own: write --store sqlite, \
                     and choose the disk with --dir"
                    .into(),
            ),
            // The URL is not repeated: it may hold a password.
            Some(("postgres" | "postgresql", _)) => match PostgresOptions::from_url(text) {
                Ok(_) => Ok(Self::Postgres(text.to_owned())),
                Err(UrlError::Password) => Err(
                    "the URL holds a password: take it out, and give it in PGPASSFILE or \
                     PGPASSWORD"
                        .into(),
                ),
                Err(error) => Err(format!("the URL can't be used: {error}")),
            },
            _ => Err("the stores are sqlite and postgres://USER@HOST/DATABASE".into()),
        }
    }
}

impl Store {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }
}

impl IssueArgs {
    /// The paths to measure: what was asked for, each once, or both.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let wanted = |path: &Path| self.paths.is_empty() || self.paths.contains(path);
        [Path::Token, Path::Agent]
            .into_iter()
            .filter(wanted)
            .collect()
    }

    /// What clap can't express: which credentials the paths need with --target.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.duration.is_zero() {
            return Err(Failure::usage("--duration is zero").next("Write --duration 10s."));
        }
        if self.target.is_none() {
            return Ok(());
        }
        if self.tokens.is_none() {
            return Err(
                Failure::usage("--target needs --tokens FILE, one token a line").next(
                    "Make tokens that are bound to live pods, e.g. with `kubectl create token \
                 --bound-object-kind Pod --bound-object-name NAME --audience citadel ACCOUNT`.",
                ),
            );
        }
        if self.paths().contains(&Path::Agent) && self.agent_svid.is_none() {
            return Err(
                Failure::usage("the path `agent` needs --agent-svid DIR with --target")
                    .next("Give an agent's svid.pem and svid_key.pem, or --path token."),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        issue: IssueArgs,
    }

    fn parse(args: &[&str]) -> Result<IssueArgs, clap::Error> {
        Alone::try_parse_from([&["issue"], args].concat()).map(|alone| alone.issue)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.paths(), [Path::Token, Path::Agent]);
        assert_eq!(args.stores, [Store::Sqlite]);
        assert_eq!((args.concurrency, args.batch, args.pods), (64, 50, 20_000));
        assert_eq!(args.duration, Duration::from_secs(10));
        args.check().unwrap();
    }

    #[test]
    fn paths_and_stores_repeat() {
        let args = parse(&[
            "--path", "agent", "--path", "token", "--store", "sqlite", "--store", "sqlite",
        ]);
        let args = args.unwrap();
        assert_eq!(args.paths(), [Path::Token, Path::Agent]);
        assert_eq!(args.stores.len(), 2);
        assert_eq!(parse(&["--path", "agent"]).unwrap().paths(), [Path::Agent]);
    }

    #[test]
    fn stores_that_do_not_exist_are_refused_with_a_reason() {
        for (store, reason) in [
            ("postgres://u:hunter2@localhost/x", "PGPASSFILE"),
            ("postgres://localhost", "names no database"),
            ("sqlite:/x/y.db", "--dir"),
            ("mysql://x", "the stores are"),
        ] {
            let error = parse(&["--store", store]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let args = parse(&["--store", "postgres://u@localhost/x"]).unwrap();
        assert_eq!(args.stores[0].name(), "postgres");
    }

    #[test]
    fn a_target_needs_its_credentials() {
        parse(&["--target", "127.0.0.1:15012"]).unwrap_err();
        let target = ["--target", "127.0.0.1:15012", "--trust-bundle", "root.pem"];
        let error = parse(&target).unwrap().check().unwrap_err();
        assert!(error.to_string().contains("--tokens"), "{error}");
        let with_tokens = [&target[..], &["--tokens", "t"]].concat();
        let error = parse(&with_tokens).unwrap().check().unwrap_err();
        assert!(error.to_string().contains("--agent-svid"), "{error}");
        parse(&[&with_tokens[..], &["--path", "token"]].concat())
            .unwrap()
            .check()
            .unwrap();
        parse(&[&with_tokens[..], &["--agent-svid", "d"]].concat())
            .unwrap()
            .check()
            .unwrap();
    }
}
