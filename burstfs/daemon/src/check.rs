//! The walk of `burstfs check` over all targets of the instance. Changes nothing.
//!
//! The instance goes on meanwhile, and what is changed during a walk may look wrong. So what one walk finds counts only if the
//! next ones find the same: what is wrong stays wrong, and what is being changed does not look twice alike.

use std::collections::BTreeSet;
use std::time::Duration;

use burstfs_mds::{Checker, Violation};
use burstfs_net::RpcError;
use burstfs_proto::mds::{MdsReply, PeerRecords};
use burstfs_proto::mgs::Checked;
use burstfs_proto::oss::{List, Listed, OssReply, OssRequest, OstStatfs, Statfs};
use burstfs_proto::service::{MetadataService, NoBulk, ObjectService};
use burstfs_types::{Errno, MdtIndex, NodeIndex, OstIndex};

use crate::roles::Targets;

const WALKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(300);
/// Of the answer: a page for a person, not more than a message holds.
const FINDINGS_MAX: usize = 500;

/// Walks over all targets, `targets` being this node's.
pub(crate) async fn check(targets: &Targets) -> Result<Checked, Errno> {
    let (mut checked, mut found) = walk(targets).await?;
    for _ in 1..WALKS {
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let again = walk(targets).await?;
        found.retain(|violation| again.1.contains(violation));
        checked = again.0;
    }
    checked.findings_count = found.len() as u64;
    checked.findings = found.iter().take(FINDINGS_MAX).map(Violation::to_string).collect();
    Ok(checked)
}

async fn walk(targets: &Targets) -> Result<(Checked, BTreeSet<Violation>), Errno> {
    let nodes = targets.links.nodes().await?;
    let mut checker = Checker::new(nodes);
    let mut missing = Vec::new();
    for node in (0..nodes).map(NodeIndex::new) {
        let is_told = tell_mdt(targets, &mut checker, node).await? && tell_ost(targets, &mut checker, node).await?;
        if !is_told {
            missing.push(node);
        }
    }
    let checked = Checked { inodes: checker.inodes(), objects: checker.objects(), missing, ..Checked::default() };
    Ok((checked, checker.finish().into_iter().collect()))
}

/// False if the node does not answer.
async fn tell_mdt(targets: &Targets, checker: &mut Checker, node: NodeIndex) -> Result<bool, Errno> {
    let mdt = MdtIndex::new(node.get());
    let mut from = Some(Vec::new());
    while let Some(next) = from {
        let request = PeerRecords { from: next };
        let reply = if node == targets.own {
            let number = targets.links.take_number();
            targets.mdt.call(number.caller(), request.into()).await.map_err(RpcError::Errno)
        } else {
            targets.links.call_mds(mdt, &request.into()).await
        };
        let records = match reply {
            Ok(MdsReply::PeerRecords(records)) => records,
            Ok(_) => return Err(Errno::EPROTO),
            Err(RpcError::Errno(errno)) => return Err(errno),
            Err(error) => return Ok(silent(node, &error)),
        };
        checker.add_records(mdt, &records).map_err(|error| {
            tracing::error!("{mdt}: {error}");
            error.errno()
        })?;
        from = records.next;
    }
    Ok(true)
}

async fn tell_ost(targets: &Targets, checker: &mut Checker, node: NodeIndex) -> Result<bool, Errno> {
    let (mut objects, mut next) = (Vec::new(), Some(List { part: 0, behind: None }));
    while let Some(list) = next {
        let listed = match list_objects(targets, node, list).await {
            Ok(listed) => listed,
            Err(RpcError::Errno(errno)) => return Err(errno),
            Err(error) => return Ok(silent(node, &error)),
        };
        objects.extend(listed.objects);
        next = listed.next;
    }
    let counts = match count_objects(targets, node).await {
        Ok(counts) => counts,
        Err(RpcError::Errno(errno)) => return Err(errno),
        Err(error) => return Ok(silent(node, &error)),
    };
    checker.add_ost(OstIndex::new(node.get()), &objects, &counts);
    Ok(true)
}

fn silent(node: NodeIndex, error: &RpcError) -> bool {
    tracing::warn!("{node} is not checked: {error}");
    false
}

async fn list_objects(targets: &Targets, node: NodeIndex, list: List) -> Result<Listed, RpcError> {
    if node != targets.own {
        return targets.links.call_node(node, &list).await;
    }
    match own_ost(targets, list.into()).await? {
        OssReply::List(listed) => Ok(listed),
        _ => Err(RpcError::Errno(Errno::EPROTO)),
    }
}

async fn count_objects(targets: &Targets, node: NodeIndex) -> Result<OstStatfs, RpcError> {
    if node != targets.own {
        return targets.links.call_node(node, &Statfs).await;
    }
    match own_ost(targets, Statfs.into()).await? {
        OssReply::Statfs(counts) => Ok(counts),
        _ => Err(RpcError::Errno(Errno::EPROTO)),
    }
}

async fn own_ost(targets: &Targets, request: OssRequest) -> Result<OssReply, RpcError> {
    let number = targets.links.take_number();
    targets.ost.call(number.caller(), request, &mut NoBulk).await.map_err(RpcError::Errno)
}
