//! Container images made of files, without a container engine.
//!
//! An [`Image`] is a list of [`Layer`]s and what its processes start with. It is written as an OCI image layout in one
//! tar file, which `ctr images import`, `docker load`, `skopeo` and `crane` read. The same files make the same bytes,
//! whoever makes them and whenever.
//!
//! `cargo xtask images` makes the [`product`]'s images of programs that [`program`] builds, as the Dockerfiles would
//! ([`dockerfiles`] compares them), and with `--tests` those of what tests run beside them: [`agent`] and a stand-in for
//! everything that is out of the cluster.

mod agent;
mod archive;
pub(crate) mod dockerfiles;
mod layer;
mod layout;
mod libraries;
pub(crate) mod product;
pub(crate) mod program;
mod roots;
mod shell;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;

pub(crate) use self::layer::Layer;
use self::product::{Build, PRODUCTS, Product, Sources};
pub(crate) use self::shell::shell;
use crate::step::{cargo, run as run_command, step, target};

/// Where a process of an image looks for programs, if the image says nothing else.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File of the agents' image.
const AGENT: &str = "agent-python";
/// Programs that only tests run, by the names of their images. Each is a binary of the package `nexus-tests`.
const TEST_PROGRAMS: [(&str, &str); 1] = [("standin", "localhost/nexus-standin:1")];
/// Where glibc looks for the addresses of hosts: `/etc/hosts` and name servers, which it can do without a plugin.
const NAMES: &str = "hosts: files dns\n";

/// An image for Linux on the processor that this was compiled for.
#[derive(Debug)]
pub(crate) struct Image {
    /// What it is called, with registry and tag: `localhost/busybox:1`.
    name: String,
    layers: Vec<Layer>,
    entrypoint: Vec<String>,
    environment: Vec<String>,
    labels: BTreeMap<&'static str, String>,
    user: String,
}

impl Image {
    /// An image without files, whose processes run as root.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            layers: Vec::new(),
            entrypoint: Vec::new(),
            environment: vec![PATH.to_owned()],
            labels: BTreeMap::new(),
            user: String::new(),
        }
    }

    /// Puts a layer over those that it has.
    pub(crate) fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// What runs if a container names no command.
    pub(crate) fn entrypoint<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.entrypoint = words.map(str::to_owned).into();
        self
    }

    /// Number of the user and of the group that processes run as. Not a name: kubelet compares numbers for `runAsNonRoot`.
    pub(crate) fn user(mut self, number: u32) -> Self {
        self.user = format!("{number}:{number}");
        self
    }

    /// Adds what registries and scanners show.
    pub(crate) fn label(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.labels.insert(key, value.into());
        self
    }
}

/// Which images, and where they go.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the archives go [default: target/images].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Registry, with a path if there is one, that the images' names begin with.
    #[arg(long, default_value = "localhost")]
    registry: String,
    /// Tag of the product's images.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Cargo's profile for the product's programs. `quick-release` is built sooner and is larger.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Also writes the images that only tests run.
    #[arg(long, conflicts_with = "names")]
    tests: bool,
    /// Writes nothing; only says whether the Dockerfiles make the same images.
    #[arg(long, conflicts_with_all = ["tests", "names"])]
    check: bool,
    /// Only these: nexus-sidecar, nexus-operator, agent-python, standin.
    names: Vec<String>,
}

/// Writes what the arguments ask for.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.check {
        return step("Dockerfiles", dockerfiles::check);
    }
    let folder = arguments.folder.unwrap_or_else(|| target().join("images"));
    let build = Build {
        registry: arguments.registry,
        tag: arguments.tag,
        profile: arguments.profile,
        sources: Sources::Own,
    };
    let mut names = arguments.names;
    if names.is_empty() {
        names.extend(PRODUCTS.map(|product| product.name.to_owned()));
        if arguments.tests {
            names.push(AGENT.to_owned());
            names.extend(TEST_PROGRAMS.map(|(name, _)| name.to_owned()));
        }
    }
    for name in &names {
        if let Some(product) = PRODUCTS.iter().find(|product| product.name == name) {
            write(product, &build, &folder)?;
        } else if name == AGENT {
            write_agent(&folder)?;
        } else if let Some(program) = TEST_PROGRAMS.iter().find(|(program, _)| program == name) {
            write_test_program(program, &folder)?;
        } else {
            bail!("there is no image {name}");
        }
    }
    Ok(())
}

/// Builds a part of the product and writes `NAME.tar` into `folder`, which is made if need be. Returns the file.
pub(crate) fn write(product: &Product, build: &Build, folder: &Path) -> anyhow::Result<PathBuf> {
    let (name, sources) = (product.name, &build.sources);
    let program = program::build(
        sources.folder(),
        &sources.target(),
        name,
        name,
        &build.profile,
    )?;
    let image = product.image(build, &program)?;
    save(&image, product.name, folder)
}

/// Proves of the sidecar's image as it is shipped what its archive shows: how it runs, how large it is, that it is made of
/// one static program, and that the same program makes the same bytes.
pub(crate) fn check_sidecar() -> anyhow::Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("images-")
        .tempdir_in(target())?;
    let build = Build {
        registry: "localhost".to_owned(),
        tag: "check".to_owned(),
        profile: "release".to_owned(),
        sources: Sources::Own,
    };
    let first = write(&product::SIDECAR, &build, folder.path())?;
    let bytes = std::fs::read(&first)?;
    let again = write(&product::SIDECAR, &build, folder.path())?;
    ensure!(
        std::fs::read(again)? == bytes,
        "the same program made another image"
    );
    product::SIDECAR.check(&bytes)
}

/// Builds and writes the images that only tests run. Returns the files.
pub(crate) fn tests(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![write_agent(folder)?];
    for program in &TEST_PROGRAMS {
        files.push(write_test_program(program, folder)?);
    }
    Ok(files)
}

fn write_agent(folder: &Path) -> anyhow::Result<PathBuf> {
    save(&agent::image()?, AGENT, folder)
}

fn write_test_program((name, image): &(&str, &str), folder: &Path) -> anyhow::Result<PathBuf> {
    // Linked as the tests are, since a static program would need all dependencies compiled once more.
    let build = ["build", "--workspace", "--bin", name];
    step(&format!("build of {name}"), || {
        run_command(&mut cargo(&build))
    })?;
    let program = target().join("debug").join(name);
    let path = format!("/{name}");
    let mut layer = Layer::default();
    layer.copy(&path, &program)?.folder("tmp", 0o1777);
    libraries::add(&mut layer, &[&program])?;
    layer.text("etc/nsswitch.conf", NAMES);
    let image = Image::new(image).layer(layer).entrypoint([&path]);
    save(&image.user(agent::USER), name, folder)
}

#[expect(clippy::print_stdout, reason = "a command line tool's output")]
fn save(image: &Image, name: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let file = folder.join(format!("{name}.tar"));
    step(&format!("image {}", image.name), || {
        std::fs::create_dir_all(folder)?;
        image.write(&file)?;
        let size = std::fs::metadata(&file)?.len();
        println!(
            "    {}: {}.{} MB",
            file.display(),
            size / 1_000_000,
            size / 100_000 % 10
        );
        Ok(())
    })?;
    Ok(file)
}
