//! `cargo xtask cluster` where it cannot do what it is asked.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

/// What it says when it fails.
fn refused(arguments: &[&str], folder: &Path, path: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("cluster")
        .args(arguments)
        .arg(folder)
        .env("PATH", path)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_machine_without_programs_is_told_the_packages_that_have_them() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cluster");
    let empty = place.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let said = refused(&["up", "--folder"], &folder, &empty);
    assert!(said.contains("this machine cannot run a cluster"), "{said}");
    let (_, packages) = said
        .split_once("apt-get install --yes --no-install-recommends ")
        .unwrap();
    // The others are also looked for where root's programs are.
    for package in ["busybox-static", "mount", "util-linux"] {
        assert!(packages.contains(package), "{said}");
    }
    assert!(!folder.exists());
}

#[test]
fn a_cluster_of_somebody_else_is_neither_started_nor_stopped() {
    let place = tempfile::tempdir().unwrap();
    let kubeconfig = place.path().join("kubeconfig");
    for task in ["up", "down"] {
        let said = refused(&[task, "--kubeconfig"], &kubeconfig, place.path());
        assert!(said.contains("only status and exec work"), "{said}");
    }
}
