//! What this program does on a node: the bare TCP socket with a file at its end, and small files.
//!
//! ```text
//! driver tcp-serve PORT FILE                         serves one connection
//! driver tcp-load ADDRESS KIND BLOCK BYTES MS        MiB/s, and seconds of processor time per GiB, of both ends
//! driver small DIRECTORY BYTES MS                    files made and files read per second
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use burstfs_tests::fio::Outcome;

/// A request: what, where, how many bytes; the bytes of a write follow. The answer is the bytes read, or one byte. At the end the
/// server says its processor time.
const HEAD: usize = 16;
const WRITE: u32 = 1;
const READ: u32 = 2;
const END: u32 = 3;

pub(crate) fn main(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["tcp-serve", port, file] => serve(port.parse()?, Path::new(file)),
        ["tcp-load", address, kind, block, bytes, ms] => {
            load(address, kind, block.parse()?, bytes.parse()?, Duration::from_millis(ms.parse()?))
        }
        ["small", directory, bytes, ms] => {
            small(Path::new(directory), bytes.parse()?, Duration::from_millis(ms.parse()?))
        }
        _ => bail!("bench-data has no arguments"),
    }
}

/// What `tcp-load` says.
pub(crate) fn parse(said: &str) -> Result<Outcome> {
    let (rate, cpu) = said.trim().split_once(' ').with_context(|| format!("tcp-load: {said}"))?;
    Ok(Outcome { rate: rate.parse()?, cpu: cpu.parse()? })
}

fn serve(port: u16, path: &Path) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let mut stream = listener.accept()?.0;
    stream.set_nodelay(true)?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let (mut head, mut bytes) = ([0; HEAD], Vec::new());
    loop {
        stream.read_exact(&mut head)?;
        let [what, len] = [0, 4].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let offset = u64::from_le_bytes(head[8..].try_into()?);
        bytes.resize(len as usize, 0);
        match what {
            WRITE => {
                stream.read_exact(&mut bytes)?;
                file.write_all_at(&bytes, offset)?;
                stream.write_all(&[0])?;
            }
            READ => {
                file.read_exact_at(&mut bytes, offset)?;
                stream.write_all(&bytes)?;
            }
            _ => {
                stream.write_all(&cpu_ns()?.to_le_bytes())?;
                return Ok(());
            }
        }
    }
}

fn request(stream: &mut TcpStream, what: u32, offset: u64, len: usize) -> Result<()> {
    let head = [&what.to_le_bytes()[..], &u32::try_from(len)?.to_le_bytes(), &offset.to_le_bytes()].concat();
    Ok(stream.write_all(&head)?)
}

fn load(address: &str, kind: &str, block: usize, bytes: u64, time: Duration) -> Result<()> {
    let patience = Instant::now() + Duration::from_secs(20);
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > patience => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_nodelay(true)?;
    let (mut buffer, blocks) = (vec![7; block], bytes / block as u64);
    // All of the file is there, as with fio.
    for at in (0..bytes).step_by(1 << 20) {
        write(&mut stream, at, &vec![7; 1 << 20])?;
    }
    let (start, cpu_before, mut count, mut state) = (Instant::now(), cpu_ns()?, 0_u64, 0x9e37_79b9_u64);
    while start.elapsed() < time {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = if kind.starts_with("rand") { (state >> 33) % blocks } else { count % blocks };
        let offset = at * block as u64;
        if kind.ends_with("write") {
            write(&mut stream, offset, &buffer)?;
        } else {
            request(&mut stream, READ, offset, block)?;
            stream.read_exact(&mut buffer)?;
        }
        count += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let own = cpu_ns()? - cpu_before;
    request(&mut stream, END, 0, 0)?;
    let mut theirs = [0; 8];
    stream.read_exact(&mut theirs)?;
    let moved = count as f64 * block as f64;
    // The server's share of writing the file first is a fixed part of it; it is counted, and small.
    let cpu = (own + u64::from_le_bytes(theirs)) as f64 / 1e9 / (moved / f64::from(1 << 30));
    println!("{:.3} {cpu:.4}", moved / seconds / f64::from(1 << 20));
    Ok(())
}

fn write(stream: &mut TcpStream, offset: u64, bytes: &[u8]) -> Result<()> {
    request(stream, WRITE, offset, bytes.len())?;
    stream.write_all(bytes)?;
    Ok(stream.read_exact(&mut [0])?)
}

/// Processor time of this process.
fn cpu_ns() -> Result<u64> {
    let schedstat = fs::read_to_string("/proc/self/schedstat")?;
    Ok(schedstat.split_whitespace().next().context("schedstat")?.parse()?)
}

fn small(directory: &Path, bytes: usize, time: Duration) -> Result<()> {
    let own = directory.join(format!("small{}", std::process::id()));
    fs::create_dir(&own)?;
    let (data, path) = (vec![7; bytes], |n: u64| own.join(n.to_string()));
    let (start, mut made) = (Instant::now(), 0);
    while start.elapsed() < time {
        File::create_new(path(made))?.write_all(&data)?;
        made += 1;
    }
    let make_rate = made as f64 / start.elapsed().as_secs_f64();
    let (start, mut read, mut found) = (Instant::now(), 0, Vec::with_capacity(bytes));
    while start.elapsed() < time {
        found.clear();
        File::open(path(read % made))?.read_to_end(&mut found)?;
        read += 1;
    }
    println!("{make_rate:.1} {:.1}", read as f64 / start.elapsed().as_secs_f64());
    fs::remove_dir_all(own)?;
    Ok(())
}
