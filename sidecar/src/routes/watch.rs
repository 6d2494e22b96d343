//! Notices that route files changed. Paths flow in, a growing number flows out; whoever waits for it loads the files.
//!
//! The directory is watched and never the file: editors rename over it, and the kubelet swaps a `..data` link, after
//! which a watch on the file itself sees nothing any more. Notices only trigger a look at the content, whose hash
//! decides; a slow poll does the same, for file systems that send no notices.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::manifest::files;

/// How soon a change is seen.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Quiet time after a notice before the files are looked at, so that a burst is one change.
    pub debounce: Duration,
    /// Time between two looks without a notice.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(100),
            poll: Duration::from_secs(10),
        }
    }
}

/// The watch ended by itself, which only a bug can cause.
#[derive(Debug, thiserror::Error)]
#[error("the watch on the route files ended")]
pub struct WatchEnded;

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct RouteWatch {
    changes: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl RouteWatch {
    /// Watches files or directories. What they hold now is the state that later ones are compared with, so start this
    /// before the first load: a change in between is then noticed. Blocks for as long as the files take to read.
    pub fn start(paths: Vec<PathBuf>, timing: Timing) -> Self {
        let seen = paths.iter().map(|path| fingerprint(path)).collect();
        let (notices, inbox) = mpsc::channel(1);
        let watcher = DirectoryWatcher::new(&paths, notices);
        let (sender, changes) = watch::channel(0);
        let task = tokio::spawn(run(paths, seen, watcher, inbox, sender, timing));
        Self { changes, task }
    }

    /// Waits for the next change. Several changes in one wait are one. Safe to cancel.
    pub async fn changed(&mut self) -> Result<(), WatchEnded> {
        self.changes.changed().await.map_err(|_| WatchEnded)
    }
}

impl Drop for RouteWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Fingerprint = [u8; 32];

async fn run(
    paths: Vec<PathBuf>,
    mut seen: Vec<Option<Fingerprint>>,
    mut watcher: DirectoryWatcher,
    mut inbox: mpsc::Receiver<()>,
    changes: watch::Sender<u64>,
    timing: Timing,
) {
    let mut poll = interval_at(Instant::now() + timing.poll, timing.poll);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(()) = inbox.recv() => quiet(&mut inbox, timing.debounce).await,
            _ = poll.tick() => {}
        }
        let look = tokio::task::spawn_blocking({
            let paths = paths.clone();
            move || {
                watcher.renew(&paths);
                let now: Vec<_> = paths.iter().map(|path| fingerprint(path)).collect();
                (watcher, now)
            }
        });
        let Ok((returned, now)) = look.await else {
            return;
        };
        watcher = returned;
        if update(&mut seen, now) {
            changes.send_modify(|generation| *generation += 1);
        }
    }
}

/// Waits until no notice came for `debounce`, at most ten times as long.
async fn quiet(inbox: &mut mpsc::Receiver<()>, debounce: Duration) {
    let limit = Instant::now() + 10 * debounce;
    while Instant::now() < limit {
        tokio::select! {
            Some(()) = inbox.recv() => {}
            () = sleep(debounce) => return,
        }
    }
}

/// Takes over the new state; true if it differs. A missing file keeps its last state: what was loaded stays.
fn update(seen: &mut [Option<Fingerprint>], now: Vec<Option<Fingerprint>>) -> bool {
    let mut changed = false;
    for (seen, now) in seen.iter_mut().zip(now) {
        if now.is_some() && *seen != now {
            *seen = now;
            changed = true;
        }
    }
    changed
}

/// Hash of the names and bytes of a path's files; `None` if there are none. A file that cannot be read counts with
/// its error, so that the loader runs and reports it.
fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let mut hash = Sha256::new();
    let listed = match files::list(path) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(hash.chain_update(error.to_string()).finalize().into()),
    };
    let mut any = false;
    for file in listed {
        let content = match files::read_raw(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => error.to_string().into_bytes(),
        };
        any = true;
        let name = file.as_os_str().as_encoded_bytes();
        for part in [name, &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    any.then(|| hash.finalize().into())
}

/// Watches the directories that hold the paths; for a directory also itself, which may be replaced.
struct DirectoryWatcher {
    watcher: Option<RecommendedWatcher>,
}

impl DirectoryWatcher {
    fn new(paths: &[PathBuf], notices: mpsc::Sender<()>) -> Self {
        let names: Vec<_> = paths
            .iter()
            .map(|it| it.file_name().map(OsStr::to_owned))
            .collect();
        let handler = move |event: notify::Result<notify::Event>| {
            if event
                .as_ref()
                .map_or(true, |it| matters(it) && concerns(it, &names))
            {
                // A full channel already holds the notice.
                let _ = notices.try_send(());
            }
        };
        let watcher = match notify::recommended_watcher(handler) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "no file notices on this system; route files are polled");
                None
            }
        };
        let mut this = Self { watcher };
        this.renew(paths);
        this
    }

    /// Sets the watches anew, since a directory that was deleted or replaced takes its watch with it.
    fn renew(&mut self, paths: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for path in paths {
            let parent = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Some(Path::new(".")),
                parent => parent,
            };
            for directory in [parent, Some(path.as_path())].into_iter().flatten() {
                if !directory.is_dir() {
                    continue;
                }
                if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                    tracing::debug!(directory = %directory.display(), %error, "cannot be watched; polled");
                }
            }
        }
    }
}

/// False for notices that our own reading causes.
fn matters(event: &notify::Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// False for notices about the neighbours of a watched file, which may be many in a home directory. Links that begin
/// with `..` are the kubelet's. A path without a name, such as `.`, hears of everything.
fn concerns(event: &notify::Event, names: &[Option<OsString>]) -> bool {
    let about = |path: &PathBuf| {
        let (file, parent) = (path.file_name(), path.parent().and_then(Path::file_name));
        file.is_none_or(|file| file.as_encoded_bytes().starts_with(b".."))
            || names.iter().any(|name| match name.as_deref() {
                Some(name) => file == Some(name) || parent == Some(name),
                None => true,
            })
    };
    event.paths.is_empty() || event.paths.iter().any(about)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// Notices only: the poll is too slow to help.
    const NOTICES: Timing = Timing {
        debounce: Duration::from_millis(50),
        poll: Duration::from_hours(1),
    };

    async fn changes(watch: &mut RouteWatch) {
        timeout(Duration::from_secs(5), watch.changed())
            .await
            .expect("a change is noticed")
            .unwrap();
    }

    async fn stays(watch: &mut RouteWatch) {
        let noticed = timeout(Duration::from_millis(400), watch.changed()).await;
        assert!(noticed.is_err(), "nothing changed");
    }

    /// A directory as the kubelet makes it for a ConfigMap.
    fn mount(directory: &Path, version: u32) {
        let data = format!("..v{version}");
        fs::create_dir_all(directory.join(&data)).unwrap();
        fs::write(
            directory.join(&data).join("routes.json"),
            version.to_string(),
        )
        .unwrap();
        symlink(&data, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        if version == 1 {
            symlink("..data/routes.json", directory.join("routes.json")).unwrap();
        } else {
            fs::remove_dir_all(directory.join(format!("..v{}", version - 1))).unwrap();
        }
    }

    #[tokio::test]
    async fn each_swap_of_a_mounted_config_map_is_noticed() {
        for file in ["", "routes.json"] {
            let dir = TempDir::new().unwrap();
            mount(dir.path(), 1);
            let mut watch = RouteWatch::start(vec![dir.path().join(file)], NOTICES);
            for version in 2..=4 {
                mount(dir.path(), version);
                changes(&mut watch).await;
            }
            stays(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn renaming_over_and_writing_in_place_are_noticed_each_time() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("routes.yaml");
        fs::write(&file, "0").unwrap();
        let mut watch = RouteWatch::start(vec![file.clone()], NOTICES);
        for n in 1..=3 {
            let new = dir.path().join("routes.yaml.tmp");
            fs::write(&new, format!("rename {n}")).unwrap();
            fs::rename(&new, &file).unwrap();
            changes(&mut watch).await;
            fs::write(&file, format!("in place {n}")).unwrap();
            changes(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn a_burst_is_one_change_and_an_equal_content_none() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("routes.yaml");
        fs::write(&file, "0").unwrap();
        let mut watch = RouteWatch::start(vec![dir.path().into()], NOTICES);
        for n in 0..20 {
            fs::write(&file, format!("{n}")).unwrap();
        }
        changes(&mut watch).await;
        stays(&mut watch).await;
        fs::write(&file, "19").unwrap();
        stays(&mut watch).await;
    }

    #[tokio::test]
    async fn a_missing_directory_is_no_change_and_its_return_is_one() {
        let dir = TempDir::new().unwrap();
        let routes = dir.path().join("routes");
        fs::create_dir(&routes).unwrap();
        fs::write(routes.join("a.yaml"), "1").unwrap();
        let mut watch = RouteWatch::start(vec![routes.clone()], NOTICES);
        for n in 2..=3 {
            fs::remove_dir_all(&routes).unwrap();
            stays(&mut watch).await;
            fs::create_dir(&routes).unwrap();
            fs::write(routes.join("a.yaml"), n.to_string()).unwrap();
            changes(&mut watch).await;
            fs::write(routes.join("a.yaml"), format!("{n} again")).unwrap();
            changes(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn a_file_that_never_existed_is_noticed_when_it_comes() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("routes.yaml");
        let mut watch = RouteWatch::start(vec![file.clone()], NOTICES);
        fs::write(&file, "1").unwrap();
        changes(&mut watch).await;
    }

    #[tokio::test]
    async fn the_poll_sees_what_no_notice_tells() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("routes.yaml");
        fs::write(&file, "0").unwrap();
        let (_unused, inbox) = mpsc::channel(1);
        let (sender, receiver) = watch::channel(0);
        let timing = Timing {
            debounce: Duration::from_millis(1),
            poll: Duration::from_millis(50),
        };
        let paths = vec![file.clone()];
        let seen = vec![fingerprint(&file)];
        let deaf = DirectoryWatcher { watcher: None };
        let mut watch = RouteWatch {
            changes: receiver,
            task: tokio::spawn(run(paths, seen, deaf, inbox, sender, timing)),
        };
        stays(&mut watch).await;
        fs::write(&file, "1").unwrap();
        changes(&mut watch).await;
    }

    #[test]
    fn neighbours_of_a_file_do_not_concern_it() {
        let names = [Some(OsString::from("routes.yaml"))];
        let concern = |path: &str| {
            let event = notify::Event::new(EventKind::Any).add_path(path.into());
            concerns(&event, &names)
        };
        assert!(concern("/etc/nexus/routes.yaml"));
        assert!(concern("/etc/routes.yaml/a.yaml"), "it may be a directory");
        assert!(concern("/etc/nexus/..data"));
        assert!(!concern("/etc/nexus/notes.txt"));
    }

    #[test]
    fn reading_the_files_is_no_notice() {
        use notify::event::{CreateKind, Event};
        for kind in [AccessMode::Read, AccessMode::Any] {
            assert!(!matters(&Event::new(EventKind::Access(AccessKind::Open(
                kind
            )))));
            assert!(!matters(&Event::new(EventKind::Access(AccessKind::Close(
                kind
            )))));
        }
        assert!(matters(&Event::new(EventKind::Create(CreateKind::File))));
    }
}
