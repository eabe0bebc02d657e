//! The first request of a new pod, of which the agent has made the certificate ready or not.
//!
//! Each pod's process is one of its own, since that is what the agent attests. What tells its
//! pod is a cgroup, which only root may make: the agent reads a folder in the place of /proc,
//! where each process has its own files but for the one that names its cgroup.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use citadel_proto::workload::{X509svidRequest, X509svidResponse};
use prost::Message as _;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::Programs;
use super::fetch::FETCH;
use super::report::First;
use super::scene::{Agent, Scene, now_micros};
use super::socket::Connection;
use crate::bench::measure::percentile;
use crate::bench::population::{Pod, Population};
use crate::bench::server::TRUST_DOMAIN;
use crate::exit::{Ended, Failure, Outcome};
use crate::output;
use crate::progress::Progress;

/// The longest wait for a pod's process.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between one pod and the next: a node starts them one after the other.
const PAUSE: Duration = Duration::from_millis(30);
/// Any container's ID.
const CONTAINER: &str = "8f3a5d1e0c7b4a2968f1d3c5b7a9e0f2143658709badcfe18f3a5d1e0c7b4a29";

pub(super) async fn measure(programs: &Programs, pods: usize) -> Result<First, Failure> {
    let prepared = pass(programs, pods, true).await?;
    let bound = pass(programs, pods, false).await?;
    let ms = |times: &[u32], p| f64::from(percentile(times, p)) / 1e3;
    Ok(First {
        pods,
        first_fetch_prepared_ms: ms(&prepared, 50.0),
        first_fetch_prepared_p99_ms: ms(&prepared, 99.0),
        first_fetch_ms: ms(&bound, 50.0),
        first_fetch_p99_ms: ms(&bound, 99.0),
    })
}

/// The times of all pods, sorted, in microseconds: from the process's connect to its SVID where
/// that was `prepared`, else from the pod's being bound to it.
async fn pass(programs: &Programs, pods: usize, prepared: bool) -> Result<Vec<u32>, Failure> {
    let name = if prepared { "prepared" } else { "bound" };
    let scene = Scene::start(programs, name, Population::dense(1, 1), None).await?;
    let proc = scene.folder("proc")?;
    let settings = json!({
        "proc_root": proc,
        "pods": scene.pods(if prepared { "all" } else { "nobody" }),
    });
    let agent = scene.agent(&settings).await?;
    if prepared {
        // The pod that is there from the start.
        taken(&agent, 1).await?;
    }
    let mut times = Vec::with_capacity(pods);
    let progress = Progress::new("starting pods", pods as u64);
    for _ in 0..pods {
        let pod = scene.population.another(0, 0);
        let process = Process::start(&proc, &agent, &pod).await?;
        let held = agent.received().len();
        let bound = now_micros();
        scene.standin.bind(&scene.population, &pod);
        if prepared {
            taken(&agent, held + 1).await?;
            tokio::time::sleep(PAUSE).await;
        }
        let answer = process.ask().await?;
        let account = &scene.population.accounts[pod.account];
        let expected = format!(
            "spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}",
            account.namespace, account.name
        );
        if answer.spiffe_id != expected {
            return Err(Failure::check(format!(
                "a pod of {expected} got {}",
                answer.spiffe_id
            )));
        }
        let time = if prepared {
            answer.took
        } else {
            answer.at - bound
        };
        times.push(u32::try_from(time).unwrap_or(u32::MAX));
        progress.advance(1);
        tokio::time::sleep(PAUSE).await;
    }
    scene.stop(agent).await;
    times.sort_unstable();
    Ok(times)
}

/// Waits until the agent took this many certificates.
async fn taken(agent: &Agent, count: usize) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while agent.received().len() < count {
        if Instant::now() > deadline {
            return Err(Failure::unavailable("the agent made nothing ready").next(agent.log_tail()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A pod's process.
struct Process {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What it says of its first request.
struct Answer {
    /// Microseconds from its connect to the SVID.
    took: i128,
    /// When it had the SVID, microseconds since the epoch.
    at: i128,
    spiffe_id: String,
}

impl Process {
    /// Starts it, and says in the agent's /proc that it is this pod's.
    async fn start(proc: &Path, agent: &Agent, pod: &Pod) -> Result<Self, Failure> {
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::local(format!("can't start a pod's process: {error}"))
        };
        let own = std::env::current_exe().map_err(|error| cannot(&error))?;
        let mut child = Command::new(&own)
            .args(["bench", "agent-first", "--socket"])
            .arg(&agent.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot(&error))?;
        let (Some(pid), Some(input), Some(shown)) =
            (child.id(), child.stdin.take(), child.stdout.take())
        else {
            return Err(cannot(&"it ended at once"));
        };
        let folder = proc.join(pid.to_string());
        let write = || {
            fs::create_dir_all(&folder)?;
            for name in ["status", "stat", "root"] {
                let _ = fs::remove_file(folder.join(name));
                symlink(format!("/proc/{pid}/{name}"), folder.join(name))?;
            }
            let _ = fs::remove_file(folder.join("exe"));
            symlink(&own, folder.join("exe"))?;
            let uid = &pod.uid;
            let cgroup = format!("0::/kubepods/burstable/pod{uid}/{CONTAINER}\n");
            fs::write(folder.join("cgroup"), cgroup)
        };
        write().map_err(|error| cannot(&error))?;
        let mut process = Self {
            _child: child,
            input,
            lines: BufReader::new(shown).lines(),
        };
        // It says so when it is up: starting a program is no part of its first request.
        process.line().await?;
        Ok(process)
    }

    async fn ask(mut self) -> Result<Answer, Failure> {
        let sent = self.input.write_all(b"go\n").await;
        sent.map_err(|error| Failure::local(format!("a pod's process: {error}")))?;
        let line = self.line().await?;
        let mut words = line.split(' ');
        let mut number = || words.next().and_then(|word| word.parse().ok());
        let (Some(took), Some(at)) = (number(), number()) else {
            return Err(Failure::unavailable(format!(
                "a pod's process said: {line}"
            )));
        };
        let spiffe_id = words.next().unwrap_or_default().to_owned();
        Ok(Answer {
            took,
            at,
            spiffe_id,
        })
    }

    async fn line(&mut self) -> Result<String, Failure> {
        match timeout(PATIENCE, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            _ => Err(Failure::unavailable("a pod's process did not answer")),
        }
    }
}

/// A pod's process: waits for a line, and says how long its first SVID took.
#[derive(Debug, clap::Args)]
pub(crate) struct FirstArgs {
    #[arg(long)]
    socket: PathBuf,
}

impl FirstArgs {
    pub(crate) fn run(&self) -> Result<Outcome, Ended> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::local(format!("can't start the runtime: {error}")))?;
        output::text("ready\n")?;
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        let begun = Instant::now();
        let answer = runtime.block_on(async {
            let connection = Connection::open(&self.socket).await?;
            connection
                .call(FETCH, &X509svidRequest {}, true)
                .await?
                .next()
                .await
        })?;
        let (took, at) = (begun.elapsed().as_micros(), now_micros());
        let answer = X509svidResponse::decode(answer)
            .map_err(|_| Failure::check("an answer that can't be decoded"))?;
        let svid = answer
            .svids
            .first()
            .ok_or_else(|| Failure::check("an answer without an SVID"))?;
        output::text(&format!("{took} {at} {}\n", svid.spiffe_id))?;
        Ok(Outcome::Done)
    }
}
