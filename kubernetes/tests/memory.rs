//! What an inventory of 20,000 live pods costs. A process of its own: nothing else allocates.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use citadel_kubernetes::inventory::Kind;
use citadel_kubernetes::{Event, Inventory, PodRecord};

const PODS: usize = 20_000;
const LIMIT_MB: usize = 40;

/// As a cluster has them: 20 replicas of each of 1,000 workloads on 400 nodes, each pod with one
/// label of its own (as of a `StatefulSet`), with what is not kept around it.
fn pod(n: usize) -> PodRecord {
    let workload = n / 20;
    let padding = "x".repeat(300);
    let json = format!(
        r#"{{"metadata":{{
            "name":"workload-{workload}-{n}","namespace":"team-{team}",
            "uid":"0b3e7a52-5a3f-4f0e-9d53-{n:012}",
            "labels":{{"app.kubernetes.io/name":"workload-{workload}","app.kubernetes.io/part-of":"team-{team}",
                "pod-template-hash":"5d8f7b9c{workload}","version":"v1",
                "statefulset.kubernetes.io/pod-name":"workload-{workload}-{n}"}},
            "annotations":{{"notes":"{padding}"}},"managedFields":[{{"manager":"{padding}"}}]}},
          "spec":{{"serviceAccountName":"workload-{workload}","nodeName":"node-{node}",
            "initContainers":[{{"name":"init","image":"registry.example/init:1"}}],
            "containers":[{{"name":"main","image":"registry.example/workload-{workload}:1.2.3"}},
                {{"name":"proxy","image":"registry.example/proxy:1.40"}}]}},
          "status":{{"phase":"Running","message":"{padding}"}}}}"#,
        team = workload / 20,
        node = n % 400,
    );
    serde_json::from_str(&json).unwrap()
}

/// Resident memory of this process, in MB.
fn resident_mb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        / 1024
}

#[test]
fn twenty_thousand_live_pods_fit() {
    let inventory = Inventory::default();
    let before = resident_mb();
    // Twice: a new list of the same pods must not double it.
    for _ in 0..2 {
        inventory.apply_pod(Event::ListStarted, Instant::now());
        for page in 0..PODS / 500 {
            let pods = (page * 500..(page + 1) * 500).map(pod).collect();
            inventory.apply_pod(Event::Page(pods), Instant::now());
        }
        inventory.apply_pod(Event::ListFinished, Instant::now());
    }
    assert_eq!(inventory.count(Kind::Pods), PODS);
    assert_eq!(inventory.pods_on_node("node-7").len(), PODS / 400);
    let cost = resident_mb() - before;
    assert!(cost < LIMIT_MB, "{cost} MB for {PODS} pods");
}
