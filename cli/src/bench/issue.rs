//! `citadel bench issue`, step by step: prepare the load, start or find the server,
//! run each path, report.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use citadel_identity::bundle::BundleSet;
use citadel_identity::verify::verify_svid;
use citadel_proto::v1::X509Svid;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::agents::Agents;
use super::args::{IssueArgs, Path, Store};
use super::database::Database;
use super::floor::Floor;
use super::load::{Lane, Load};
use super::material;
use super::measure::{self, Usage, percentile};
use super::population::Population;
use super::received::Received;
use super::report::{self, Figures, Row};
use super::rsa_key::RsaKey;
use super::server::{self, Server, Workplace};
use super::standin::StandIn;
use super::target::{self, Agent, Target};
use super::wire::{Call, Line};
use crate::exit::{Ended, Failure, Outcome};
use crate::interrupted;
use crate::output::{self, Format};
use crate::progress::Progress;
use crate::trust;

/// CSRs are made once and used again for other pods: each request still proves its key.
const CSRS: usize = 20_000;
const WARM_UP: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &IssueArgs, format: Format) -> Result<Outcome, Ended> {
    args.check()?;
    let mut rows = Vec::new();
    let ended = crate::asynchronous(async {
        let key = RsaKey::generate()?;
        let bench = Bench {
            args,
            floor: Floor::new(&key)?,
            key,
            databases: Mutex::default(),
        };
        let measured = async {
            match &args.target {
                Some(address) => bench.against_target(address, &mut rows).await,
                None => bench.against_own_servers(&mut rows).await,
            }
        };
        // What is given up here ends its server and removes its folder.
        let ended = tokio::select! {
            ended = measured => ended,
            () = interrupted() => Err(Failure::local("interrupted: the run is not reported")),
        };
        let dropped = bench.drop_databases().await;
        ended?;
        dropped?;
        Ok::<_, Ended>(())
    });
    // What was measured before a run failed is worth its minutes all the same.
    if ended.is_ok() || !rows.is_empty() {
        match format {
            Format::Json => output::json(&rows)?,
            Format::Text => output::text(&report::table(&rows))?,
        }
    }
    ended?;
    Ok(Outcome::Done)
}

/// What all runs share.
struct Bench<'a> {
    args: &'a IssueArgs,
    /// Signs the tokens of a server that is started.
    key: RsaKey,
    floor: Floor,
    /// What was made and has to go again, whatever becomes of the run.
    databases: Mutex<Vec<Database>>,
}

/// What one run needs of its server.
struct Run {
    path: Path,
    store: &'static str,
    lanes: Vec<Lane>,
    bundles: BundleSet,
    fsync: Option<Duration>,
}

impl Bench<'_> {
    fn remember(&self, database: Database) {
        self.databases().push(database);
    }

    fn databases(&self) -> MutexGuard<'_, Vec<Database>> {
        self.databases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away all that is left, once nobody uses it.
    async fn drop_databases(&self) -> Result<(), Failure> {
        let left = std::mem::take(&mut *self.databases());
        for database in left {
            database.drop().await?;
        }
        Ok(())
    }

    async fn against_own_servers(&self, rows: &mut Vec<Row>) -> Result<(), Failure> {
        let binary = server::binary(self.args.server_binary.as_deref())?;
        let population = Population::new(self.args.pods as usize);
        let csrs = make_csrs(CSRS.min(self.args.pods as usize))?;
        let token_calls = if self.args.paths().contains(&Path::Token) {
            let progress = Progress::new("making tokens", self.args.pods.into());
            material::token_calls(&material::tokens(&population, &self.key, &progress)?, &csrs)?
        } else {
            Vec::new().into()
        };
        let standin = StandIn::start(&population, &self.key.jwks()).await?;
        let cluster = Agents {
            population: &population,
            key: &self.key,
            csrs: &csrs,
        };
        for store in &self.args.stores {
            for path in self.args.paths() {
                let name = format!("{}-{}", path.name(), store.name());
                let place = Workplace::new(self.args.dir.as_deref(), &name)?;
                output::note(&format!(
                    "{name}: server and store in {}",
                    place.path().display()
                ));
                let kubeconfig = place.path().join("kubeconfig");
                standin.write_kubeconfig(&kubeconfig)?;
                let database = Database::new(store);
                // Another machine's disk can't be measured from here.
                let local = database
                    .is_local()
                    .then(|| measure::fdatasync(place.path()));
                let fsync = local.transpose().map_err(|error| {
                    Failure::local(format!("can't measure {}: {error}", place.path().display()))
                })?;
                let setting = database.setting(&place.path().join("data"));
                self.remember(database);
                let settings = serde_json::json!({ "store": setting });
                let mut server =
                    Server::start(&binary, place.path(), &kubeconfig, &settings).await?;
                let row = self
                    .one_run(path, store, fsync, &server, &cluster, &token_calls)
                    .await;
                let ended = server.has_ended();
                let log = server.log_tail();
                server.stop().await;
                self.drop_databases().await?;
                match row {
                    Ok(row) if !ended => rows.push(row),
                    Ok(_) => {
                        let failure =
                            Failure::unavailable("the server ended while it was measured");
                        return Err(failure.next(log));
                    }
                    Err(failure) => return Err(if ended { failure.next(log) } else { failure }),
                }
            }
        }
        Ok(())
    }

    /// One path against one server of ours.
    async fn one_run(
        &self,
        path: Path,
        store: &Store,
        fsync: Option<Duration>,
        server: &Server,
        cluster: &Agents<'_>,
        token_calls: &Arc<[Call]>,
    ) -> Result<Row, Failure> {
        let trust_domain = trust::domain(server::TRUST_DOMAIN)?;
        let bundles = trust::bundles_of(&trust_domain, &server.root_pem()?)?;
        let lanes = match path {
            Path::Token => {
                let tls = trust::client_config(&trust_domain, &bundles, None)?;
                shared_lanes(self.args, &server.grpc, &tls, token_calls)
            }
            Path::Agent => {
                cluster
                    .lanes(self.args, &server.grpc, &trust_domain, &bundles)
                    .await?
            }
        };
        let run = Run {
            path,
            store: store.name(),
            lanes,
            bundles,
            fsync,
        };
        self.measure(run, async || server.usage().ok()).await
    }

    async fn against_target(&self, address: &str, rows: &mut Vec<Row>) -> Result<(), Failure> {
        let target = Target::read(self.args, address)?;
        let tokens = target::tokens(self.args)?;
        let csrs = make_csrs(tokens.len().clamp(256, CSRS))?;
        for path in self.args.paths() {
            let tls =
                |identity| trust::client_config(&target.trust_domain, &target.bundles, identity);
            let lanes = match path {
                Path::Token => {
                    let calls = material::token_calls(&tokens, &csrs)?;
                    shared_lanes(self.args, address, &tls(None)?, &calls)
                }
                Path::Agent => {
                    let agent = Agent::read(self.args)?;
                    let pods = agent.pods(&tokens)?;
                    let calls = material::batch_calls(&pods, &csrs, self.args.batch as usize);
                    shared_lanes(self.args, address, &tls(Some(agent.identity))?, &calls)
                }
            };
            let bundles = target.bundles.clone();
            let run = Run {
                path,
                store: "target",
                lanes,
                bundles,
                fsync: None,
            };
            rows.push(self.measure(run, async || target.usage().await).await?);
        }
        Ok(())
    }

    async fn measure(
        &self,
        run: Run,
        usage: impl AsyncFn() -> Option<Usage>,
    ) -> Result<Row, Failure> {
        let Run {
            path,
            store,
            lanes,
            bundles,
            fsync,
        } = run;
        let floor = self.floor.measure(path).await?;
        let load = Load {
            path,
            lanes,
            concurrency: self.args.concurrency as usize,
            warm_up: WARM_UP,
            duration: self.args.duration,
            received: self
                .args
                .received
                .as_deref()
                .map(Received::open)
                .transpose()?,
        };
        let progress = Progress::new(path.name(), self.args.duration.as_secs());
        let running = load.start();
        running.warmed_up().await;
        let (cpu_before, before, start) = (usage().await, running.certificates(), Instant::now());
        running.measured(&progress).await;
        let (measured, after, cpu_after) = (start.elapsed(), running.certificates(), usage().await);
        let (seen, first) = running.finish().await?;
        drop(progress);
        let floor = floor.min(self.floor.measure(path).await?);
        for (error, count) in &seen.errors {
            output::note(&format!("citadel: {count} times: {error}"));
        }
        let Some(first) = first else {
            let why = seen
                .errors
                .keys()
                .next()
                .map_or("no answer came", String::as_str);
            return Err(
                Failure::unavailable(format!("not one certificate arrived: {why}")).next(
                    "Check the server's log, and with --target the tokens and the trust bundle.",
                ),
            );
        };
        check(&first, &bundles)?;
        if after == before {
            // Rates and latencies of nothing would look like figures.
            return Err(Failure::unavailable(
                "certificates arrived, but none while it was measured",
            )
            .next("Measure longer (--duration), or in smaller steps (--batch, --concurrency)."));
        }
        let cpu = cpu_before
            .zip(cpu_after)
            .and_then(|(before, after)| after.cpu.checked_sub(before.cpu));
        if cpu.is_none() {
            output::note("citadel: the server's CPU is unknown; with --target, see --target-admin");
        }
        let figures = Figures {
            certificates: after - before,
            measured,
            server_cpu: cpu,
            server_rss: cpu_after
                .map(|usage| usage.resident)
                .filter(|bytes| *bytes > 0),
            floor,
            fsync,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            latencies: [50.0, 90.0, 99.0]
                .map(|p| Duration::from_micros(u64::from(percentile(&seen.latencies, p)))),
            errors: seen.errors.values().sum(),
        };
        Ok(Row::new(path, store, &figures))
    }
}

fn make_csrs(count: usize) -> Result<Vec<Vec<u8>>, Failure> {
    let progress = Progress::new("making keys and CSRs", count as u64);
    material::csrs(count, &progress)
}

/// Connections that all send the same requests in turn.
fn shared_lanes(
    args: &IssueArgs,
    address: &str,
    tls: &Arc<rustls::ClientConfig>,
    calls: &Arc<[Call]>,
) -> Vec<Lane> {
    let next = Arc::new(AtomicUsize::new(0));
    (0..args.connections)
        .map(|_| Lane {
            line: Line::new(address, Arc::clone(tls)),
            calls: Arc::clone(calls),
            next: Arc::clone(&next),
        })
        .collect()
}

/// A fast server that hands out nonsense must not look good: one certificate is verified.
fn check(svid: &X509Svid, bundles: &BundleSet) -> Result<(), Failure> {
    let chain: Vec<CertificateDer<'_>> = svid
        .certificate_chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    verify_svid(&chain, bundles, OffsetDateTime::now_utc())
        .map(drop)
        .map_err(|error| {
            Failure::check(format!(
                "the server's first certificate is not valid: {error}"
            ))
        })
}
