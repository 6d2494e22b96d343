//! A folder of files that are replaced all at once, as Kubernetes does it with projected volumes: the files are links
//! through `..data`, and a rename makes that point elsewhere.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The folder. It goes away when it is dropped.
#[derive(Debug)]
pub struct Mount {
    folder: TempDir,
    versions: usize,
}

impl Mount {
    /// With these files, by name.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let mut mount = Self {
            folder: tempfile::tempdir().unwrap(),
            versions: 0,
        };
        mount.replace(files);
        mount
    }

    /// Path of the folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces all files at once; links to those that are gone go after that.
    pub fn replace<C: AsRef<[u8]>>(&mut self, files: &[(&str, C)]) {
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        let folder = self.folder.path().join(&version);
        std::fs::create_dir(&folder).unwrap();
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let fresh = self.folder.path().join("..data_tmp");
        symlink(&version, &fresh).unwrap();
        std::fs::rename(fresh, self.folder.path().join("..data")).unwrap();
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_str().unwrap();
            if !name.starts_with("..") && !files.iter().any(|(kept, _)| *kept == name) {
                std::fs::remove_file(self.path(name)).unwrap();
            }
        }
        for (name, _) in files {
            if self.path(name).is_symlink() {
                continue;
            }
            symlink(Path::new("..data").join(name), self.path(name)).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_behind_paths_that_stay() {
        let mut mount = Mount::new(&[("a", "1"), ("b", "1")]);
        let read = |mount: &Mount, name| std::fs::read_to_string(mount.path(name)).unwrap();
        assert_eq!(
            (read(&mount, "a"), read(&mount, "b")),
            ("1".into(), "1".into())
        );
        mount.replace(&[("a", "2"), ("b", "3")]);
        assert_eq!(
            (read(&mount, "a"), read(&mount, "b")),
            ("2".into(), "3".into())
        );
        let link = std::fs::read_link(mount.path("a")).unwrap();
        assert_eq!(link, Path::new("..data/a"));
        mount.replace(&[("c", "4")]);
        assert!(!mount.path("a").is_symlink());
        assert_eq!(read(&mount, "c"), "4");
    }
}
