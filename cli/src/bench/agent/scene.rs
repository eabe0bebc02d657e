//! One node: its CA, its agent, and the stand-in cluster that both watch.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::Programs;
use crate::bench::http_get::http_get;
use crate::bench::measure;
use crate::bench::population::Population;
use crate::bench::program::{self, Program};
use crate::bench::rsa_key::RsaKey;
use crate::bench::server::{CLUSTER, Server, TRUST_DOMAIN, Workplace};
use crate::bench::standin::StandIn;
use crate::exit::Failure;

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The path of the identity that this process has by an entry.
pub(super) const OWN_ID: &str = "/bench";

/// A CA and the cluster of its pods; the agent is started on it.
pub(super) struct Scene {
    pub(super) population: Population,
    pub(super) standin: StandIn,
    pub(super) server: Server,
    place: Workplace,
    key: RsaKey,
    binary: PathBuf,
}

/// The agent of the first node.
pub(super) struct Agent {
    program: Program,
    pub(super) socket: PathBuf,
    admin: String,
}

/// One certificate that the agent took.
pub(super) struct Received {
    /// Microseconds since the epoch.
    pub(super) at: i128,
}

impl Scene {
    /// With `own_ttl` there is an entry that makes a workload of this process, for that long.
    pub(super) async fn start(
        programs: &Programs,
        name: &str,
        population: Population,
        own_ttl: Option<&str>,
    ) -> Result<Self, Failure> {
        let key = RsaKey::generate()?;
        let standin = StandIn::start(&population, &key.jwks()).await?;
        let place = Workplace::new(programs.dir.as_deref(), name)?;
        let kubeconfig = kubeconfig(place.path());
        standin.write_kubeconfig(&kubeconfig)?;
        let own_uid = nix::unistd::geteuid();
        let entry = own_ttl.map(|ttl| {
            json!({
                "id": OWN_ID, "ttl": ttl, "selectors": [format!("unix:uid:{own_uid}")],
                "nodes": [format!("{CLUSTER}/{}", population.nodes[0].name)],
            })
        });
        let settings = json!({
            "store": format!("sqlite:{}", place.path().join("data/citadel.db").display()),
            "entries": entry.into_iter().collect::<Vec<_>>(),
        });
        let server = Server::start(&programs.server, place.path(), &kubeconfig, &settings).await?;
        Ok(Self {
            population,
            standin,
            server,
            place,
            key,
            binary: programs.agent.clone(),
        })
    }

    /// Starts the agent with `settings` beside the bench's own, and waits until it is ready.
    pub(super) async fn agent(&self, settings: &Value) -> Result<Agent, Failure> {
        let folder = self.place.path();
        let write = |name: &str, content: &str| {
            let path = folder.join(name);
            fs::write(&path, content)
                .map_err(|error| Failure::local(format!("can't write {name}: {error}")))?;
            Ok::<_, Failure>(path)
        };
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let own_pod = self.population.agent(0);
        let token = self.key.token(&self.population.claims(own_pod, now))?;
        let socket = folder.join("agent.sock");
        let [admin] = program::free_ports()?;
        let mut text = json!({
            "trust_domain": TRUST_DOMAIN,
            "ca": { "addresses": [self.server.grpc], "bundle_file": self.server.root_file() },
            "cluster": CLUSTER,
            "token_file": write("token", &token)?,
            "socket": socket,
            "admin_socket": folder.join("admin/agent.sock"),
            "admin_listen": admin,
            "limits": { "connections": 8_192, "connections_per_peer": 8_192 },
            "log": { "level": "info", "format": "json" },
        });
        if let (Some(text), Some(settings)) = (text.as_object_mut(), settings.as_object()) {
            text.extend(settings.clone());
        }
        let config = write("agent.yaml", &text.to_string())?;
        let log = folder.join("agent.log");
        let mut program = Program::start("citadel-agent", &self.binary, &config, log)?;
        program.ready(&admin).await?;
        Ok(Agent {
            program,
            socket,
            admin,
        })
    }

    /// `pods` of the agent's configuration: those of its node, from the stand-in.
    pub(super) fn pods(&self, prepare: &str) -> Value {
        json!({
            "source": "api_server",
            "kubeconfig": kubeconfig(self.place.path()),
            "node": self.population.nodes[0].name,
            "prepare": prepare,
            // They stay until the end of the measurement.
            "prepare_limit": 16_000,
            "prepare_keep": "1h",
        })
    }

    /// A folder of its own below the CA's and the agent's.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.place.path().join(name);
        fs::create_dir(&path)
            .map_err(|error| Failure::local(format!("can't make a folder: {error}")))?;
        Ok(path)
    }

    /// Ends all of it.
    pub(super) async fn stop(self, agent: Agent) {
        agent.program.stop().await;
        self.server.stop().await;
    }

    pub(super) fn server_cpu(&self) -> Result<Duration, Failure> {
        Ok(used(self.server.usage())?.cpu)
    }
}

impl Agent {
    /// CPU time since its start.
    pub(super) fn cpu(&self) -> Result<Duration, Failure> {
        measure::cpu_of(self.program.pid())
            .map_err(|error| Failure::local(format!("the agent's CPU: {error}")))
    }

    /// Resident bytes.
    pub(super) fn resident(&self) -> Result<u64, Failure> {
        Ok(used(self.program.usage())?.resident)
    }

    /// Waits until it holds this many identities.
    pub(super) async fn holds(&self, count: usize) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = self.metric("citadel_agent_identities").await?;
            #[allow(clippy::cast_precision_loss)]
            if held >= count as f64 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::unavailable(format!(
                    "the agent holds {held} of {count} identities after {PATIENCE:?}"
                ))
                .next(self.program.log_tail()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A gauge or counter of its `/metrics`.
    pub(super) async fn metric(&self, name: &str) -> Result<f64, Failure> {
        let missing = || Failure::check(format!("the agent's metrics lack {name}"));
        let (_, text) = http_get(&self.admin, "/metrics")
            .await
            .map_err(|error| Failure::local(format!("the agent's metrics: {error}")))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().parse().ok())
            .ok_or_else(missing)
    }

    /// The certificates that it took, in order.
    pub(super) fn received(&self) -> Vec<Received> {
        let log = self.program.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("certificate received"));
        lines
            .filter_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                let at = OffsetDateTime::parse(line["timestamp"].as_str()?, &Rfc3339).ok()?;
                Some(Received {
                    at: at.unix_timestamp_nanos() / 1_000,
                })
            })
            .collect()
    }

    /// The end of its log, for an error that needs it.
    pub(super) fn log_tail(&self) -> String {
        self.program.log_tail()
    }

    /// Ends it; the CA goes on.
    pub(super) async fn stop(self) {
        self.program.stop().await;
    }
}

/// Microseconds since the epoch, as the agent's log has them.
pub(super) fn now_micros() -> i128 {
    OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000
}

fn kubeconfig(folder: &Path) -> PathBuf {
    folder.join("kubeconfig")
}

fn used(usage: std::io::Result<measure::Usage>) -> Result<measure::Usage, Failure> {
    usage.map_err(|error| Failure::local(format!("a process's CPU and memory: {error}")))
}
