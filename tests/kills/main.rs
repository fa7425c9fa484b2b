//! kill -9 of burstfsd, on any node, at random moments, while programs on all nodes of a real job change the file system: what had returned
//! stays, what had not is done or not done, and the checker finds nothing. Needs root; `make kills` does it 200 times.
//!
//! `BURSTFS_KILLS` is the number of kills, `BURSTFS_SEED` the seed, which is printed.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::VecDeque;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use burstfs_tests::{NODES, SOON, Scenario, scenario, wait_for, wait_until};

/// The supervisor gives a daemon up that ends more than five times a minute.
const KILLS_OF_A_NODE: usize = 5;
const WINDOW: Duration = Duration::from_secs(62);
/// From the return of one daemon to the next kill, at most.
const PAUSE_MAX_MS: u64 = 1_500;

fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn whichever_daemon_is_killed_when_nothing_is_undone() -> Result<()> {
    let kills = number("BURSTFS_KILLS")?.unwrap_or(10);
    let now = UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    let mut seed = number("BURSTFS_SEED")?.unwrap_or(now);
    println!("seed: BURSTFS_SEED={seed}");
    scenario("kills", |s| {
        // Every kill is told, and what waits for a killed daemon may say so.
        s.allow_killed_daemon();
        s.allow("it is tried again");
        s.allow(" to mdt");
        let job = s
            .job("alice")?
            .burstfs("capacity=400MiB")
            .script("echo ready; until [ -e go ]; do sleep 0.05; done")
            .submit()?;
        job.wait_line("ready")?;
        let (mount, dir) = (format!("/burstfs/{}", job.id), s.dir("alice")?);
        fs::copy(env!("CARGO_BIN_EXE_churn"), s.path("alice")?.join("churn"))?;
        let mut players = Vec::new();
        for node in NODES {
            let script = format!("{dir}/churn {mount} {node} {} {dir}/stop", random(&mut seed));
            players.push((node, play(s, node, &script)?));
        }
        let killed = kill_often(s, &mount, kills, &mut seed, &mut players);
        fs::write(s.path("alice")?.join("stop"), "")?;
        let mut wrong = Vec::new();
        for (node, player) in players {
            let output = player.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            print!("{node}: {said}");
            if !output.status.success() {
                wrong.push(format!("{node}: {said}"));
            }
        }
        killed?;
        ensure!(wrong.is_empty(), "{}", wrong.concat());
        let checked = s.cluster.try_sh_as("node1", "alice", &format!("burstfs check {}", job.id))?;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        ensure!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
        println!("survived {kills} kills: {said}");
        job.touch("go")?;
        job.wait_success(SOON)
    })
}

/// Starts `script` as alice on `node`.
fn play(s: &Scenario<'_>, node: &str, script: &str) -> Result<Child> {
    let mut command: Command = s.cluster.command_as(node, "alice", script);
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

/// Kills daemons, one after the other; each is back, with its mount, before the next one dies.
fn kill_often(s: &Scenario<'_>, mount: &str, kills: u64, seed: &mut u64, players: &mut [(&str, Child)]) -> Result<()> {
    let mut killed_at: Vec<VecDeque<Instant>> = NODES.iter().map(|_| VecDeque::new()).collect();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random(seed) % PAUSE_MAX_MS));
        for (node, player) in players.iter_mut() {
            ensure!(player.try_wait()?.is_none(), "the program on {node} has ended");
        }
        let victim = wait_for("a node whose daemon may be killed again", 2 * WINDOW, || {
            killed_at.iter_mut().for_each(|at| at.retain(|at| at.elapsed() < WINDOW));
            let free: Vec<usize> = (0..NODES.len()).filter(|node| killed_at[*node].len() < KILLS_OF_A_NODE).collect();
            Ok((!free.is_empty()).then(|| free[(random(seed) % free.len() as u64) as usize]))
        })?;
        let (node, old) = (NODES[victim], s.cluster.only_pid(NODES[victim], "burstfsd")?);
        killed_at[victim].push_back(Instant::now());
        s.cluster.sh(node, &format!("kill -9 {old}"))?;
        wait_until("the node's mount", SOON, || {
            let is_new = s.cluster.pids(node, "burstfsd")?.iter().any(|pid| *pid != old);
            Ok(is_new && s.cluster.try_sh_as(node, "alice", &format!("ls {mount}"))?.status.success())
        })?;
    }
    Ok(())
}
