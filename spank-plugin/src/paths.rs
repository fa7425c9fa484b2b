//! Whether the paths of a request can work, as far as the submitting host can tell in a moment.
//!
//! The paths are looked at by a process of its own: a parallel file system that hangs holds that one up, and neither the command
//! nor whoever waits for its output. What it has not said in time was not checked, and the user is told so.
//!
//! Only what this host can know is refused. A path that is missing or forbidden on the host's own root or in memory says nothing
//! about the nodes, which may have another file system there; nor does an error of the file system itself.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burstfs_spec::{JobSpec, PersistentPath, SpecError};
use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::host::Host;

/// All paths together; well below the two seconds that a user may be kept waiting.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A question about one path.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Question {
    verb: &'static str,
    /// As the user wrote it.
    shown: String,
    path: PathBuf,
    is_destination: bool,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Answer {
    /// It can work.
    Good,
    /// It cannot, and why.
    Bad(String),
    /// This host does not know, and why.
    Unknown(String),
}

/// How this host's file systems are told apart from those that it shares with the nodes.
pub(crate) type IsShared = fn(&Path) -> bool;

/// Looks at the paths of a request, whose variables are replaced as far as they are known. Fails with the first that cannot
/// work; tells what was not checked.
pub(crate) fn check(host: &dyn Host, spec: &JobSpec, is_shared: IsShared) -> Result<(), SpecError> {
    let questions = questions(spec)?;
    if questions.is_empty() {
        return Ok(());
    }
    let answers = ask_apart(&questions, PATIENCE, |question| answer(question, is_shared));
    for (question, answer) in questions.iter().zip(answers) {
        let Question { verb, shown, .. } = question;
        match answer {
            Answer::Good => {}
            Answer::Unknown(why) => host.info(&format!("burstfs: {verb}: {shown}: not checked: {why}")),
            Answer::Bad(why) if question.is_destination => {
                let message = format!("{verb}: {shown}: {why}; choose another destination");
                return Err(SpecError::new(Code::DestinationNotWritable, message));
            }
            Answer::Bad(why) => {
                let message = format!("{verb}: {why}; correct the path, or make it before you submit the job");
                return Err(SpecError::new(Code::SourceMissing, message));
            }
        }
    }
    Ok(())
}

fn questions(spec: &JobSpec) -> Result<Vec<Question>, SpecError> {
    let mut questions = Vec::new();
    for stage in &spec.stage_in {
        let sources = std::iter::once(&stage.source).chain(&stage.list);
        // What only the nodes know is not asked here.
        for source in sources.filter(|source| source.variables().next().is_none()) {
            let path =
                if source.is_pattern() { source.glob()?.base().to_owned() } else { source.resolved()?.to_owned() };
            let shown = source.to_string();
            questions.push(Question { verb: "stage_in", shown, path: path.into(), is_destination: false });
        }
    }
    for stage in &spec.stage_out {
        let shown = stage.destination.to_string();
        let path = known_part(&stage.destination).into();
        questions.push(Question { verb: "stage_out", shown, path, is_destination: true });
    }
    Ok(questions)
}

fn known_part(destination: &PersistentPath) -> &str {
    destination.resolved().unwrap_or_else(|_| destination.known_directory().unwrap_or("/"))
}

fn answer(question: &Question, is_shared: IsShared) -> Answer {
    let path = &question.path;
    let (place, error) = if question.is_destination {
        match writable(path) {
            Ok(()) => return Answer::Good,
            Err(refusal) => refusal,
        }
    } else {
        match readable(path) {
            Ok(()) => return Answer::Good,
            Err(error) => (path.clone(), error),
        }
    };
    let why = format!("{}: {}", place.display(), describe(&error));
    if !is_about_the_path(&error) || !is_shared(&nearest(&place)) {
        return Answer::Unknown(why);
    }
    Answer::Bad(why)
}

/// This user must be able to read it; what a directory has in it is seen when the job starts.
fn readable(path: &Path) -> std::io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    access(path, if metadata.is_dir() { libc::R_OK | libc::X_OK } else { libc::R_OK })
}

/// The nearest directory that is there must be one in which this user can make something.
fn writable(known: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let mut place = known.to_owned();
    loop {
        match std::fs::metadata(&place) {
            Ok(metadata) if metadata.is_dir() => {
                return access(&place, libc::W_OK | libc::X_OK).map_err(|error| (place, error));
            }
            // What is at the destination itself is replaced; within the path it would have to be a directory.
            Ok(_) if place != known => return Err((place, ErrorKind::NotADirectory.into())),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err((place, error)),
        }
        if !place.pop() {
            return Ok(());
        }
    }
}

/// The nearest part of a path that is there.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|place| std::fs::symlink_metadata(place).is_ok());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// Whether an error speaks of the path, not of the state that its file system is in.
fn is_about_the_path(error: &std::io::Error) -> bool {
    const ABOUT: [i32; 7] =
        [libc::ENOENT, libc::ENOTDIR, libc::EACCES, libc::EPERM, libc::EROFS, libc::ELOOP, libc::ENAMETOOLONG];
    error.kind() == ErrorKind::NotADirectory || error.raw_os_error().is_some_and(|errno| ABOUT.contains(&errno))
}

/// Whether the nodes see the same there, most likely: a mount of its own, and neither memory nor the kernel's.
pub(crate) fn is_shared(place: &Path) -> bool {
    const LOCAL: [i64; 6] = [0x0102_1994, 0x8584_58f6, 0x9fa0, 0x6265_6572, 0x0187, 0x1cd1];
    let (Some(place_mount), Some(root_mount)) = (mount_of(place), mount_of(Path::new("/"))) else { return false };
    let Ok(path) = CString::new(place.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zeros is a `statfs`; the kernel fills it; `path` is a C string that lives until the call returns.
    let kind = unsafe {
        let mut filled: libc::statfs = std::mem::zeroed();
        if libc::statfs(path.as_ptr(), &raw mut filled) == 0 { Some(filled.f_type) } else { None }
    };
    place_mount != root_mount && kind.is_some_and(|kind| !LOCAL.contains(&kind))
}

/// The number of the mount that a path is on.
fn mount_of(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a `statx`; the kernel fills it; `path` is a C string that lives until the call returns.
    unsafe {
        let mut filled: libc::statx = std::mem::zeroed();
        let done = libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_MNT_ID, &raw mut filled);
        (done == 0 && filled.stx_mask & libc::STATX_MNT_ID != 0).then_some(filled.stx_mnt_id)
    }
}

/// The operating system's words without its number.
fn describe(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn access(path: &Path, mode: libc::c_int) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that lives until the call returns.
    match unsafe { libc::access(path.as_ptr(), mode) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Lets another process answer; what it has not answered after `patience` is unknown.
fn ask_apart(questions: &[Question], patience: Duration, answer: impl Fn(&Question) -> Answer) -> Vec<Answer> {
    let until = Instant::now() + patience;
    let unknown = |why: &str| vec![Answer::Unknown(why.to_owned()); questions.len()];
    let Ok((reader, writer)) = pipe() else { return unknown("no pipe to be had") };
    // SAFETY: the command has one thread, so the child may do what a process may. It ends in `answer_all`.
    match unsafe { libc::fork() } {
        -1 => return unknown("no process to be had"),
        0 => answer_all(writer, questions, answer),
        child => {
            drop(writer);
            let mut status = 0;
            // SAFETY: the child is ours. It ends at once: what may hang is its own child.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
        }
    }
    let mut answers = unknown(&format!("its file system did not answer within {} s", patience.as_secs_f32()));
    let mut lines = BufReader::new(File::from(reader));
    for answer in &mut answers {
        match next_line(&mut lines, until).and_then(|line| serde_json::from_str(&line).ok()) {
            Some(given) => *answer = given,
            None => break,
        }
    }
    answers
}

fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors, which are nobody else's.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// A line that comes before `until`. An answer is written with one call, so that a beginning means a whole one.
fn next_line(lines: &mut BufReader<File>, until: Instant) -> Option<String> {
    if lines.buffer().is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: lines.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one structure, which lives until the call returns.
        if unsafe { libc::poll(&raw mut poll, 1, timeout) } <= 0 {
            return None;
        }
    }
    let mut line = String::new();
    lines.read_line(&mut line).ok().filter(|read| *read > 0)?;
    Some(line)
}

/// The child: leaves the command's descriptors and terminal, and answers in a process that nobody waits for.
fn answer_all(writer: OwnedFd, questions: &[Question], answer: impl Fn(&Question) -> Answer) -> ! {
    // SAFETY: calls of the kernel, on descriptors that belong to this process alone. The first process ends before anything that
    // could hang; Slurm's handlers at exit must not run in either, hence `_exit`.
    unsafe {
        if libc::fork() != 0 {
            libc::_exit(0);
        }
        libc::setsid();
        // Whoever reads the command's output waits until nobody has it open.
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        if null >= 0 {
            (0..3).for_each(|fd| {
                libc::dup2(null, fd);
            });
        }
        let own = writer.as_raw_fd();
        if own > 3 {
            libc::syscall(libc::SYS_close_range, 3, own - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, own + 1, u32::MAX, 0);
    }
    let mut out = File::from(writer);
    for question in questions {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| answer(question)));
        let answer = answer.unwrap_or_else(|_| Answer::Unknown("burstfs failed here (E601)".to_owned()));
        let Ok(mut line) = serde_json::to_string(&answer) else { break };
        line.push('\n');
        if out.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    // SAFETY: as above.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(path: &Path, is_destination: bool) -> Question {
        Question { verb: "stage_in", shown: path.display().to_string(), path: path.to_owned(), is_destination }
    }

    #[test]
    fn a_path_that_hangs_is_not_checked_and_holds_nobody_up() {
        let good = tempfile::tempdir().unwrap();
        let questions =
            [question(good.path(), false), question(Path::new("/hangs"), false), question(good.path(), true)];
        let began = Instant::now();
        let answers = ask_apart(&questions, Duration::from_millis(300), |question| {
            if question.path == Path::new("/hangs") {
                std::thread::sleep(Duration::from_secs(20));
            }
            answer(question, |_| true)
        });
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(answers[0], Answer::Good);
        for answer in &answers[1..] {
            let Answer::Unknown(why) = answer else { panic!("{answer:?}") };
            assert!(why.contains("did not answer within 0.3 s"), "{why}");
        }
    }

    #[test]
    fn only_shared_file_systems_are_judged() {
        let place = tempfile::tempdir().unwrap();
        let gone = question(&place.path().join("gone/x"), false);
        assert!(matches!(answer(&gone, |_| true), Answer::Bad(why) if why.contains("gone/x: no such file")));
        assert!(matches!(answer(&gone, |_| false), Answer::Unknown(why) if why.contains("no such file")));
        assert_eq!(answer(&question(&place.path().join("new/x"), true), |_| true), Answer::Good);
        std::fs::write(place.path().join("file"), "").unwrap();
        let within = question(&place.path().join("file/x"), true);
        assert!(matches!(answer(&within, |_| true), Answer::Bad(why) if why.contains("not a directory")));
        for local in ["/", "/proc", "/sys", "/nowhere/at/all"] {
            assert!(!is_shared(&nearest(Path::new(local))), "{local}");
        }
    }

    #[test]
    fn errors_of_a_file_system_are_no_verdicts() {
        for errno in [libc::EIO, libc::ESTALE, libc::ETIMEDOUT, libc::EDQUOT, libc::ENOTCONN] {
            assert!(!is_about_the_path(&std::io::Error::from_raw_os_error(errno)), "{errno}");
        }
        for errno in [libc::ENOENT, libc::EACCES, libc::EROFS] {
            assert!(is_about_the_path(&std::io::Error::from_raw_os_error(errno)), "{errno}");
        }
    }
}
