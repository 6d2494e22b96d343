//! Requests of an agent without a pause, while something else happens.

use serde::Deserialize;

use crate::lab::until;
use crate::team::Team;

/// A load, which goes on in the pod until it is told to end.
pub(crate) struct Load<'a> {
    team: &'a Team,
    pod: String,
}

/// What `load.py` counted.
#[derive(Debug, Deserialize)]
struct Counted {
    count: u64,
    slowest: f64,
    failures: Vec<String>,
}

impl<'a> Load<'a> {
    /// Starts one in the agent's container. It depends on nothing but its pod.
    pub(crate) fn start(team: &'a Team, pod: &str, path: &str) -> Self {
        let script = format!("python3 /tools/load.py {path} /tmp/end </dev/null >/tmp/load 2>&1 &");
        team.exec(pod, &["sh", "-c", &script]).ok();
        Self {
            team,
            pod: pod.to_owned(),
        }
    }

    /// Ends it, and fails if any request failed.
    pub(crate) fn end(self) {
        self.team.exec(&self.pod, &["touch", "/tmp/end"]).ok();
        let counted = until("the load ends", || {
            let said = self.team.exec(&self.pod, &["cat", "/tmp/load"]).stdout;
            serde_json::from_str::<Counted>(&said).map_err(|error| format!("{error}: {said}"))
        });
        println!(
            "{} requests, the slowest took {:.3} s",
            counted.count, counted.slowest
        );
        assert!(counted.count > 20, "{counted:?}");
        assert!(counted.failures.is_empty(), "{counted:#?}");
    }
}
