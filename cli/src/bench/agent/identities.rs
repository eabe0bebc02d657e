//! What the agent does with many identities: has all of them issued again, and nothing.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Programs;
use super::report::{Idle, Reissue};
use super::scene::{Scene, now_micros};
use super::streams::{DEFAULT, Streams};
use crate::bench::population::Population;
use crate::exit::Failure;
use crate::output;

/// Nothing but its usual renewals happens meanwhile.
const TTL: &str = "1h";
/// Until what the start of an agent needed is given back.
const SETTLE: Duration = Duration::from_secs(6);

/// An agent that has to have an identity for each of `count` pods starts again: the time from
/// its start to the last of them.
pub(super) async fn reissue(programs: &Programs, count: usize) -> Result<Reissue, Failure> {
    let scene = Scene::start(
        programs,
        "reissue",
        Population::dense(count, count),
        Some(TTL),
    )
    .await?;
    let settings = json!({ "pods": scene.pods("all") });
    output::note("issuing …");
    let first = scene.agent(&settings).await?;
    first.holds(count).await?;
    first.stop().await;
    output::note("issuing again …");
    let (server_cpu, begun, begun_at) = (scene.server_cpu()?, Instant::now(), now_micros());
    let agent = scene.agent(&settings).await?;
    agent.holds(count).await?;
    let seen = begun.elapsed();
    let (agent_cpu, server_cpu) = (agent.cpu()?, scene.server_cpu()?.saturating_sub(server_cpu));
    let received = agent.received();
    let (Some(one), Some(last), true) =
        (received.first(), received.last(), received.len() == count)
    else {
        return Err(Failure::check(format!(
            "the agent took {} certificates for {count} identities",
            received.len()
        ))
        .next(agent.log_tail()));
    };
    #[allow(clippy::cast_precision_loss)]
    let seconds = |micros: i128| micros as f64 / 1e6;
    #[allow(clippy::cast_precision_loss)]
    let figures = Reissue {
        identities: count,
        reissue_s: seconds(last.at - begun_at).min(seen.as_secs_f64()),
        reissue_first_to_last_s: seconds(last.at - one.at),
        reissue_agent_cpu_s: agent_cpu.as_secs_f64(),
        reissue_ca_cpu_s: server_cpu.as_secs_f64(),
        reissue_rss_mb: agent.resident()? as f64 / 1e6,
    };
    scene.stop(agent).await;
    Ok(figures)
}

/// An agent with identities for `count` pods, and as many open SDS streams on connections of
/// their own.
pub(super) async fn idle(
    programs: &Programs,
    count: usize,
    time: Duration,
) -> Result<Idle, Failure> {
    let scene = Scene::start(programs, "idle", Population::dense(count, count), Some(TTL)).await?;
    let agent = scene.agent(&json!({ "pods": scene.pods("all") })).await?;
    agent.holds(count).await?;
    tokio::time::sleep(SETTLE).await;
    let alone = agent.resident()?;
    let percent_of = |cpu: Duration| cpu.as_secs_f64() / time.as_secs_f64() * 1e2;
    let begun = agent.cpu()?;
    output::note("looking at an agent without streams …");
    tokio::time::sleep(time).await;
    let without_streams = percent_of(agent.cpu()?.saturating_sub(begun));
    let streams = Streams::open(&agent, count, &[DEFAULT.to_owned()]).await?;
    tokio::time::sleep(SETTLE).await;
    let begun = agent.cpu()?;
    output::note("looking at an agent with streams …");
    tokio::time::sleep(time).await;
    let with_streams = percent_of(agent.cpu()?.saturating_sub(begun));
    let resident = agent.resident()?;
    #[allow(clippy::cast_precision_loss)]
    let mb = |bytes: u64| bytes as f64 / 1e6;
    drop(streams);
    scene.stop(agent).await;
    Ok(Idle {
        identities: count,
        agent_rss_mb: mb(alone),
        agent_rss_mb_with_streams: mb(resident),
        idle_cpu_percent: without_streams,
        idle_cpu_percent_with_streams: with_streams,
    })
}
