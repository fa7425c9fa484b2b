//! A `burstfsd` that keeps the protocol and no files. It checks what a real one relies on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use burstfs_node::backing;
use burstfs_node::control::{
    BACKING_FD, CONTROL_FD, DaemonMessage, FUSE_FD, LineDecoder, NodeMessage, Progress, State, encode,
};
use burstfs_node::description::InstanceDescription;
use burstfs_node::held::Hope;
use burstfs_types::{Code, Failure};

struct Stage {
    control: UnixStream,
    decoder: LineDecoder,
}

impl Stage {
    fn say(&mut self, message: &DaemonMessage) {
        let _ = self.control.write_all(&encode(message).unwrap());
    }

    /// The next message; `None` when the supervisor is gone.
    fn hear(&mut self) -> Option<NodeMessage> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            match self.control.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }
}

pub(crate) fn play() {
    // SAFETY: the supervisor put the control socket there.
    let control = UnixStream::from(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
    let mut stage = Stage { control, decoder: LineDecoder::default() };
    let Some(NodeMessage::Start(description)) = stage.hear() else { panic!("no start message") };
    check_surroundings(&description);
    if description.serves_mount {
        // SAFETY: the supervisor put the device there.
        let device = File::from(unsafe { OwnedFd::from_raw_fd(FUSE_FD) });
        std::thread::spawn(move || serve(device));
    }
    std::fs::write(description.data_dir.join("lives"), format!("{}\n", description.restarted)).unwrap();
    let part = description.work_dir.file_name().unwrap().to_str().unwrap().to_owned();
    match description.held {
        Some(_) => hold(&mut stage, &part, &description),
        None => {
            stage.say(&DaemonMessage::State(State::Starting));
            act(&mut stage, &part, &description);
        }
    }
}

#[expect(clippy::zombie_processes, reason = "what a daemon leaves behind is what a scenario is about")]
fn act(stage: &mut Stage, part: &str, description: &InstanceDescription) {
    match part {
        "dies-at-start" => {
            eprintln!("cannot open\nmdt/CURRENT: \u{1b}[31mbad");
            std::process::exit(3);
        }
        "fails" => stage.say(&DaemonMessage::Failed(Failure::new(Code::StageInFailed, "/lus/in: no such file"))),
        "evil-environment" => {
            let environment = BTreeMap::from([("LD_PRELOAD".to_owned(), "/tmp/evil.so".to_owned())]);
            stage.say(&DaemonMessage::Ready { environment });
        }
        "leaves-child" => {
            let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
            std::fs::write(description.data_dir.join("child"), child.id().to_string()).unwrap();
            stage.say(&DaemonMessage::Ready { environment: BTreeMap::new() });
        }
        "nonsense" => stage.control.write_all(b"{\"ready\":\n").unwrap(),
        "never-ready" => stage.say(&DaemonMessage::State(State::StagingIn)),
        "dies-on-restart" if description.restarted && description.serves_mount => std::process::exit(4),
        _ => {
            let environment = BTreeMap::from([("BURSTFS".to_owned(), description.mount.display().to_string())]);
            stage.say(&DaemonMessage::Ready { environment });
        }
    }
    if part == "asks-broker" {
        let data = description.data_dir.clone();
        std::thread::spawn(move || ask_broker(&data));
    }
    loop {
        match stage.hear() {
            Some(NodeMessage::ClientGone) => drain(stage, part, description),
            Some(NodeMessage::Cancel) => {
                stage.say(&DaemonMessage::Failed(Failure::new(Code::Cancelled, "cancelled")));
            }
            Some(NodeMessage::Stop) => return,
            Some(NodeMessage::Start(_)) => panic!("started twice"),
            Some(NodeMessage::JobEnd(_) | NodeMessage::Resume | NodeMessage::Removed(_)) => {}
            // A real one goes on serving without its supervisor.
            None => loop {
                std::thread::park();
            },
        }
    }
}

/// Asks for an id again and again, and counts the answers; the kernel refuses all, since nobody has agreed on passthrough. A
/// question that a broker took along is asked again.
fn ask_broker(data: &Path) {
    // SAFETY: the supervisor put the broker's socket there.
    let socket = unsafe { OwnedFd::from_raw_fd(BACKING_FD) };
    let file = File::options().read(true).write(true).create(true).truncate(false).open(data.join("object")).unwrap();
    let mut answers = 0_u64;
    for ticket in 0.. {
        backing::send_open(socket.as_fd(), ticket, file.as_fd()).unwrap();
        let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        if rustix::event::poll(&mut fds, Some(&limit)) == Ok(1) {
            let answer = backing::receive(socket.as_fd()).unwrap().expect("the supervisor keeps the other end");
            assert!(answer.id.is_err(), "{answer:?}");
            answers += 1;
            std::fs::write(data.join("answers"), answers.to_string()).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A life that waits to drain what is held.
fn hold(stage: &mut Stage, part: &str, description: &InstanceDescription) {
    stage.say(&DaemonMessage::State(State::Held));
    std::fs::write(description.data_dir.join("told"), format!("{:?}", description.job_end)).unwrap();
    let used = std::fs::read_to_string(description.data_dir.join("used")).ok().and_then(|used| used.parse().ok());
    stage.say(&DaemonMessage::Progress(Progress { used_bytes: used.unwrap_or(0), ..Progress::default() }));
    loop {
        match stage.hear() {
            Some(NodeMessage::Resume) => {
                stage.say(&DaemonMessage::State(State::Draining));
                stage.say(&drained((part == "held").then(quota)));
            }
            Some(NodeMessage::Stop) => return,
            Some(_) => {}
            None => loop {
                std::thread::park();
            },
        }
    }
}

fn quota() -> Failure {
    Failure::new(Code::DrainFailed, "quota exceeded on /lus")
}

fn drained(failure: Option<Failure>) -> DaemonMessage {
    let hope = Hope { errors_may_pass: failure.is_some(), nodes_may_return: false };
    DaemonMessage::Drained { complete: failure.is_none(), failure, hope, suspects: Vec::new() }
}

fn drain(stage: &mut Stage, part: &str, description: &InstanceDescription) {
    stage.say(&DaemonMessage::State(State::Draining));
    match part {
        "asks-job-end" => {
            stage.say(&DaemonMessage::AskJobEnd);
            let Some(NodeMessage::JobEnd(end)) = stage.hear() else { panic!("no answer") };
            std::fs::write(description.data_dir.join("heard"), format!("{end:?}")).unwrap();
            stage.say(&drained(Some(quota())));
        }
        "held" | "held-at-first" => stage.say(&drained(Some(quota()))),
        "dies-in-drain" if !description.restarted => std::process::exit(5),
        "hangs-in-drain" => {}
        "durable" => stage.say(&DaemonMessage::Durable),
        _ => stage.say(&drained(None)),
    }
}

/// No privilege, no descriptor, no variable that it should not have.
fn check_surroundings(description: &InstanceDescription) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let (uid, gid) = (description.uid, description.gid);
    assert_eq!(field("Uid:"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(field("Gid:"), format!("{gid} {gid} {gid} {gid}"));
    assert_eq!(field("Groups:"), gid.to_string());
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    let mut descriptors: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    descriptors.sort_unstable();
    // The last one is that of the listing itself.
    descriptors.pop();
    let expected = if description.serves_mount {
        vec![0, 1, 2, CONTROL_FD, FUSE_FD, BACKING_FD]
    } else {
        vec![0, 1, 2, CONTROL_FD]
    };
    assert_eq!(descriptors, expected);
    let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name == "PATH" || name == "SLURM_CONF"), "{names:?}");
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
    // SAFETY: asks only.
    assert_eq!(unsafe { libc::getsid(0) }, std::process::id().cast_signed(), "a session of its own");
}

/// Answers the kernel's first question and the one about the root directory; everything else does not exist.
fn serve(device: File) {
    let mut request = vec![0; 1 << 20];
    loop {
        let Ok(count) = (&device).read(&mut request) else { return };
        if count < 40 {
            return;
        }
        let opcode = u32::from_le_bytes(request[4..8].try_into().unwrap());
        let unique = &request[8..16];
        let (errno, body) = match opcode {
            // FORGET, BATCH_FORGET, INTERRUPT have no answer.
            2 | 36 | 42 => continue,
            26 => (0, init_reply(&request)),
            3 => (0, attr_reply()),
            // OPEN, OPENDIR
            14 | 27 => (0, vec![0; 16]),
            // READ, READDIR: the end. FLUSH, RELEASE, RELEASEDIR, DESTROY, ACCESS: fine.
            15 | 28 | 25 | 18 | 29 | 38 | 34 => (0, Vec::new()),
            _ => (libc::ENOENT, Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend(u32::try_from(16 + body.len()).unwrap().to_le_bytes());
        reply.extend((-errno).to_le_bytes());
        reply.extend(unique);
        reply.extend(body);
        if (&device).write_all(&reply).is_err() {
            return;
        }
    }
}

/// `fuse_init_out` of 7.31: 64 bytes.
fn init_reply(request: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(7_u32.to_le_bytes());
    out.extend(31_u32.to_le_bytes());
    out.extend(&request[48..52]);
    out.extend(0_u32.to_le_bytes());
    out.extend([0; 4]);
    out.extend(65_536_u32.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    out.resize(64, 0);
    out
}

/// `fuse_attr_out` of a directory of the daemon's user: 104 bytes.
fn attr_reply() -> Vec<u8> {
    let mut out = vec![0; 16];
    // ino, size, blocks, three times
    out.extend(1_u64.to_le_bytes());
    out.extend([0; 40]);
    out.extend([0; 12]);
    out.extend(0o40_700_u32.to_le_bytes());
    out.extend(2_u32.to_le_bytes());
    // SAFETY: asks only.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    out.extend(uid.to_le_bytes());
    out.extend(gid.to_le_bytes());
    out.resize(104, 0);
    out
}
