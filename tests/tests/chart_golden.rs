//! What the chart renders is what `tests/golden/chart` has, to the letter: `<name>.yaml` of `<name>.values.yaml`.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nexus_tests::chart;

/// Writes what is rendered where it would be compared.
const UPDATE: &str = "UPDATE_GOLDEN";
const HOW: &str =
    "if it should be so, write it: UPDATE_GOLDEN=1 cargo test --workspace --test chart_golden";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/chart")
}

/// The files' names up to an ending, of those that end so.
fn names(ending: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder()).unwrap();
    entries
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(ending).map(str::to_owned)
        })
        .collect()
}

fn rendered(name: &str) -> String {
    let values = folder().join(format!("{name}.values.yaml"));
    let output = chart::command().arg("--values").arg(values).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    // Warnings, such as of a value that is not a table.
    assert_eq!(said, "", "{name}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `diff` says, from what is expected to what is rendered.
fn difference(name: &str, expected: &Path, rendered: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rendered.yaml");
    std::fs::write(&file, rendered).unwrap();
    let diff = Command::new("diff")
        .args(["--unified", "--label", &format!("{name}.yaml")])
        .args(["--label", "rendered"])
        .args([expected, &file])
        .output();
    diff.map_or_else(
        |error| format!("they differ, and diff cannot be run to say where: {error}"),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn the_chart_renders_what_it_rendered_before() {
    let mut differences = String::new();
    for name in names(".values.yaml") {
        let text = rendered(&name);
        let path = folder().join(format!("{name}.yaml"));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &text).unwrap();
        } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            differences += &difference(&name, &path, &text);
        }
    }
    assert!(
        differences.is_empty(),
        "the chart renders differently\n{differences}\n{HOW}"
    );
}

#[test]
fn every_file_is_of_values_that_are_there() {
    let values = names(".values.yaml");
    let rendered: BTreeSet<String> = names(".yaml")
        .into_iter()
        .filter(|name| !name.ends_with(".values"))
        .collect();
    assert_eq!(rendered, values);
    assert!(!values.is_empty());
}

#[test]
fn rendering_again_gives_the_same() {
    assert_eq!(rendered("everything"), rendered("everything"));
}
