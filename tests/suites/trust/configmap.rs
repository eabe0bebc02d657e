//! First trust in Kubernetes: the CA writes its bundle to a `ConfigMap`, which agents mount.

use std::time::Duration;

use citadel_tests::citadel::{AgentBuilder, CaBuilder, citadel_ca};
use citadel_tests::client::Admin;
use citadel_tests::dir::copy_folder;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::wait;
use http::Method;
use serde_json::{Value, json};

use crate::support::Scene;

const MAP: &str = "/api/v1/namespaces/citadel-system/configmaps/citadel-bundle";
const KEY: &str = "root-cert.pem";
/// The CA writes it at its start.
const WRITTEN: Duration = Duration::from_secs(15);
/// And again every 30 s.
const RESTORED: Duration = Duration::from_secs(90);

#[tokio::test]
async fn an_agent_starts_on_what_the_ca_wrote_to_its_configmap() {
    let api = ApiServer::shared().await;
    let pod = api.create_agent("trust-map").await;
    // With the rights of `ca_access` and no more; the map is not there yet.
    let ca = CaBuilder::new(api).await.set(
        "bundle_configmap",
        json!({ "namespace": "citadel-system", "name": "citadel-bundle" }),
    );
    assert!(api.request(Method::GET, MAP, None).await.is_err());
    let ca = ca.start().await;
    let bundle = written(api, WRITTEN, |_| true).await;
    let of_the_ca = std::fs::read_to_string(ca.bundle_file()).expect("the CA's trust bundle");
    assert_eq!(bundle.trim(), of_the_ca.trim());

    // What the kubelet would mount is all that the agent knows of its CA.
    let agent = AgentBuilder::for_address(&ca.grpc().to_string(), &pod.token);
    let mounted = agent.dir().write(KEY, &bundle);
    let agent = agent
        .set("ca.bundle_file", mounted.to_str().expect("a plain path"))
        .start()
        .await;
    assert!(agent.is_ready().await);
    let id = "spiffe://example.org/citadel/agent/default/trust-map";
    let records = Admin::of(&ca).list(id, 10, 0).await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].origin().pod_uid, pod.uid);

    // Somebody edits it: the CA's key is the CA's again, and what others added stays theirs.
    let edit = json!({ "data": { KEY: "nobody's", "more": "theirs" } });
    edited(api, Method::PATCH, Some(&edit)).await;
    written(api, RESTORED, |text| *text == bundle).await;
    let map = api.request(Method::GET, MAP, None).await.unwrap();
    assert_eq!(map["data"]["more"], "theirs");
    edited(api, Method::DELETE, None).await;
    written(api, RESTORED, |text| *text == bundle).await;
    assert!(!ca.log().contains("trust bundle not written"));
}

/// A CA without the right to write says so, and serves.
#[tokio::test]
async fn a_ca_that_may_not_write_the_configmap_says_so() {
    let api = ApiServer::shared().await;
    let elsewhere = json!({ "namespace": "default", "name": "citadel-bundle" });
    let ca = CaBuilder::new(api).await.set("bundle_configmap", elsewhere);
    let ca = ca.start().await;
    let line = ca
        .process()
        .log_line("the refusal", WRITTEN, |line| {
            line.contains("trust bundle not written")
        })
        .await;
    assert!(line.contains("403"), "{line}");
    assert!(ca.is_ready().await);
}

/// The whole disk of the CA is an older one, guard file and all: the ConfigMap knows.
#[tokio::test]
async fn a_ca_whose_disk_went_back_is_refused_by_what_the_configmap_holds() {
    let api = ApiServer::start().await;
    let map = json!({ "namespace": "citadel-system", "name": "citadel-bundle" });
    let mut scene = Scene::on(&api, |ca| ca.on_sqlite().set("bundle_configmap", map)).await;
    let web = scene.workload("went-back").await;
    scene.identity_of(&web).await;
    assert!(scene.ca.terminate().await.success());
    let data = scene.ca.data_dir();
    let copy = scene.ca.dir().join("older");
    copy_folder(&data, &copy);

    scene.ca.start_again().await;
    for _ in 0..3 {
        scene.identity_of(&web).await;
    }
    assert!(scene.ca.terminate().await.success());
    // A start writes it: all that the last stop signed.
    scene.ca.start_again().await;
    let signed = std::fs::read_to_string(data.join("log.checkpoint")).unwrap();
    let size = |note: &str| note.lines().nth(1).unwrap().parse::<u64>().unwrap();
    let kept = wait::until("the checkpoint is kept", RESTORED, async || {
        let map = api.request(Method::GET, MAP, None).await.ok()?;
        let note = map["data"]["log.checkpoint"].as_str()?.to_owned();
        (size(&note) >= size(&signed)).then_some(note)
    })
    .await;
    assert!(scene.ca.terminate().await.success());
    std::fs::remove_dir_all(&data).unwrap();
    copy_folder(&copy, &data);
    let older = std::fs::read_to_string(data.join("log.checkpoint")).unwrap();
    assert!(size(&older) < size(&kept));

    let config = scene.ca.config();
    let config = config.to_str().unwrap();
    let refused = citadel_ca(scene.ca.dir(), ["--config", config], WRITTEN).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    for words in ["went back in time", "the ConfigMap has a checkpoint"] {
        assert!(refused.errors.contains(words), "{}", refused.errors);
    }
    let accepts = async || {
        let args = ["--config", config, "--accept-rollback"];
        citadel_ca(scene.ca.dir(), args, RESTORED).await
    };
    tokio::select! {
        ended = accepts() => panic!("{}", ended.errors),
        () = wait::until("it goes on", WRITTEN, async || {
            scene.ca.is_ready().await.then_some(())
        }) => {}
    }
}

async fn edited(api: &ApiServer, method: Method, body: Option<&Value>) {
    let answer = api.request(method, MAP, body).await;
    answer.expect("an administrator may");
}

/// The bundle in the map, once it is as `wanted`.
async fn written(api: &ApiServer, deadline: Duration, wanted: impl Fn(&String) -> bool) -> String {
    wait::until("the bundle is written", deadline, async || {
        let map = api.request(Method::GET, MAP, None).await.ok()?;
        map["data"][KEY].as_str().map(str::to_owned).filter(&wanted)
    })
    .await
}
