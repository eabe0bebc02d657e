//! What `/proc` says of a process. Everything read here is only to be believed while
//! the process is known to live (see [`super::liveness`]).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::cgroup::MAX_CGROUP_FILE;

/// The longest `status` or `stat` that is read, in bytes.
const MAX_STATUS: u64 = 64 * 1024;

/// A mounted proc file system.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Proc {
    /// `root` is where it is mounted, usually `/proc`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn of(&self, pid: i32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    /// `/proc/<pid>/cgroup`, as text.
    pub fn cgroup(&self, pid: i32) -> io::Result<String> {
        read_bounded(&self.of(pid, "cgroup"), MAX_CGROUP_FILE as u64 + 1)
    }

    /// The supplementary groups of the process.
    pub fn groups(&self, pid: i32) -> io::Result<Vec<u32>> {
        let status = read_bounded(&self.of(pid, "status"), MAX_STATUS)?;
        parse_groups(&status).ok_or_else(|| invalid("status has no readable Groups line"))
    }

    /// When the process started, in clock ticks (hundredths of a second) since boot.
    pub fn start_ticks(&self, pid: i32) -> io::Result<u64> {
        let stat = read_bounded(&self.of(pid, "stat"), MAX_STATUS)?;
        parse_start_ticks(&stat).ok_or_else(|| invalid("stat has no start time"))
    }

    /// The time since boot, in the ticks of [`Self::start_ticks`].
    pub fn now_ticks(&self) -> io::Result<u64> {
        let uptime = read_bounded(&self.root.join("uptime"), 256)?;
        parse_uptime_ticks(&uptime).ok_or_else(|| invalid("uptime is malformed"))
    }

    /// The path of the executable, if the file at that path is the very file that runs.
    ///
    /// A process in a mount namespace of its own can run any file under any name: a
    /// path is believed only if it leads to the same inode from `seen_from`, the pid
    /// whose view of the file system counts. So a deleted or replaced executable has
    /// no path either.
    pub fn executable_path(&self, pid: i32, seen_from: SeenFrom) -> io::Result<Option<String>> {
        let link = self.of(pid, "exe");
        let path = std::fs::read_link(&link)?;
        let running = std::fs::metadata(&link)?;
        let candidates = match seen_from {
            // The agent's own view, and the host's where the agent is in a container.
            SeenFrom::Host => vec![path.clone(), below(&self.of(1, "root"), &path)],
            SeenFrom::Process => vec![below(&self.of(pid, "root"), &path)],
        };
        let same = candidates.iter().any(|candidate| {
            std::fs::metadata(candidate)
                .is_ok_and(|m| (m.dev(), m.ino()) == (running.dev(), running.ino()))
        });
        Ok(same.then(|| path.to_str().map(str::to_owned)).flatten())
    }

    /// Opens the file that the process runs, deleted or not.
    pub fn open_executable(&self, pid: i32) -> io::Result<File> {
        File::open(self.of(pid, "exe"))
    }
}

/// Whose view of the file system makes a path true.
#[derive(Debug, Clone, Copy)]
pub enum SeenFrom {
    /// The host's, for processes outside of any pod.
    Host,
    /// The process's own root, for a process in a container.
    Process,
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    // Names of processes need not be UTF-8; none of the fields read here is a name.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse_groups(status: &str) -> Option<Vec<u32>> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))?;
    line.split_ascii_whitespace()
        .map(|gid| gid.parse().ok())
        .collect()
}

fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything, a ')' too; field 22 counts from the pid.
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn parse_uptime_ticks(uptime: &str) -> Option<u64> {
    let (seconds, hundredths) = uptime.split_ascii_whitespace().next()?.split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    seconds
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(hundredths.parse().ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn start_time_is_field_22_whatever_the_name_is() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["(sh)", "(a b) c)", "(())", "(x) R 9 9 9)"] {
            assert_eq!(
                parse_start_ticks(&format!("42 {name} {rest}")),
                Some(4711),
                "{name}"
            );
        }
        assert_eq!(parse_start_ticks("42 (sh) S 1"), None);
        assert_eq!(parse_start_ticks(""), None);
    }

    #[test]
    fn groups_and_uptime_are_read() {
        assert_eq!(
            parse_groups("Name:\tx\nGroups:\t4 24 1000 \n"),
            Some(vec![4, 24, 1000])
        );
        assert_eq!(parse_groups("Groups:\t\n"), Some(vec![]));
        assert_eq!(parse_groups("Name:\tx\n"), None);
        assert_eq!(parse_uptime_ticks("12.34 56.78\n"), Some(1234));
        assert_eq!(parse_uptime_ticks("12"), None);
    }

    #[test]
    fn this_process_is_readable_and_older_than_now() {
        let proc = Proc::new(Path::new("/proc"));
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(proc.start_ticks(pid).unwrap() <= proc.now_ticks().unwrap());
        assert!(proc.cgroup(pid).unwrap().contains(':'));
        proc.groups(pid).unwrap();
        let path = proc.executable_path(pid, SeenFrom::Host).unwrap().unwrap();
        assert_eq!(Path::new(&path), std::env::current_exe().unwrap());
    }

    #[test]
    fn a_path_is_believed_only_if_it_leads_to_the_running_file() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, "one").unwrap();
        let process = dir.path().join("7");
        std::fs::create_dir_all(&process).unwrap();
        std::os::unix::fs::symlink(&program, process.join("exe")).unwrap();
        let proc = Proc::new(dir.path());
        let seen = proc.executable_path(7, SeenFrom::Host).unwrap();
        assert_eq!(seen.as_deref(), program.to_str());
        // In the process's own root nothing has this path …
        let from_process = || proc.executable_path(7, SeenFrom::Process).unwrap();
        assert_eq!(from_process(), None);
        // … then another file has it …
        let named = below(&process.join("root"), &program);
        std::fs::create_dir_all(named.parent().unwrap()).unwrap();
        std::fs::write(&named, "one").unwrap();
        assert_eq!(from_process(), None);
        // … and then the very file that runs.
        std::fs::remove_file(&named).unwrap();
        std::fs::hard_link(&program, &named).unwrap();
        assert_eq!(from_process().as_deref(), program.to_str());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in any::<String>()) {
            let _ = parse_groups(&text);
            let _ = parse_start_ticks(&text);
            let _ = parse_uptime_ticks(&text);
        }
    }
}
