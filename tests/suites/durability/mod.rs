//! Recorded before released, by the order of system calls: `kill -9` alone spares the
//! page cache, so it says nothing of the disk.

mod trace;

use std::path::Path;
use std::time::Duration;

use citadel_tests::citadel::{Ca, CaBuilder};
use citadel_tests::client::ClientBuilder;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::parts::part;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use trace::Event;

const ANSWERS: usize = 200;

/// A certificate with its chain is about 1,100 octets; HTTP/2's other frames are
/// below 100.
const LEAST_ANSWER: usize = 800;

/// A token alone is about 1,000 octets, and never in HPACK's table.
const LEAST_REQUEST: usize = 800;

const CALLS: &str = "trace=fdatasync,fsync,pwrite64,write,writev,sendto,sendmsg,\
                     read,readv,recvfrom,recvmsg";

#[tokio::test]
async fn each_of_200_answers_is_written_after_the_log_s_fdatasync_returned() {
    let api = ApiServer::shared().await;
    api.create_node("durability").await;
    api.create_workload("durability", "web", "web-1", "durability")
        .await;
    let token = api.token("durability", "web", "web-1").await;

    let dir = TestDir::new("durability");
    let output = dir.join("strace");
    let ca = traced(api, &output).await;
    let client = ClientBuilder::new(&ca).token(&token).build();
    // The first makes the connection, whose handshake is not an answer.
    client.issue(&csr::plain()).await.expect("an SVID");
    let local = client.seen().only().local.to_string();
    let wal = format!("{}-wal", ca.database().display());
    let begun = after_first_answer(&output, &local, &wal).await;
    let csr = csr::plain();
    for _ in 0..ANSWERS {
        // One after the other: each has a commit of its own.
        client.issue(&csr).await.expect("an SVID");
    }

    // strace writes a line when it has seen the call, which may be after our answer.
    let events = wait::until(
        "strace has seen all answers",
        Duration::from_secs(10),
        async || {
            let events = trace::read(&output);
            (answers_to(&events[begun..], &local).len() >= ANSWERS).then_some(events)
        },
    )
    .await;
    let events = &events[begun..];
    let answers = answers_to(events, &local);
    assert_eq!(answers.len(), ANSWERS, "one answer to each request");

    for (number, answer) in answers.into_iter().enumerate() {
        let since = since_request(events, &local, answer);
        // Writes after that sync are another transaction's: the tree has its own.
        let written = since.iter().position(|event| event.is_write_to(&wal));
        let written = written.unwrap_or_else(|| panic!("answer {number}: nothing was written"));
        assert!(
            is_synced(&since[written..], &wal),
            "answer {number} was not on the disk: {since:#?}"
        );
    }
    drop(ca);
}

/// The commits of many callers at once share an fdatasync; none of their answers may
/// overtake it.
#[tokio::test]
async fn no_answer_overtakes_a_write_to_the_log_that_is_not_synced() {
    let api = ApiServer::shared().await;
    api.create_node("batches").await;
    let dir = TestDir::new("batches");
    let output = dir.join("strace");
    let ca = traced(api, &output).await;
    let mut callers = Vec::new();
    for number in 0..8 {
        let pod = format!("web-{number}");
        api.create_workload("batches", "web", &pod, "batches").await;
        let token = api.token("batches", "web", &pod).await;
        let client = ClientBuilder::new(&ca).token(&token).build();
        client.issue(&csr::plain()).await.expect("an SVID");
        callers.push(client);
    }
    let wal = format!("{}-wal", ca.database().display());
    let locals: Vec<_> = callers
        .iter()
        .map(|client| client.seen().only().local.to_string())
        .collect();
    let mut begun = 0;
    for local in &locals {
        begun = after_first_answer(&output, local, &wal).await;
    }
    let tasks = callers.iter().cloned().map(|client| {
        tokio::spawn(async move {
            let csr = csr::plain();
            for _ in 0..25 {
                client.issue(&csr).await.expect("an SVID");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a caller");
    }
    let count = |events: &[Event]| -> usize {
        locals
            .iter()
            .map(|local| answers_to(events, local).len())
            .sum()
    };
    let events = wait::until(
        "strace has seen all answers",
        Duration::from_secs(10),
        async || {
            let events = trace::read(&output);
            (count(&events[begun..]) >= 8 * 25).then_some(events)
        },
    )
    .await;
    let events = &events[begun..];
    for local in &locals {
        for answer in answers_to(events, local) {
            let since = since_request(events, local, answer);
            assert!(
                is_synced(since, &wal),
                "an answer to {local} without a sync since the request: {since:#?}"
            );
        }
    }
    let syncs = events
        .iter()
        .filter(|event| event.is_done_sync_of(&wal))
        .count();
    assert!(
        syncs < 8 * 25,
        "{syncs} syncs: commits are not shared, this tests nothing"
    );
    println!("{} answers, {syncs} syncs", 8 * 25);
}

#[tokio::test]
async fn the_writer_s_connection_reads_synchronous_full_back() {
    let ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .start()
        .await;
    let line = ca
        .process()
        .log_line(
            "what the writer reads back",
            Duration::from_secs(5),
            |line| line.contains("by what it reads back"),
        )
        .await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    // 2 is FULL.
    assert_eq!(line["synchronous"], "2", "{line}");
    assert_eq!(line["journal_mode"], "wal", "{line}");
}

/// A CA whose calls `strace` writes to the file.
async fn traced(api: &ApiServer, output: &Path) -> Ca {
    let strace = part("STRACE");
    let wrapper = [
        // -D: the CA stays the process that was started. -yy: files and sockets by name.
        // -s 0: what is written is nobody's business, not even in a test.
        strace.to_str().expect("a plain path"),
        "-D",
        "-f",
        "-ttt",
        "-yy",
        "-s",
        "0",
        "-e",
        CALLS,
        "-o",
        output.to_str().expect("a plain path"),
        "--",
    ];
    CaBuilder::new(api).await.wrapped(wrapper).start().await
}

/// How many events there are once strace has written the first answer to this client: it writes
/// a line when it has seen the call, which may be after the client has read what was written.
async fn after_first_answer(output: &Path, client: &str, wal: &str) -> usize {
    wait::until(
        "strace has seen the first answer, and a sync before it",
        Duration::from_secs(10),
        async || {
            let events = trace::read(output);
            // The handshake is a large write to the client as well, with no commit before it.
            answers_to(&events, client)
                .into_iter()
                .any(|answer| is_synced(since_request(&events, client, answer), wal))
                .then_some(events.len())
        },
    )
    .await
}

/// From the arrival of the request to its answer. A client has one request at a time.
fn since_request<'a>(events: &'a [Event], client: &str, answer: usize) -> &'a [Event] {
    let arrived = events[..answer]
        .iter()
        .rposition(|event| event.is_read_from_peer(client, LEAST_REQUEST));
    let arrived = arrived.unwrap_or_else(|| panic!("no request of {client} before event {answer}"));
    &events[arrived..answer]
}

/// Whether a sync began and returned: one that began before would prove nothing.
fn is_synced(events: &[Event], wal: &str) -> bool {
    let begun = events.iter().position(|event| event.is_begun_sync_of(wal));
    begun.is_some_and(|begun| {
        events[begun..]
            .iter()
            .any(|event| event.is_done_sync_of(wal))
    })
}

/// Where, among the events, an answer's first large write to this client begins: one for each
/// request, since an answer may leave in two writes. What was asked before them is left out.
fn answers_to(events: &[Event], client: &str) -> Vec<usize> {
    let mut asked = false;
    let mut answers = Vec::new();
    for (at, event) in events.iter().enumerate() {
        if event.is_read_from_peer(client, LEAST_REQUEST) {
            asked = true;
        } else if asked && event.is_write_to_peer(client, LEAST_ANSWER) {
            asked = false;
            answers.push(at);
        }
    }
    answers
}
