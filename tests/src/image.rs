//! Container images of programs of this machine: no registry, no other base than the
//! libraries that the programs load.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::dir::TestDir;

/// An image in the making. Everything in it belongs to root and is readable by all.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    programs: Vec<(PathBuf, String)>,
    entrypoint: Vec<String>,
}

impl Image {
    /// `name` with its tag, as manifests have it.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            programs: Vec::new(),
            entrypoint: Vec::new(),
        }
    }

    /// Puts a program of this machine at an absolute path, with the libraries that it loads
    /// where it looks for them, and without its symbols.
    #[must_use]
    pub fn program(mut self, source: impl Into<PathBuf>, at: &str) -> Self {
        self.programs.push((source.into(), at.into()));
        self
    }

    /// The same for a program that is on `PATH`.
    #[must_use]
    pub fn tool(self, name: &str) -> Self {
        let path = std::env::var_os("PATH").expect("a PATH");
        let found = std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|file| file.exists())
            .unwrap_or_else(|| panic!("{name} is not on PATH"));
        self.program(found, &format!("/bin/{name}"))
    }

    /// What runs where the pod says nothing else.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|word| (*word).into()).collect();
        self
    }

    /// Writes the image as a `docker save` archive; where it is.
    pub fn archive(&self, dir: &TestDir) -> PathBuf {
        let root = dir.join("root");
        for (source, at) in &self.programs {
            let place = below(&root, at);
            run(
                "strip",
                [OsStr::new("-o"), place.as_os_str(), source.as_os_str()],
            );
            for library in libraries(source) {
                let place = below(&root, &library);
                fs::copy(&library, &place).unwrap_or_else(|e| panic!("{library}: {e}"));
            }
        }
        // Volumes are mounted on these.
        for folder in ["proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir_all(root.join(folder)).expect("a folder of the image");
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
            .expect("a folder of the image");
        tar(&root, &dir.join("layer.tar"), &["."]);
        fs::remove_dir_all(&root).expect("the image's folder");
        let config = self.config(&sha256(&dir.join("layer.tar")));
        dir.write("config.json", config.to_string());
        let manifest = json!([{
            "Config": "config.json",
            "RepoTags": [self.name],
            "Layers": ["layer.tar"],
        }]);
        dir.write("manifest.json", manifest.to_string());
        let archive = dir.join("image.tar");
        tar(
            dir.path(),
            &archive,
            &["manifest.json", "config.json", "layer.tar"],
        );
        archive
    }

    fn config(&self, layer: &str) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "Env": ["PATH=/usr/local/bin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        })
    }
}

/// Where an absolute path is in the image, its folder made.
fn below(root: &Path, at: &str) -> PathBuf {
    let place = root.join(at.trim_start_matches('/'));
    fs::create_dir_all(place.parent().expect("a folder")).expect("a folder of the image");
    place
}

/// What the dynamic loader would load, and the loader itself.
fn libraries(program: &Path) -> Vec<String> {
    let listed = Command::new("ldd").arg(program).output().expect("ldd");
    // A static program has none, and ldd fails on it.
    let text = String::from_utf8_lossy(&listed.stdout);
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

fn tar(folder: &Path, archive: &Path, names: &[&str]) {
    let mut args: Vec<&OsStr> = ["--create", "--owner=0", "--group=0", "--directory"]
        .map(OsStr::new)
        .into();
    args.extend([
        folder.as_os_str(),
        OsStr::new("--file"),
        archive.as_os_str(),
    ]);
    args.extend(names.iter().map(OsStr::new));
    run("tar", args);
}

fn sha256(file: &Path) -> String {
    let text = run("sha256sum", [file]);
    text.split(' ').next().expect("a digest").to_owned()
}

fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
