//! A route that `kubectl apply` changes is served by the sidecars that run. Without a relay kubelet brings the table,
//! which may take it 90 seconds.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;

use crate::lab::{OTHER, lab};
use crate::team::{PROVIDER, Reply, SECOND, Team, agent};
use crate::test;

/// Namespaces that change their routes at the same time.
const TEAMS: u32 = 5;
/// Between the changes of one namespace and those of the next: they are to fall anywhere between two looks of kubelet.
const STAGGER: Duration = Duration::from_secs(9);
/// The longest that kubelet and what is around it may take, on a busy machine.
const BOUND: Duration = Duration::from_secs(150);

/// What was changed, and how long it took.
type Change = (&'static str, Duration);

/// The tests of this file.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "routes_change_in_running_sidecars",
        routes_change_in_running_sidecars,
    ));
}

fn routes_change_in_running_sidecars() {
    let mut times: Vec<Change> = std::thread::scope(|scope| {
        let teams: Vec<_> = (0..TEAMS)
            .map(|index| scope.spawn(move || changes(STAGGER * index)))
            .collect();
        teams
            .into_iter()
            .flat_map(|team| team.join().unwrap())
            .collect()
    });
    times.sort_by_key(|(_, time)| *time);
    assert_eq!(times.len(), 4 * TEAMS as usize);
    let (p50, max) = (times[times.len() / 2].1, times[times.len() - 1].1);
    println!(
        "{} route changes: p50 {p50:.1?}, max {max:.1?}",
        times.len()
    );
    for (what, time) in times {
        println!("    {time:.1?} {what}");
    }
}

/// Four changes, two at a time: the second of them after `pause`. Each with the time from `kubectl apply` to its effect.
fn changes(pause: Duration) -> Vec<Change> {
    let team = Team::new("live");
    let first = team.route(PROVIDER, "");
    team.start(&agent("agent"));
    let reply = team.served("agent", "/via/upstream/start");
    assert_eq!(reply.connection(), first);
    assert_eq!(
        team.call("agent", "/via/second/start").error(),
        "provider_unknown"
    );
    let change = |what, act: &dyn Fn(), path: &str, done: &dyn Fn(&Reply) -> bool| {
        let start = Instant::now();
        act();
        loop {
            let reply = team.call("agent", path);
            if done(&reply) {
                return (what, start.elapsed());
            }
            assert!(start.elapsed() < BOUND, "{what}: {reply:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let [second, third] = [(); 2].map(|()| lab().connection());
    let upstream = |url: &str, connection: &str| {
        team.apply_route(&json!({
            "metadata": {"name": PROVIDER},
            "spec": {
                "provider": PROVIDER,
                "upstream": {"url": url},
                "connections": [{"connectionId": connection}],
            },
        }));
    };
    let new_route = || {
        change(
            "new route",
            &|| team.connect(SECOND, &json!([{"connectionId": second}])),
            "/via/second/new",
            &|reply| reply.status == 200 && reply.connection() == second,
        )
    };
    let changed_upstream = || {
        change(
            "changed upstream",
            &|| upstream(OTHER, &first),
            "/via/upstream/changed",
            &|reply| reply.status == 200 && reply.body.contains("other.services.svc"),
        )
    };
    let changed_connection = || {
        change(
            "changed connection",
            &|| upstream(OTHER, &third),
            "/via/upstream/changed",
            &|reply| reply.status == 200 && reply.connection() == third,
        )
    };
    let deleted_route = || {
        change(
            "deleted route",
            &|| {
                team.kubectl(&["delete", "nexusroute", SECOND]).ok();
            },
            "/via/second/gone",
            &|reply| reply.error() == "provider_unknown",
        )
    };
    let both = |now: &(dyn Fn() -> Change + Sync), later: &(dyn Fn() -> Change + Sync)| {
        std::thread::scope(|scope| {
            let now = scope.spawn(now);
            std::thread::sleep(pause);
            [later(), now.join().unwrap()]
        })
    };
    let mut times = both(&new_route, &changed_upstream).to_vec();
    times.extend(both(&deleted_route, &changed_connection));
    times
}
