//! `citadel bench overload`: what one node's flood costs the other nodes.
//!
//! Two agents of two nodes. One asks for a certificate at a time; its latencies are measured
//! first alone, then beside the other one's flood, which is a process of its own at the
//! lowest priority: in a cluster it would be on another machine, not on the server's cores.

use std::fmt::Write as _;
use std::fs;
use std::path::Path as FilePath;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use citadel_identity::TrustDomain;
use citadel_identity::bundle::BundleSet;
use citadel_identity::pem;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio::process::{Child, Command};

use super::agents::Agents;
use super::args::Path;
use super::load::{Lane, Load, Seen, micros};
use super::material;
use super::measure::percentile;
use super::pauses::{self, Observer, Pause};
use super::population::Population;
use super::rsa_key::RsaKey;
use super::server::{self, Server, Workplace};
use super::standin::StandIn;
use super::wire::Line;
use crate::duration::parse_duration;
use crate::exit::{Ended, Failure, Outcome};
use crate::output::{self, Format, Table};
use crate::progress::Progress;
use crate::trust::{self, ClientIdentity};

const PODS: usize = 200;
const WARM_UP: Duration = Duration::from_secs(2);

/// Measures what one flooding node costs the others: p99 alone and beside the flood.
///
/// Requests in whose time the machine itself stood still are counted apart, where this can be
/// observed (as root).
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::exit::EXIT_CODES)]
pub(crate) struct OverloadArgs {
    /// Requests that the flooding agent has in flight: ten times what its queue holds.
    #[arg(long, value_name = "N", default_value_t = 640)]
    flood: u32,
    /// How long to measure each time.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
}

#[derive(Serialize)]
struct Report {
    flood_in_flight: u32,
    alone: Figures,
    beside_flood: Figures,
    /// p99 beside the flood ÷ p99 alone.
    p99_ratio: f64,
    /// The same of the requests that met no pause of the machine.
    p99_ratio_without_pauses: Option<f64>,
}

#[derive(Serialize)]
struct Figures {
    requests: usize,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
    without_pauses: Option<WithoutPauses>,
}

/// Of the requests in whose time the machine did not stand still.
#[derive(Serialize)]
struct WithoutPauses {
    /// How much of the time the machine stood still.
    paused_share: f64,
    requests: usize,
    p50_ms: f64,
    p99_ms: f64,
}

impl OverloadArgs {
    pub(crate) fn run(&self, format: Format) -> Result<Outcome, Ended> {
        let report = super::uninterrupted(self.measure())?;
        match format {
            Format::Json => output::json(&report)?,
            Format::Text => output::text(&report.table())?,
        }
        Ok(Outcome::Done)
    }

    async fn measure(&self) -> Result<Report, Failure> {
        let key = RsaKey::generate()?;
        let population = Population::new(PODS);
        let standin = StandIn::start(&population, &key.jwks()).await?;
        let place = Workplace::new(None, "overload")?;
        let kubeconfig = place.path().join("kubeconfig");
        standin.write_kubeconfig(&kubeconfig)?;
        let settings = json!({
            "store": format!("sqlite:{}", place.path().join("data/citadel.db").display()),
            // One node alone can't fill the queue.
            "limits": { "in_flight": 4, "queue": 256, "queue_per_node": 64 },
        });
        let server =
            Server::start(&server::binary(None)?, place.path(), &kubeconfig, &settings).await?;
        let csrs = material::csrs(PODS, &Progress::new("making keys and CSRs", PODS as u64))?;
        let trust_domain = trust::domain(server::TRUST_DOMAIN)?;
        let scene = Scene {
            bundles: trust::bundles_of(&trust_domain, &server.root_pem()?)?,
            trust_domain,
            agents: Agents {
                population: &population,
                key: &key,
                csrs: &csrs,
            },
        };
        let report = self.both(&scene, &server, place.path()).await;
        server.stop().await;
        report
    }

    async fn both(
        &self,
        scene: &Scene<'_>,
        server: &Server,
        folder: &FilePath,
    ) -> Result<Report, Failure> {
        let last = scene.agents.population.nodes.len() - 1;
        let quiet = scene.attest(&server.grpc, 0).await?;
        let flooding = scene.attest(&server.grpc, last).await?;
        let tls = trust::client_config(&scene.trust_domain, &scene.bundles, Some(quiet))?;
        let lane = || Lane {
            line: Line::new(&server.grpc, Arc::clone(&tls)),
            calls: material::batch_calls(&scene.agents.pods(0), scene.agents.csrs, 1),
            next: Arc::default(),
        };
        let alone = self.quiet(lane(), "alone").await?;
        let mut flood = self.flood(scene, server, folder, &flooding, last)?;
        let beside = self.quiet(lane(), "beside the flood").await?;
        if !matches!(flood.try_wait(), Ok(None)) {
            return Err(Failure::local("the flood ended early: nothing is reported"));
        }
        drop(flood);
        Ok(Report {
            flood_in_flight: self.flood,
            p99_ratio: beside.p99_ms / alone.p99_ms,
            p99_ratio_without_pauses: beside
                .without_pauses
                .as_ref()
                .zip(alone.without_pauses.as_ref())
                .map(|(beside, alone)| beside.p99_ms / alone.p99_ms),
            alone,
            beside_flood: beside,
        })
    }

    /// One request at a time, of one certificate each.
    async fn quiet(&self, lane: Lane, step: &'static str) -> Result<Figures, Failure> {
        let load = Load {
            path: Path::Agent,
            lanes: vec![lane],
            concurrency: 1,
            warm_up: WARM_UP,
            duration: self.duration,
            received: None,
        };
        let progress = Progress::new(step, self.duration.as_secs());
        let observer = Observer::start()
            .inspect_err(|reason| {
                output::note(&format!("the machine's pauses are not observed: {reason}"));
            })
            .ok();
        let running = load.start();
        running.warmed_up().await;
        running.measured(&progress).await;
        let pauses = observer.map(Observer::finish);
        let (seen, _) = running.finish().await?;
        Figures::of(&seen, pauses.as_deref())
    }

    fn flood(
        &self,
        scene: &Scene<'_>,
        server: &Server,
        folder: &FilePath,
        identity: &ClientIdentity,
        node: usize,
    ) -> Result<Child, Failure> {
        let local = |error: &dyn std::fmt::Display| {
            Failure::local(format!("can't prepare the flood: {error}"))
        };
        let dir = folder.join("flood");
        fs::create_dir(&dir).map_err(|error| local(&error))?;
        let mut chain = String::new();
        for der in &identity.chain {
            chain.push_str(&pem::encode(pem::CERTIFICATE, der));
        }
        let key = pem::encode(pem::PRIVATE_KEY, identity.key.secret_der());
        let root = server.root_pem()?;
        let tokens = scene.tokens(node)?.join("\n");
        let files: [(&str, &[u8]); 4] = [
            ("svid.pem", chain.as_bytes()),
            ("svid_key.pem", key.as_bytes()),
            ("root.pem", &root),
            ("tokens", tokens.as_bytes()),
        ];
        for (name, content) in files {
            fs::write(dir.join(name), content).map_err(|error| local(&error))?;
        }
        let own = std::env::current_exe().map_err(|error| local(&error))?;
        let seconds = (self.duration + WARM_UP).as_secs() + 5;
        Command::new("nice")
            .args(["-n", "19"])
            .arg(own)
            .args(["bench", "issue", "--path", "agent", "--batch", "1"])
            .args([
                "--target",
                &server.grpc,
                "--trust-domain",
                server::TRUST_DOMAIN,
            ])
            .args(["--concurrency", &self.flood.to_string()])
            .args(["--duration", &format!("{seconds}s")])
            .arg("--trust-bundle")
            .arg(dir.join("root.pem"))
            .arg("--tokens")
            .arg(dir.join("tokens"))
            .arg("--agent-svid")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| local(&error))
    }
}

/// What both agents need.
struct Scene<'a> {
    trust_domain: TrustDomain,
    bundles: BundleSet,
    agents: Agents<'a>,
}

impl Scene<'_> {
    async fn attest(&self, grpc: &str, node: usize) -> Result<ClientIdentity, Failure> {
        let Self {
            trust_domain,
            bundles,
            agents,
        } = self;
        agents.attest(node, grpc, trust_domain, bundles).await
    }

    /// Tokens of the pods of a node.
    fn tokens(&self, node: usize) -> Result<Vec<String>, Failure> {
        let Agents {
            population, key, ..
        } = &self.agents;
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let pods = population.on_node(node).iter();
        pods.map(|pod| key.token(&population.claims(pod, now)))
            .collect()
    }
}

impl Figures {
    fn of(seen: &Seen, pauses: Option<&[Pause]>) -> Result<Self, Failure> {
        if seen.latencies.is_empty() {
            return Err(Failure::unavailable(
                "not one request was answered while it was measured",
            ));
        }
        let ms = |p| f64::from(percentile(&seen.latencies, p)) / 1e3;
        Ok(Self {
            requests: seen.latencies.len(),
            p50_ms: ms(50.0),
            p99_ms: ms(99.0),
            errors: seen.errors.values().sum(),
            without_pauses: pauses.and_then(|pauses| WithoutPauses::of(seen, pauses)),
        })
    }
}

impl WithoutPauses {
    /// `None` if no request is left.
    fn of(seen: &Seen, pauses: &[Pause]) -> Option<Self> {
        let times = seen
            .times
            .iter()
            .map(|(from, to)| (from.into_std(), to.into_std()));
        let from = times.clone().map(|(from, _)| from).min()?;
        let to = times.clone().map(|(_, to)| to).max()?;
        let mut rest: Vec<u32> = times
            .filter(|(from, to)| !pauses::meets(pauses, *from, *to))
            .map(|(from, to)| micros(to - from))
            .collect();
        rest.sort_unstable();
        (!rest.is_empty()).then(|| Self {
            paused_share: pauses::share(pauses, from, to),
            requests: rest.len(),
            p50_ms: f64::from(percentile(&rest, 50.0)) / 1e3,
            p99_ms: f64::from(percentile(&rest, 99.0)) / 1e3,
        })
    }
}

impl Report {
    fn table(&self) -> String {
        let mut table = Table::new(
            1,
            &[
                "one request at a time",
                "requests",
                "p50 ms",
                "p99 ms",
                "errors",
            ],
        );
        for (name, figures) in [
            ("alone", &self.alone),
            ("beside the flood", &self.beside_flood),
        ] {
            table.row(vec![
                name.to_owned(),
                figures.requests.to_string(),
                format!("{:.2}", figures.p50_ms),
                format!("{:.2}", figures.p99_ms),
                figures.errors.to_string(),
            ]);
        }
        for (name, figures) in [
            ("alone, no pause met", &self.alone),
            ("beside it, no pause met", &self.beside_flood),
        ] {
            if let Some(rest) = &figures.without_pauses {
                table.row(vec![
                    name.to_owned(),
                    rest.requests.to_string(),
                    format!("{:.2}", rest.p50_ms),
                    format!("{:.2}", rest.p99_ms),
                    String::new(),
                ]);
            }
        }
        let mut text = format!(
            "{}p99 beside {} requests in flight of another node: {:.2} times as long\n",
            table.render(),
            self.flood_in_flight,
            self.p99_ratio
        );
        let pauses =
            [&self.alone, &self.beside_flood].map(|figures| figures.without_pauses.as_ref());
        if let ([Some(alone), Some(beside)], Some(ratio)) = (pauses, self.p99_ratio_without_pauses)
        {
            let _ = writeln!(
                text,
                "the machine stood still for {:.1} % of the time alone and {:.1} % beside the \
                 flood; of the requests that met none of it {ratio:.2} times",
                alone.paused_share * 100.0,
                beside.paused_share * 100.0,
            );
        }
        text
    }
}
