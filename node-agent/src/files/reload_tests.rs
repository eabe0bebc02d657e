#![allow(clippy::unwrap_used)]
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn told(command: &[&str]) -> Reload {
    Reload {
        command: command.iter().map(ToString::to_string).collect(),
        ..Reload::default()
    }
}

#[tokio::test]
async fn a_command_is_run_without_a_shell_and_its_failure_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file; touch x");
    let text = file.to_string_lossy();
    assert!(told(&["touch", &text]).run().await.is_empty());
    assert!(file.exists());
    let failed = told(&["false"]).run().await;
    assert!(
        failed[0].to_string().contains("exit status: 1"),
        "{failed:?}"
    );
    let failed = told(&["/does/not/exist"]).run().await;
    assert!(failed[0].to_string().contains("can't be started"));
}

#[tokio::test]
async fn a_signal_reaches_the_process_of_the_pid_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let reload = Reload {
        signal: Some((pid_file.clone(), Signal::SIGTERM)),
        ..Reload::default()
    };
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    for bad in ["", "0", "1", "-5", "none", "-1"] {
        fs::write(&pid_file, bad).unwrap();
        let failed = reload.run().await;
        assert!(matches!(failed[0], ReloadError::PidFile { .. }), "{bad}");
    }
    fs::write(&pid_file, format!("{}\n/data\n", child.id().unwrap())).unwrap();
    assert!(reload.run().await.is_empty());
    let ended = child.wait().await.unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&ended),
        Some(15)
    );
}

#[tokio::test]
async fn a_hook_is_posted_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/reload?x=1", listener.local_addr().unwrap());
    let reload = Reload {
        http: Some(url.parse().unwrap()),
        ..Reload::default()
    };
    let serve = async |answer: &str| {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = vec![0; 4096];
        let read = stream.read(&mut seen).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&seen[..read]).into_owned()
    };
    let ok = "HTTP/1.1 204 No Content\r\n\r\n";
    let (failed, seen) = tokio::join!(reload.run(), serve(ok));
    assert!(failed.is_empty(), "{failed:?}");
    assert!(seen.starts_with("POST /reload?x=1 HTTP/1.1"), "{seen}");
    let bad = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
    let (failed, _) = tokio::join!(reload.run(), serve(bad));
    assert!(failed[0].to_string().contains("500"), "{failed:?}");
}

#[test]
fn hooks_stay_on_the_host() {
    let parsed = |text: &str| text.parse::<Hook>();
    for good in [
        "http://127.0.0.1:9000/x",
        "http://localhost/",
        "http://[::1]:1/",
    ] {
        assert!(parsed(good).is_ok(), "{good}");
    }
    for (bad, why) in [
        ("https://127.0.0.1/", HookError::Url),
        ("http://user@127.0.0.1/", HookError::Url),
        ("/reload", HookError::Url),
        ("http://10.0.0.1/", HookError::NotLoopback),
        ("http://localhost.example.org/", HookError::NotLoopback),
    ] {
        assert_eq!(parsed(bad), Err(why), "{bad}");
    }
}
