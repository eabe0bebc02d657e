//! A PostgreSQL server of the test's own.

mod standby;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::dir::{TestDir, copy_folder};
use crate::parts::part;
use crate::process::{Launch, Process};
use crate::{ports, secrets, wait};

/// From start to answers, recovery after a crash included.
const START: Duration = Duration::from_secs(60);

/// Who the server runs as: it refuses root.
const USER: &str = "nobody";

/// The role and the database that the tests' stores use. It is no superuser.
const ROLE: &str = "citadel";

/// A server on loopback, with a role `citadel` that owns a database `citadel`. Dropping it
/// kills it.
pub struct Postgres {
    dir: TestDir,
    data: PathBuf,
    address: SocketAddr,
    settings: Vec<(String, String)>,
    env: Vec<(String, String)>,
    password: String,
    process: Option<Process>,
    databases: AtomicU32,
}

impl Postgres {
    /// One with Debian's own settings.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// One with these settings beside Debian's.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_in(TestDir::new("pg"), settings).await
    }

    /// One in this folder, on the data that an earlier one left there.
    pub async fn start_in(dir: TestDir, settings: &[(&str, &str)]) -> Self {
        let data = dir.join("data");
        // Written last: what was made before it may be half of it.
        let made = dir.join("made");
        let old = made.exists();
        let password = if old {
            let password = std::fs::read_to_string(dir.join("password")).expect("the password");
            let password = password.trim().to_owned();
            secrets::register_token("database password", &password);
            password
        } else {
            let password = secrets::random_token("database password");
            initialize(&dir, &data, &password).await;
            password
        };
        let mut this = Self {
            dir,
            data,
            address: ports::address(),
            settings: Vec::new(),
            env: Vec::new(),
            password,
            process: None,
            databases: AtomicU32::new(0),
        };
        for (name, value) in settings {
            this.set(name, value);
        }
        this.start_again().await;
        if !old {
            this.query_in(
                "postgres",
                &format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{}'", this.password),
            )
            .await;
            this.query_in("postgres", &format!("CREATE DATABASE {ROLE} OWNER {ROLE}"))
                .await;
            this.dir.write("made", "");
        }
        this
    }

    /// Sets a server setting for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.into(), value.into()));
    }

    /// Sets an environment variable of the server for the next start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.into(), value.into()));
    }

    /// Starts it on its data and its address, and waits until it answers.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "PostgreSQL still runs");
        let mut launch = Launch::new("postgres", part("POSTGRES").join("postgres"))
            .wrapped(wrapper())
            .arg("-D")
            .arg(&self.data)
            .args(["-p", &self.address.port().to_string(), "-k"])
            .arg(self.dir.path());
        for (name, value) in [
            ("listen_addresses", "127.0.0.1"),
            ("shared_buffers", "16MB"),
            ("log_min_messages", "warning"),
        ] {
            launch = launch.args(["-c", &format!("{name}={value}")]);
        }
        for (name, value) in &self.settings {
            launch = launch.args(["-c", &format!("{name}={value}")]);
        }
        for (name, value) in &self.env {
            launch = launch.env(name, value);
        }
        let process = launch.start(&self.dir);
        process
            .ready(START, async || {
                self.try_query("postgres", "SELECT 1").await.is_ok()
            })
            .await;
        self.process = Some(process);
    }

    /// Whether it runs: where it can't write it ends by itself.
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_running)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its folder.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The URL of the database `citadel`, without TLS and without a password.
    pub fn url(&self) -> String {
        self.url_of(ROLE)
    }

    /// The same of another database.
    pub fn url_of(&self, database: &str) -> String {
        format!(
            "postgres://{ROLE}@{}/{database}?sslmode=disable",
            self.address
        )
    }

    /// A new, empty database of the same role; its name.
    pub async fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("citadel_{number}");
        self.query_in("postgres", &format!("CREATE DATABASE {name} OWNER {ROLE}"))
            .await;
        name
    }

    /// Writes a file that is the server's alone, as it wants its key to be.
    pub fn give(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.write(name, content);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("the file's mode");
        own(&path);
        path
    }

    /// The file with the role's password.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// The role's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// What the CA's `store` has to be for the database `citadel`.
    pub fn store(&self) -> serde_json::Value {
        self.store_of(ROLE)
    }

    /// The same for another database.
    pub fn store_of(&self, database: &str) -> serde_json::Value {
        serde_json::json!({ "postgres": {
            "url": self.url_of(database),
            "password_file": self.password_file(),
        } })
    }

    /// Runs SQL in the database `citadel` as the superuser: lines of values with `|`.
    pub async fn query(&self, sql: &str) -> String {
        self.query_in(ROLE, sql).await
    }

    /// The same in another database.
    pub async fn query_in(&self, database: &str, sql: &str) -> String {
        match self.try_query(database, sql).await {
            Ok(answer) => answer,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// The same, where it may fail.
    pub async fn try_query(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = self
            .psql(database, sql)
            .output()
            .await
            .expect("psql starts");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// Somebody's transaction in the database that runs this SQL and then stays open;
    /// killed when it is dropped. Returns when the SQL has run.
    pub async fn hold(&self, database: &str, sql: &str) -> Held {
        let mark = format!("held-{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let script = format!("SET application_name = '{mark}'; BEGIN; {sql}; SELECT pg_sleep(600)");
        let child = self
            .psql(database, &script)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("psql starts");
        let sleeps = format!(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE application_name = '{mark}' AND wait_event = 'PgSleep'"
        );
        wait::until("the transaction holds", START, async || {
            (self.query_in("postgres", &sleeps).await == "1").then_some(())
        })
        .await;
        Held { child, mark }
    }

    /// Ends a held transaction without effect.
    pub async fn release(&self, mut held: Held) {
        let end = format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
             WHERE application_name = '{}'",
            held.mark
        );
        self.query_in("postgres", &end).await;
        let _ = held.child.wait().await;
    }

    /// `kill -9` of the server and of all its processes at once, as a power cut does it.
    pub async fn kill(&mut self) {
        let process = self.process.take().expect("PostgreSQL runs");
        let children = if process.is_running() {
            children(process.pid())
        } else {
            Vec::new()
        };
        process.kill().await;
        for child in &children {
            let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
        }
        wait::until("PostgreSQL's processes are gone", START, async || {
            children.iter().all(|child| is_gone(*child)).then_some(())
        })
        .await;
    }

    /// Stops it in good order, ending its sessions.
    pub async fn stop(&mut self) {
        let process = self.process.take().expect("PostgreSQL runs");
        process.signal(Signal::SIGINT);
        process.wait(START).await;
    }

    /// Copies its data while it is stopped.
    pub fn back_up(&self) -> PathBuf {
        assert!(self.process.is_none(), "PostgreSQL still runs");
        let copy = self.dir.join("copy");
        copy_folder(&self.data, &copy);
        copy
    }

    /// Puts a copy of its data in place of what it has.
    pub fn restore(&self, copy: &Path) {
        assert!(self.process.is_none(), "PostgreSQL still runs");
        std::fs::remove_dir_all(&self.data).expect("the data goes");
        copy_folder(copy, &self.data);
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    fn psql(&self, database: &str, sql: &str) -> Command {
        let mut command = Command::new(part("POSTGRES").join("psql"));
        command
            .args([
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-h",
            ])
            .arg(self.dir.path())
            .args([
                "-p",
                &self.address.port().to_string(),
                "-d",
                database,
                "-c",
                sql,
            ])
            .stdin(Stdio::null());
        command
    }
}

/// Makes a server's data, with nothing in it. The folder may be there, empty.
async fn initialize(dir: &TestDir, data: &Path, password: &str) {
    if dir.join("password").exists() {
        std::fs::remove_dir_all(data).expect("what was half made goes");
    }
    std::fs::create_dir_all(data).expect("a folder for the database");
    own(data);
    // The socket lies beside the data.
    own(dir.path());
    dir.write("password", format!("{password}\n"));
    let made = Command::new("setpriv")
        .args(wrapper().iter().skip(1))
        .arg(part("POSTGRES").join("initdb"))
        .args([
            "--no-sync",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        ])
        .args(["--username=postgres", "--encoding=UTF8", "--locale=C", "-D"])
        .arg(data)
        .current_dir("/")
        .output()
        .await
        .expect("initdb");
    assert!(
        made.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&made.stderr)
    );
}

/// A transaction that stays open.
pub struct Held {
    child: Child,
    mark: String,
}

/// What runs a program as [`USER`]. It may lie in a folder of root's, so it may read; and
/// to change users is to lose the signal at our death, which is therefore asked for again.
fn wrapper() -> Vec<String> {
    [
        "setpriv",
        &format!("--reuid={USER}"),
        "--regid=nogroup",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--pdeathsig=KILL",
        "--",
    ]
    .map(str::to_owned)
    .into()
}

fn own(path: &Path) {
    let user = nix::unistd::User::from_name(USER)
        .expect("the users")
        .expect("a user for the database");
    nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("root may do that");
}

fn children(pid: i32) -> Vec<i32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    listed
        .expect("the children of a process of ours")
        .split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

/// Ended, even if nobody has waited for it yet.
fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}
