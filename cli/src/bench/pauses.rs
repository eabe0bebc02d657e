//! When the machine itself stood still.
//!
//! A host stops a virtual machine for milliseconds, all of its cores at once: no program on
//! it can answer sooner. A thread per core with a real-time priority looks at the clock each
//! 0.2 ms; nothing of lower priority delays it, so what it misses, the machine did not run.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

const LOOK_EACH: Duration = Duration::from_micros(200);

/// What a look may come too late without having met a pause.
const LATE: Duration = Duration::from_millis(1);

/// A time in which at least one core did not run.
pub(crate) type Pause = (Instant, Instant);

/// Threads that look.
pub(crate) struct Observer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Pause>>>,
}

// === impl Observer ===

impl Observer {
    /// Begins to look, on each core that this process may run on.
    ///
    /// # Errors
    /// Why it can't be: a real-time priority needs root (or `CAP_SYS_NICE`) and `chrt`.
    pub(crate) fn start() -> Result<Self, String> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|error| error.to_string())?;
        let cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let mut observer = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for core in cores {
            let (ready, is_ready) = std::sync::mpsc::channel();
            let stop = Arc::clone(&observer.stop);
            observer.threads.push(thread::spawn(move || {
                let prepared = prepare(core);
                let goes = prepared.is_ok();
                let _ = ready.send(prepared);
                if goes { look(&stop) } else { Vec::new() }
            }));
            let prepared = is_ready.recv();
            prepared.unwrap_or_else(|_| Err("its thread ended".into()))?;
        }
        Ok(observer)
    }

    /// The pauses until now, those of all cores as one, in their order.
    pub(crate) fn finish(mut self) -> Vec<Pause> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        merged(
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_default()),
        )
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// This thread on this core, before all that has no real-time priority.
fn prepare(core: usize) -> Result<(), String> {
    let mut only = CpuSet::new();
    only.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
        .map_err(|error| format!("core {core}: {error}"))?;
    let chrt = Command::new("chrt")
        .args(["--fifo", "--pid", "1", &gettid().to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("chrt: {error}"))?;
    if chrt.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&chrt.stderr).trim().to_owned())
}

fn look(stop: &AtomicBool) -> Vec<Pause> {
    let mut pauses = Vec::new();
    let mut before = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(LOOK_EACH);
        let now = Instant::now();
        if now - before > LOOK_EACH + LATE {
            pauses.push((before, now));
        }
        before = now;
    }
    pauses
}

fn merged(pauses: impl Iterator<Item = Pause>) -> Vec<Pause> {
    let mut pauses: Vec<_> = pauses.collect();
    pauses.sort_unstable();
    let mut merged: Vec<Pause> = Vec::new();
    for (from, to) in pauses {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// Whether a pause (of [`Observer::finish`]) falls into this time.
pub(crate) fn meets(pauses: &[Pause], from: Instant, to: Instant) -> bool {
    let next = pauses.partition_point(|pause| pause.1 < from);
    pauses.get(next).is_some_and(|pause| pause.0 <= to)
}

/// How much of this time they are.
pub(crate) fn share(pauses: &[Pause], from: Instant, to: Instant) -> f64 {
    let within: Duration = pauses
        .iter()
        .map(|pause| pause.1.min(to).saturating_duration_since(pause.0.max(from)))
        .sum();
    within.as_secs_f64() / (to - from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_cores_are_one_and_a_request_meets_those_in_its_time() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let pauses = merged([(at(40), at(50)), (at(12), at(20)), (at(10), at(15))].into_iter());
        assert_eq!(pauses, [(at(10), at(20)), (at(40), at(50))]);
        for (from, to, met) in [
            (0, 9, false),
            (0, 10, true),
            (12, 13, true),
            (20, 30, true),
            (21, 39, false),
            (21, 60, true),
            (51, 60, false),
        ] {
            assert_eq!(meets(&pauses, at(from), at(to)), met, "{from} to {to}");
        }
        assert!((share(&pauses, at(0), at(50)) - 0.4).abs() < 1e-9);
        assert!((share(&pauses, at(15), at(25)) - 0.5).abs() < 1e-9);
    }
}
