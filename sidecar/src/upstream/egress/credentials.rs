//! The file of `--egress-proxy-credentials`, read anew for every connection so that it can be rotated.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

/// Largest file, in bytes.
const MAX_FILE: usize = 4096;
const SCHEME: &str = "Basic ";

/// Where user name and password are, as `user:password` on one line.
#[derive(Clone, Debug)]
pub(super) struct CredentialsFile(PathBuf);

/// Why the credentials cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct CredentialsError {
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Read(io::Error),
    #[error("the file is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("the file must hold one line of the form user:password")]
    NotAPair,
    #[error("the sidecar is shutting down")]
    Abandoned,
}

impl CredentialsFile {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The value of `Proxy-Authorization` (RFC 7617), sensitive, and zeroed once its last copy is dropped.
    pub(super) fn read(&self) -> Result<HeaderValue, CredentialsError> {
        self.value().map_err(|reason| self.error(reason))
    }

    /// [`Self::read`] where blocking is allowed.
    pub(super) async fn read_later(&self) -> Result<HeaderValue, CredentialsError> {
        let file = self.clone();
        tokio::task::spawn_blocking(move || file.read())
            .await
            .map_err(|_| self.error(Reason::Abandoned))?
    }

    fn error(&self, reason: Reason) -> CredentialsError {
        CredentialsError {
            path: self.0.clone(),
            reason,
        }
    }

    fn value(&self) -> Result<HeaderValue, Reason> {
        // Room for all of it from the start: growing would leave copies behind.
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
        File::open(&self.0)
            .and_then(|file| file.take(MAX_FILE as u64 + 1).read_to_end(&mut content))
            .map_err(Reason::Read)?;
        if content.len() > MAX_FILE {
            return Err(Reason::TooLarge);
        }
        let line = content.strip_suffix(b"\n").unwrap_or(&content);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.contains(&b':') || line.iter().any(u8::is_ascii_control) {
            return Err(Reason::NotAPair);
        }
        let mut value = Zeroizing::new(String::with_capacity(
            SCHEME.len() + line.len().div_ceil(3) * 4,
        ));
        value.push_str(SCHEME);
        STANDARD.encode_string(line, &mut value);
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value))
            .map_err(|_| Reason::NotAPair)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::NamedTempFile, CredentialsFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let credentials = CredentialsFile::new(file.path());
        (file, credentials)
    }

    fn read(content: &[u8]) -> HeaderValue {
        file(content).1.read().unwrap()
    }

    fn refused(content: &[u8]) -> String {
        file(content).1.read().unwrap_err().to_string()
    }

    #[test]
    fn the_line_becomes_basic_credentials_that_are_not_shown() {
        for content in [
            "Aladdin:open sesame",
            "Aladdin:open sesame\n",
            "Aladdin:open sesame\r\n",
        ] {
            let value = read(content.as_bytes());
            // The example of RFC 7617 section 2.
            assert_eq!(value, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
            assert!(!format!("{value:?}").contains("QWxh"));
        }
        assert_eq!(read("test:123\u{a3}".as_bytes()), "Basic dGVzdDoxMjPCow==");
        assert_eq!(read(b"user:a:b"), "Basic dXNlcjphOmI=");
    }

    #[test]
    fn what_is_not_one_pair_is_refused_without_showing_it() {
        for content in [
            "",
            "\n",
            "hunter2",
            "user:hunter2\nmore",
            "user:hunter2\n\n",
            "user:\thunter2",
        ] {
            let told = refused(content.as_bytes());
            assert!(
                told.ends_with("one line of the form user:password"),
                "{told}"
            );
        }
        let told = refused(&[b':'; MAX_FILE + 1]);
        assert!(told.ends_with("larger than 4096 bytes"), "{told}");
    }
}
