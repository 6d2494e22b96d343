//! Programs for images: statically linked, so that an image needs nothing else.
//!
//! They are linked with glibc, whose allocator is much faster than that of musl. A static glibc resolves names without
//! plugins from 2.34 on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::step::{cargo, command, run, step};

/// Builds a program of a package alone, as it is shipped, of the workspace in `sources` and into the folder `target`.
/// Returns where it is.
///
/// It goes beside what is built for this machine: with a target named, the flags are not for build scripts and macros.
pub(crate) fn build(
    sources: &Path,
    target: &Path,
    package: &str,
    program: &str,
    profile: &str,
) -> anyhow::Result<PathBuf> {
    let host = host()?;
    ensure!(
        host.contains("-linux-"),
        "an image needs a program for Linux, and this is {host}"
    );
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags += " -C target-feature=+crt-static";
    let arguments = ["build", "--profile", profile, "--target", &host];
    step(&format!("{profile} build of {program}"), || {
        run(cargo(&arguments)
            .args(["--package", package, "--bin", program])
            .current_dir(sources)
            .env("CARGO_TARGET_DIR", std::path::absolute(target)?)
            .env("RUSTFLAGS", flags.trim()))
    })?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(host).join(folder).join(program))
}

/// The platform of the toolchain, as rustc names it.
pub(crate) fn host() -> anyhow::Result<String> {
    let output = command("rustc", &["--verbose", "--version"])
        .output()
        .context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("`rustc --verbose --version` names no host")
}

/// What a program needs at its start beside itself: an interpreter or a library. None if it is statically linked.
///
/// Reads ELF files of 64 bits whose numbers begin with the lowest byte; fails for anything else.
pub(crate) fn dynamic_need(program: &[u8]) -> anyhow::Result<Option<&'static str>> {
    const DYNAMIC: u32 = 2;
    const INTERPRETER: u32 = 3;
    const NEEDED: u64 = 1;
    if !program.starts_with(b"\x7fELF\x02\x01") {
        bail!("not an ELF program of 64 bits");
    }
    let file = Bytes(program);
    let (table, size, count) = (file.u64(32)?, file.u16(54)?, file.u16(56)?);
    for index in 0..u64::from(count) {
        let header = Bytes(file.slice(table + index * u64::from(size), u64::from(size))?);
        match header.u32(0)? {
            INTERPRETER => return Ok(Some("an interpreter")),
            DYNAMIC => {
                let section = file.slice(header.u64(8)?, header.u64(32)?)?;
                for entry in section.chunks_exact(16) {
                    if Bytes(entry).u64(0)? == NEEDED {
                        return Ok(Some("a shared library"));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Numbers by where they are.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn slice(&self, start: u64, length: u64) -> anyhow::Result<&[u8]> {
        let start = usize::try_from(start)?;
        let end = start.checked_add(usize::try_from(length)?);
        end.and_then(|end| self.0.get(start..end))
            .context("the ELF file is cut off")
    }

    fn array<const N: usize>(&self, start: u64) -> anyhow::Result<[u8; N]> {
        Ok(self.slice(start, N as u64)?.try_into()?)
    }

    fn u16(&self, start: u64) -> anyhow::Result<u16> {
        self.array(start).map(u16::from_le_bytes)
    }

    fn u32(&self, start: u64) -> anyhow::Result<u32> {
        self.array(start).map(u32::from_le_bytes)
    }

    fn u64(&self, start: u64) -> anyhow::Result<u64> {
        self.array(start).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of one program header of this kind, over these bytes.
    fn elf(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file.extend(kind.to_le_bytes());
        file.resize(64 + 56, 0);
        file[64 + 8] = 64 + 56;
        file[64 + 32] = u8::try_from(content.len()).unwrap();
        file.extend(content);
        file
    }

    #[test]
    fn a_program_is_static_if_it_names_neither_interpreter_nor_library() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(dynamic_need(&own).unwrap().is_some());
        // Position-independent static programs have a dynamic section too.
        let relocations = [7_u64, 0x100, 0, 0].map(u64::to_le_bytes).concat();
        assert_eq!(dynamic_need(&elf(2, &relocations)).unwrap(), None);
        let library = [7_u64, 0x100, 1, 5].map(u64::to_le_bytes).concat();
        let needed = dynamic_need(&elf(2, &library)).unwrap();
        assert_eq!(needed, Some("a shared library"));
        let interpreted = dynamic_need(&elf(3, b"/lib/ld.so\0")).unwrap();
        assert_eq!(interpreted, Some("an interpreter"));
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        assert!(dynamic_need(b"#!/bin/sh\n").is_err());
        let cut = elf(2, &[0; 32]);
        assert!(dynamic_need(&cut[..cut.len() - 1]).is_err());
    }
}
