//! Loading components: what is told apart, what is refused and how, the compile cache.

use std::os::unix::fs::PermissionsExt;

use super::*;

async fn refused(bytes: impl Into<Bytes>) -> LoadError {
    match runtime().load(bytes.into(), "sha256:test").await {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn worlds_are_told_from_exports() {
    let runtime = runtime();
    for (name, world) in [
        ("hello-http", World::Http02),
        ("hello-http-p3", World::Http03),
        ("show", World::Command02),
        ("once-p3", World::Command03),
    ] {
        assert_eq!(load(&runtime, name).await.world(), world, "{name}");
    }
}

#[tokio::test]
async fn what_is_not_a_component_is_called_by_its_name() {
    let says = |error: LoadError| error.to_string();
    assert_eq!(
        says(refused(&b"\x7fELF\x02\x01\x01"[..]).await),
        "not a WebAssembly component but a Linux executable: Linux containers do not run here"
    );
    assert_eq!(
        says(refused(&b"\x1f\x8b\x08\0"[..]).await),
        "not a WebAssembly component but a compressed file system layer: Linux containers do not run here"
    );
    assert_eq!(
        says(refused(&b"{\"a\": 1}"[..]).await),
        "not a WebAssembly component: it is JSON"
    );
    assert_eq!(
        says(refused(Bytes::new()).await),
        "not a WebAssembly component: it is an empty file"
    );
    assert!(matches!(
        refused(&b"\0asm\x0d\0\x01\0\x07"[..]).await,
        LoadError::Invalid(_)
    ));
}

#[tokio::test]
async fn a_missing_import_is_named() {
    let component = wat::parse_str(
        r#"(component
            (import "acme:queue/publish@1.0.0" (instance (export "publish" (func))))
            (core module $code (func (export "run") (result i32) (i32.const 0)))
            (core instance $code (instantiate $code))
            (func $run (result (result)) (canon lift (core func $code "run")))
            (instance $run (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $run)))"#,
    )
    .expect("text");
    assert_eq!(
        refused(component).await.to_string(),
        "imports acme:queue/publish@1.0.0, which this node does not offer: function implementation is missing"
    );
}

#[tokio::test]
async fn a_core_module_with_other_imports_is_refused_by_their_name() {
    let module = wat::parse_str(
        r#"(module (import "env" "emscripten_memcpy" (func)) (func (export "_start")))"#,
    )
    .expect("text");
    let error = refused(module).await.to_string();
    assert!(
        error.contains("imports env") && error.contains("emscripten_memcpy"),
        "{error}"
    );
}

#[tokio::test]
async fn a_component_without_a_known_world_says_what_it_exports() {
    let component =
        wat::parse_str(r#"(component (instance $i) (export "acme:tool/api@1.0.0" (instance $i)))"#)
            .expect("text");
    let error = refused(component).await.to_string();
    assert!(
        error.ends_with("it exports: acme:tool/api@1.0.0"),
        "{error}"
    );
}

#[tokio::test]
async fn compiled_components_are_kept_privately_and_survive_damage() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cache_dir = dir.path().join("compiled");
    let fresh = || {
        Runtime::new(Config {
            max_pods: 4,
            cache_dir: cache_dir.clone(),
        })
        .expect("a runtime")
    };
    let first = fresh();
    let component = load(&first, "show").await;
    assert!(
        Arc::ptr_eq(&component, &load(&first, "show").await),
        "pods of one image share one component"
    );
    drop(component);
    let mode = std::fs::metadata(&cache_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let files: Vec<_> = std::fs::read_dir(&cache_dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [file] = files.as_slice() else {
        panic!("not one file: {files:?}");
    };
    let whole = std::fs::read(file).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"nonsense", b""] {
        // As a crash or a full disk would leave it: a new file in its place, not a change of a mapped one.
        let other = cache_dir.join("other");
        std::fs::write(&other, damaged).unwrap();
        std::fs::rename(&other, file).unwrap();
        load(&fresh(), "show").await;
        assert_eq!(
            std::fs::read(file).unwrap().len(),
            whole.len(),
            "it was compiled again"
        );
    }
}

#[tokio::test]
async fn pods_of_one_image_share_its_code_for_as_long_as_one_runs() {
    let runtime = runtime();
    let pod = Pod::new();
    let running = start(&runtime, "hello-http", pod.workload(&[])).await;
    let first = runtime.loaded("sha256:hello-http").await;
    assert!(first.is_some(), "a running pod keeps it");
    drop((first, running));
    assert!(
        runtime.loaded("sha256:hello-http").await.is_none(),
        "nobody else does"
    );
}
