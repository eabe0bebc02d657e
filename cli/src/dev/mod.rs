//! `citadel dev`: a CA and an agent in one process, for trying things out and for tests.

mod cluster;
mod command;
mod place;
mod servers;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Uid, User, getuid};
use serde::Serialize;

use crate::endpoint::{self, Endpoint};
use crate::exit::{Ended, Failure, Outcome};
use crate::fetch::Updates;
use crate::interrupted;
use crate::output::{self, Format};
use crate::trust;

use place::Place;
use servers::{Addresses, Servers};

/// While it starts, nothing is ready yet: that is no news.
const LOG_FILTER: &str = "warn,citadel_runtime::admin=error";

/// How long everything may take until the first SVID is there.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a CA and a node agent in this process, with one identity for you.
///
/// State is kept in --data-dir between starts. Tokens come from an issuer of its own, in
/// memory, or from a real API server with --kubeconfig. With `-- CMD` it runs CMD as a
/// workload once everything serves, and ends with its exit code.
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct DevArgs {
    /// Where state is kept. [default: `$XDG_STATE_HOME/citadel/dev` or
    /// `~/.local/state/citadel/dev`]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The trust domain.
    #[arg(long, value_name = "NAME", default_value = "example.org")]
    trust_domain: String,

    /// Where the CA's gRPC listens. [default: 127.0.0.1:15012, or any port where that is taken,
    /// or there is a CMD]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// Where the CA's admin HTTP listens. [default: 127.0.0.1:15014, or any port where that is
    /// taken, or there is a CMD]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,

    /// Where the agent's admin HTTP listens. [default: 127.0.0.1:15015, or any port where that
    /// is taken, or there is a CMD]
    #[arg(long, value_name = "ADDRESS")]
    agent_admin_listen: Option<SocketAddr>,

    /// A real API server in the place of the local issuer.
    #[arg(long, value_name = "FILE", requires = "token_file")]
    kubeconfig: Option<PathBuf>,

    /// With --kubeconfig: the agent's pod-bound service-account token; read again for each use.
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    token_file: Option<PathBuf>,

    /// What is logged, to standard error: error, warn, info, debug, trace, or a filter.
    #[arg(long, value_name = "LEVEL", default_value = LOG_FILTER)]
    log_level: String,

    /// A program to run as a workload, with its arguments.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// What is served where.
#[derive(Debug, Serialize)]
struct Facts {
    trust_domain: String,
    spiffe_id: String,
    /// For `SPIFFE_ENDPOINT_SOCKET`.
    endpoint: String,
    /// The Workload API's and SDS's socket.
    agent_socket: PathBuf,
    /// The agent's socket for administrators: `citadel agent status --socket`.
    agent_admin_socket: PathBuf,
    agent_admin: SocketAddr,
    ca: SocketAddr,
    ca_admin: SocketAddr,
    data_dir: PathBuf,
    store: PathBuf,
    trust_bundle: PathBuf,
}

impl DevArgs {
    pub(crate) fn run(self, format: Format) -> Result<Outcome, Ended> {
        trust::domain(&self.trust_domain)?;
        citadel_runtime::telemetry::init(&self.log_level, citadel_runtime::telemetry::Format::Text)
            .map_err(|error| Failure::usage(error.to_string()).next("Correct --log-level."))?;
        if let Err(error) = citadel_runtime::harden() {
            output::note(&format!(
                "citadel: this process could not be hardened: {error}"
            ));
        }
        let place = Place::take(self.data_dir.as_deref(), &self.trust_domain)?;
        crate::asynchronous(async {
            let mut servers = Servers::start(&self, &place).await?;
            let addresses = servers.addresses;
            let facts = tokio::select! {
                facts = self.facts(&place, addresses) => facts,
                failure = servers.failed() => Err(failure),
                () = interrupted() => return servers.stop().await.map(|()| Outcome::Done).map_err(Ended::from),
            };
            let outcome = match facts {
                Ok(facts) => self.serve(&facts, &mut servers, format).await,
                Err(failure) => Err(failure.into()),
            };
            let stopped = servers.stop().await;
            let outcome = outcome?;
            stopped?;
            Ok(outcome)
        })
    }

    async fn serve(
        &self,
        facts: &Facts,
        servers: &mut Servers,
        format: Format,
    ) -> Result<Outcome, Ended> {
        if self.command.is_empty() {
            match format {
                Format::Json => output::json_line(facts)?,
                Format::Text => output::text(&facts.text())?,
            }
            return tokio::select! {
                () = interrupted() => Ok(Outcome::Done),
                failure = servers.failed() => Err(failure.into()),
            };
        }
        // Standard output is CMD's alone.
        output::note(&format!(
            "citadel: {} serves {} at {}",
            facts.data_dir.display(),
            facts.spiffe_id,
            facts.endpoint
        ));
        let endpoint = Endpoint::from(facts.agent_socket.as_path());
        let code = command::run(&self.command, &endpoint)
            .await
            .map_err(|error| Failure::local(format!("can't run {}: {error}", self.command[0])))?;
        Ok(Outcome::Code(code))
    }

    /// Where a server listens that was given no address. With a program to run, any port
    /// will do: who needs the usual one, by hand or in a script, runs `dev` beside it; and
    /// of several such starts at once (a test suite's) none takes another's port.
    fn loopback(&self, usual: u16) -> SocketAddr {
        loopback(if self.command.is_empty() { usual } else { 0 })
    }

    /// Waits until the first SVID is there: then everything serves.
    async fn facts(&self, place: &Place, addresses: Addresses) -> Result<Facts, Failure> {
        let agent_socket = place.agent_socket();
        let endpoint = Endpoint::from(agent_socket.as_path());
        let mut updates = Updates::new(endpoint.clone());
        let first = updates
            .next(Some(START_TIMEOUT), |_| {})
            .await
            .map_err(|failure| {
                Failure::new(failure.exit(), failure.message())
                    .next("The log above says why; --log-level info says more.")
            })?;
        let spiffe_id = first.svids.first().map(|svid| svid.spiffe_id.clone());
        Ok(Facts {
            trust_domain: self.trust_domain.clone(),
            spiffe_id: spiffe_id.unwrap_or_default(),
            endpoint: endpoint.to_string(),
            agent_socket,
            agent_admin_socket: place.agent_admin_socket(),
            agent_admin: addresses.agent_admin,
            ca: addresses.ca,
            ca_admin: addresses.ca_admin,
            data_dir: place.data.clone(),
            store: place.data.join(servers::STORE),
            trust_bundle: place.data.join(servers::TRUST_BUNDLE),
        })
    }
}

impl Facts {
    fn text(&self) -> String {
        let lines = [
            ("Workload API, SDS", self.agent_socket.display().to_string()),
            ("CA", self.ca.to_string()),
            ("CA's health", format!("http://{}/readyz", self.ca_admin)),
            (
                "agent's health",
                format!("http://{}/readyz", self.agent_admin),
            ),
            (
                "administrators",
                self.agent_admin_socket.display().to_string(),
            ),
            ("data", self.data_dir.display().to_string()),
            ("trust bundle", self.trust_bundle.display().to_string()),
            ("you are", self.spiffe_id.clone()),
        ];
        let mut text = format!("Citadel serves the trust domain {}\n\n", self.trust_domain);
        for (name, value) in lines {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {name:<18} {value}");
        }
        let _ = write!(
            text,
            "\nNext, in another terminal:\n\n  \
             export {}={}\n  \
             citadel fetch\n  \
             citadel fetch --write certs\n  \
             citadel verify certs/svid.pem\n\n\
             or, in place of this, run a program as a workload: citadel dev -- CMD\n\
             Ctrl-C ends it.\n",
            endpoint::VARIABLE,
            quoted(&self.endpoint)
        );
        text
    }
}

/// A word as a shell takes it, quoted only where it has to be: a folder's name may hold
/// anything.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+,@%=".contains(c);
    if word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The path of the entry for whoever started us: `/user/alice`, or `/user/uid-1000` where
/// the name can't stand in a SPIFFE ID.
fn user_path() -> String {
    let uid: Uid = getuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    format!("/user/{}", user_segment(name.as_deref(), uid.as_raw()))
}

fn user_segment(name: Option<&str>, uid: u32) -> String {
    let fits = |name: &&str| {
        !name.is_empty()
            && *name != "."
            && *name != ".."
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    name.filter(fits)
        .map_or_else(|| format!("uid-{uid}"), str::to_owned)
}

/// A loopback port: the usual one, or any where that is taken.
fn loopback(usual: u16) -> SocketAddr {
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    match std::net::TcpListener::bind(address(usual)) {
        Ok(_) => address(usual),
        Err(_) => address(0),
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
        dev: DevArgs,
    }

    fn args(words: &[&str]) -> DevArgs {
        let any = "127.0.0.1:0";
        let ports = [
            "--listen",
            any,
            "--admin-listen",
            any,
            "--agent-admin-listen",
            any,
        ];
        Alone::try_parse_from([&["dev"], &ports[..], words].concat())
            .unwrap()
            .dev
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_starts_it_gets_an_identity_and_the_state_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("dev");
        let args = args(&["--trust-domain", "dev.example"]);
        let mut roots = Vec::new();
        for _ in 0..2 {
            let place = Place::take(Some(&data), &args.trust_domain).unwrap();
            let servers = Servers::start(&args, &place).await.unwrap();
            let mut updates = Updates::new(Endpoint::from(place.agent_socket().as_path()));
            let update = updates.next(Some(START_TIMEOUT), |_| {}).await.unwrap();
            assert_eq!(update.problem(time::OffsetDateTime::now_utc()), None);
            let wanted = format!("spiffe://dev.example{}", user_path());
            assert_eq!(update.svids[0].spiffe_id, wanted);
            drop(updates);
            servers.stop().await.unwrap();
            roots.push(std::fs::read(data.join(servers::TRUST_BUNDLE)).unwrap());
            assert!(data.join(servers::STORE).exists());
        }
        assert_eq!(roots[0], roots[1]);
    }

    #[test]
    fn a_real_api_server_needs_a_token() {
        let with = |words: &[&str]| Alone::try_parse_from([&["dev"], words].concat());
        assert!(with(&["--kubeconfig", "k"]).is_err());
        assert!(with(&["--token-file", "t"]).is_err());
        assert!(with(&["--kubeconfig", "k", "--token-file", "t"]).is_ok());
    }

    #[test]
    fn spiffe_req_03_a_user_s_name_becomes_a_valid_segment() {
        assert_eq!(user_segment(Some("alice"), 1), "alice");
        assert_eq!(user_segment(Some("alice.b-c_1"), 1), "alice.b-c_1");
        for odd in ["", ".", "..", "a b", "dömäin", "a/b", "a$", "DOMAIN\\user"] {
            assert_eq!(user_segment(Some(odd), 1_000), "uid-1000", "{odd:?}");
        }
        assert_eq!(user_segment(None, 7), "uid-7");
    }

    #[test]
    fn only_words_that_a_shell_would_take_apart_are_quoted() {
        for plain in ["unix:///home/a-b.c/run/agent.sock", "tcp://127.0.0.1:80"] {
            assert_eq!(quoted(plain), plain);
        }
        assert_eq!(quoted("unix:///a b/s"), "'unix:///a b/s'");
        assert_eq!(quoted("/$HOME/`x`;\"&"), "'/$HOME/`x`;\"&'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_port_that_is_taken_is_not_an_obstacle() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").map(|it| (it.local_addr(), it));
        let Ok((Ok(address), _held)) = taken else {
            panic!("no port at all")
        };
        assert_eq!(loopback(address.port()).port(), 0);
    }
}
