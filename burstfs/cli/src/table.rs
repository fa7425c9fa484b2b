//! The table of `burstfs status`, in the manner of `squeue`.

use burstfs_proto::mgs::{Input, InstanceStatus, StageFigures, State};

/// The columns, in their default order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Column {
    /// Slurm's job id.
    Jobid,
    /// The value of `name`.
    Name,
    /// The owner.
    User,
    /// Where the instance is in its life.
    State,
    /// How many nodes.
    Nodes,
    /// Capacity asked for.
    Size,
    /// Used by files.
    Used,
    /// To be drained yet.
    Dirty,
    /// Stage-in.
    In,
    /// Drain.
    Out,
    /// What is staged in or drained in a second.
    Rate,
    /// Until that is over, at this rate.
    Eta,
    /// Hosts.
    Nodelist,
    /// What the nodes talk over.
    Transport,
    /// Why it is what it is.
    Reason,
}

/// What is shown when no `--format` asks for other columns.
pub(crate) const DEFAULT: [Column; 13] = [
    Column::Jobid,
    Column::Name,
    Column::User,
    Column::State,
    Column::Nodes,
    Column::Size,
    Column::Used,
    Column::Dirty,
    Column::In,
    Column::Out,
    Column::Rate,
    Column::Eta,
    Column::Reason,
];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Jobid => "JOBID",
            Column::Name => "NAME",
            Column::User => "USER",
            Column::State => "STATE",
            Column::Nodes => "NODES",
            Column::Size => "SIZE",
            Column::Used => "USED",
            Column::Dirty => "DIRTY",
            Column::In => "IN",
            Column::Out => "OUT",
            Column::Rate => "RATE",
            Column::Eta => "ETA",
            Column::Nodelist => "NODELIST",
            Column::Transport => "TRANSPORT",
            Column::Reason => "REASON",
        }
    }

    /// Numbers stand right, words left.
    fn is_number(self) -> bool {
        match self {
            Column::Jobid | Column::Nodes | Column::Size | Column::Used | Column::Dirty => true,
            Column::In | Column::Out | Column::Rate | Column::Eta => true,
            Column::Name | Column::User | Column::State | Column::Nodelist | Column::Transport | Column::Reason => {
                false
            }
        }
    }

    fn cell(self, job_id: u32, status: &InstanceStatus) -> String {
        match self {
            Column::Jobid => job_id.to_string(),
            Column::Name => status.name.clone(),
            Column::User => status.user.clone(),
            Column::State => state(status.state).to_owned(),
            Column::Nodes => status.hosts.len().to_string(),
            Column::Size => size(status.capacity),
            Column::Used => size(status.used),
            Column::Dirty => status.dirty.map_or_else(|| "-".to_owned(), size),
            Column::In => progress(&status.stage_in),
            Column::Out => progress(&status.stage_out),
            Column::Rate if status.rate == 0 => "-".to_owned(),
            Column::Rate => format!("{}/s", size(status.rate)),
            Column::Eta => eta(status).map_or_else(|| "-".to_owned(), clock),
            Column::Nodelist => burstfs_types::hostlist::compress(&status.hosts),
            Column::Transport => status.transport.clone(),
            Column::Reason => status.reason.clone(),
        }
    }
}

/// The state's word.
pub(crate) fn state(state: State) -> &'static str {
    match state {
        State::Starting => "STARTING",
        State::StagingIn => "STAGING_IN",
        State::Ready => "READY",
        State::Draining => "DRAINING",
        State::Drained => "DRAINED",
        State::Failed => "FAILED",
        State::Held => "HELD",
    }
}

/// How the table is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Aligned, with titles.
    Table,
    /// Aligned, without titles.
    NoHeader,
    /// Cells between `|`, for programs.
    Parsable,
}

/// The table as text, a line per instance.
pub(crate) fn render(columns: &[Column], rows: &[(u32, InstanceStatus)], form: Form) -> String {
    let titles = columns.iter().map(|column| column.title().to_owned()).collect::<Vec<_>>();
    let cells = rows.iter().map(|(id, status)| columns.iter().map(|column| column.cell(*id, status)).collect());
    let mut lines = Vec::new();
    if form != Form::NoHeader {
        lines.push(titles);
    }
    lines.extend(cells);
    if form == Form::Parsable {
        return lines.iter().map(|line| line.join("|") + "\n").collect();
    }
    aligned(&lines, |at| columns[at].is_number())
}

/// The lines under one another, as many cells in each: numbers stand right, words left.
pub(crate) fn aligned(lines: &[Vec<String>], is_number: impl Fn(usize) -> bool) -> String {
    let count = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..count).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or_default()).collect();
    let align = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(
            |(at, (cell, width))| {
                if is_number(at) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            },
        );
        cells.collect::<Vec<_>>().join(" ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(align).collect()
}

/// `ok`, a percentage, or `-` where there is nothing to stage.
fn progress(figures: &StageFigures) -> String {
    if figures.files_failed > 0 {
        return format!("{} failed", figures.files_failed);
    }
    if figures.files_total == 0 {
        return "-".to_owned();
    }
    if figures.files_done == figures.files_total {
        return "ok".to_owned();
    }
    let (done, total) = match figures.bytes_total {
        0 => (figures.files_done, figures.files_total),
        bytes => (figures.bytes_done, bytes),
    };
    format!("{}%", done.min(total).saturating_mul(100) / total.max(1))
}

/// Seconds until what goes on is over, at the rate of late; `None` when nothing goes on, or nothing moves.
fn eta(status: &InstanceStatus) -> Option<u64> {
    let left = |figures: &StageFigures| figures.bytes_total.saturating_sub(figures.bytes_done);
    let left = match status.state {
        State::StagingIn => left(&status.stage_in),
        State::Ready if status.input == Input::Async => left(&status.stage_in),
        State::Draining => left(&status.stage_out),
        State::Starting | State::Ready | State::Drained | State::Failed | State::Held => return None,
    };
    (status.rate > 0).then(|| left.div_ceil(status.rate))
}

/// `0:43`, `1:02:03`.
fn clock(secs: u64) -> String {
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{secs:02}") } else { format!("{minutes}:{secs:02}") }
}

/// Bytes as `squeue` would have them, without the `iB`: `4.0T`, `512`.
pub(crate) fn size(bytes: u64) -> String {
    burstfs_types::amount(bytes).trim_end_matches('B').trim_end_matches('i').to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn status() -> InstanceStatus {
        InstanceStatus {
            instance: "vc.812345.0".into(),
            name: "job".into(),
            user: "alice".into(),
            state: State::StagingIn,
            hosts: vec!["n1".into(), "n2".into()],
            missing: vec![],
            capacity: 4 << 40,
            used: 1 << 40,
            spaces: vec![],
            dirty: None,
            rate: 0,
            stage_in: StageFigures { bytes_total: 100, bytes_done: 61, files_total: 2, files_done: 1, files_failed: 0 },
            input: Input::Complete,
            stage_out: StageFigures::default(),
            transport: "tcp".into(),
            receipt: String::new(),
            kept_until: None,
            attempts: 0,
            dropped: None,
            reason: String::new(),
        }
    }

    #[test]
    fn aligns_like_squeue() {
        let text = render(&DEFAULT, &[(812_345, status())], Form::Table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], " JOBID NAME USER  STATE      NODES SIZE USED DIRTY  IN OUT RATE ETA REASON");
        assert_eq!(lines[1], "812345 job  alice STAGING_IN     2 4.0T 1.0T     - 61%   -    -   -");
    }

    #[test]
    fn says_how_fast_and_for_how_long() {
        let cells =
            |status: &InstanceStatus| [Column::Dirty, Column::Rate, Column::Eta].map(|column| column.cell(1, status));
        let staging = InstanceStatus { rate: 2, ..status() };
        assert_eq!(cells(&staging), ["-", "2/s", "0:20"]);
        let arriving = InstanceStatus { state: State::Ready, input: Input::Async, rate: 1, ..status() };
        assert_eq!(cells(&arriving), ["-", "1/s", "0:39"]);
        let ready = InstanceStatus { state: State::Ready, dirty: Some(2048), rate: 2, ..status() };
        assert_eq!(cells(&ready), ["2.0K", "2/s", "-"]);
        let stage_out = StageFigures { bytes_total: 7_400, ..StageFigures::default() };
        let draining = InstanceStatus { state: State::Draining, stage_out, dirty: Some(7_400), rate: 1, ..status() };
        assert_eq!(cells(&draining), ["7.2K", "1/s", "2:03:20"]);
        assert_eq!(cells(&InstanceStatus { rate: 0, ..draining })[1..], ["-", "-"]);
    }

    #[test]
    fn programs_get_bars() {
        let columns = [Column::Jobid, Column::Nodelist, Column::Transport];
        let text = render(&columns, &[(1, status())], Form::Parsable);
        assert_eq!(text, "JOBID|NODELIST|TRANSPORT\n1|n[1-2]|tcp\n");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0");
        assert_eq!(size(1023), "1023");
        assert_eq!(size(1536), "1.5K");
        assert_eq!(size(4 << 40), "4.0T");
    }
}
