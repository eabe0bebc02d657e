#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

const UID: &str = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";
const UID_: &str = "7f3c1a52_0b4e_4c1d_9a57_1f2e3d4c5b6a";
const OTHER: &str = "00000000-1111-2222-3333-444444444444";
const OTHER_: &str = "00000000_1111_2222_3333_444444444444";
const HASH: &str = "0123456789abcdef0123456789abcdef";

fn id() -> String {
    "ab".repeat(32)
}

fn at_root(file: &str) -> Result<Option<PodCgroup>, CgroupError> {
    CgroupRoot::new("/").pod_of(file)
}

fn uid_of(file: &str) -> Option<String> {
    at_root(file)
        .unwrap()
        .map(|pod| pod.uid.as_str().to_owned())
}

#[test]
fn every_driver_and_class_is_read() {
    let id = id();
    for path in [
        format!("/kubepods/pod{UID}/{id}"),
        format!("/kubepods/burstable/pod{UID}/{id}"),
        format!("/kubepods/besteffort/pod{UID}/{id}"),
        format!("/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{id}.scope"),
        format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/crio-{id}.scope"
        ),
        format!(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/docker-{id}.scope"
        ),
        format!("/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{id}"),
    ] {
        for file in [
            format!("0::{path}\n"),
            format!("8:pids:{path}\n4:memory:{path}\n0::/\n"),
        ] {
            let pod = at_root(&file).unwrap().expect(&path);
            assert_eq!(pod.uid, PodUid::Api(UID.into()), "{path}");
            assert_eq!(pod.container.as_deref(), Some(id.as_str()), "{path}");
        }
    }
}

#[test]
fn static_pods_are_recognised_as_such() {
    let pod = at_root(&format!("0::/kubepods/burstable/pod{HASH}/{}", id()))
        .unwrap()
        .unwrap();
    assert_eq!(pod.uid, PodUid::Static(HASH.into()));
    let slice = format!("0::/kubepods.slice/kubepods-pod{HASH}.slice/x");
    assert_eq!(
        at_root(&slice).unwrap().unwrap().uid,
        PodUid::Static(HASH.into())
    );
}

#[test]
fn outside_the_kubelets_tree_nothing_is_a_pod() {
    for path in [
        "/".to_owned(),
        "/kubepods".to_owned(),
        "/kubepods/burstable".to_owned(),
        "/kubepods.slice/kubepods-burstable.slice".to_owned(),
        format!("/user.slice/user-1000.slice/kubepods/pod{UID}/{}", id()),
        format!("/user.slice/kubepods.slice/kubepods-pod{UID_}.slice/x"),
        format!("/pod{UID}/{}", id()),
        format!("/kubepods/guaranteed/pod{UID}"),
        format!("/mykubepods/pod{UID}"),
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-pod{UID_}.slice/x"),
    ] {
        assert_eq!(uid_of(&format!("0::{path}")), None, "{path}");
    }
}

#[test]
fn a_cgroup_made_below_a_container_changes_nothing() {
    let id = id();
    for path in [
        format!("/kubepods/burstable/pod{UID}/{id}/kubepods/burstable/pod{OTHER}/{id}"),
        format!("/kubepods/pod{UID}/{id}/pod{OTHER}"),
        format!("/kubepods/pod{UID}/pod{OTHER}"),
        format!("/kubepods.slice/kubepods-pod{UID_}.slice/x-{id}.scope/kubepods-pod{OTHER_}.slice"),
    ] {
        assert_eq!(
            uid_of(&format!("0::{path}")).as_deref(),
            Some(UID),
            "{path}"
        );
    }
}

#[test]
fn hierarchies_must_agree_and_silent_ones_are_silent() {
    let id = id();
    let other_id = "cd".repeat(32);
    let agree = format!(
        "9:name=systemd:/\n8:pids:/kubepods/pod{UID}/{id}\n4:memory:/system.slice\n0::/kubepods/pod{UID}/{id}\n"
    );
    assert_eq!(uid_of(&agree).as_deref(), Some(UID));
    let pods = format!("8:pids:/kubepods/pod{UID}/{id}\n4:memory:/kubepods/pod{OTHER}/{id}\n");
    assert_eq!(at_root(&pods), Err(CgroupError::Disagreement));
    let unified = format!("8:pids:/kubepods/pod{UID}/{id}\n0::/kubepods/pod{OTHER}/{id}\n");
    assert_eq!(at_root(&unified), Err(CgroupError::Disagreement));
    let containers =
        format!("8:pids:/kubepods/pod{UID}/{id}\n4:memory:/kubepods/pod{UID}/{other_id}\n");
    assert_eq!(at_root(&containers), Err(CgroupError::Disagreement));
}

#[test]
fn a_private_cgroup_namespace_is_understood() {
    let id = id();
    for path in [
        // The agent outside of the tree.
        format!("/../kubepods/burstable/pod{UID}/{id}"),
        format!("/../../kubepods.slice/kubepods-pod{UID_}.slice/x-{id}.scope"),
        // The agent in a pod: the same class, another class, no class.
        format!("/../../pod{UID}/{id}"),
        format!("/../../../besteffort/pod{UID}/{id}"),
        format!("/../../../pod{UID}/{id}"),
        format!("/../../kubepods-burstable-pod{UID_}.slice/x-{id}.scope"),
        format!(
            "/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/x-{id}.scope"
        ),
        format!("/../../../kubepods-pod{UID_}.slice/x-{id}.scope"),
    ] {
        assert_eq!(
            uid_of(&format!("0::{path}")).as_deref(),
            Some(UID),
            "{path}"
        );
    }
    for path in [
        // A sibling container of the agent's own pod, and folders that users can make.
        format!("/../{id}"),
        format!("/../pod{UID}/{id}"),
        format!("/../../../../user.slice/user-1000.slice/kubepods/pod{UID}/{id}"),
        "/..".to_owned(),
    ] {
        assert_eq!(uid_of(&format!("0::{path}")), None, "{path}");
    }
    let upwards_again = format!("0::/../kubepods/x/../pod{UID}");
    assert_eq!(at_root(&upwards_again), Err(CgroupError::Malformed));
}

#[test]
fn the_root_is_an_anchor() {
    let id = id();
    let below = CgroupRoot::new("/n2");
    let inside = format!("0::/n2/kubepods/pod{UID}/{id}");
    assert_eq!(below.pod_of(&inside).unwrap().unwrap().uid.as_str(), UID);
    assert_eq!(
        below.pod_of(&format!("0::/kubepods/pod{UID}/{id}")),
        Ok(None)
    );
    assert_eq!(at_root(&inside), Ok(None));
    for relative in [
        format!("0::/../../n2/kubepods/pod{UID}"),
        format!("0::/../kubepods/pod{UID}"),
    ] {
        assert_eq!(
            below.pod_of(&relative).unwrap().unwrap().uid.as_str(),
            UID,
            "{relative}"
        );
    }
    let slice = CgroupRoot::new("/kubelet.slice");
    let path = format!(
        "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
         kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{id}.scope"
    );
    let pod = slice.pod_of(&path).unwrap().unwrap();
    assert_eq!((pod.uid.as_str(), pod.container), (UID, Some(id)));
}

#[test]
fn what_is_malformed_is_refused() {
    for file in ["x", "0:", "0::", "0::kubepods", "a:b:/", "1:pids"] {
        assert_eq!(at_root(file), Err(CgroupError::Malformed), "{file}");
    }
    for file in [
        "0::/kubepods/podx",
        "0::/kubepods/burstable/pod",
        "0::/kubepods/pod../x",
    ] {
        assert_eq!(at_root(file), Err(CgroupError::StrangePod), "{file}");
    }
    assert_eq!(
        at_root(&"\n".repeat(MAX_CGROUP_FILE + 1)),
        Err(CgroupError::TooLong)
    );
    assert_eq!(at_root(""), Ok(None));
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("kubepods".to_owned()),
        Just("kubepods.slice".to_owned()),
        Just("burstable".to_owned()),
        Just("kubepods-burstable.slice".to_owned()),
        Just(format!("pod{OTHER}")),
        Just(format!("kubepods-pod{OTHER_}.slice")),
        Just(format!("kubepods-burstable-pod{OTHER_}.slice")),
        Just(format!(
            "kubepods-pod{OTHER_}.slice:cri-containerd:{}",
            "ef".repeat(32)
        )),
        "[a-z0-9.:_-]{1,20}".prop_filter("not an upward step", |s| s != ".." && s != "."),
    ]
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>(), root in any::<String>()) {
        let _ = CgroupRoot::new(&root).pod_of(&text);
    }

    #[test]
    fn no_path_of_known_parts_makes_the_parser_panic(
        ups in 0usize..5,
        parts in prop::collection::vec(segment(), 0..8),
    ) {
        let path = format!("0::/{}{}", "../".repeat(ups), parts.join("/"));
        let _ = at_root(&path);
    }

    #[test]
    fn nothing_below_a_container_changes_its_pod(
        below in prop::collection::vec(segment(), 0..8),
        prefix in prop::sample::select(vec![
            format!("/kubepods/pod{UID}"),
            format!("/kubepods/besteffort/pod{UID}"),
            format!("/kubepods.slice/kubepods-pod{UID_}.slice"),
            format!("/../../pod{UID}"),
            format!("/../../../burstable/pod{UID}"),
        ]),
        container in any::<bool>(),
    ) {
        let mut path = prefix;
        if container {
            path = format!("{path}/{}", id());
        }
        for part in below {
            path = format!("{path}/{part}");
        }
        prop_assert_eq!(uid_of(&format!("0::{path}")), Some(UID.to_owned()));
    }

    #[test]
    fn what_a_user_makes_in_a_slice_of_their_own_is_no_pod(
        parts in prop::collection::vec(segment(), 0..8),
    ) {
        let path = format!("0::/user.slice/user-1000.slice/{}", parts.join("/"));
        prop_assert_eq!(at_root(&path), Ok(None));
    }
}
