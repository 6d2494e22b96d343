//! Which files a path stands for, and their bytes: bounded, and unpacked where they are gzip.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

/// Largest file, packed and unpacked, and largest sum of a directory.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Most files of a directory.
const MAX_FILES: usize = 10_000;
/// Names that are read from a directory.
const EXTENSIONS: [&str; 5] = [".yaml", ".yml", ".json", ".json.gz", ".gz"];

/// The bytes of one file.
pub(crate) struct Text {
    /// The file, as the user named it.
    pub(crate) file: PathBuf,
    /// Its content, unpacked.
    pub(crate) bytes: Vec<u8>,
}

/// The files of a path, in the order of their names: the file itself, or a directory's `*.yaml`, `*.yml`, `*.json`
/// and `*.gz` that do not begin with `.` (as `..data` of a mounted ConfigMap does).
pub(crate) fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let wanted = !name.starts_with('.') && EXTENSIONS.iter().any(|end| name.ends_with(end));
        // Through links, since a mounted ConfigMap has nothing else.
        if wanted && fs::metadata(path.join(name))?.is_file() {
            files.push(path.join(name));
        }
    }
    if files.len() > MAX_FILES {
        return Err(io::Error::other(format!(
            "the directory has more than {MAX_FILES} files"
        )));
    }
    files.sort();
    Ok(files)
}

/// Reads the files of a path.
pub(crate) fn read(path: &Path) -> Result<Vec<Text>, (PathBuf, io::Error)> {
    let files = list(path).map_err(|error| (path.to_owned(), error))?;
    let mut left = MAX_BYTES;
    files
        .into_iter()
        .map(|file| match read_file(&file, left) {
            Ok(bytes) => {
                left = left.saturating_sub(bytes.len() as u64);
                Ok(Text { file, bytes })
            }
            Err(error) => Err((file, error)),
        })
        .collect()
}

/// Reads one file of at most 64 MiB, as it is.
pub(crate) fn read_raw(file: &Path) -> io::Result<Vec<u8>> {
    bounded(File::open(file)?, MAX_BYTES)
}

fn read_file(file: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let bytes = bounded(File::open(file)?, limit)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return bounded(MultiGzDecoder::new(bytes.as_slice()), limit);
    }
    Ok(bytes)
}

fn bounded(from: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {} MiB of routes", MAX_BYTES >> 20),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_directory_gives_its_route_files_in_order_and_nothing_hidden() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "c.json", ".hidden.yaml", "notes.txt"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        fs::write(dir.path().join("routes.json.gz"), gzip(b"packed")).unwrap();
        let texts = read(dir.path()).unwrap();
        let names: Vec<_> = texts
            .iter()
            .map(|text| text.file.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a.yml", "b.yaml", "c.json", "routes.json.gz"]);
        assert_eq!(texts[3].bytes, b"packed");
    }

    #[cfg(unix)]
    #[test]
    fn a_mounted_config_map_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..2026")).unwrap();
        fs::write(dir.path().join("..2026/routes.json"), "{}").unwrap();
        std::os::unix::fs::symlink("..2026", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/routes.json", dir.path().join("routes.json")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [dir.path().join("routes.json")]);
    }

    #[test]
    fn a_gzip_bomb_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("routes.json.gz");
        let zeros = vec![0; 1 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        for _ in 0..65 {
            encoder.write_all(&zeros).unwrap();
        }
        fs::write(&file, encoder.finish().unwrap()).unwrap();
        let (at, error) = read(&file).err().unwrap();
        assert_eq!(at, file);
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
