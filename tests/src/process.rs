//! Child processes with log files, signals and deadlines.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::dir::TestDir;
use crate::{spawner, wait};

/// A command to be started.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    wrapper: Vec<OsString>,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Launch {
    /// `program`, whose log files will be called after `name`.
    pub fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            wrapper: Vec::new(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().into()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Runs the program by way of another one, which gets it as its last
    /// arguments and must replace itself with it (`strace -D …`, `nsenter …`),
    /// since signals go to the process that was started.
    #[must_use]
    pub fn wrapped(mut self, wrapper: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.wrapper = wrapper
            .into_iter()
            .map(|word| word.as_ref().into())
            .collect();
        self
    }

    /// Gives this start log files of its own, numbered, where one command is
    /// run many times.
    #[must_use]
    pub fn in_new_files(mut self) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        self.name = format!("{}-{}", self.name, COUNT.fetch_add(1, Ordering::Relaxed));
        self
    }

    /// Starts it. Standard error goes to `NAME.log` in `dir`, standard output
    /// to `NAME.out`; a second start appends.
    pub fn start(&self, dir: &TestDir) -> Process {
        let log = dir.join(format!("{}.log", self.name));
        let out = dir.join(format!("{}.out", self.name));
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.wrapper)
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(append(&out))
            .stderr(append(&log))
            // A group of its own, so that a signal reaches a wrapper too.
            .process_group(0);
        let mut child =
            spawner::spawn(command).unwrap_or_else(|e| panic!("cannot start {}: {e}", self.name));
        let pid = Pid::from_raw(child.id().try_into().expect("a pid fits"));
        let (ended, exit) = watch::channel(None);
        thread::Builder::new()
            .name(format!("wait-{}", self.name))
            .spawn(move || {
                let status = child.wait().expect("wait for a child of ours");
                let _ = ended.send(Some(status));
            })
            .expect("a thread that waits");
        Process {
            name: self.name.clone(),
            pid,
            exit,
            log,
            out,
        }
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    log: PathBuf,
    out: PathBuf,
}

impl Process {
    /// Its process ID.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Sends a signal to it and what it started.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            match killpg(self.pid, signal) {
                // It may have ended a moment ago.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => panic!("{signal} to {}: {e}", self.name),
            }
        }
    }

    /// SIGSTOP: it hangs, its sockets stay.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, and waits for its end.
    pub async fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(10)).await;
    }

    /// SIGTERM, and waits for its end.
    pub async fn terminate(&self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(deadline).await
    }

    /// Waits until it ends by itself.
    pub async fn wait(&self, deadline: Duration) -> ExitStatus {
        let mut exit = self.exit.clone();
        let ended = tokio::time::timeout(deadline, exit.wait_for(Option::is_some)).await;
        let status = ended.unwrap_or_else(|_| {
            panic!(
                "{} did not end within {deadline:?}\n{}",
                self.name,
                self.tail()
            )
        });
        status
            .expect("its waiting thread says how it ended")
            .expect("it has ended")
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// What it has written to standard output.
    pub fn output(&self) -> String {
        read(&self.out)
    }

    /// Waits for a line of its log that `wanted` accepts, and returns it.
    pub async fn log_line(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        self.line(&self.log, what, deadline, wanted).await
    }

    /// The same for its standard output.
    pub async fn output_line(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        self.line(&self.out, what, deadline, wanted).await
    }

    async fn line(
        &self,
        path: &Path,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        wait::until(&format!("{}: {what}", self.name), deadline, async || {
            // The last line may still be in the making.
            let text = read(path);
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().find(|line| wanted(line)).map(str::to_owned)
        })
        .await
    }

    /// Waits until `probe` says that it is up; its early end is a failure.
    pub async fn ready(&self, deadline: Duration, mut probe: impl AsyncFnMut() -> bool) {
        let started = Instant::now();
        loop {
            if probe().await {
                return;
            }
            assert!(
                self.is_running(),
                "{} ended: {:?}\n{}",
                self.name,
                self.exit_status(),
                self.tail()
            );
            assert!(
                started.elapsed() < deadline,
                "{} is not ready within {deadline:?}\n{}",
                self.name,
                self.tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The end of its log, for a message.
    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        let _ = killpg(self.pid, Signal::SIGKILL);
        // Its ports and locks must be free when the next test's begins.
        let started = Instant::now();
        while self.is_running() && started.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}
