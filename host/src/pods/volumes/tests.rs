//! Volumes: what they hold, and that a swap is seen whole.

use std::sync::Arc;

use super::*;

fn pod() -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": []}}))
    .expect("the test's pod is well formed")
}

fn sources(data: serde_json::Value) -> Sources {
    let map: ConfigMap =
        serde_json::from_value(serde_json::json!({"data": data})).expect("well formed");
    let secret: Secret =
        serde_json::from_value(serde_json::json!({"data": {"password": "aHVzaA=="}}))
            .expect("well formed");
    Sources {
        config_maps: BTreeMap::from([("settings".to_owned(), Some(Arc::new(map)))]),
        secrets: BTreeMap::from([("keys".to_owned(), Some(Arc::new(secret)))]),
        tokens: BTreeMap::from([(("v".to_owned(), "token".to_owned()), b"t".to_vec())]),
    }
}

fn made(volume: serde_json::Value) -> Result<Contents, Error> {
    let volume: Volume = serde_json::from_value(volume).expect("the test's volume is well formed");
    contents(
        &pod(),
        &volume,
        &sources(serde_json::json!({"a": "1", "b": "2"})),
        &Surroundings::default(),
    )
}

fn names(contents: &Contents) -> Vec<(&str, u32)> {
    match contents {
        Contents::Files(files) => files
            .iter()
            .map(|(path, file)| (path.as_str(), file.mode))
            .collect(),
        other => panic!("not files: {other:?}"),
    }
}

#[test]
fn a_config_map_gives_all_its_keys_or_the_chosen_ones() {
    let all =
        made(serde_json::json!({"name": "v", "configMap": {"name": "settings"}})).expect("made");
    assert_eq!(names(&all), [("a", 0o644), ("b", 0o644)]);
    let chosen = made(
        serde_json::json!({"name": "v", "configMap": {"name": "settings", "defaultMode": 256,
        "items": [{"key": "b", "path": "deep/b.txt"}]}}),
    )
    .expect("made");
    assert_eq!(names(&chosen), [("deep/b.txt", 0o400)]);
}

#[test]
fn a_token_is_its_owners_alone_whatever_the_volume_says() {
    let made = made(
        serde_json::json!({"name": "v", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "settings"}}]}}),
    )
    .expect("made");
    assert_eq!(names(&made), [("a", 0o644), ("b", 0o644), ("token", 0o600)]);
}

#[test]
fn what_is_missing_is_named_unless_optional() {
    let missing = made(serde_json::json!({"name": "v", "configMap": {"name": "none"}}));
    assert_eq!(
        missing.expect_err("missing").to_string(),
        "configmap \"none\" not found"
    );
    let optional =
        made(serde_json::json!({"name": "v", "configMap": {"name": "none", "optional": true}}));
    assert!(names(&optional.expect("made")).is_empty());
    let key = made(
        serde_json::json!({"name": "v", "secret": {"secretName": "keys",
        "items": [{"key": "user", "path": "user"}]}}),
    );
    assert_eq!(
        key.expect_err("missing").to_string(),
        "references non-existent secret key: user"
    );
}

#[test]
fn projected_volumes_combine_their_sources() {
    let all = made(serde_json::json!({"name": "v", "projected": {"sources": [
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "a"}]}},
        {"secret": {"name": "keys"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}))
    .expect("made");
    assert_eq!(
        names(&all),
        [("a", 0o644), ("labels", 0o644), ("password", 0o644)]
    );
}

#[test]
fn paths_out_of_the_volume_are_refused() {
    for path in ["../x", "/etc/passwd", "a/../../b", ""] {
        let result = made(
            serde_json::json!({"name": "v", "configMap": {"name": "settings",
            "items": [{"key": "a", "path": path}]}}),
        );
        assert!(result.is_err(), "{path}");
    }
}

#[test]
fn a_new_generation_replaces_the_old_in_one_step() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path().join("volume");
    let files = |entries: &[(&str, &str)]| {
        Contents::Files(
            entries
                .iter()
                .map(|(path, text)| {
                    (
                        (*path).to_owned(),
                        File::new(text.as_bytes().to_vec(), 0o644),
                    )
                })
                .collect(),
        )
    };
    directory::write(&at, &files(&[("a", "1"), ("deep/b", "2")])).expect("written");
    assert_eq!(
        std::fs::read_to_string(at.join("a")).expect("readable"),
        "1"
    );
    assert_eq!(
        std::fs::read_to_string(at.join("deep/b")).expect("readable"),
        "2"
    );
    let before = std::fs::read_link(at.join("..data")).expect("a link");
    directory::write(&at, &files(&[("a", "1"), ("deep/b", "2")])).expect("written");
    assert_eq!(
        std::fs::read_link(at.join("..data")).expect("a link"),
        before,
        "nothing changed, nothing moved"
    );
    directory::write(&at, &files(&[("a", "9")])).expect("written");
    assert_eq!(
        std::fs::read_to_string(at.join("a")).expect("readable"),
        "9"
    );
    assert!(!at.join("deep").exists());
    assert!(!at.join(before).exists(), "the old generation is gone");
}

#[test]
fn mounts_are_read_only_where_the_node_writes() {
    let mut pod = pod();
    let spec = pod.spec.as_mut().expect("a spec");
    spec.volumes = serde_json::from_value(serde_json::json!([
        {"name": "conf", "configMap": {"name": "settings"}}, {"name": "tmp", "emptyDir": {}}]))
    .expect("well formed");
    let container: Container =
        serde_json::from_value(serde_json::json!({"name": "app", "volumeMounts": [
        {"name": "conf", "mountPath": "/etc/conf"},
        {"name": "tmp", "mountPath": "/tmp", "subPathExpr": "$(POD)"}]}))
        .expect("well formed");
    let environment = [("POD".to_owned(), "web-0".to_owned())];
    let mounts = mounts(&pod, &container, &environment).expect("mounts");
    assert!(mounts[0].read_only && !mounts[1].read_only);
    assert_eq!(mounts[1].sub_path, "web-0");
}

#[test]
fn a_sub_path_never_leaves_the_volume() {
    let around = tempfile::tempdir().expect("a temporary directory");
    let volume = around.path().join("volume");
    let outside = around.path().join("outside");
    std::fs::create_dir_all(volume.join("inside")).expect("made");
    std::fs::create_dir(&outside).expect("made");
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, volume.join(name)).expect("linked");
    };
    link("../outside", "relative");
    link(&outside.to_string_lossy(), "absolute");
    link("inside", "within");
    link("../outside/new", "dangling");
    for path in [
        "relative",
        "relative/new",
        "absolute",
        "dangling",
        "dangling/new",
    ] {
        let error = directory::below(&volume, path, true).expect_err(path);
        assert_eq!(error.kind(), std::io::ErrorKind::CrossesDevices, "{path}");
    }
    assert_eq!(
        std::fs::read_dir(&outside).expect("read").count(),
        0,
        "nothing was made outside"
    );
    let made = directory::below(&volume, "within/deep/er", true).expect("made");
    // The descriptor stays what it is when a guest puts something else at the path.
    std::fs::rename(volume.join("inside/deep"), volume.join("inside/old")).expect("renamed");
    link("../../outside", "inside/deep");
    std::fs::write(directory::by_descriptor(&made).join("file"), b"x").expect("written");
    assert!(volume.join("inside/old/er/file").exists());
    let missing = directory::below(&volume, "missing", false).expect_err("missing");
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn directories_of_any_depth_are_removed_and_what_links_point_to_is_not() {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let around = tempfile::tempdir().expect("a temporary directory");
    let pod = around.path().join("pod");
    let kept = around.path().join("kept");
    std::fs::create_dir_all(pod.join("wide/a/b")).expect("made");
    std::fs::write(pod.join("wide/a/file"), b"x").expect("written");
    std::fs::create_dir(&kept).expect("made");
    std::fs::write(kept.join("file"), b"x").expect("written");
    std::os::unix::fs::symlink(&kept, pod.join("wide/link")).expect("linked");
    // Deeper than a path can say.
    let mut deep = std::os::fd::OwnedFd::from(std::fs::File::open(&pod).expect("opened"));
    for _ in 0..5000 {
        mkdirat(&deep, "d", Mode::S_IRWXU).expect("made");
        deep = openat(&deep, "d", OFlag::O_DIRECTORY, Mode::empty()).expect("opened");
    }
    drop(deep);
    assert_eq!(directory::size(&pod), 1);
    directory::remove(&pod).expect("removed");
    assert!(!pod.exists());
    assert!(kept.join("file").exists());
    directory::remove(&pod).expect("nothing is fine");
}
