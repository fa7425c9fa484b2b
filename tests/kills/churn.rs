//! Random operations on names of its own in directories that all nodes share, until the file `stop` is there; each name is known to be as
//! the last operation that returned has left it, or, where one failed, as before it or as after it.
//!
//! `churn MOUNT NODE SEED STOP`: prints how many operations returned, or what was not as it should be.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Directories that all share; their homes are on all nodes.
const DIRECTORIES: usize = 8;
/// Names in each.
const NAMES: usize = 6;
/// A daemon is back long before.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts while a mount is being made again.
const PAUSE: Duration = Duration::from_millis(20);

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Named {
    Nothing,
    /// A file with this content; equal ones are one file.
    File(u64),
    /// A directory with a file `f` of this content in it.
    Directory(u64),
}

type Slot = (usize, usize);

struct Churn {
    mount: PathBuf,
    node: String,
    random: u64,
    names: BTreeMap<Slot, Named>,
    next_content: u64,
    done: u64,
    failed: u64,
}

impl Churn {
    fn pick(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    }

    fn path(&self, (directory, name): Slot) -> PathBuf {
        self.mount.join(format!("shared{directory}/{}-{name}", self.node))
    }

    /// What `slot` is, asked until there is an answer.
    fn look(&self, slot: Slot) -> Result<Named> {
        let path = self.path(slot);
        patiently(|| {
            let kind = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata.file_type(),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Named::Nothing),
                Err(error) => return Err(error),
            };
            if kind.is_dir() { Ok(Named::Directory(read(&path.join("f"))?)) } else { Ok(Named::File(read(&path)?)) }
        })
        .with_context(|| path.display().to_string())
    }

    /// Runs an operation that changes `slots` to `after`. If it fails, whether it happened or not is found out; anything between is
    /// an error.
    fn change(&mut self, slots: &[(Slot, Named)], operation: impl Fn() -> io::Result<()>) -> Result<()> {
        let result = operation();
        if result.is_ok() {
            self.done += 1;
            self.names.extend(slots.iter().copied());
            return Ok(());
        }
        self.failed += 1;
        let is = slots.iter().map(|(slot, _)| Ok((*slot, self.look(*slot)?))).collect::<Result<Vec<_>>>()?;
        let was: Vec<_> = slots.iter().map(|(slot, _)| (*slot, self.names[slot])).collect();
        let shall: Vec<_> = slots.to_vec();
        ensure!(is == was || is == shall, "{result:?} has left {is:?}, between {was:?} and {shall:?}");
        self.names.extend(is);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let slot = (self.pick(DIRECTORIES), self.pick(NAMES));
        let other = (self.pick(DIRECTORIES), self.pick(NAMES));
        let (path, new) = (self.path(slot), self.path(other));
        match (self.names[&slot], self.names[&other], self.pick(6)) {
            (Named::Nothing, _, 0..3) => self.make_file(slot),
            (Named::Nothing, _, _) => self.make_directory(slot),
            (is, _, 0) => {
                let found = self.look(slot)?;
                ensure!(found == is, "{} was {is:?} and is {found:?}", path.display());
                self.check_links(slot, is)
            }
            (Named::File(_), _, 1) => self.change(&[(slot, Named::Nothing)], || fs::remove_file(&path)),
            (Named::Directory(_), _, 1) => self.remove_directory(slot),
            (Named::File(content), Named::Nothing, 2) => {
                self.change(&[(other, Named::File(content))], || fs::hard_link(&path, &new))
            }
            (from, to, _) if slot != other && may_replace(from, to) => {
                self.change(&[(slot, Named::Nothing), (other, from)], || fs::rename(&path, &new))
            }
            _ => Ok(()),
        }
    }

    fn content(&mut self) -> u64 {
        self.next_content += 1;
        self.next_content
    }

    /// Several operations: what fails is taken away again.
    fn make_file(&mut self, slot: Slot) -> Result<()> {
        let (path, content) = (self.path(slot), self.content());
        match write(&path, content) {
            Ok(()) => {
                self.done += 1;
                self.names.insert(slot, Named::File(content));
                Ok(())
            }
            Err(_) => self.take_away(&path),
        }
    }

    fn make_directory(&mut self, slot: Slot) -> Result<()> {
        let (path, content) = (self.path(slot), self.content());
        match fs::create_dir(&path).and_then(|()| write(&path.join("f"), content)) {
            Ok(()) => {
                self.done += 2;
                self.names.insert(slot, Named::Directory(content));
                Ok(())
            }
            Err(_) => self.take_away(&path),
        }
    }

    fn remove_directory(&mut self, slot: Slot) -> Result<()> {
        let path = self.path(slot);
        self.names.insert(slot, Named::Nothing);
        match fs::remove_file(path.join("f")).and_then(|()| fs::remove_dir(&path)) {
            Ok(()) => {
                self.done += 2;
                Ok(())
            }
            Err(_) => self.take_away(&path),
        }
    }

    fn take_away(&mut self, path: &Path) -> Result<()> {
        self.failed += 1;
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        patiently(|| match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                gone(fs::remove_file(path.join("f")))?;
                gone(fs::remove_dir(path))
            }
            Ok(_) => gone(fs::remove_file(path)),
            Err(error) => gone(Err(error)),
        })
        .with_context(|| path.display().to_string())
    }

    fn check_links(&self, slot: Slot, is: Named) -> Result<()> {
        let Named::File(_) = is else { return Ok(()) };
        let path = self.path(slot);
        let links = patiently(|| fs::metadata(&path))?.nlink();
        let names = self.names.values().filter(|named| **named == is).count() as u64;
        ensure!(links == names, "{} has {links} links and {names} names", path.display());
        Ok(())
    }

    fn check_all(&self) -> Result<()> {
        for (slot, named) in &self.names {
            let is = self.look(*slot)?;
            ensure!(is == *named, "{} was {named:?} and is {is:?}", self.path(*slot).display());
            self.check_links(*slot, *named)?;
        }
        Ok(())
    }
}

/// A directory here is never empty, and replaces nothing but a free name.
fn may_replace(from: Named, to: Named) -> bool {
    to == Named::Nothing || matches!((from, to), (Named::File(a), Named::File(b)) if a != b)
}

fn write(path: &Path, content: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(&content.to_le_bytes())
}

fn read(path: &Path) -> io::Result<u64> {
    let bytes = fs::read(path)?;
    // No content is 0: a file that is cut short is none that was written.
    Ok(bytes.try_into().map_or(0, u64::from_le_bytes))
}

/// Tries again while the mount, or what it needs, is away.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn churn() -> Result<String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mount, node, seed, stop] = args.as_slice() else { bail!("churn MOUNT NODE SEED STOP") };
    let slots = (0..DIRECTORIES).flat_map(|directory| (0..NAMES).map(move |name| (directory, name)));
    let mut churn = Churn {
        mount: PathBuf::from(mount),
        node: node.clone(),
        random: seed.parse()?,
        names: slots.map(|slot| (slot, Named::Nothing)).collect(),
        next_content: 0,
        done: 0,
        failed: 0,
    };
    for directory in 0..DIRECTORIES {
        let path = churn.mount.join(format!("shared{directory}"));
        patiently(|| fs::create_dir_all(&path))?;
    }
    while !Path::new(stop).exists() {
        for _ in 0..20 {
            churn.step()?;
        }
    }
    churn.check_all()?;
    Ok(format!("{} operations returned, {} were interrupted", churn.done, churn.failed))
}

fn main() -> ExitCode {
    match churn() {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("WRONG: {error:#}");
            ExitCode::FAILURE
        }
    }
}
