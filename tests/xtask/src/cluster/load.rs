//! Brings images from files into the node while it runs.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tar::Archive;

use super::components::CTR;
use super::node::Node;
use crate::step::run;

/// Imports image archives, so that pods can name what is in them. Imports none unless all files are image archives.
pub(crate) fn load(node: &Node, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        judge(file)?;
    }
    for file in files {
        let read = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        // From its input, since the node covers some folders of the machine.
        let import = ["images", "import", "-"];
        run(node.inside("ctr")?.args(CTR).args(import).stdin(read))
            .with_context(|| format!("cannot import {}", file.display()))?;
    }
    Ok(())
}

/// Fails unless the file is a tar file of the kind that `docker save` or we write.
fn judge(file: &Path) -> anyhow::Result<()> {
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let is_image = || -> std::io::Result<bool> {
        for entry in Archive::new(&open).entries_with_seek()? {
            let entry = entry?;
            let path = entry.path()?;
            // The second is Docker's before its release 25.
            let path = path.strip_prefix(".").unwrap_or(&path);
            if ["index.json", "manifest.json"]
                .iter()
                .any(|name| path == *name)
            {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match is_image() {
        Ok(true) => Ok(()),
        Ok(false) => bail!(
            "{} is not an image archive: it names no image",
            file.display()
        ),
        Err(error) => {
            Err(error).with_context(|| format!("{} is not an image archive", file.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Image, Layer};

    #[test]
    fn image_archives_are_told_from_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut layer = Layer::default();
        layer.text("etc/motd", "hello\n");
        let image = Image::new("localhost/a:1").layer(layer);
        image.write(&path("image.tar")).unwrap();
        judge(&path("image.tar")).unwrap();

        std::fs::write(path("text"), "FROM scratch\n".repeat(100)).unwrap();
        std::fs::write(path("empty"), "").unwrap();
        let mut other = tar::Builder::new(File::create(path("other.tar")).unwrap());
        other
            .append_path_with_name(path("text"), "etc/index.json")
            .unwrap();
        other.finish().unwrap();
        for name in ["text", "empty", "other.tar", "missing"] {
            let error = judge(&path(name)).unwrap_err();
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }
}
