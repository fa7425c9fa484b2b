//! The helper as Slurm uses it: the real `burstfs-node start`, `stop`, `recover`, `list` and `gc`, with real mounts,
//! processes and users, and a `burstfsd` that does what each scenario needs.
//!
//! Needs root and `/dev/fuse`, like the helper. Everything happens in a mount namespace of this process, on a tmpfs;
//! after each scenario no mount, process, cgroup or directory of the instance may be left.
//!
//! This program is also that `burstfsd`: copied under that name, it speaks the control protocol and takes its part from
//! the job's working directory (`/play/<part>`).

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "lifecycle/fake_daemon.rs"]
mod fake_daemon;
#[path = "lifecycle/node.rs"]
mod node;
#[path = "lifecycle/scenarios.rs"]
mod scenarios;

use std::time::Instant;

fn main() {
    let name = std::env::args().next().unwrap_or_default();
    if name.ends_with("/burstfsd") {
        fake_daemon::play();
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list") {
        scenarios::ALL.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let node = node::Node::set_up();
    let (mut passed, mut failed) = (0, 0);
    for (name, scenario) in scenarios::ALL.iter().filter(|(name, _)| wanted.is_none_or(|wanted| name.contains(wanted)))
    {
        let begin = Instant::now();
        let result = std::panic::catch_unwind(|| {
            scenario(&node);
            node.assert_clean();
        });
        println!("test {name} ... {} ({:.0?})", if result.is_ok() { "ok" } else { "FAILED" }, begin.elapsed());
        if result.is_ok() {
            passed += 1;
        } else {
            failed += 1;
            node.show_logs();
        }
        node.reset();
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    if failed > 0 {
        std::process::exit(1);
    }
}
