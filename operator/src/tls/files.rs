//! A certificate from files, which cert-manager and its like renew. The directory is watched and never the file: the
//! kubelet swaps a `..data` link, after which a watch on the file itself sees nothing any more. A slow poll sees what
//! no notice tells. What cannot be read leaves the last good certificate shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::authority::{CertificateError, Leaf};
use super::expires;
use super::serving::Publisher;
use crate::metrics::{Certificate, Metrics};

/// Quiet time after a notice, so that a certificate and its key are read together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Time between two looks without a notice.
const POLL: Duration = Duration::from_secs(10);

/// Why a certificate could not be read from files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read.
    #[error("{flag} {path}: {error}")]
    Read {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// They can be read, but not served.
    #[error("--tls-cert {certificate} and --tls-key {key}: {error}")]
    Content {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        error: CertificateError,
    },
}

/// A certificate in files, and who shows it.
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    notices: mpsc::Receiver<()>,
    /// Watches as long as it lives.
    watcher: Option<RecommendedWatcher>,
    poll: Duration,
}

impl Files {
    /// Shows what the files hold. The watch begins before they are read, so that no change is missed.
    pub async fn load(
        certificate: &Path,
        key: &Path,
        publisher: Publisher,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (sender, notices) = mpsc::channel(1);
        let mut files = Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            publisher,
            metrics,
            notices,
            watcher: watcher(sender),
            poll: POLL,
        };
        files.renew();
        let leaf = files.read().await.context("the serving certificate")?;
        files.publish(&leaf);
        Ok(files)
    }

    /// Shows what the files hold whenever they change, for as long as the process runs.
    pub async fn follow(mut self) -> anyhow::Result<()> {
        let mut last = String::new();
        loop {
            tokio::select! {
                Some(()) = self.notices.recv() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    // Notices of that time are answered by the look that follows.
                    while self.notices.try_recv().is_ok() {}
                }
                () = tokio::time::sleep(self.poll) => {}
            }
            self.renew();
            match self.read().await {
                Ok(leaf) => {
                    last.clear();
                    self.publish(&leaf);
                }
                Err(error) => {
                    let error = error.to_string();
                    // A poll finds the same fault again and again.
                    if error != last {
                        tracing::warn!(%error, "the certificate before it goes on being served");
                        last = error;
                    }
                }
            }
        }
    }

    async fn read(&self) -> anyhow::Result<Leaf> {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        let read = tokio::task::spawn_blocking(move || read(certificate, key));
        Ok(read.await??)
    }

    fn publish(&self, leaf: &Leaf) {
        let shown = self.publisher.shown();
        if shown.is_some_and(|shown| shown.cert == leaf.chain) {
            return;
        }
        if !leaf.life.includes(Timestamp::now()) {
            tracing::warn!(
                expires = %leaf.life.ends,
                "the certificate of --tls-cert is not valid now; the API server will refuse it"
            );
        }
        self.publisher.publish(leaf.certified().clone());
        expires(&self.metrics, Certificate::Serving, leaf.life);
        tracing::info!(expires = %leaf.life.ends, "another certificate is served");
    }

    /// Sets the watches anew, since a directory that was replaced takes its watch with it.
    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for file in [&self.certificate, &self.key] {
            let directory = match file.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => continue,
            };
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                tracing::debug!(directory = %directory.display(), %error, "cannot be watched; polled");
            }
        }
    }
}

fn read(certificate: PathBuf, key: PathBuf) -> Result<Leaf, FileError> {
    let bytes = |flag, path: &PathBuf| {
        let read = std::fs::read(path).map(Zeroizing::new);
        read.map_err(|error| FileError::Read {
            flag,
            path: path.clone(),
            error,
        })
    };
    let chain = bytes("--tls-cert", &certificate)?;
    let secret = bytes("--tls-key", &key)?;
    Leaf::read(&chain, &secret).map_err(|error| FileError::Content {
        certificate,
        key,
        error,
    })
}

fn watcher(notices: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // A full channel already holds the notice.
            let _ = notices.try_send(());
        }
    };
    notify::recommended_watcher(handler)
        .inspect_err(|error| tracing::warn!(%error, "no file notices on this system; the certificate's files are polled"))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::super::authority::{Authority, pem};
    use super::super::serving::{self, ServingCertificate};
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn issue() -> (String, Vec<u8>) {
        let life = Duration::from_secs(1000);
        let authority = Authority::issue(Timestamp::now(), life).unwrap();
        let names = ["a.b.svc".to_owned()];
        let leaf = authority.sign(Timestamp::now(), life, &names).unwrap();
        (pem(&leaf.chain), leaf.key_pem().to_vec())
    }

    fn write(directory: &Path, (chain, key): &(String, Vec<u8>)) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("tls.crt"), chain).unwrap();
        fs::write(directory.join("tls.key"), key).unwrap();
    }

    async fn load(directory: &Path) -> anyhow::Result<(Files, ServingCertificate)> {
        let (publisher, serving) = serving::pair().unwrap();
        let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        let files = Files::load(&certificate, &key, publisher, Arc::default()).await?;
        Ok((files, serving))
    }

    async fn changes(changes: &mut watch::Receiver<u64>) {
        timeout(SOON, changes.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_swap_as_the_kubelet_does_it_is_noticed_each_time() {
        let dir = TempDir::new().unwrap();
        write(&dir.path().join("..1"), &issue());
        symlink("..1", dir.path().join("..data")).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
        }
        let (mut files, serving) = load(dir.path()).await.unwrap();
        files.poll = Duration::from_hours(1);
        let mut seen = serving.changes();
        let task = tokio::spawn(files.follow());
        for n in 2..=4 {
            write(&dir.path().join(format!("..{n}")), &issue());
            symlink(format!("..{n}"), dir.path().join("..data_tmp")).unwrap();
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
            fs::remove_dir_all(dir.path().join(format!("..{}", n - 1))).unwrap();
            changes(&mut seen).await;
        }
        task.abort();
    }

    #[tokio::test]
    async fn what_is_no_certificate_leaves_the_last_good_one() {
        let dir = TempDir::new().unwrap();
        write(dir.path(), &issue());
        let (mut files, serving) = load(dir.path()).await.unwrap();
        files.poll = Duration::from_millis(50);
        let mut seen = serving.changes();
        let task = tokio::spawn(files.follow());
        let (chain, key) = issue();
        for (chain, key) in [
            (String::new(), issue().1),
            (chain.clone(), b"no key".to_vec()),
            (chain.clone(), issue().1),
        ] {
            write(dir.path(), &(chain, key));
            let changed = timeout(Duration::from_millis(400), seen.changed()).await;
            assert!(changed.is_err());
        }
        write(dir.path(), &(chain, key));
        changes(&mut seen).await;
        task.abort();
    }

    #[tokio::test]
    async fn files_that_cannot_be_served_are_refused_at_start() {
        let dir = TempDir::new().unwrap();
        let error = |error: anyhow::Error| format!("{error:#}");
        let missing = load(dir.path()).await.map(drop).map_err(error);
        assert!(missing.unwrap_err().contains("--tls-cert"));
        write(dir.path(), &(issue().0, issue().1));
        let mismatch = load(dir.path()).await.map(drop).map_err(error).unwrap_err();
        assert!(mismatch.contains("--tls-key") && mismatch.contains("does not belong"));
    }
}
