//! Keeps the secrets in this process's memory away from other processes of its user, and off the disk.

use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

/// Must run before a secret is read and before a thread is started. What the system refuses is logged, and the sidecar
/// serves all the same: the agent's container has a user of its own, which is the first line of defence.
///
/// - Not dumpable: other processes of the user may not attach a debugger, nor read `/proc/PID/mem` or
///   `/proc/PID/environ`; and no core is dumped, also not into a program that the system's `core_pattern` names, for
///   which a limit means nothing. As a consequence `/proc/self/fd` and others belong to root: nothing here reads them.
/// - `RLIMIT_CORE` 0: no core file, whatever makes the process dumpable again.
/// - No new privileges: nothing that this process could be made to execute gains rights by a set-user-id bit.
pub fn apply() {
    let steps = [
        (
            "PR_SET_DUMPABLE",
            set_dumpable_behavior(DumpableBehavior::NotDumpable),
        ),
        ("RLIMIT_CORE", forbid_core_files()),
        ("PR_SET_NO_NEW_PRIVS", set_no_new_privs(true)),
    ];
    for (step, outcome) in steps {
        if let Err(error) = outcome {
            tracing::warn!(
                step,
                %error,
                "the process is not hardened as it should be; does a seccomp profile forbid it?"
            );
        }
    }
}

/// The hard limit too, so that it stays.
fn forbid_core_files() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
}
