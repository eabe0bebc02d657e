//! What the system lets this process have: open files, and memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, and returns it.
///
/// The soft limit is low for programs that still use `select`; nothing here does.
///
/// # Errors
/// The system does not tell or does not let it be raised.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many files may be open.
///
/// # Errors
/// The system does not tell.
pub fn open_files() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// The memory that this process' cgroup may have, in bytes; `None` where there is no limit,
/// or none that can be seen from here.
pub fn memory() -> Option<u64> {
    memory_of(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
}

fn memory_of(process: &Path, mounted: &Path) -> Option<u64> {
    let text = fs::read_to_string(process).ok()?;
    let limits = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (mounted.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        lowest(&root, path, file)
    });
    limits.min()
}

/// The lowest limit on the way up. A container sees its own cgroup as the root, whatever
/// its path says.
fn lowest(root: &Path, path: &str, file: &str) -> Option<u64> {
    let own: PathBuf = path.trim_matches('/').into();
    let folders = own.ancestors().map(|folder| root.join(folder).join(file));
    let values = folders.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    // v1 says "none" as the largest number of pages.
    values.filter(|limit: &u64| *limit < 1 << 60).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn limit(process: &str, files: &[(&str, &str)]) -> Option<u64> {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = dir.path().join("cgroup");
        fs::write(&cgroup, process).unwrap();
        for (name, content) in files {
            let file = dir.path().join("sys").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        memory_of(&cgroup, &dir.path().join("sys"))
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let files = [
            ("a/memory.max", "1000\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/c/memory.max", "2000\n"),
        ];
        assert_eq!(limit("0::/a/b/c\n", &files), Some(1000));
        assert_eq!(limit("0::/a/b\n", &files[1..]), None);
        // A container's own, at what it sees as the root.
        assert_eq!(limit("0::/\n", &[("memory.max", "7\n")]), Some(7));
        assert_eq!(limit("0::/../x\n", &[("memory.max", "7\n")]), Some(7));
    }

    #[test]
    fn the_first_version_has_other_names_and_a_number_for_none() {
        let none = ("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let set = ("memory/a/memory.limit_in_bytes", "4096\n");
        let process = "3:cpu,cpuacct:/a\n2:memory:/a\n0::/\n";
        assert_eq!(limit(process, &[none, set]), Some(4096));
        assert_eq!(limit(process, &[none]), None);
        assert_eq!(limit("nonsense\n", &[set]), None);
    }

    #[test]
    fn open_files_are_raised_as_far_as_they_may() {
        let raised = raise_open_files().unwrap();
        assert_eq!(open_files().unwrap(), raised);
    }
}
