//! Container images made of files, without a container engine.
//!
//! An [`Image`] is a list of [`Layer`]s and what its processes start with. It is written as an OCI image layout in one
//! tar file, which `ctr images import`, `docker load`, `skopeo` and `crane` read. The same files make the same bytes,
//! whoever makes them and whenever.

mod layer;
mod layout;

pub(crate) use self::layer::Layer;

/// Where a process of an image looks for programs, if the image says nothing else.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image for Linux on the processor that this was compiled for.
#[derive(Debug)]
pub(crate) struct Image {
    /// What it is called, with registry and tag: `localhost/busybox:1`.
    name: String,
    layers: Vec<Layer>,
    entrypoint: Vec<String>,
    environment: Vec<String>,
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
}
