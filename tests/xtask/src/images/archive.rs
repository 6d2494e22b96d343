//! Reads image archives back.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::layout::Blob;

/// What an archive of one image has.
#[derive(Debug)]
pub(super) struct Archive {
    /// As containerd will call it.
    pub(super) name: String,
    pub(super) config: Value,
    /// Tar files, the lowest first.
    pub(super) layers: Vec<Vec<u8>>,
}

/// Follows the digests from the index down. Fails unless each of them is that of the content.
pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Archive> {
    let files = files(bytes)?;
    let file = |path: &str| {
        files
            .get(path)
            .with_context(|| format!("there is no {path}"))
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let content = &file(&format!("blobs/{}", digest.replace(':', "/")))?.content;
        let found = Blob::new(content.clone());
        ensure!(
            digest == found.reference(),
            "{digest} has the content of another"
        );
        ensure!(
            descriptor["size"] == content.len(),
            "{digest} is of another size"
        );
        Ok(content.clone())
    };
    let index: Value = serde_json::from_slice(&file("index.json")?.content)?;
    let named = &index["manifests"][0];
    let name = named["annotations"]["io.containerd.image.name"].as_str();
    let manifest: Value = serde_json::from_slice(&blob(named)?)?;
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    for (number, layer) in layers.iter().enumerate() {
        let unpacked = &config["rootfs"]["diff_ids"][number];
        ensure!(
            *unpacked == layer["digest"],
            "{unpacked} is not layer {number}"
        );
    }
    Ok(Archive {
        name: name.context("the image has no name")?.to_owned(),
        layers: layers.iter().map(blob).collect::<anyhow::Result<_>>()?,
        config,
    })
}

/// A file of a tar file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// What is in a tar file, by path; of links and folders the content is empty.
pub(super) fn files(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Entry>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let mode = entry.header().mode()?;
        let path = entry.path()?.display().to_string();
        files.insert(path, Entry { content, mode });
    }
    Ok(files)
}
