//! The process behind `citadel_tests::peer`.
//!
//! `connect SOCKET RELAY` connects to SOCKET, hands the connection to a child that
//! relays it to the socket RELAY, prints its own pid, and waits for its end. The
//! child outlives it, so that a connection can outlive the process that opened it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::{env, io, thread};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["connect", socket, relay] => connect(socket, relay),
        ["relay", relay] => run_relay(relay),
        _ => Err(io::Error::other(
            "usage: citadel-test-peer connect SOCKET RELAY",
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "citadel-test-peer: {e}");
            ExitCode::FAILURE
        }
    }
}

fn connect(socket: &str, relay: &str) -> io::Result<()> {
    let connection = OwnedFd::from(UnixStream::connect(socket)?);
    // Not by its path: another user may not get at the folder that it was built in.
    Command::new("/proc/self/exe")
        .args(["relay", relay])
        .stdin(Stdio::from(connection))
        // Not in our group: it must live on when we are killed.
        .process_group(0)
        .spawn()?;
    writeln!(io::stdout(), "{}", std::process::id())?;
    loop {
        thread::park();
    }
}

/// Copies both ways until both sides have ended.
fn run_relay(relay: &str) -> io::Result<()> {
    let connection = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let test = UnixStream::connect(relay)?;
    let (from_test, to_agent) = (test.try_clone()?, connection.try_clone()?);
    let there = thread::spawn(move || copy(from_test, to_agent));
    copy(connection, test);
    let _ = there.join();
    Ok(())
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
