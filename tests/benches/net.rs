//! `make bench-net`: what calls cost over RDMA and TCP, beside `ib_send_lat`, `ib_write_bw` and a bare socket; in the emulated machine,
//! where figures mean nothing by themselves and quotients do, and the rows of TCP on this machine as well.
//!
//! The measuring itself is the example `speed` of burstfs-net, and perftest (`tests/rdma/bench`); all of them take turns.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use burstfs_tests::bench::{Aim, Row, median, report};

/// At least five are asked for.
const RUNS: &str = "5";
/// How long the emulated machine may take, seconds.
const GUEST_TIME: &str = "1800";
const GUEST_ADDRESS: &str = "10.99.0.1";
const DEPTHS: [&str; 2] = ["1", "32"];
const SIZES: [(&str, &str); 3] = [("4k", "4 KiB"), ("64k", "64 KiB"), ("1m", "1 MiB")];

/// What was measured, by name: a sample for each run.
#[derive(Default)]
struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    /// Takes the lines of the measuring programs: a name and a number.
    fn read(text: &str) -> Figures {
        let mut figures = Figures::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(Ok(value)), None) = (words.next(), words.next().map(str::parse), words.next()) {
                figures.0.entry(name.to_owned()).or_default().push(value);
            }
        }
        figures
    }

    fn of(&self, name: &str) -> &[f64] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// A figure for the reader.
    fn row(&self, place: &str, what: &str, name: &str, unit: &'static str, aim: Aim) -> Row {
        let title = format!("{place}: {what}");
        match self.of(name) {
            [] => Row::failed(title, unit, aim, format!("{name} was not measured")),
            samples => Row::new(title, unit, samples.to_vec(), "", aim),
        }
    }

    /// A figure in terms of another one that was measured in the same run.
    fn quotient(&self, place: &str, what: &str, (name, other): (&str, &str), aim: Aim) -> Row {
        let title = format!("{place}: {what}");
        let (samples, base) = (self.of(name), self.of(other));
        if samples.is_empty() || samples.len() != base.len() {
            let missing = if samples.is_empty() { name } else { other };
            return Row::failed(title, "x", aim, format!("{missing} was not measured"));
        }
        let middle = |of: &[f64]| median(of).unwrap_or(f64::NAN);
        let against = format!("{:.1} against {:.1} of {other}", middle(samples), middle(base));
        Row::new(title, "x", samples.iter().zip(base).map(|(one, other)| one / other).collect(), against, aim)
    }
}

fn main() -> Result<()> {
    let mut rows = Vec::new();
    let host = measured_here();
    tcp_rows("host", host.as_ref(), &mut rows);
    let guest = measured_in_the_guest();
    rdma_rows(guest.as_ref(), &mut rows);
    tcp_rows("guest", guest.as_ref(), &mut rows);
    for (place, measured) in [("host", &host), ("guest", &guest)] {
        if let Err(error) = measured {
            eprintln!("bench-net: {place}: {error:#}");
        }
    }
    report("net", &rows)
}

fn speed() -> Result<PathBuf> {
    let path = env::var_os("BURSTFS_SPEED").context("BURSTFS_SPEED is not set; use `make bench-net`")?;
    Ok(path.into())
}

fn measured_here() -> Result<Figures> {
    let mut command = Command::new(speed()?);
    command.args(["127.0.0.1", RUNS, "tcp", "socket"]);
    measured(command)
}

fn measured_in_the_guest() -> Result<Figures> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("rdma");
    let mut command = Command::new(here.join("guest"));
    command.args(["-m", "2048", "-t", GUEST_TIME, "--"]).arg(here.join("bench")).arg(speed()?);
    command.args([GUEST_ADDRESS, RUNS]);
    measured(command)
}

fn measured(mut command: Command) -> Result<Figures> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(Figures::read(&said))
}

fn rdma_rows(measured: Result<&Figures, &anyhow::Error>, rows: &mut Vec<Row>) {
    let none = Figures::default();
    let figures = measured.unwrap_or(&none);
    let place = "guest";
    rows.push(figures.row(place, "ib_send_lat -e, one way", "perftest.send_lat", "us", Aim::None));
    rows.push(figures.quotient(
        place,
        "RDMA: an empty request, by ib_send_lat -e",
        ("rdma.round_trip", "perftest.send_lat"),
        Aim::AtMost(2.5),
    ));
    small_rows(place, "rdma", "RDMA", figures, rows);
    for (size, name) in SIZES {
        let written = format!("perftest.write_bw_{size}");
        bulk_rows(place, ("rdma", "RDMA"), figures, (size, name), (&written, "ib_write_bw", 0.8), rows);
        let read = format!("perftest.read_bw_{size}");
        rows.push(figures.quotient(
            place,
            &format!("ib_read_bw, {name}, by ib_write_bw"),
            (&read, &written),
            Aim::None,
        ));
    }
}

fn tcp_rows(place: &str, measured: Result<&Figures, &anyhow::Error>, rows: &mut Vec<Row>) {
    let none = Figures::default();
    let figures = measured.unwrap_or(&none);
    let both = ("tcp.round_trip", "socket.round_trip");
    rows.push(figures.quotient(place, "TCP: an empty request, by the bare socket", both, Aim::None));
    small_rows(place, "tcp", "TCP", figures, rows);
    for (size, name) in SIZES {
        let streamed = format!("socket.stream_{size}");
        bulk_rows(place, ("tcp", "TCP"), figures, (size, name), (&streamed, "the bare socket", 0.9), rows);
    }
}

/// Bulk throughput in terms of what the transport is on; the aim is for many requests at once, as those below have it.
fn bulk_rows(
    place: &str,
    (kind, transport): (&str, &str),
    figures: &Figures,
    (size, name): (&str, &str),
    (base, beside, least): (&str, &str, f64),
    rows: &mut Vec<Row>,
) {
    for depth in DEPTHS {
        for (way, what) in [("read", "from the server"), ("write", "to the server")] {
            let aim = if depth == "1" { Aim::None } else { Aim::AtLeast(least) };
            let title = format!("{transport}: {name} {what}, {depth} at once, by {beside}");
            rows.push(figures.quotient(place, &title, (&format!("{kind}.{way}_{size}_{depth}"), base), aim));
            let title = format!("{transport}: CPU of {name} {what}, {depth} at once");
            rows.push(figures.row(place, &title, &format!("{kind}.{way}_cpu_{size}_{depth}"), "us", Aim::None));
        }
    }
}

fn small_rows(place: &str, kind: &str, name: &str, figures: &Figures, rows: &mut Vec<Row>) {
    let figure = |what: &str, key: &str, unit| {
        figures.row(place, &format!("{name}: {what}"), &format!("{kind}.{key}"), unit, Aim::None)
    };
    rows.push(figure("an empty request", "round_trip", "us"));
    for depth in DEPTHS {
        rows.push(figure(&format!("empty requests, {depth} at once"), &format!("per_second_{depth}"), "/s"));
        rows.push(figure(&format!("CPU of an empty request, {depth} at once"), &format!("cpu_{depth}"), "us"));
    }
    // A core that were burnt while nothing is to do would be 100.
    rows.push(figures.row(
        place,
        &format!("{name}: CPU while idle"),
        &format!("{kind}.idle_cpu"),
        "%",
        Aim::AtMost(1.0),
    ));
}
