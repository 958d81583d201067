//! Every directory in manifests/ is applied and must become ready: examples cannot rot.

use crate::harness::{binary, root};

#[test]
fn every_scenario_becomes_ready() {
    let scenarios = std::fs::read_dir(root().join("manifests")).expect("the manifests are there");
    let mut seen = 0;
    for scenario in scenarios
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
    {
        let dir = tempfile::tempdir().expect("a directory");
        let mut up = binary();
        up.args([
            "up",
            "--listen",
            "127.0.0.1:0",
            "--exit-when-ready",
            "--timeout",
            "60s",
            "--data-dir",
        ]);
        let output = up.arg(dir.path()).arg(&scenario).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", scenario.display());
        seen += 1;
    }
    assert!(seen > 0, "no scenario was found");
}
