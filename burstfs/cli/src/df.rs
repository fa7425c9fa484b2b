//! `burstfs df`: how full each node's share of an instance is. A full one ends writes there with ENOSPC, however much is free elsewhere.

use burstfs_proto::mgs::{InstanceStatus, NodeSpace};

use crate::table::{aligned, size};

const TITLES: [&str; 6] = ["JOBID", "NODE", "SIZE", "USED", "AVAIL", "USE%"];

/// The table: a line for each node that has said something, and one for all of them together.
pub(crate) fn render(rows: &[(u32, InstanceStatus)], has_titles: bool) -> String {
    let mut lines: Vec<Vec<String>> = Vec::new();
    if has_titles {
        lines.push(TITLES.map(str::to_owned).to_vec());
    }
    for (job, status) in rows {
        // What the nodes of somebody's job say: any figure.
        let sum = |of: fn(&NodeSpace) -> u64| status.spaces.iter().map(of).fold(0, u64::saturating_add);
        let all = (sum(|space| space.capacity), sum(|space| space.used));
        let nodes = status.spaces.iter().map(|space| (space.host.as_str(), (space.capacity, space.used)));
        for (host, (capacity, used)) in nodes.chain([("all", all)]) {
            let percent = used.saturating_mul(100).checked_div(capacity).unwrap_or(0);
            let avail = capacity.saturating_sub(used);
            lines.push(vec![
                job.to_string(),
                host.to_owned(),
                size(capacity),
                size(used),
                size(avail),
                format!("{percent}%"),
            ]);
        }
    }
    aligned(&lines, |at| TITLES[at] != "NODE")
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn any_figure_can_be_shown() {
        let space = NodeSpace { host: "n1".to_owned(), capacity: u64::MAX, used: u64::MAX };
        let text = render(&[(7, InstanceStatus { spaces: vec![space.clone(), space], ..status() })], false);
        assert_eq!(text.lines().count(), 3);
    }
}
