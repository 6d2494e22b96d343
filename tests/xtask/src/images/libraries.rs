//! Shared libraries that programs of this machine need in an image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::Layer;
use crate::step::command;

/// Puts what the programs and libraries need into a layer, including the loader itself.
///
/// All go into the folder where the C library is: the loader looks there whatever a program says, and so a program
/// finds them that was linked with a folder which the image does not have.
pub(super) fn add(layer: &mut Layer, programs: &[impl AsRef<Path>]) -> anyhow::Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    let output = command("ldd", &[])
        .args(programs.iter().map(AsRef::as_ref))
        .output()
        .context("cannot start ldd")?;
    // It also fails for a program that needs nothing, and says so on its output.
    let needs = parse(&String::from_utf8(output.stdout).context("what ldd says")?)?;
    let folder = needs
        .iter()
        .find(|(name, _)| name.starts_with("libc.so"))
        .and_then(|(_, library)| library.parent())
        .context("ldd names no C library")?;
    for (name, library) in &needs {
        let place = if Path::new(name).is_absolute() {
            library.clone()
        } else {
            folder.join(name)
        };
        let place = place.to_str().context("a library's path is not text")?;
        layer.copy(place, library)?;
    }
    Ok(())
}

/// Libraries by the names that programs have for them. The loader's is its path.
fn parse(said: &str) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut needs = BTreeMap::new();
    let mut program = "";
    for line in said.lines() {
        let Some(need) = line.strip_prefix('\t') else {
            program = line.trim_end_matches(':');
            continue;
        };
        // The last word is the address in memory.
        let need = need.rsplit_once(" (0x").map_or(need, |(need, _)| need);
        match need.split_once(" => ") {
            Some((name, "not found")) => bail!("{program} needs {name}, which is not there"),
            Some((name, library)) => {
                ensure!(library.starts_with('/'), "what ldd says: {line}");
                // More than one program brings a copy of its own only if it comes with it, and then any will do.
                needs.insert(name.to_owned(), library.into());
            }
            None if need.starts_with('/') => {
                needs.insert(need.to_owned(), need.into());
            }
            // What the kernel brings, and programs that need nothing.
            None => {}
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_by_their_names_and_the_loader_by_its_path() {
        let said = "/bin/a:\n\tlinux-vdso.so.1 (0x00007ffd)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x00007f00)\n\
                    \t/lib64/ld.so.2 (0x00007f01)\n/bin/b:\n\tstatically linked\n";
        let needs = parse(said).unwrap();
        let pairs: Vec<_> = needs
            .iter()
            .map(|(name, path)| (name.as_str(), path.to_str().unwrap()))
            .collect();
        let expected = [
            ("/lib64/ld.so.2", "/lib64/ld.so.2"),
            ("libm.so.6", "/lib/x/libm.so.6"),
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_the_program() {
        let error = parse("/bin/a:\n\tlibx.so.1 => not found\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/bin/a needs libx.so.1, which is not there"
        );
    }

    #[test]
    fn a_program_of_this_machine_brings_its_loader_and_its_c_library() {
        let mut layer = Layer::default();
        add(&mut layer, &[std::env::current_exe().unwrap()]).unwrap();
        let paths: Vec<_> = layer
            .paths()
            .map(|path| path.display().to_string())
            .collect();
        for part in ["libc.so", "ld-"] {
            assert!(paths.iter().any(|path| path.contains(part)), "{paths:?}");
        }
    }
}
