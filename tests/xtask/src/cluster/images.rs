//! Images that pods of the cluster can name. There is no registry: they are imported when the node starts.

use std::path::{Path, PathBuf};

use crate::images::{Image, Layer, shell};

/// Holds the namespaces of a pod.
pub(super) const PAUSE: &str = "localhost/pause:1";
/// A shell and the usual small programs.
pub(super) const BUSYBOX: &str = "localhost/busybox:1";
/// Answers for the names of Services; `tests/cluster/coredns.yaml` names the same.
const COREDNS: &str = "localhost/coredns:1";

/// Writes them into `folder`. `busybox` and `coredns` are statically linked programs.
pub(super) fn write(folder: &Path, busybox: &Path, coredns: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut dns = Layer::default();
    dns.copy("coredns", coredns)?;
    let pause = "while :; do sleep 1000000 & wait; done";
    for (file, image) in [
        ("busybox.tar", Image::new(BUSYBOX).layer(shell(busybox)?)),
        (
            "pause.tar",
            Image::new(PAUSE)
                .layer(shell(busybox)?)
                .entrypoint(["/bin/sh", "-c", pause]),
        ),
        (
            "coredns.tar",
            Image::new(COREDNS).layer(dns).entrypoint(["/coredns"]),
        ),
    ] {
        image.write(&folder.join(file))?;
    }
    Ok(())
}

/// Files that [`write()`] wrote.
pub(super) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
