//! The `citadel` command.

use std::ffi::OsStr;
use std::time::Duration;

use crate::dir::TestDir;
use crate::parts::program;
use crate::process::Launch;

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Finished {
    /// Panics unless it ended with 0; its output.
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.output, self.errors);
        self.output
    }
}

/// Runs `citadel` to its end with these arguments and variables, in `dir`.
pub async fn citadel(
    dir: &TestDir,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    env: &[(&str, &str)],
    deadline: Duration,
) -> Finished {
    let launch = Launch::new("citadel", program("citadel")).args(args);
    run(
        env.iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value)),
        dir,
        deadline,
    )
    .await
}

/// Runs `citadel-ca` to its end, as where it refuses to start, with these arguments.
pub async fn citadel_ca(
    dir: &TestDir,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    deadline: Duration,
) -> Finished {
    run(
        Launch::new("citadel-ca-once", program("citadel-ca")).args(args),
        dir,
        deadline,
    )
    .await
}

/// Each run has log files of its own, since their text is its answer.
async fn run(launch: Launch, dir: &TestDir, deadline: Duration) -> Finished {
    let process = launch.in_new_files().start(dir);
    let status = process.wait(deadline).await;
    Finished {
        code: status.code(),
        output: process.output(),
        errors: process.log(),
    }
}
