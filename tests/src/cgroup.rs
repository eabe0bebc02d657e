//! Real cgroups, made by hand as the kubelet and the runtime make them, for
//! processes that are to be taken for a pod's.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long what ran in a cgroup may take to end.
const END: Duration = Duration::from_secs(10);

/// A container's ID as runtimes choose it; any 64 hex digits.
pub const CONTAINER: &str = "8f3a5d1e0c7b4a2968f1d3c5b7a9e0f2143658709badcfe18f3a5d1e0c7b4a29";

/// Which hierarchy a cgroup is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// cgroup v1, the hierarchy of the `pids` controller.
    V1,
    /// cgroup v2, the unified hierarchy.
    V2,
}

/// A cgroup. Dropping it ends what still runs in it and removes it, with the
/// folders above it that are left empty.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup at `relative` to the hierarchy's root.
    pub fn new(version: Version, relative: &str) -> Self {
        assert!(!relative.starts_with('/') && !relative.is_empty());
        let root = mount_point(version);
        let path = root.join(relative);
        let made = Self { root, path };
        made.make();
        made
    }

    /// A container's cgroup of a burstable pod, as a kubelet with the `cgroupfs`
    /// driver names it on v1, and one with the `systemd` driver and containerd
    /// on v2.
    pub fn of_pod(version: Version, uid: &str) -> Self {
        let relative = match version {
            Version::V1 => format!("kubepods/burstable/pod{uid}/{CONTAINER}"),
            Version::V2 => {
                let slice = "kubepods.slice/kubepods-burstable.slice";
                let uid = uid.replace('-', "_");
                let pod = format!("kubepods-burstable-pod{uid}.slice");
                format!("{slice}/{pod}/cri-containerd-{CONTAINER}.scope")
            }
        };
        Self::new(version, &relative)
    }

    /// One below this one, as a container can make them for itself.
    #[must_use]
    pub fn below(&self, relative: &str) -> Self {
        let made = Self {
            root: self.root.clone(),
            path: self.path.join(relative),
        };
        made.make();
        made
    }

    /// A wrapper for [`crate::process::Launch::wrapped`]: the program runs in
    /// here from its first instruction on.
    pub fn wrapper(&self) -> Vec<String> {
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        let procs = self.path.join("cgroup.procs");
        ["sh", "-c", script, procs.to_str().expect("a plain path")]
            .map(str::to_owned)
            .into()
    }

    /// Moves a process of the harness's own pid namespace in here.
    pub fn enter(&self, pid: i32) {
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("a live process");
    }

    fn make(&self) {
        let started = Instant::now();
        loop {
            match std::fs::create_dir_all(&self.path) {
                Ok(()) => return,
                // Another test's end removed a folder above it at this moment.
                Err(e) if e.kind() == ErrorKind::NotFound && started.elapsed() < END => {}
                Err(e) => panic!(
                    "{}: {e} (suites with cgroups need root)",
                    self.path.display()
                ),
            }
        }
    }

    fn end_processes(&self) {
        let text = std::fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in text
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let started = Instant::now();
        while let Err(e) = std::fs::remove_dir(&self.path) {
            if e.kind() == ErrorKind::NotFound || started.elapsed() > END {
                break;
            }
            self.end_processes();
            thread::sleep(Duration::from_millis(5));
        }
        let above = self
            .path
            .ancestors()
            .skip(1)
            .take_while(|above| *above != self.root);
        for folder in above {
            // What is not empty is still somebody's.
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

/// Where a hierarchy is mounted, by the kernel's own table.
fn mount_point(version: Version) -> PathBuf {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    // Optional fields end with a dash; file system, source and options follow it.
    let found = table.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let kind: Vec<_> = kind.split(' ').collect();
        let is_it = match version {
            Version::V1 => kind[0] == "cgroup" && kind[2].split(',').any(|name| name == "pids"),
            Version::V2 => kind[0] == "cgroup2",
        };
        is_it.then(|| mount.split(' ').nth(4)).flatten()
    });
    let found = found.unwrap_or_else(|| panic!("no cgroup hierarchy {version:?} is mounted"));
    Path::new(found).to_owned()
}
