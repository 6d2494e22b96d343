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
pub(super) struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    pub(super) fn new(content: Vec<u8>) -> Self {
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

    /// How others name it.
    pub(super) fn reference(&self) -> String {
        format!("sha256:{}", self.digest)
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": format!("{MEDIA_TYPE}.{kind}"),
            "digest": self.reference(),
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
        let digests: Vec<_> = layers.iter().map(Blob::reference).collect();
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": self.environment,
                "Labels": self.labels,
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
    use super::super::{Layer, archive};
    use super::*;

    fn written() -> Vec<u8> {
        let mut layer = Layer::default();
        layer.text("etc/motd", "hello\n").link("bin/sh", "busybox");
        let file = tempfile::NamedTempFile::new().unwrap();
        let image = Image::new("localhost:5000/shell:1").layer(layer);
        let image = image.entrypoint(["/bin/sh"]).user(7).label("a", "b");
        image.write(file.path()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        assert_eq!(written(), written());
    }

    #[test]
    fn every_blob_is_found_by_its_digest_from_the_index_down() {
        let bytes = written();
        let image = archive::read(&bytes).unwrap();
        assert_eq!(image.name, "localhost:5000/shell:1");
        let config = &image.config["config"];
        assert_eq!(config["Entrypoint"], json!(["/bin/sh"]));
        assert_eq!(config["User"], "7:7");
        assert_eq!(config["Labels"], json!({"a": "b"}));
        let files = archive::files(&image.layers[0]).unwrap();
        let paths: Vec<_> = files.keys().collect();
        assert_eq!(paths, ["bin", "bin/sh", "etc", "etc/motd"]);
        assert_eq!(files["etc/motd"].content, b"hello\n");
        let index = &archive::files(&bytes).unwrap()["index.json"].content;
        let index: Value = serde_json::from_slice(index).unwrap();
        let annotations = &index["manifests"][0]["annotations"];
        assert_eq!(annotations["org.opencontainers.image.ref.name"], "1");
    }

    #[test]
    fn a_changed_blob_is_noticed() {
        let mut bytes = written();
        let place = bytes
            .windows(6)
            .position(|text| text == b"hello\n")
            .unwrap();
        bytes[place] = b'j';
        assert!(archive::read(&bytes).is_err());
    }
}
