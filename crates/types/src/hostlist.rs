//! Slurm's host list notation: `n[001-003,7],login` (man page of `scontrol`, `show hostnames`).

use thiserror::Error;

use crate::limits;

/// Why a text is no host list.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum InvalidHostlist {
    /// Brackets that do not match, an empty name, or a range that is none.
    #[error("\"{0}\" is not a host list: {1}")]
    Syntax(String, &'static str),
    /// More hosts than an instance may have.
    #[error("the host list names more than {max} hosts", max = limits::NODES_MAX)]
    TooLong,
}

/// The hosts that `text` names, in the order of the text. Names have only `[A-Za-z0-9._-]`.
pub fn expand(text: &str) -> Result<Vec<String>, InvalidHostlist> {
    let mut hosts = Vec::new();
    for part in split_outside_brackets(text)? {
        expand_part(part, "", &mut hosts)?;
    }
    Ok(hosts)
}

fn syntax(text: &str, why: &'static str) -> InvalidHostlist {
    InvalidHostlist::Syntax(text.to_owned(), why)
}

fn split_outside_brackets(text: &str) -> Result<Vec<&str>, InvalidHostlist> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, character) in text.char_indices() {
        match character {
            '[' if depth == 0 => depth = 1,
            ']' if depth == 1 => depth = 0,
            '[' | ']' => return Err(syntax(text, "brackets do not match")),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(syntax(text, "brackets do not match"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// Expands the brackets of one part from left to right; `head` is what has been expanded already.
fn expand_part(part: &str, head: &str, hosts: &mut Vec<String>) -> Result<(), InvalidHostlist> {
    let Some(open) = part.find('[') else {
        let host = format!("{head}{part}");
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if host.is_empty() || !host.bytes().all(is_host_byte) {
            return Err(syntax(&host, "not a host name"));
        }
        if hosts.len() >= limits::NODES_MAX {
            return Err(InvalidHostlist::TooLong);
        }
        hosts.push(host);
        return Ok(());
    };
    let close = part.find(']').ok_or_else(|| syntax(part, "brackets do not match"))?;
    for range in part[open + 1..close].split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u32>().ok()).flatten().ok_or_else(|| syntax(part, "a range needs numbers"))
        };
        let (from, to) = (number(first)?, number(last)?);
        if to < from || (to - from) as usize >= limits::NODES_MAX {
            return Err(syntax(part, "a range runs backwards or too far"));
        }
        for n in from..=to {
            let head = format!("{head}{}{n:0width$}", &part[..open], width = first.len());
            expand_part(&part[close + 1..], &head, hosts)?;
        }
    }
    Ok(())
}

/// The shortest notation for `hosts`, in their order: consecutive numbers become a range.
pub fn compress(hosts: &[String]) -> String {
    let mut out = String::new();
    let mut rest = hosts;
    while let Some(first) = rest.first() {
        let (prefix, digits) = split_number(first);
        let run = rest.iter().enumerate().take_while(|(n, host)| is_successor(prefix, digits, *n, host)).count().max(1);
        if !out.is_empty() {
            out.push(',');
        }
        if run > 1 {
            let (_, last) = split_number(&rest[run - 1]);
            out.push_str(&format!("{prefix}[{digits}-{last}]"));
        } else {
            out.push_str(first);
        }
        rest = &rest[run..];
    }
    out
}

fn split_number(host: &str) -> (&str, &str) {
    let digits = host.bytes().rev().take_while(u8::is_ascii_digit).count();
    host.split_at(host.len() - digits)
}

fn is_successor(prefix: &str, digits: &str, n: usize, host: &str) -> bool {
    let Ok(first) = digits.parse::<u64>() else { return false };
    host == format!("{prefix}{:0width$}", first + n as u64, width = digits.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_what_slurm_writes() {
        assert_eq!(expand("node1").unwrap(), ["node1"]);
        assert_eq!(expand("c[02-04,07],login").unwrap(), ["c02", "c03", "c04", "c07", "login"]);
        assert_eq!(expand("r[1-2]n[8-9]").unwrap(), ["r1n8", "r1n9", "r2n8", "r2n9"]);
        assert_eq!(expand("n[9-11]").unwrap(), ["n9", "n10", "n11"]);
    }

    #[test]
    fn refuses_what_is_no_list() {
        for text in ["", "a,,b", "a[1", "a]1", "a[1-]", "a[2-1]", "a[[1]]", "a b", "a;b", "a[0-99999999]"] {
            assert!(expand(text).is_err(), "{text}");
        }
        assert_eq!(expand("a[1-9999],b[1-9999]"), Err(InvalidHostlist::TooLong));
    }

    #[test]
    fn compresses_runs() {
        let list = |text: &str| compress(&expand(text).unwrap());
        assert_eq!(list("n[0412-0415]"), "n[0412-0415]");
        assert_eq!(list("node1,node2,node4"), "node[1-2],node4");
        assert_eq!(list("login"), "login");
    }
}
