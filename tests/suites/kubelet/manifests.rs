//! What `deploy/kubernetes` says is what runs.

use std::path::Path;

use citadel_tests::kubernetes::Machine;
use citadel_tests::parts::program;

use super::deployed::{Deployed, SYSTEM};

#[tokio::test]
async fn the_ca_s_address_is_the_only_difference_to_the_manifests() {
    let deployed = Deployed::shared().await;
    let (shipped, applied) = (deployed.shipped.lines(), deployed.applied.lines());
    assert_eq!(shipped.clone().count(), applied.clone().count());
    let differences: Vec<_> = shipped.zip(applied).filter(|(a, b)| a != b).collect();
    let [(shipped, applied)] = differences[..] else {
        panic!("{differences:#?}");
    };
    assert_eq!(shipped.trim(), "value: citadel-ca.citadel-system.svc:15012");
    assert!(applied.trim().starts_with("value: 10.96."), "{applied}");
    // And what was applied is what the cluster has.
    assert_eq!(deployed.drift, "");
}

#[tokio::test]
async fn the_agent_has_the_rights_that_it_needs_and_no_more() {
    let deployed = Deployed::shared().await;
    let account = format!("system:serviceaccount:{SYSTEM}:citadel-agent");
    // `pods/exec` would ask for a pod called exec.
    let may = async |verb: &str, resource: &str, subresource: &str| {
        let subresource = format!("--subresource={subresource}");
        let mut asked = vec!["auth", "can-i", verb, resource, &subresource];
        asked.extend(["--as", &account, "--all-namespaces"]);
        let answer = deployed.cluster.kubectl(&asked).await;
        let said = answer.clone().unwrap_or_else(|no| no);
        let last = said.lines().last().unwrap_or_default().to_owned();
        assert!(["yes", "no"].contains(&last.as_str()), "{said}");
        answer.is_ok()
    };
    for verb in ["list", "watch"] {
        assert!(may(verb, "pods", "").await, "{verb} pods");
    }
    for (verb, resource, subresource) in [
        ("get", "pods", ""),
        ("create", "pods", ""),
        ("create", "pods", "exec"),
        ("delete", "pods", ""),
        ("get", "nodes", ""),
        ("get", "nodes", "proxy"),
        ("create", "nodes", "proxy"),
        ("get", "secrets", ""),
        ("list", "configmaps", ""),
        ("create", "serviceaccounts", "token"),
    ] {
        let allowed = may(verb, resource, subresource).await;
        assert!(!allowed, "{verb} {resource} {subresource}");
    }
}

#[tokio::test]
async fn the_agent_runs_without_any_capability_and_writes_nothing_but_its_socket() {
    let deployed = Deployed::shared().await;
    let cluster = deployed.cluster;
    let pod = cluster.ready_app(SYSTEM, "citadel-agent").await;
    let name = pod["metadata"]["name"].as_str().expect("a name");
    // The agent is no pid 1 here: it sees the node's processes.
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    let id = id.expect("an ID").trim_start_matches("containerd://");
    let status = cluster.container(id).status();
    let field = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value
            .unwrap_or_else(|| panic!("{key} of {name}: {status}"))
            .to_owned()
    };
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let spec = &pod["spec"]["containers"][0]["securityContext"];
    assert_eq!(spec["readOnlyRootFilesystem"], true);
}

#[tokio::test]
async fn the_agent_tells_who_runs_on_what_to_those_who_may_exec_into_it() {
    let cluster = Deployed::shared().await.cluster;
    let pod = cluster.ready_app(SYSTEM, "citadel-agent").await;
    let name = pod["metadata"]["name"].as_str().expect("a name");
    let asked = [
        "exec", "-n", SYSTEM, name, "--", "citadel", "agent", "status",
    ];
    let status = cluster.kubectl(&asked).await.expect("a status");
    let own = "spiffe://example.org/citadel/agent/";
    assert!(status.contains(own), "{status}");
}

#[tokio::test]
async fn the_node_changes_nothing_of_the_machine_that_it_runs_on() {
    let cluster = Deployed::shared().await.cluster;
    assert!(cluster.node_path("/run/citadel/agent.sock").exists());
    assert_eq!(Machine::look(), cluster.before);
}

#[tokio::test]
async fn an_update_of_the_daemonset_hands_over_from_pod_to_pod() {
    let log = &Deployed::shared().await.second_pod;
    assert!(
        log.contains("this agent takes over from the one that serves"),
        "{log}"
    );
    let served = log.find("citadel-agent serves").expect("it serves");
    let attested = log.find("the CA knows this agent");
    assert!(attested.is_none_or(|at| at > served), "{log}");
    assert!(!log.contains("nothing is taken over"), "{log}");
}

/// No image can be built here: what can be checked is that the file and the manifests agree
/// with each other and with what this workspace builds.
#[test]
fn the_containerfile_makes_what_the_manifests_start() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let read = |name: &str| std::fs::read_to_string(deploy.join(name)).expect(name);
    let containerfile = read("Containerfile");
    let copied = containerfile
        .lines()
        .find(|line| line.starts_with("COPY --from=build"));
    let words: Vec<&str> = copied.expect("the programs").split(' ').collect();
    let (folder, programs) = words[2..].split_last().expect("a folder");
    let names: Vec<&str> = programs
        .iter()
        .map(|path| {
            path.strip_prefix("/citadel/target/release/")
                .expect("a release")
        })
        .collect();
    for name in &names {
        // Panics where this workspace has no such program.
        program(name);
    }
    let manifests = read("kubernetes/ca.yaml") + &read("kubernetes/agent.yaml");
    let commands: Vec<&str> = manifests
        .lines()
        .filter_map(|line| line.trim().strip_prefix("command: [")?.strip_suffix(']'))
        .collect();
    assert_eq!(commands.len(), 2);
    for command in commands {
        let name = command.strip_prefix(folder).expect("a path in the image");
        assert!(names.contains(&name), "{command}");
    }
    // Whatever platform it is built for.
    for platform in ["amd64", "arm64", "x86_64", "aarch64"] {
        let named = containerfile
            .lines()
            .any(|line| !line.starts_with('#') && line.contains(platform));
        assert!(!named, "{platform}");
    }
}
