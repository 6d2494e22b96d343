//! A shell and the usual small programs.

use std::path::Path;

use anyhow::Context;

use super::{Layer, NAMES};
use crate::step::command;

/// The files of a shell, from a busybox that needs no library.
pub(crate) fn shell(busybox: &Path) -> anyhow::Result<Layer> {
    let list = command(busybox, &["--list"])
        .output()
        .with_context(|| format!("cannot start {}", busybox.display()))?;
    let programs = String::from_utf8(list.stdout).context("what busybox has")?;
    let mut layer = Layer::default();
    layer.copy("bin/busybox", busybox)?;
    for program in programs.lines().filter(|program| *program != "busybox") {
        layer.link(&format!("bin/{program}"), "busybox");
    }
    layer
        .folder("root", 0o700)
        .folder("tmp", 0o1777)
        .text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .text("etc/group", "root:x:0:\n")
        .text("etc/nsswitch.conf", NAMES);
    Ok(layer)
}
