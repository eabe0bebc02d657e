//! SIGHUP: the program and its configuration, as they are on the disk now, are started
//! beside this process and take over.

use std::{ffi::OsString, io, path::PathBuf};

use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

/// Starts `program` with `arguments` at each SIGHUP. Without a handover it would find the
/// socket served, so that the signal is only told of then.
///
/// # Errors
/// The handler could not be installed.
pub fn on_hangup(program: PathBuf, arguments: Vec<OsString>, enabled: bool) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if !enabled {
                tracing::warn!("SIGHUP: there is no handover (handover.enabled); restart instead");
                continue;
            }
            tracing::info!(program = %program.display(), "SIGHUP: a successor is started");
            match Command::new(&program).args(&arguments).spawn() {
                // Where it has taken over, this process is gone before it ends.
                Ok(mut successor) => match successor.wait().await {
                    Ok(status) => tracing::warn!(%status, "the successor has ended"),
                    Err(error) => tracing::warn!(%error, "the successor can't be waited for"),
                },
                Err(error) => tracing::warn!(%error, "no successor could be started"),
            }
        }
    });
    Ok(())
}
