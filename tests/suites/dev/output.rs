//! What `citadel dev` prints for people: all of it true, and its commands work as printed.

use std::path::Path;

use citadel_tests::citadel::Finished;
use citadel_tests::dir::TestDir;
use citadel_tests::parts::program;
use citadel_tests::process::{Launch, Process};
use citadel_tests::{http, secrets, wait};

use super::{PATIENCE, mode, text};

/// `citadel dev` on ports that nobody else has, without `-o json`.
fn start(dir: &TestDir, data: &Path) -> Process {
    let any = "127.0.0.1:0";
    Launch::new("dev", program("citadel"))
        .args(["dev", "--listen", any, "--admin-listen", any])
        .args(["--agent-admin-listen", any, "--data-dir", text(data)])
        .start(dir)
}

/// Everything that is printed, once it is.
async fn printed(dev: &Process) -> String {
    let last = |line: &str| line.starts_with("Ctrl-C");
    dev.output_line("its last line", PATIENCE, last).await;
    dev.output()
}

/// Types lines into a shell of another terminal: stops at the first that fails.
async fn typed(dir: &TestDir, folder: &Path, lines: &str) -> Finished {
    let programs = program("citadel");
    let own = programs.parent().expect("a folder");
    let inherited = std::env::var("PATH").expect("a PATH");
    let process = Launch::new("terminal", "sh")
        .args(["-e", "-u", "-c", &format!("cd '{}'\n{lines}", text(folder))])
        .env("PATH", format!("{}:{inherited}", own.display()))
        .env("XDG_STATE_HOME", dir.join("state"))
        .in_new_files()
        .start(dir);
    let status = process.wait(PATIENCE).await;
    Finished {
        code: status.code(),
        output: process.output(),
        errors: process.log(),
    }
}

#[tokio::test]
async fn people_are_told_where_everything_is_and_what_to_type_next() {
    let dir = TestDir::new("told");
    // A name that a shell would take apart.
    let data = dir.join("my data & $HOME's");
    let dev = start(&dir, &data);
    let said = printed(&dev).await;
    let fact = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        let fact = line.unwrap_or_else(|| panic!("{name} in {said}"));
        fact.trim().to_owned()
    };

    assert!(
        said.starts_with("Citadel serves the trust domain example.org\n"),
        "{said}"
    );
    let socket = fact("Workload API, SDS ");
    assert!(Path::new(&socket).exists(), "{socket}");
    tokio::net::UnixStream::connect(&socket).await.unwrap();
    tokio::net::TcpStream::connect(fact("CA ")).await.unwrap();
    for health in ["CA's health ", "agent's health "] {
        let url = fact(health);
        let address = url
            .strip_prefix("http://")
            .and_then(|it| it.strip_suffix("/readyz"));
        let address = address.expect("a URL of /readyz").parse().unwrap();
        wait::until(health, PATIENCE, async || {
            let answer = http::get(address, "/readyz").await.expect("an answer");
            (answer.status == 200).then_some(())
        })
        .await;
    }
    assert_eq!(fact("data "), text(&data));
    let bundle = std::fs::read_to_string(fact("trust bundle ")).unwrap();
    assert!(bundle.contains("BEGIN CERTIFICATE"));
    assert_eq!(fact("you are "), "spiffe://example.org/user/root");
    for key in ["ca-key.pem", "root-key.pem"] {
        secrets::register_key_file("CA key", &data.join(key));
    }

    // The indented block after "Next", word for word, in a fresh folder.
    let (_, next) = said
        .split_once("Next, in another terminal:\n\n")
        .expect("what is next");
    let (commands, _) = next.split_once("\n\n").expect("its end");
    assert!(commands.lines().count() >= 4, "{commands}");
    let folder = dir.join("terminal");
    std::fs::create_dir(&folder).unwrap();
    let shown = typed(&dir, &folder, commands).await.success();
    let (svid, key) = (
        folder.join("certs/svid.pem"),
        folder.join("certs/svid_key.pem"),
    );
    secrets::register_key_file("SVID key", &key);
    assert!(shown.contains("spiffe://example.org/user/root"), "{shown}");
    assert!(svid.is_file());
    assert_eq!(mode(&key), 0o600);

    // "In place of this": the first one ends.
    let ended = dev.terminate(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{}", dev.log());
    assert_eq!(dev.output(), said, "more was printed later");
    let line = said
        .lines()
        .find(|line| line.ends_with(" -- CMD"))
        .expect("a command");
    let (_, command) = line.rsplit_once(": ").expect("a command");
    let program = command.replace("CMD", "citadel fetch -o json");
    let shown = typed(&dir, &folder, &program).await.success();
    assert!(shown.contains("spiffe://example.org/user/root"), "{shown}");
}
