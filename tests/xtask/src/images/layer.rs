//! The files of an image.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use tar::{Builder, EntryType, Header};

/// Files by where they are in the image, which is also their order in the tar file.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder { mode: u32 },
    File { content: Vec<u8>, mode: u32 },
    Link { target: PathBuf },
}

impl Layer {
    /// Adds a folder. Those above it need not be added.
    pub(crate) fn folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.insert(Path::new(path), Entry::Folder { mode })
    }

    /// Adds a file that everybody may read.
    pub(crate) fn text(&mut self, path: &str, content: &str) -> &mut Self {
        self.file(path, content.as_bytes().to_vec(), 0o644)
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, content: Vec<u8>, mode: u32) -> &mut Self {
        self.insert(Path::new(path), Entry::File { content, mode })
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        let target = target.into();
        self.insert(Path::new(path), Entry::Link { target })
    }

    /// Adds a copy of a file of this machine; of its mode counts only whether it can be executed.
    pub(crate) fn copy(&mut self, path: &str, source: &Path) -> anyhow::Result<&mut Self> {
        let read = || {
            let mut file = std::fs::File::open(source)?;
            let executable = file.metadata()?.permissions().mode() & 0o111 != 0;
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            Ok::<_, std::io::Error>((content, if executable { 0o755 } else { 0o644 }))
        };
        let (content, mode) =
            read().with_context(|| format!("cannot read {}", source.display()))?;
        Ok(self.insert(Path::new(path), Entry::File { content, mode }))
    }

    /// Adds what is in a folder of this machine, below `path`.
    pub(crate) fn tree(&mut self, path: &str, source: &Path) -> anyhow::Result<&mut Self> {
        let entries = std::fs::read_dir(source)
            .with_context(|| format!("cannot read {}", source.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| {
                anyhow!("{} in {} is not text", name.display(), source.display())
            })?;
            let (path, source) = (format!("{path}/{name}"), entry.path());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.folder(&path, 0o755).tree(&path, &source)?;
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&source)?;
                self.insert(Path::new(&path), Entry::Link { target });
            } else {
                self.copy(&path, &source)?;
            }
        }
        Ok(self)
    }

    /// Paths of everything in it, from the root on and without a slash at the beginning.
    #[cfg(test)]
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.entries.keys().map(PathBuf::as_path)
    }

    fn insert(&mut self, path: &Path, entry: Entry) -> &mut Self {
        let path = path.strip_prefix("/").unwrap_or(path);
        for folder in path.ancestors().skip(1) {
            if !folder.as_os_str().is_empty() {
                let mode = 0o755;
                self.entries
                    .entry(folder.to_owned())
                    .or_insert(Entry::Folder { mode });
            }
        }
        self.entries.insert(path.to_owned(), entry);
        self
    }

    /// The layer as a tar file, all of it root's and of the year 1970.
    pub(super) fn tar(&self) -> anyhow::Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = Header::new_gnu();
            header.set_size(0);
            let append = match entry {
                Entry::Folder { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    archive.append_data(&mut header, path, std::io::empty())
                }
                Entry::File { content, mode } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())
                }
                Entry::Link { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    archive.append_link(&mut header, path, target)
                }
            };
            append.with_context(|| format!("cannot put {} into a layer", path.display()))?;
        }
        archive.into_inner().context("cannot end a layer")
    }
}
