//! One process of a metadata load, in the manner of mdtest: works on files of its own in a directory, its own or one that all share.
//!
//! `mdload DIRECTORY FILES BYTES NUMBER`: each line of its input is a phase; the answer to it is a line with the operations that it did, the
//! nanoseconds that they took, and the processor time that this process has had, nanoseconds. It ends with its input.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

struct Load {
    directory: PathBuf,
    files: usize,
    content: Vec<u8>,
    /// Tells its files from those of the others, which may have the same process number on other nodes.
    number: usize,
}

impl Load {
    fn path(&self, kind: &str, index: usize) -> PathBuf {
        self.directory.join(format!("{kind}.{}.{index}", self.number))
    }

    fn each(&self, operation: impl Fn(&Path) -> io::Result<()>) -> Result<usize> {
        for index in 0..self.files {
            let path = self.path("f", index);
            operation(&path).with_context(|| path.display().to_string())?;
        }
        Ok(self.files)
    }

    fn run(&self, phase: &str) -> Result<usize> {
        match phase {
            "create" => self.each(|path| {
                let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
                if self.content.is_empty() { Ok(()) } else { file.write_all(&self.content) }
            }),
            "stat" | "stat again" => self.each(|path| fs::metadata(path).map(drop)),
            "open+close" | "open+close again" => self.each(|path| File::open(path).map(drop)),
            "readdir+stat" => {
                let mut seen = 0;
                for entry in fs::read_dir(&self.directory)? {
                    entry?.metadata()?;
                    seen += 1;
                }
                Ok(seen)
            }
            "rename" => {
                for index in 0..self.files {
                    fs::rename(self.path("f", index), self.path("g", index))?;
                }
                for index in 0..self.files {
                    fs::rename(self.path("g", index), self.path("f", index))?;
                }
                Ok(2 * self.files)
            }
            "remove" => self.each(|path| fs::remove_file(path)),
            _ => bail!("no such phase: {phase}"),
        }
    }
}

/// What this process has had of the processors, ns.
fn processor_time() -> Result<u64> {
    let schedstat = fs::read_to_string("/proc/self/schedstat")?;
    Ok(schedstat.split_whitespace().next().context("an empty schedstat")?.parse()?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("mdload DIRECTORY FILES BYTES NUMBER");
    let (directory, files, bytes) = (PathBuf::from(next()?), next()?.parse()?, next()?.parse()?);
    let load = Load { directory, files, content: vec![b'x'; bytes], number: next()?.parse()? };
    for phase in io::stdin().lock().lines() {
        let begin = Instant::now();
        let done = load.run(&phase?)?;
        println!("{done} {} {}", begin.elapsed().as_nanos(), processor_time()?);
    }
    Ok(())
}
