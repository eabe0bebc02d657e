//! SDS streams: what one takes of the agent's memory, and how soon a renewed certificate
//! is on all of them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::Message as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Programs;
use super::report::Push;
use super::scene::{Agent, OWN_ID, Scene, now_micros};
use super::socket::{Call, Connection};
use crate::bench::measure::percentile;
use crate::bench::population::Population;
use crate::bench::server::TRUST_DOMAIN;
use crate::exit::Failure;
use crate::progress::Progress;

const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
/// Envoy's own name for its certificate.
pub(super) const DEFAULT: &str = "default";

/// Renewed every few seconds, so that pushes come by themselves.
const TTL: &str = "15s";
/// The longest wait for the next thing to arrive on any stream.
const SILENCE: Duration = Duration::from_secs(30);
/// Until memory that was used for a moment is at rest.
const SETTLE: Duration = Duration::from_secs(1);
/// Connections that are opened at once.
const OPENING: usize = 16;

/// A secret that came over a stream.
struct Arrival {
    stream: usize,
    /// The name's place, and the version: what was pushed.
    what: (usize, String),
    /// Microseconds since the epoch.
    at: i128,
}

/// Streams that are open, each followed by a task which acknowledges what comes.
pub(super) struct Streams {
    arrivals: mpsc::UnboundedReceiver<Result<Arrival, Failure>>,
    names: usize,
    /// What came while not every stream was open.
    earlier: HashSet<(usize, String)>,
    followed: JoinSet<()>,
}

pub(super) async fn measure(
    programs: &Programs,
    streams: usize,
    pushes: usize,
) -> Result<Push, Failure> {
    let scene = Scene::start(programs, "push", Population::dense(1, 1), Some(TTL)).await?;
    let agent = scene.agent(&json!({})).await?;
    // Both are names of this process's only certificate, on one connection.
    let names = [
        DEFAULT.to_owned(),
        format!("spiffe://{TRUST_DOMAIN}{OWN_ID}"),
    ];
    // What the first caller of all costs is no stream's.
    drop(Streams::open(&agent, 1, &names).await?);
    tokio::time::sleep(SETTLE).await;
    let before = agent.resident()?;
    let mut open = Streams::open(&agent, streams.div_ceil(names.len()), &names).await?;
    tokio::time::sleep(SETTLE).await;
    let opened = agent.resident()?;
    let (latencies, cpu) = open.pushes(&agent, pushes).await?;
    let after = agent.resident()?;
    let kb = |resident: u64| {
        #[allow(clippy::cast_precision_loss)]
        let kb = resident.saturating_sub(before) as f64 / 1e3 / streams as f64;
        kb
    };
    let ms = |p| f64::from(percentile(&latencies, p)) / 1e3;
    let figures = Push {
        streams,
        sds_kb_per_stream: kb(opened.max(after)),
        sds_kb_per_stream_opened: kb(opened),
        push_p50_ms: ms(50.0),
        push_p99_ms: ms(99.0),
        push_last_ms: ms(100.0),
        push_cpu_us: cpu,
    };
    drop(open);
    scene.stop(agent).await;
    Ok(figures)
}

impl Streams {
    /// Opens a stream for each of `names` on each of `connections`, and waits until each
    /// brought its first secret.
    pub(super) async fn open(
        agent: &Agent,
        connections: usize,
        names: &[String],
    ) -> Result<Self, Failure> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let mut followed = JoinSet::new();
        let mut opening = JoinSet::new();
        let progress = Progress::new("opening connections", connections as u64);
        for number in 0..connections + OPENING {
            if number < connections {
                let (socket, names) = (agent.socket.clone(), names.to_vec());
                opening.spawn(async move {
                    let connection = Connection::open(&socket).await?;
                    let mut calls = Vec::with_capacity(names.len());
                    for name in names {
                        let first = request(&name, String::new(), String::new());
                        calls.push((connection.call(STREAM_SECRETS, &first, false).await?, name));
                    }
                    Ok::<_, Failure>(calls)
                });
            }
            if opening.len() < OPENING && number < connections {
                continue;
            }
            let Some(opened) = opening.join_next().await else {
                break;
            };
            let calls = opened.map_err(|_| Failure::local("a task panicked"))??;
            for (place, (call, name)) in calls.into_iter().enumerate() {
                let stream = followed.len();
                followed.spawn(follow(call, name, (stream, place), sender.clone()));
            }
            progress.advance(1);
        }
        let mut streams = Self {
            arrivals,
            names: names.len(),
            earlier: HashSet::new(),
            followed,
        };
        let mut served = HashSet::new();
        while served.len() < streams.followed.len() {
            let Arrival { stream, what, .. } = streams.next(agent).await?;
            served.insert(stream);
            streams.earlier.insert(what);
        }
        Ok(streams)
    }

    async fn next(&mut self, agent: &Agent) -> Result<Arrival, Failure> {
        match timeout(SILENCE, self.arrivals.recv()).await {
            Ok(Some(arrival)) => arrival,
            Ok(None) | Err(_) => Err(Failure::unavailable(format!(
                "nothing came over any stream for {SILENCE:?}"
            ))
            .next(agent.log_tail())),
        }
    }

    /// Waits for `wanted` certificates that reach every stream: the times from the agent's
    /// having one to its arrival, sorted, in microseconds; and the agent's CPU for one stream's.
    async fn pushes(&mut self, agent: &Agent, wanted: usize) -> Result<(Vec<u32>, f64), Failure> {
        let all = self.followed.len();
        let mut latencies = Vec::with_capacity(wanted * all);
        let mut pushes: HashMap<(usize, String), Vec<i128>> = HashMap::new();
        let begun = agent.cpu()?;
        let mut arrived = 0_usize;
        while latencies.len() < wanted * all {
            let Arrival { what, at, .. } = self.next(agent).await?;
            arrived += 1;
            if self.earlier.contains(&what) {
                continue;
            }
            let times = pushes.entry(what).or_default();
            times.push(at);
            if times.len() < all / self.names {
                continue;
            }
            let first = times.iter().min().copied().unwrap_or_default();
            let had = agent.received();
            let had = had.iter().rev().find(|one| one.at <= first);
            let had = had.ok_or_else(|| Failure::check("the agent's log lacks a certificate"))?;
            let micros = |at: &i128| u32::try_from(at - had.at).unwrap_or(u32::MAX);
            latencies.extend(times.iter().map(micros));
        }
        latencies.sort_unstable();
        // The acknowledgements of the last are taken as well.
        tokio::time::sleep(SETTLE).await;
        #[allow(clippy::cast_precision_loss)]
        let each = agent.cpu()?.saturating_sub(begun).as_secs_f64() * 1e6 / arrived as f64;
        Ok((latencies, each))
    }
}

async fn follow(
    mut call: Call,
    name: String,
    (stream, place): (usize, usize),
    to: mpsc::UnboundedSender<Result<Arrival, Failure>>,
) {
    loop {
        let arrival = async {
            let message = call.next().await?;
            let at = now_micros();
            let answer = DiscoveryResponse::decode(message)
                .map_err(|_| Failure::check("an SDS response that can't be decoded"))?;
            if answer.resources.len() != 1 {
                return Err(Failure::check("an SDS response without its secret"));
            }
            let version = answer.version_info;
            call.send(&request(&name, version.clone(), answer.nonce))?;
            Ok(Arrival {
                stream,
                what: (place, version),
                at,
            })
        };
        let arrival = arrival.await;
        let ended = arrival.is_err();
        if to.send(arrival).is_err() || ended {
            return;
        }
    }
}

fn request(name: &str, version: String, nonce: String) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: version,
        response_nonce: nonce,
        resource_names: vec![name.to_owned()],
        ..DiscoveryRequest::default()
    }
}
