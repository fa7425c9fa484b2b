//! `burstfs df`: how full each node's share of an instance is. A full one ends writes there with ENOSPC, however much is free elsewhere.

use burstfs_proto::mgs::InstanceStatus;

use crate::table::size;

const TITLES: [&str; 6] = ["JOBID", "NODE", "SIZE", "USED", "AVAIL", "USE%"];

/// The table: a line for each node that has said something, and one for all of them together.
pub(crate) fn render(rows: &[(u32, InstanceStatus)], has_titles: bool) -> String {
    let mut lines: Vec<[String; 6]> = Vec::new();
    if has_titles {
        lines.push(TITLES.map(str::to_owned));
    }
    for (job, status) in rows {
        let all =
            status.spaces.iter().fold((0, 0), |(capacity, used), space| (capacity + space.capacity, used + space.used));
        let nodes = status.spaces.iter().map(|space| (space.host.as_str(), (space.capacity, space.used)));
        for (host, (capacity, used)) in nodes.chain([("all", all)]) {
            let percent = used.saturating_mul(100).checked_div(capacity).unwrap_or(0);
            let avail = capacity.saturating_sub(used);
            lines.push([
                job.to_string(),
                host.to_owned(),
                size(capacity),
                size(used),
                size(avail),
                format!("{percent}%"),
            ]);
        }
    }
    let widths: Vec<usize> =
        (0..TITLES.len()).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or_default()).collect();
    let line = |cells: &[String; 6]| {
        let cells = cells.iter().zip(&widths).enumerate();
        let cells = cells.map(|(at, (cell, width))| match at {
            1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join(" ") + "\n"
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use burstfs_proto::mgs::NodeSpace;

    use super::*;
    use crate::table::tests::status;

    #[test]
    fn each_node_and_all_of_them() {
        let space = |host: &str, used| NodeSpace { host: host.to_owned(), capacity: 1 << 30, used };
        let status = InstanceStatus { spaces: vec![space("n1", 1 << 30), space("n2", 0)], ..status() };
        let text = render(&[(7, status)], true);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "JOBID NODE SIZE USED AVAIL USE%");
        assert_eq!(lines[1], "    7 n1   1.0G 1.0G     0 100%");
        assert_eq!(lines[2], "    7 n2   1.0G    0  1.0G   0%");
        assert_eq!(lines[3], "    7 all  2.0G 1.0G  1.0G  50%");
    }
}
