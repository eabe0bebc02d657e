//! The audit log of refusals: who was refused what, one JSON object a line, in a file whose
//! size is bounded, whatever comes in. What was granted is in the issuance log.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

/// Bytes of the file; a full one is kept as `<name>.1` until the next one is full.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Lines on their way to the disk; more are left out.
const WAITING: usize = 1024;

/// Takes lines; a thread of its own writes them, so that a slow disk holds up nobody.
#[derive(Debug)]
pub(crate) struct AuditLog {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl AuditLog {
    /// Opens the file, or makes it, for its owner alone.
    ///
    /// # Errors
    /// It can't be opened for writing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::with(path, MAX_FILE)
    }

    fn with(path: &Path, most: u64) -> io::Result<Self> {
        let files = Files::open(path, most)?;
        let (lines, waiting) = sync_channel(WAITING);
        let writer = thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || files.write_all(&waiting))?;
        Ok(Self {
            lines: Some(lines),
            writer: Some(writer),
        })
    }

    /// Whether the line was taken; it has no line break.
    pub(crate) fn write(&self, line: String) -> bool {
        self.lines
            .as_ref()
            .is_some_and(|lines| lines.try_send(line).is_ok())
    }
}

impl Drop for AuditLog {
    /// What was taken is written.
    fn drop(&mut self) {
        drop(self.lines.take());
        if let Some(writer) = self.writer.take() {
            // It panicked, or it has ended: there is nothing left to do in either case.
            let _ = writer.join();
        }
    }
}

struct Files {
    path: PathBuf,
    file: File,
    size: u64,
    most: u64,
    failing: bool,
}

impl Files {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            size: file.metadata()?.len(),
            path: path.to_path_buf(),
            file,
            most,
            failing: false,
        })
    }

    fn write_all(mut self, lines: &Receiver<String>) {
        while let Ok(mut line) = lines.recv() {
            line.push('\n');
            match self.write(&line) {
                Ok(()) => self.failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        let path = self.path.display();
                        tracing::error!(%error, %path, "the audit log of refusals can't be written");
                    }
                }
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > self.most {
            let mut full = self.path.clone().into_os_string();
            full.push(".1");
            fs::rename(&self.path, full)?;
            *self = Self::open(&self.path, self.most)?;
        }
        self.file.write_all(line.as_bytes())?;
        self.size += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_added_and_files_have_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("refused.jsonl");
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        for run in 0..2 {
            let log = AuditLog::with(&path, 100).unwrap();
            assert!(log.write(format!("{{\"run\":{run}}}")));
            drop(log);
        }
        assert_eq!(text(&path), "{\"run\":0}\n{\"run\":1}\n");
        let log = AuditLog::with(&path, 100).unwrap();
        for n in 0..50 {
            while !log.write(format!("{{\"number\":{n:02}}}")) {
                thread::yield_now();
            }
        }
        drop(log);
        let full = path.with_extension("jsonl.1");
        assert!(text(&path).len() <= 100 && text(&full).len() <= 100);
        assert!(text(&path).ends_with("{\"number\":49}\n"));
        // The newest lines, without a gap.
        let both = text(&full) + &text(&path);
        let first = 50 - both.lines().count();
        for (line, n) in both.lines().zip(first..) {
            assert_eq!(line, format!("{{\"number\":{n:02}}}"));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_place_that_is_none_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AuditLog::open(&folder.path().join("missing/refused.jsonl")).is_err());
    }
}
