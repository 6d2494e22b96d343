//! Keeps the Dockerfiles and the images that are made without them in agreement: BuildKit, which docker builds with,
//! says what it makes of a Dockerfile.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::PATH;
use super::product::{PRODUCTS, Product};
use crate::assets;
use crate::step::{command, repository};

/// What there are images for.
const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

/// Fails if BuildKit's linter finds something in a Dockerfile, or if its image would be run in another way than ours.
pub(crate) fn check() -> anyhow::Result<()> {
    let reader = assets::dockerfile_reader()?;
    for product in &PRODUCTS {
        check_one(product, &reader)?;
    }
    Ok(())
}

fn check_one(product: &Product, reader: &Path) -> anyhow::Result<()> {
    let file = dockerfile(product);
    let output = command(reader, &[])
        .arg(&file)
        .args(PLATFORMS)
        .output()
        .with_context(|| format!("cannot start {}", reader.display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let findings: Value = serde_json::from_slice(&output.stdout)?;
    for (index, platform) in PLATFORMS.into_iter().enumerate() {
        let found = &findings[index];
        let place = format!("{} for {platform}", file.display());
        ensure!(found["platform"] == platform, "nothing is said of {place}");
        ensure!(
            found["warnings"] == json!([]),
            "{place}: {}",
            found["warnings"]
        );
        let expected = expected(product);
        let config = &found["config"];
        ensure!(
            *config == expected,
            "{place}: its image has {config}, ours {expected}"
        );
    }
    Ok(())
}

/// How BuildKit writes what our image says of itself.
fn expected(product: &Product) -> Value {
    let labels: serde_json::Map<_, _> = product
        .labels(Some("unknown"))
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    json!({
        "User": format!("{0}:{0}", product.user),
        "Env": [PATH],
        "Entrypoint": [product.path()],
        "WorkingDir": "/",
        "Labels": labels,
    })
}

/// Beside the program's manifest.
fn dockerfile(product: &Product) -> PathBuf {
    let folder = product.name.trim_start_matches("nexus-");
    repository().join(folder).join("Dockerfile")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without BuildKit, for who changes one of the two.
    #[test]
    fn dockerfiles_say_what_our_images_say() {
        for product in &PRODUCTS {
            let text = std::fs::read_to_string(dockerfile(product)).unwrap();
            let last = text.rsplit_once("\nFROM ").unwrap().1;
            let Product { name, user, .. } = product;
            let mut expected = vec![
                format!("USER {user}:{user}\n"),
                format!("ENTRYPOINT [\"/{name}\"]\n"),
            ];
            for (key, value) in product.labels(None) {
                expected.push(format!(" {key}=\"{value}\" \\\n"));
            }
            for line in expected {
                assert_eq!(last.matches(&line).count(), 1, "{line} in {last}");
            }
            assert!(last.starts_with("scratch\n"), "{last}");
            assert_eq!(last.matches("\nUSER ").count(), 1);
        }
    }

    #[test]
    fn dockerfiles_build_with_the_pinned_toolchain() {
        let toolchain = std::fs::read_to_string(repository().join("rust-toolchain.toml")).unwrap();
        let pinned = toolchain
            .lines()
            .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
            .unwrap();
        for product in &PRODUCTS {
            let text = std::fs::read_to_string(dockerfile(product)).unwrap();
            assert!(text.contains(&format!("\nARG RUST_VERSION={pinned}\n")));
        }
    }
}
