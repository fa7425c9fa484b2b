//! Directories that are spread over several nodes, and are being spread, as programs see them. Needs root and `/dev/fuse`.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use burstfs_client::fs::ClientFs;
use burstfs_types::Ino;
use support::cluster::Cluster;
use support::mount::{Mounted, own_namespace};

fn mounts(cluster: &Cluster, nodes: usize) -> Vec<Mounted> {
    (0..nodes).map(|node| Mounted::new(cluster.client(node), None, cluster.runtime())).collect()
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Waits until the directory's names are where they belong.
fn spread(cluster: &Cluster, fs: &ClientFs, directory: &Path) {
    let ino = Ino::from_raw(fs::metadata(directory).unwrap().ino()).unwrap();
    while !cluster.block_on(fs.is_spread(ino)).unwrap() {
        thread::yield_now();
    }
}

#[test]
fn nodes_that_fill_one_directory_see_one_directory() {
    own_namespace();
    let cluster = Cluster::that_splits(4);
    let mounts = mounts(&cluster, 4);
    fs::create_dir(mounts[0].join("d")).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let fill = |node: usize| {
            let directory = mounts[node].join("d");
            move || {
                for n in 0..300 {
                    File::create_new(directory.join(format!("{node}-{n}"))).unwrap();
                    if n % 3 == 0 {
                        fs::rename(directory.join(format!("{node}-{n}")), directory.join(format!("{node}-{n}-new")))
                            .unwrap();
                    }
                    if n % 5 == 1 && n % 3 != 0 {
                        fs::remove_file(directory.join(format!("{node}-{n}"))).unwrap();
                    }
                    if n % 50 == 7 {
                        fs::create_dir(directory.join(format!("{node}-{n}-d"))).unwrap();
                    }
                }
            }
        };
        let fillers: Vec<_> = (0..4).map(|node| scope.spawn(fill(node))).collect();
        let looker = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let listed = names(&mounts[3].join("d"));
                let unique: BTreeSet<&String> = listed.iter().collect();
                assert_eq!(unique.len(), listed.len());
            }
        });
        fillers.into_iter().for_each(|filler| filler.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        looker.join().unwrap();
    });
    let mut expected = BTreeSet::new();
    for node in 0..4 {
        for n in 0..300 {
            if n % 3 == 0 {
                expected.insert(format!("{node}-{n}-new"));
            } else if n % 5 != 1 {
                expected.insert(format!("{node}-{n}"));
            }
            if n % 50 == 7 {
                expected.insert(format!("{node}-{n}-d"));
            }
        }
    }
    spread(&cluster, &cluster.client(0), &mounts[0].join("d"));
    for mount in &mounts {
        let directory = mount.join("d");
        assert_eq!(names(&directory).into_iter().collect::<BTreeSet<_>>(), expected);
        assert_eq!(fs::metadata(&directory).unwrap().nlink(), 2 + 4 * 6);
    }
    assert!(fs::remove_dir(mounts[1].join("d")).is_err());
    fs::remove_dir_all(mounts[2].join("d")).unwrap();
    assert!(!mounts[0].join("d").exists());
}

#[test]
fn directories_move_into_within_and_out_of_a_spread_one() {
    own_namespace();
    let cluster = Cluster::that_splits(3);
    let mounts = mounts(&cluster, 2);
    let (here, there) = (&mounts[0], &mounts[1]);
    fs::create_dir(here.join("d")).unwrap();
    fs::create_dir(here.join("other")).unwrap();
    for n in 0..60 {
        fs::create_dir(here.join(&format!("d/{n}"))).unwrap();
        fs::write(here.join(&format!("d/{n}/f")), n.to_string()).unwrap();
    }
    spread(&cluster, &cluster.client(0), &here.join("d"));
    for n in 0..60 {
        let (old, new) = (format!("d/{n}"), format!("d/{}", n + 100));
        fs::rename(there.join(&old), there.join(&new)).unwrap();
        assert_eq!(fs::read_to_string(here.join(&format!("{new}/f"))).unwrap(), n.to_string());
        // Not into itself, by whatever shard its name is with.
        assert!(fs::rename(here.join("d"), here.join(&format!("{new}/d"))).is_err());
        if n % 2 == 0 {
            fs::rename(here.join(&new), here.join(&format!("other/{n}"))).unwrap();
            assert_eq!(fs::read_to_string(there.join(&format!("other/{n}/f"))).unwrap(), n.to_string());
        }
    }
    assert_eq!((names(&there.join("d")).len(), names(&there.join("other")).len()), (30, 30));
    assert_eq!(fs::metadata(there.join("d")).unwrap().nlink(), 32);
    fs::hard_link(here.join("other/0/f"), here.join("d/link")).unwrap();
    assert_eq!(fs::metadata(there.join("d/link")).unwrap().nlink(), 2);
    fs::rename(there.join("d"), there.join("other/d")).unwrap();
    assert_eq!(fs::read_to_string(here.join("other/d/link")).unwrap(), "0");
}
