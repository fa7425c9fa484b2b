//! What burstfs's processes and the nodes' interfaces have come to, while something else goes on.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::cluster::{Cluster, NODES};

/// The kernel's unit of processor time in `/proc/PID/stat`: 100 Hz on every Linux.
const TICK_MS: f64 = 10.0;
const STEP: Duration = Duration::from_millis(10);

/// Totals at a moment.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Reading {
    /// Milliseconds since the epoch.
    pub at_ms: f64,
    /// Processor time of all burstfs processes of all nodes, also of those that have ended.
    pub cpu_ms: f64,
    /// Bytes that all nodes have sent.
    pub sent_bytes: f64,
}

/// Reads all nodes again and again, until it is stopped.
#[derive(Debug)]
pub struct Meter {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Reading>>,
}

impl Meter {
    /// Begins.
    pub fn start(cluster: &Cluster) -> Result<Meter> {
        let nodes: Vec<PathBuf> =
            NODES.into_iter().map(|node| cluster.on_node(node, "/proc")).collect::<Result<_>>()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let seen_over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let (mut readings, mut processes) = (Vec::new(), HashMap::new());
            while !seen_over.load(Ordering::Relaxed) {
                readings.push(read(&nodes, &mut processes));
                std::thread::sleep(STEP);
            }
            readings.push(read(&nodes, &mut processes));
            readings
        });
        Ok(Meter { is_over, thread })
    }

    /// Ends; all readings, in order.
    pub fn stop(self) -> Vec<Reading> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// The first reading at or after a time, else the last.
pub fn reading_at(readings: &[Reading], at_ms: f64) -> Reading {
    let found = readings.iter().find(|reading| reading.at_ms >= at_ms).or(readings.last());
    found.copied().unwrap_or_default()
}

/// `processes` keeps what each had when it was last seen.
fn read(nodes: &[PathBuf], processes: &mut HashMap<(usize, u32), f64>) -> Reading {
    for (index, proc) in nodes.iter().enumerate() {
        for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(ms) = cpu_ms(&entry.path()) {
                processes.insert((index, pid), ms);
            }
        }
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Reading {
        at_ms: since.as_secs_f64() * 1000.0,
        cpu_ms: processes.values().sum(),
        sent_bytes: nodes.iter().map(|proc| sent_bytes(&proc.join("1/net/dev"))).sum(),
    }
}

/// User and system time of a process with all its threads, if it is one of burstfs.
fn cpu_ms(process: &Path) -> Option<f64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    if !name.starts_with("burstfs") {
        return None;
    }
    let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Some(ticks.iter().sum::<f64>() * TICK_MS)
}

/// Bytes sent by all interfaces but the loopback.
fn sent_bytes(table: &Path) -> f64 {
    let text = fs::read_to_string(table).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    lines.filter_map(|(_, fields)| fields.split_whitespace().nth(8)?.parse::<f64>().ok()).sum()
}
