//! Which objects there are: for the checker.

use std::collections::BTreeSet;

use burstfs_proto::oss::{List, Listed};
use burstfs_types::{Errno, ObjectId};
use rustix::fs::{AtFlags, Mode, openat, statat};
use rustix::io::Errno as SysErrno;

use crate::device::errno;
use crate::name::{SUBDIRS, parse, path_of, subdir_name};
use crate::ost::{DIRECTORY, Ost, entries};
use crate::store::allocated;

/// Of one answer: well below the limit of a message's body.
const OBJECTS_MAX: usize = 8_192;

impl Ost {
    /// The next objects in the order of sub-directories, and of ids in each.
    pub(crate) fn list(&self, request: List) -> Result<Listed, Errno> {
        let mut objects = Vec::new();
        let mut behind = request.behind;
        for part in usize::from(request.part)..SUBDIRS {
            let mut rest = self.objects_in(part)?;
            if let Some(last) = behind.take() {
                rest = rest.split_off(&last);
                rest.remove(&last);
            }
            let mut last_here = request.behind.filter(|_| part == usize::from(request.part));
            for object in rest {
                if objects.len() == OBJECTS_MAX {
                    let next = List { part: part as u16, behind: last_here };
                    return Ok(Listed { objects, next: Some(next) });
                }
                last_here = Some(object);
                match statat(self.store.root(), path_of(object), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => objects.push((object, allocated(&stat))),
                    // Removed meanwhile.
                    Err(SysErrno::NOENT) => {}
                    Err(error) => return Err(errno(error)),
                }
            }
        }
        Ok(Listed { objects, next: None })
    }

    fn objects_in(&self, part: usize) -> Result<BTreeSet<ObjectId>, Errno> {
        let subdir = match openat(self.store.root(), subdir_name(part), DIRECTORY, Mode::empty()) {
            Ok(subdir) => subdir,
            Err(SysErrno::NOENT) => return Ok(BTreeSet::new()),
            Err(error) => return Err(errno(error)),
        };
        let names = entries(std::os::fd::AsFd::as_fd(&subdir)).map_err(errno)?;
        Ok(names.iter().filter_map(|name| parse(part, name.as_bytes())).collect())
    }
}
