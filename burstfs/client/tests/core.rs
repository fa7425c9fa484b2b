//! The file system over in-process servers, without FUSE.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use burstfs_client::fs::{AttrChange, ClientFs, Credentials, NewFile, NewSpecial, WriteData};
use burstfs_proto::mds::{RenameMode, XattrMode};
use burstfs_types::{Attr, Errno, FileKind, Ino, Layout, LayoutPolicy, Name, NodeIndex, OstIndex};
use futures_util::FutureExt;
use futures_util::future::join_all;
use support::cluster::{CAPACITY, Cluster};

const ROOT: Credentials = Credentials { uid: 0, gid: 0, umask: None };

fn new_file(policy: Option<LayoutPolicy>) -> NewFile {
    NewFile { mode: 0o644, owner: ROOT, exclusive: false, truncate: false, policy }
}

/// A new file with some bytes, closed.
async fn file(fs: &ClientFs, parent: Ino, name: &str, policy: Option<LayoutPolicy>, bytes: &[u8]) -> Attr {
    let opened = fs.create(parent, name.as_bytes(), new_file(policy)).await.unwrap();
    fs.write(&opened.file, 0, WriteData::Lent(bytes), false).await.unwrap();
    fs.close(&opened.file).await.unwrap();
    fs.getattr(opened.attr.ino).await.unwrap()
}

/// A new directory of the root whose home is `mdt`.
async fn directory_on(fs: &ClientFs, mdt: u16) -> (Name, Ino) {
    for n in 0.. {
        let name = Name::new(format!("d{mdt}-{n}")).unwrap();
        let ino = fs.mkdir(Ino::ROOT, name.as_bytes(), 0o755, ROOT).await.unwrap().ino;
        if ino.mdt().get() == mdt {
            return (name, ino);
        }
        fs.rmdir(Ino::ROOT, name.as_bytes()).await.unwrap();
    }
    unreachable!()
}

#[test]
fn a_listing_with_attributes_is_that_of_every_lookup() {
    let cluster = Cluster::new(4);
    let fs = cluster.client(1);
    cluster.block_on(async {
        let striped = "striped:size=64K".parse().unwrap();
        for n in 0..20_usize {
            let policy = [None, Some(striped), Some(LayoutPolicy::Local)][n % 3];
            file(&fs, Ino::ROOT, &format!("f{n}"), policy, &vec![1; n * 20_000]).await;
            fs.mkdir(Ino::ROOT, format!("d{n}").as_bytes(), 0o700, ROOT).await.unwrap();
        }
        fs.symlink(Ino::ROOT, b"link", b"f1", ROOT).await.unwrap();
        let (mut cookie, mut seen) = (0, 0);
        loop {
            let listing = cluster.client(2).readdir_plus(Ino::ROOT, cookie, 7).await.unwrap();
            for entry in &listing.entries {
                let alone = fs.lookup(Ino::ROOT, entry.name.as_bytes()).await.unwrap();
                assert_eq!(entry.attr.as_ref(), Some(&alone));
                (cookie, seen) = (entry.cookie, seen + 1);
            }
            if listing.is_end {
                break;
            }
        }
        assert_eq!(seen, 41);
    });
}

#[test]
fn a_new_file_lives_on_the_node_that_made_it() {
    let cluster = Cluster::new(3);
    cluster.block_on(async {
        for node in 0..3 {
            let attr = file(&cluster.client(node), Ino::ROOT, &format!("f{node}"), None, b"x").await;
            assert_eq!(attr.layout, Some(Layout::on_one(OstIndex::new(node as u16))));
            let used = cluster.client(0).statfs().await.unwrap().used;
            assert!(used > 0);
        }
        assert_eq!(cluster.client(1).statfs().await.unwrap().capacity, 3 * CAPACITY);
    });
}

#[test]
fn only_regular_files_have_bytes() {
    let cluster = Cluster::new(2);
    let fs = cluster.client(0);
    cluster.block_on(async {
        let truncate = || AttrChange { size: Some(1), ..AttrChange::default() };
        assert_eq!(fs.setattr(Ino::ROOT, truncate()).await.unwrap_err().errno(), Errno::EISDIR);
        assert_eq!(fs.open(Ino::ROOT, false).await.err().unwrap().errno(), Errno::EISDIR);
        let new = NewSpecial { kind: FileKind::Fifo, mode: 0o600, owner: ROOT };
        let fifo = fs.mknod(Ino::ROOT, b"fifo", new).await.unwrap();
        assert_eq!(fs.setattr(fifo.ino, truncate()).await.unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(fs.lookup(Ino::ROOT, b"..").await.unwrap_err().errno(), Errno::EINVAL);
        assert_eq!(fs.lookup(Ino::ROOT, &[b'n'; 256]).await.unwrap_err().errno(), Errno::ENAMETOOLONG);
        let nobody = Ino::from_raw(9 << 48 | 1).unwrap();
        assert_eq!(fs.getattr(nobody).await.unwrap_err().errno(), Errno::ESTALE);
        let acl = fs.setxattr(Ino::ROOT, b"system.posix_acl_access", b"", XattrMode::Any).await;
        assert_eq!(acl.unwrap_err().errno(), Errno::EINVAL);
        let other = fs.setxattr(Ino::ROOT, b"system.other", b"", XattrMode::Any).await;
        assert_eq!(other.unwrap_err().errno(), Errno::EOPNOTSUPP);
    });
}

#[test]
fn a_file_found_by_create_is_opened_and_truncated_if_asked() {
    let cluster = Cluster::new(2);
    let (here, there) = (cluster.client(0), cluster.client(1));
    cluster.block_on(async {
        let made = file(&here, Ino::ROOT, "f", None, b"contents").await;
        let found = there.create(Ino::ROOT, b"f", new_file(None)).await.unwrap();
        assert_eq!((found.attr.ino, found.attr.size), (made.ino, 8));
        there.close(&found.file).await.unwrap();
        let truncating = NewFile { truncate: true, ..new_file(None) };
        let found = there.create(Ino::ROOT, b"f", truncating).await.unwrap();
        assert_eq!(found.attr.size, 0);
        there.close(&found.file).await.unwrap();
        let exclusive = NewFile { exclusive: true, ..new_file(None) };
        let refused = there.create(Ino::ROOT, b"f", exclusive).await;
        assert_eq!(refused.err().unwrap().errno(), Errno::EEXIST);
    });
}

#[test]
fn a_write_that_may_not_keep_set_id_bits_clears_them() {
    let cluster = Cluster::new(2);
    let (here, there) = (cluster.client(0), cluster.client(1));
    cluster.block_on(async {
        let ino = file(&here, Ino::ROOT, "f", None, b"x").await.ino;
        let chmod = || AttrChange { mode: Some(0o6755), ..AttrChange::default() };
        // Set before the open on another node, and while the file is open on this one.
        here.setattr(ino, chmod()).await.unwrap();
        for fs in [&there, &here] {
            let file = fs.open(ino, false).await.unwrap().file;
            fs.setattr(ino, chmod()).await.unwrap();
            fs.write(&file, 0, WriteData::Lent(b"y"), false).await.unwrap();
            assert_eq!(here.getattr(ino).await.unwrap().mode, 0o6755);
            fs.write(&file, 0, WriteData::Lent(b"y"), true).await.unwrap();
            assert_eq!(here.getattr(ino).await.unwrap().mode, 0o755);
            fs.setattr(ino, chmod()).await.unwrap();
            fs.append(&file, WriteData::Lent(b"y"), true).await.unwrap();
            assert_eq!(here.getattr(ino).await.unwrap().mode, 0o755);
            fs.close(&file).await.unwrap();
        }
    });
}

#[test]
fn a_node_given_up_answers_at_once_with_an_i_o_error() {
    let cluster = Cluster::new(3);
    let fs = cluster.client(0);
    cluster.block_on(async {
        let (_, lost) = directory_on(&fs, 2).await;
        let far = file(&cluster.client(2), Ino::ROOT, "far", Some(LayoutPolicy::Local), b"gone").await;
        let near = file(&fs, Ino::ROOT, "near", None, b"here").await;
        let open = fs.open(far.ino, false).await.unwrap().file;
        fs.targets().give_up(NodeIndex::new(2));
        assert_eq!(fs.read(&open, 0, 4).await.unwrap_err().errno(), Errno::EIO);
        assert_eq!(fs.write(&open, 0, WriteData::Lent(b"x"), false).await.unwrap_err().errno(), Errno::EIO);
        assert_eq!(fs.getattr(far.ino).await.unwrap_err().errno(), Errno::EIO);
        assert_eq!(fs.lookup(lost, b"x").await.unwrap_err().errno(), Errno::EIO);
        let capacity = cluster.client(1).statfs().await.unwrap().capacity;
        assert_eq!(fs.statfs().await.unwrap().capacity, capacity / 3 * 2, "what is lost does not count");
        let listing = fs.readdir_plus(Ino::ROOT, 0, 9).await.unwrap();
        let listed = |ino| listing.entries.iter().find(|entry| entry.ino == ino).unwrap();
        assert_eq!(listed(near.ino).attr.as_ref().unwrap().size, 4);
        assert_eq!(listed(lost).attr, None, "a directory of the lost node is only a name");
        assert!(listed(far.ino).attr.as_ref().unwrap().layout.is_some(), "where the bytes were is known");
        assert_eq!(fs.getattr(near.ino).await.unwrap().size, 4);
        fs.rename((Ino::ROOT, b"near"), (Ino::ROOT, b"renamed"), RenameMode::Replace).await.unwrap();
        // What could not be opened is not left registered: its inode goes with its name.
        assert_eq!(fs.open(far.ino, true).await.err().unwrap().errno(), Errno::EIO);
        fs.close(&open).await.unwrap();
        fs.unlink(Ino::ROOT, b"far").await.unwrap();
        assert_eq!(cluster.client(1).open(far.ino, false).await.err().unwrap().errno(), Errno::ESTALE);
    });
}

#[test]
fn a_listing_without_a_lost_shard_ends_with_an_error() {
    let cluster = Cluster::that_splits(3);
    let fs = cluster.client(0);
    cluster.block_on(async {
        for n in 0..40 {
            let opened = fs.create(Ino::ROOT, format!("f{n}").as_bytes(), new_file(None)).await.unwrap();
            fs.close(&opened.file).await.unwrap();
        }
        while !fs.is_spread(Ino::ROOT).await.unwrap() {
            tokio::task::yield_now().await;
        }
        let all = fs.readdir(Ino::ROOT, 0, 100).await.unwrap();
        assert!(all.listing.entries.len() == 40 && all.listing.is_end && !all.is_missing_names);
        fs.targets().give_up(NodeIndex::new(2));
        let rest = fs.readdir(Ino::ROOT, 0, 100).await.unwrap();
        assert!((1..40).contains(&rest.listing.entries.len()) && rest.is_missing_names);
        assert!(fs.readdir_plus(Ino::ROOT, 0, 100).await.unwrap().is_missing_names);
        fs.getattr(Ino::ROOT).await.unwrap();
        let (mut found, mut lost) = (0, 0);
        for n in 0..40 {
            match fs.lookup(Ino::ROOT, format!("f{n}").as_bytes()).await {
                Ok(_) => found += 1,
                Err(error) => {
                    assert_eq!(error.errno(), Errno::EIO);
                    lost += 1;
                }
            }
        }
        assert!(found <= rest.listing.entries.len() && lost > 0, "{found} found, {lost} lost");
    });
}

#[test]
fn what_is_asked_at_the_same_time_goes_in_one_message() {
    let cluster = Cluster::new(3);
    let fs = cluster.client(0).gathering();
    cluster.block_on(async {
        let (_, dir) = directory_on(&fs, 1).await;
        let before = cluster.batches();
        let create = async |n: u32| fs.create(dir, format!("f{n}").as_bytes(), new_file(None)).await.unwrap();
        let opened = join_all((0..50).map(create)).await;
        assert_eq!(cluster.batches(), before + 1);
        let other = fs.create(dir, b"f7", NewFile { exclusive: true, ..new_file(None) });
        let missing = fs.lookup(dir, b"nothing");
        let (other, missing, found) = tokio::join!(other, missing, fs.lookup(dir, b"f7"));
        assert_eq!(other.err().map(|error| error.errno()), Some(Errno::EEXIST), "one that is refused stops no other");
        assert_eq!(missing.err().map(|error| error.errno()), Some(Errno::ENOENT));
        assert_eq!(found.unwrap().ino, opened[7].attr.ino);
        assert_eq!(cluster.batches(), before + 2);
        join_all(opened.iter().map(async |opened| fs.close(&opened.file).await.unwrap())).await;
    });
}

#[test]
fn answers_that_are_too_long_together_come_alone() {
    let cluster = Cluster::new(2);
    let fs = cluster.client(0).gathering();
    cluster.block_on(async {
        let (_, dir) = directory_on(&fs, 1).await;
        let mut inos = Vec::new();
        for n in 0..8 {
            let attr = file(&fs, dir, &format!("f{n}"), None, b"").await;
            for tag in 0..200 {
                let name = format!("user.{tag:03}{}", "x".repeat(240));
                fs.setxattr(attr.ino, name.as_bytes(), b"", XattrMode::Any).await.unwrap();
            }
            inos.push(attr.ino);
        }
        let names = join_all(inos.iter().map(async |ino| fs.listxattr(*ino).await.unwrap())).await;
        assert!(names.iter().all(|names| names.len() == 200));
    });
}

#[test]
fn a_leader_that_is_dropped_leaves_nobody_waiting() {
    let cluster = Cluster::new(2);
    let fs = cluster.client(0).gathering();
    cluster.block_on(async {
        let (_, dir) = directory_on(&fs, 1).await;
        let attr = file(&fs, dir, "f", None, b"1").await;
        {
            let mut leader = std::pin::pin!(fs.getattr(attr.ino));
            assert!(leader.as_mut().now_or_never().is_none());
        }
        assert_eq!(fs.getattr(attr.ino).await.unwrap().ino, attr.ino);
    });
}
