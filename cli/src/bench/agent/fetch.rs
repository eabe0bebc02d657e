//! `FetchX509SVID` of what the agent has: its CPU for one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use citadel_proto::workload::{X509svidRequest, X509svidResponse};
use prost::Message as _;
use serde_json::json;
use tokio::task::JoinSet;

use super::Programs;
use super::report::Fetch;
use super::scene::{Agent, Scene};
use super::socket::Connection;
use crate::bench::population::Population;
use crate::exit::Failure;

pub(super) const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// Nothing is renewed meanwhile.
const TTL: &str = "1h";
const WARM_UP: Duration = Duration::from_secs(1);

pub(super) async fn measure(
    programs: &Programs,
    (concurrency, duration): (usize, Duration),
) -> Result<Fetch, Failure> {
    let scene = Scene::start(programs, "fetch", Population::dense(1, 1), Some(TTL)).await?;
    let agent = scene.agent(&json!({})).await?;
    let figures = load(&agent, concurrency, duration).await?;
    scene.stop(agent).await;
    Ok(figures)
}

async fn load(agent: &Agent, concurrency: usize, duration: Duration) -> Result<Fetch, Failure> {
    let (stopped, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut callers = JoinSet::new();
    for _ in 0..concurrency {
        let connection = Connection::open(&agent.socket).await?;
        let (stopped, calls) = (Arc::clone(&stopped), Arc::clone(&calls));
        callers.spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let mut call = connection.call(FETCH, &X509svidRequest {}, true).await?;
                let answer = X509svidResponse::decode(call.next().await?)
                    .map_err(|_| Failure::check("an answer that can't be decoded"))?;
                if answer.svids.len() != 1 {
                    return Err(Failure::check("an answer without the one SVID"));
                }
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    tokio::time::sleep(WARM_UP).await;
    let seen = || Ok::<_, Failure>((agent.cpu()?, calls.load(Ordering::Relaxed), Instant::now()));
    let (cpu, count, begun) = seen()?;
    tokio::time::sleep(duration).await;
    let (cpu_after, count_after, ended) = seen()?;
    stopped.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.map_err(|_| Failure::local("a caller panicked"))??;
    }
    #[allow(clippy::cast_precision_loss)]
    let calls = (count_after - count) as f64;
    if calls < 1.0 {
        return Err(Failure::unavailable(
            "not one call was answered while it was measured",
        ));
    }
    Ok(Fetch {
        concurrency,
        cached_fetch_cpu_us: cpu_after.saturating_sub(cpu).as_secs_f64() * 1e6 / calls,
        cached_fetch_per_s: calls / (ended - begun).as_secs_f64(),
    })
}
