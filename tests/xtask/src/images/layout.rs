//! The OCI image layout: blobs by their digest, and an index that names the image.
//!
//! <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::Image;

/// Version of the image specification that the media types are of.
const MEDIA_TYPE: &str = "application/vnd.oci.image";

/// A file that is named by its digest.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        let mut digest = String::new();
        for byte in Sha256::digest(&content) {
            let digits = [byte >> 4, byte & 0xf].map(u32::from);
            digest.extend(
                digits
                    .iter()
                    .filter_map(|digit| char::from_digit(*digit, 16)),
            );
        }
        Self { digest, content }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": format!("{MEDIA_TYPE}.{kind}"),
            "digest": format!("sha256:{}", self.digest),
            "size": self.content.len(),
        })
    }
}

impl Image {
    /// Writes it to a file, whose folder must exist.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let write = || {
            let layers = self
                .layers
                .iter()
                .map(|layer| Ok(Blob::new(layer.tar()?)))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let mut archive = Builder::new(BufWriter::new(File::create(path)?));
            self.append(&mut archive, &layers)?;
            archive.into_inner()?.flush()?;
            anyhow::Ok(())
        };
        write().with_context(|| format!("cannot write {} to {}", self.name, path.display()))
    }

    fn append(&self, archive: &mut Builder<impl Write>, layers: &[Blob]) -> anyhow::Result<()> {
        let config = Blob::json(&self.config(layers));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA_TYPE}.manifest.v1+json"),
            "config": config.descriptor("config.v1+json"),
            "layers": layers.iter().map(|layer| layer.descriptor("layer.v1.tar")).collect::<Vec<_>>(),
        }));
        let mut named = manifest.descriptor("manifest.v1+json");
        named["annotations"] = json!({
            // The first is read by containerd, which takes the whole name from it.
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.tag(),
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA_TYPE}.index.v1+json"),
            "manifests": [named],
        });
        // Docker reads this file before its release 25.
        let legacy = json!([{
            "Config": config.path(),
            "RepoTags": [self.name],
            "Layers": layers.iter().map(Blob::path).collect::<Vec<_>>(),
        }]);
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        append(archive, "oci-layout", layout.to_string().as_bytes())?;
        append(archive, "index.json", index.to_string().as_bytes())?;
        append(archive, "manifest.json", legacy.to_string().as_bytes())?;
        for blob in layers.iter().chain([&config, &manifest]) {
            append(archive, &blob.path(), &blob.content)?;
        }
        Ok(())
    }

    fn config(&self, layers: &[Blob]) -> Value {
        let digests: Vec<_> = layers
            .iter()
            .map(|layer| format!("sha256:{}", layer.digest))
            .collect();
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": self.environment,
                "User": self.user,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
        })
    }

    fn tag(&self) -> &str {
        match self.name.rsplit_once(':') {
            Some((_, tag)) if !tag.contains('/') => tag,
            _ => "latest",
        }
    }
}

fn append(archive: &mut Builder<impl Write>, path: &str, content: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)
}

/// The processor as Go and so the image specification call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Layer;
    use super::*;

    fn written() -> Vec<u8> {
        let mut layer = Layer::default();
        layer.text("etc/motd", "hello\n").link("bin/sh", "busybox");
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = Image::new("localhost:5000/shell:1").layer(layer);
        image.entrypoint(["/bin/sh"]).write(file.path()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        assert_eq!(written(), written());
    }

    #[test]
    fn every_blob_is_found_by_its_digest_from_the_index_down() {
        let mut files = std::collections::BTreeMap::new();
        let bytes = written();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let content = &files[&format!("blobs/{digest}")];
            assert_eq!(descriptor["size"], content.len());
            assert!(digest.ends_with(&Blob::new(content.clone()).digest));
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let named = &index["manifests"][0];
        assert_eq!(
            named["annotations"]["org.opencontainers.image.ref.name"],
            "1"
        );
        let manifest: Value = serde_json::from_slice(&blob(named)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh"]));
        let layer = &manifest["layers"][0];
        assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);
        let layer = blob(layer);
        let mut archive = tar::Archive::new(layer.as_slice());
        let paths = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        assert_eq!(
            paths.collect::<Vec<_>>(),
            ["bin", "bin/sh", "etc", "etc/motd"]
        );
    }
}
