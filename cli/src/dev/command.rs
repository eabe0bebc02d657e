//! The user's program under `citadel dev -- CMD`: its environment, its signals, its end.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::endpoint::{self, Endpoint};
use crate::output;

/// What a shell answers for a program that it can't run, and one that it can't find.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Signals that ask a program something: they are meant for CMD.
const FORWARDED: [(SignalKind, Signal); 5] = [
    (SignalKind::terminate(), Signal::SIGTERM),
    (SignalKind::hangup(), Signal::SIGHUP),
    (SignalKind::user_defined1(), Signal::SIGUSR1),
    (SignalKind::user_defined2(), Signal::SIGUSR2),
    (SignalKind::quit(), Signal::SIGQUIT),
];

/// Runs `command` until it ends. The result is the exit code that says how.
pub(crate) async fn run(command: &[String], endpoint: &Endpoint) -> io::Result<u8> {
    let [program, arguments @ ..] = command else {
        return Ok(0);
    };
    let own_folder = std::env::current_exe()?.parent().map(Path::to_path_buf);
    let path = search_path(own_folder, std::env::var_os("PATH").as_deref());
    // Before the program starts: a signal in between must not end us and orphan it.
    let mut forward = Forward::new()?;
    let spawned = Command::new(program)
        .args(arguments)
        .env(endpoint::VARIABLE, endpoint.to_string())
        .env("PATH", path)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let is_missing = error.kind() == io::ErrorKind::NotFound;
            output::note(&format!("citadel: can't run {program}: {error}"));
            return Ok(if is_missing { NOT_FOUND } else { CANNOT_RUN });
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => return status.map(exit_code),
            signal = forward.next() => send(&child, signal),
        }
    }
}

fn send(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// As a shell has it: 128 + N for signal N.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// This program's own folder first, so that `citadel` in CMD is this one.
fn search_path(own: Option<PathBuf>, inherited: Option<&OsStr>) -> OsString {
    let inherited: Vec<PathBuf> = inherited
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    let folders = own.into_iter().chain(inherited);
    // It fails only where a folder's name has a colon: then that folder can't be searched.
    let plain = folders.filter(|folder| !folder.as_os_str().as_encoded_bytes().contains(&b':'));
    std::env::join_paths(plain).unwrap_or_default()
}

/// The signals that come for CMD.
struct Forward {
    received: tokio::sync::mpsc::UnboundedReceiver<Signal>,
}

impl Forward {
    fn new() -> io::Result<Self> {
        let (send, received) = tokio::sync::mpsc::unbounded_channel();
        for (kind, number) in FORWARDED {
            let mut signals = signal(kind)?;
            let send = send.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && send.send(number).is_ok() {}
            });
        }
        let mut interrupts = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            while interrupts.recv().await.is_some() {
                // Ctrl-C reaches the whole group in the terminal's foreground, CMD too; it
                // must not get it twice.
                if !in_foreground() && send.send(Signal::SIGINT).is_err() {
                    return;
                }
            }
        });
        Ok(Self { received })
    }

    async fn next(&mut self) -> Signal {
        match self.received.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

fn in_foreground() -> bool {
    std::fs::File::open("/dev/tty")
        .is_ok_and(|tty| tcgetpgrp(tty).is_ok_and(|group| group == getpgrp()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint::Unix("/run/test/agent.sock".into())
    }

    async fn run_words(words: &[&str]) -> u8 {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        run(&words, &endpoint()).await.unwrap()
    }

    #[tokio::test]
    async fn the_exit_code_is_the_program_s() {
        assert_eq!(run_words(&["true"]).await, 0);
        assert_eq!(run_words(&["sh", "-c", "exit 7"]).await, 7);
        assert_eq!(run_words(&["sh", "-c", "kill -9 $$"]).await, 137);
        assert_eq!(run_words(&["/nonexistent/program"]).await, NOT_FOUND);
        assert_eq!(run_words(&["/etc/passwd"]).await, CANNOT_RUN);
    }

    #[tokio::test]
    async fn the_program_finds_its_endpoint_and_this_program_s_folder_first() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let script = format!(
            "echo \"$SPIFFE_ENDPOINT_SOCKET $PATH\" > {}",
            seen.display()
        );
        assert_eq!(run_words(&["sh", "-c", &script]).await, 0);
        let seen = std::fs::read_to_string(seen).unwrap();
        let (socket, path) = seen.split_once(' ').unwrap();
        assert_eq!(socket, "unix:///run/test/agent.sock");
        let own = std::env::current_exe().unwrap();
        assert!(
            path.starts_with(&format!("{}:", own.parent().unwrap().display())),
            "{path}"
        );
    }

    #[test]
    fn the_search_path_keeps_what_was_there() {
        let path = search_path(Some("/own".into()), Some(OsStr::new("/a:/b")));
        assert_eq!(path, "/own:/a:/b");
        assert_eq!(search_path(None, None), "");
    }
}
