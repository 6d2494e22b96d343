//! An earlier revision of the product, for upgrades to start from: its chart, and images that are built of its sources.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::images::{
    self,
    product::{Build, PRODUCTS, Sources},
};
use crate::step::{command, run, step, target};

/// Digits of a commit in a tag.
const SHORT: usize = 12;

/// What an upgrade starts from.
#[derive(Debug)]
pub(crate) struct Older {
    /// Folder of its chart.
    pub(crate) chart: PathBuf,
    /// Tag of its images.
    pub(crate) tag: String,
    /// Its images.
    pub(crate) images: Vec<PathBuf>,
}

impl Older {
    /// Makes the images of a revision: a tag, a branch or a commit.
    pub(crate) fn build(revision: &str, registry: &str) -> anyhow::Result<Self> {
        let id = commit(revision)?;
        let place = std::path::absolute(target().join("older"))?;
        let folder = place.join(&id);
        if !folder.exists() {
            step(&format!("sources of {revision}"), || {
                std::fs::create_dir_all(&place)?;
                let unfinished = tempfile::tempdir_in(&place)?;
                let archive = place.join(format!("{id}.tar"));
                run(command("git", &["archive", &id]).stdout(File::create(&archive)?))?;
                run(command("tar", &["--extract", "--file"])
                    .arg(&archive)
                    .arg("--directory")
                    .arg(unfinished.path()))?;
                std::fs::remove_file(&archive)?;
                std::fs::rename(unfinished.path(), &folder)?;
                drop(unfinished.keep());
                Ok(())
            })?;
        }
        let tag = id[..SHORT].to_owned();
        let build = Build {
            registry: registry.to_owned(),
            tag: tag.clone(),
            profile: "release".to_owned(),
            sources: Sources::Revision {
                id,
                folder: folder.clone(),
            },
        };
        let images = target().join("images").join(&tag);
        let images = PRODUCTS
            .iter()
            .map(|product| images::write(product, &build, &images))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            chart: folder.join("charts/nexus"),
            tag,
            images,
        })
    }
}

fn commit(revision: &str) -> anyhow::Result<String> {
    let wanted = format!("{revision}^{{commit}}");
    let output = command(
        "git",
        &["rev-parse", "--verify", "--end-of-options", &wanted],
    )
    .output()
    .context("cannot start git")?;
    ensure!(
        output.status.success(),
        "{revision} is no revision of this repository: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let id = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(id.len() > SHORT, "git calls {revision} {id}");
    Ok(id)
}
