//! A shell that starts programs and kills them when this process ends, however it does: its standard input closes.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;

use super::asset;

/// Runs each line, a name and a command, in the background; when there are no more it kills what it started and removes
/// the folder.
const SCRIPT: &str = r#"
pids=
while IFS=' ' read -r name line; do eval "exec $line &"; pids="$pids $!"; echo "$name $!" >>started; done
kill -KILL $pids 2>/dev/null
wait
cd /
rm -rf "$1"
"#;

/// The shell, and the pipe that keeps it.
#[derive(Debug)]
pub(super) struct Keeper {
    folder: PathBuf,
    input: Mutex<Option<ChildStdin>>,
    shell: Child,
}

impl Keeper {
    /// Starts one that works in `folder` and removes it at the end.
    pub(super) fn start(folder: &Path) -> Self {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "keeper"])
            .arg(folder)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            folder: folder.to_owned(),
            input: Mutex::new(shell.stdin.take()),
            shell,
        }
    }

    /// Runs a program of the control plane; what it says is in `<name>.log`.
    pub(super) fn run(&self, name: &str, arguments: &[String]) {
        let mut line = format!("{name} {}", quoted(asset(name).as_os_str()));
        for argument in arguments {
            write!(line, " {}", quoted(OsStr::new(argument))).unwrap();
        }
        writeln!(line, " </dev/null >{name}.log 2>&1").unwrap();
        let mut input = self.input.lock().unwrap();
        input.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// A program that was started and is no more.
    pub(super) fn ended(&self) -> Option<String> {
        let started = std::fs::read_to_string(self.folder.join("started")).ok()?;
        started.lines().find_map(|line| {
            let (name, id) = line.split_once(' ')?;
            // A process that ended and was not waited for yet has no executable any more.
            let ended = std::fs::read_link(format!("/proc/{id}/exe")).is_err();
            ended.then(|| name.to_owned())
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.get_mut().unwrap().take());
        self.shell.wait().ok();
    }
}

fn quoted(text: &OsStr) -> String {
    format!("'{}'", text.to_str().unwrap().replace('\'', r"'\''"))
}
