//! The images that the chart names: the sidecar and the operator, each one statically linked program.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::{Image, Layer, NAMES, archive, program, roots};
use crate::step::{command, repository, target};

/// What the sidecar's image may at most have. Every node of every cluster pulls it.
const SIDECAR_LIMIT: usize = 20_000_000;

/// One program of the product and how its image runs it.
#[derive(Debug)]
pub(crate) struct Product {
    /// Name of its package, its program and its image.
    pub(crate) name: &'static str,
    /// Number of its user and of its group.
    pub(crate) user: u32,
    /// Whether it needs certificate authorities from the image.
    roots: bool,
    /// Bytes that the image of a release build may have.
    limit: Option<usize>,
}

/// All of them.
pub(crate) const PRODUCTS: [Product; 2] = [SIDECAR, OPERATOR];

/// What runs beside each agent. Not as 65532, the user of many images, which would often be the agent's too; the chart
/// says the same number. It has Mozilla's certificate authorities built in.
pub(crate) const SIDECAR: Product = Product {
    name: "nexus-sidecar",
    user: 28080,
    roots: false,
    limit: Some(SIDECAR_LIMIT),
};

/// What makes route tables and injects sidecars. Its client for the gateway has no certificate authorities built in.
pub(crate) const OPERATOR: Product = Product {
    name: "nexus-operator",
    user: 65532,
    roots: true,
    limit: None,
};

/// What to make of a product.
#[derive(Debug)]
pub(crate) struct Build {
    /// Registry, with a path if there is one, or nothing.
    pub(crate) registry: String,
    pub(crate) tag: String,
    /// Cargo's profile.
    pub(crate) profile: String,
    /// Of what.
    pub(crate) sources: Sources,
}

/// Sources of the product.
#[derive(Clone, Debug)]
pub(crate) enum Sources {
    /// Those of this program.
    Own,
    /// A copy of those of a revision.
    Revision { id: String, folder: PathBuf },
}

impl Sources {
    /// The folder of their workspace.
    pub(crate) fn folder(&self) -> &Path {
        match self {
            Self::Own => repository(),
            Self::Revision { folder, .. } => folder,
        }
    }

    /// Where they are built. Cargo takes the same package of two workspaces for one, and the newer file for unchanged, so
    /// each has its own folder.
    pub(crate) fn target(&self) -> PathBuf {
        match self {
            Self::Own => target(),
            Self::Revision { folder, .. } => folder.join("target"),
        }
    }

    /// Their commit, if it is known.
    fn revision(&self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Own => revision(),
            Self::Revision { id, .. } => Ok(Some(id.clone())),
        }
    }
}

impl Product {
    /// Where the program is in the image.
    pub(crate) fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// The image's labels for a version, and for a revision of the sources if it is known.
    pub(crate) fn labels(&self, revision: Option<&str>) -> Vec<(&'static str, String)> {
        let mut labels = vec![
            ("org.opencontainers.image.title", self.name),
            (
                "org.opencontainers.image.version",
                env!("CARGO_PKG_VERSION"),
            ),
            (
                "org.opencontainers.image.source",
                env!("CARGO_PKG_REPOSITORY"),
            ),
            (
                "org.opencontainers.image.licenses",
                env!("CARGO_PKG_LICENSE"),
            ),
        ];
        labels.extend(revision.map(|revision| ("org.opencontainers.image.revision", revision)));
        let owned = |(key, value): (&'static str, &str)| (key, value.to_owned());
        labels.into_iter().map(owned).collect()
    }

    /// The image of a program that was built. Fails if it is not statically linked.
    pub(crate) fn image(&self, build: &Build, program: &Path) -> anyhow::Result<Image> {
        let content =
            std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        if let Some(need) = program::dynamic_need(&content)? {
            let program = program.display();
            bail!("{program} is not statically linked, it needs {need}");
        }
        let revision = build.sources.revision()?;
        let mut image = Image::new(&self.reference(build))
            .layer(self.files(content)?)
            .entrypoint([&self.path()])
            .user(self.user);
        for (key, value) in self.labels(revision.as_deref()) {
            image = image.label(key, value);
        }
        Ok(image)
    }

    fn reference(&self, build: &Build) -> String {
        let registry = build.registry.trim_end_matches('/');
        let separator = if registry.is_empty() { "" } else { "/" };
        format!("{registry}{separator}{}:{}", self.name, build.tag)
    }

    fn files(&self, program: Vec<u8>) -> anyhow::Result<Layer> {
        let Self { name, user, .. } = self;
        let mut layer = Layer::default();
        layer
            .file(&self.path(), program, 0o755)
            .text("etc/nsswitch.conf", NAMES)
            .text(
                "etc/passwd",
                &format!("{name}:x:{user}:{user}::/:/sbin/nologin\n"),
            )
            .text("etc/group", &format!("{name}:x:{user}:\n"));
        if self.roots {
            layer.text("etc/ssl/certs/ca-certificates.crt", &roots::pem()?);
        }
        Ok(layer)
    }

    /// Proves what can be seen of an archive with the image of a release build.
    pub(super) fn check(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let image = archive::read(bytes)?;
        let config = &image.config["config"];
        let user = config["User"].as_str().unwrap_or_default();
        let numbers = user.split(':').map(str::parse::<u32>);
        for number in numbers {
            let number = number.with_context(|| format!("the user {user} has no number"))?;
            ensure!(number != 0, "{} runs as root", image.name);
        }
        let path = self.path();
        ensure!(
            config["Entrypoint"] == json!([path]),
            "it starts {}",
            config["Entrypoint"]
        );
        let [layer] = image.layers.as_slice() else {
            bail!("{} has {} layers", image.name, image.layers.len());
        };
        let files = archive::files(layer)?;
        let program = files.get(path.trim_start_matches('/'));
        let program = program.with_context(|| format!("there is no {path}"))?;
        ensure!(program.mode == 0o755, "{path} has mode {:o}", program.mode);
        if let Some(need) = program::dynamic_need(&program.content)? {
            bail!("{path} is not statically linked, it needs {need}");
        }
        let (size, limit) = (bytes.len(), self.limit.unwrap_or(usize::MAX));
        ensure!(
            size <= limit,
            "{} has {size} bytes, {limit} are allowed",
            image.name
        );
        Ok(())
    }
}

/// The commit that is checked out, `-dirty` if files differ from it; none outside of a repository.
fn revision() -> anyhow::Result<Option<String>> {
    let describe = ["describe", "--always", "--abbrev=40", "--match=", "--dirty"];
    let Ok(output) = command("git", &describe).output() else {
        return Ok(None);
    };
    if !output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8(output.stdout).context("what git describe says")?;
    Ok(Some(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The least that passes for a statically linked program: a header that names nothing.
    fn program(folder: &Path) -> PathBuf {
        let path = folder.join("program");
        let mut content = b"\x7fELF\x02\x01".to_vec();
        content.resize(64, 0);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn build(registry: &str) -> Build {
        Build {
            registry: registry.to_owned(),
            tag: "1.2".to_owned(),
            profile: "release".to_owned(),
            sources: Sources::Own,
        }
    }

    fn written(product: &Product, registry: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let image = product
            .image(&build(registry), &program(folder.path()))
            .unwrap();
        let file = folder.path().join("image.tar");
        image.write(&file).unwrap();
        std::fs::read(file).unwrap()
    }

    #[test]
    fn an_image_is_one_program_for_a_user_with_a_number() {
        for product in &PRODUCTS {
            let bytes = written(product, "registry.test/mirror/");
            product.check(&bytes).unwrap();
            let image = archive::read(&bytes).unwrap();
            let Product { name, user, .. } = product;
            assert_eq!(image.name, format!("registry.test/mirror/{name}:1.2"));
            let config = &image.config["config"];
            assert_eq!(config["User"], format!("{user}:{user}"));
            let labels = &config["Labels"];
            assert_eq!(labels["org.opencontainers.image.title"], *name);
            assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
            let files = archive::files(&image.layers[0]).unwrap();
            let passwd = str::from_utf8(&files["etc/passwd"].content).unwrap();
            assert!(passwd.contains(&format!(":{user}:{user}:")), "{passwd}");
            assert_eq!(files["etc/nsswitch.conf"].content, NAMES.as_bytes());
        }
        assert_eq!(SIDECAR.reference(&build("")), "nexus-sidecar:1.2");
    }

    #[test]
    fn the_operator_brings_certificate_authorities_that_a_client_can_read() {
        let image = archive::read(&written(&OPERATOR, "localhost")).unwrap();
        let files = archive::files(&image.layers[0]).unwrap();
        let pem = &files["etc/ssl/certs/ca-certificates.crt"].content;
        let pem = str::from_utf8(pem).unwrap();
        assert!(pem.matches("-----BEGIN CERTIFICATE-----\n").count() > 100);
        assert!(pem.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn what_must_not_be_shipped_is_refused() {
        let own = std::env::current_exe().unwrap();
        let error = SIDECAR.image(&build("localhost"), &own).unwrap_err();
        assert!(
            error.to_string().contains("not statically linked"),
            "{error}"
        );

        let bytes = written(&SIDECAR, "localhost");
        let refused =
            |product: Product, bytes: &[u8]| product.check(bytes).unwrap_err().to_string();
        let named = |name| Product { name, ..SIDECAR };
        assert!(refused(named("other"), &bytes).starts_with("it starts"));
        let limit = Some(bytes.len() - 1);
        let small = Product { limit, ..SIDECAR };
        assert!(refused(small, &bytes).contains("are allowed"));
        let root = Product { user: 0, ..SIDECAR };
        let bytes = written(&root, "localhost");
        assert!(refused(root, &bytes).ends_with("runs as root"));
    }
}
