//! The stable codes of everything that burstfs tells a user or an administrator: what `burstfs explain CODE` knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What part of an instance's life a code belongs to: its first digit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    /// E1xx: the request itself.
    Request,
    /// E2xx: start and stage-in.
    Start,
    /// E3xx: while the job runs.
    Run,
    /// E4xx: drain.
    Drain,
    /// E5xx: teardown.
    Teardown,
    /// E6xx: a bug in burstfs.
    Bug,
}

macro_rules! codes {
    ($($variant:ident = $number:literal, $title:literal, $explanation:literal;)*) => {
        /// A stable error code: its number never changes its meaning.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The number behind the `E`.
            pub const fn number(self) -> u16 {
                match self { $(Code::$variant => $number,)* }
            }

            /// A few words.
            pub const fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }

            /// What it means, where it comes from and what to do about it.
            pub const fn explanation(self) -> &'static str {
                match self { $(Code::$variant => $explanation,)* }
            }
        }
    };
}

codes! {
    BadSyntax = 101, "the directive cannot be read",
        "A --burstfs value is a list of key=value items, separated by commas or by white space, with an optional verb in front. The message marks the place.";
    UnknownKey = 102, "unknown key",
        "The verb has no such key. Look for a typing mistake; the message names the nearest known key.";
    BadValue = 103, "the value is not one that this key takes",
        "The message says what the key takes and marks the value.";
    BadSize = 104, "not a size",
        "A size is a number with a unit: K M G T P or KiB to PiB (powers of 1024), KB to PB (powers of 1000). A bare number is refused, since nobody can tell what was meant.";
    DuplicateKey = 105, "a key twice in one directive",
        "Each key may stand once in a directive. In a later directive (or on the command line) it overrides the earlier one.";
    Conflict = 106, "two parts of the request exclude one another",
        "For instance capacity with per_node, or two stage_out directives to the same destination.";
    BadPath = 107, "not a usable path",
        "Paths are absolute; %j %A %a %u %x %d %% and $USER $HOME $SLURM_SUBMIT_DIR are replaced, nothing else. A path on the instance's side cannot leave it.";
    NotBuiltYet = 108, "known, but not in this version",
        "The key or value is part of burstfs's interface but this version cannot honour it, so the job is refused instead of running without it.";
    UnknownProfile = 109, "no such profile",
        "The first word of a create directive is a size or a profile of the site. `burstfs config show` lists the profiles.";
    SpecTooLarge = 110, "the request is larger than 64 KiB",
        "Use fewer stage_in and stage_out directives: name a directory instead of its files.";
    SourceMissing = 111, "the source of a stage_in cannot be read",
        "It does not exist, or you may not read it, as seen from where the job was submitted.";
    DestinationNotWritable = 112, "the destination of a stage_out cannot be written",
        "Its parent directory does not exist or you may not write there, as seen from where the job was submitted.";
    CapacityTooLarge = 113, "more capacity than the nodes have",
        "The capacity asked for is above what the site's configuration allows per node, or above what the nodes' NVMe can hold.";
    BadConfig = 120, "the site's configuration is wrong",
        "An administrator must look: `burstfs config check` says where.";
    PrologFlags = 121, "Slurm's PrologFlags do not fit",
        "burstfs needs PrologFlags=Alloc,DeferBatch in slurm.conf: without Alloc most nodes get no prolog, without DeferBatch the script starts before the file system is there. With RunInJob Slurm runs prologs within the job, which ends what they start.";

    NvmeMissing = 201, "the node's NVMe directory is not there",
        "The directory that burstfs.toml names as nvme does not exist on this node, is no directory, or can be written by others than root.";
    NvmeFull = 202, "the node's NVMe has not enough room",
        "The node's share of the capacity is larger than the free space of its NVMe. Another instance, or leftovers of other software, use it.";
    DaemonFailed = 203, "burstfsd could not start",
        "The node's daemon ended, or could not be executed; its last words are in the message, its log is in the node's log directory. Or nothing was started at all, since Slurm runs no prolog of burstfs: an administrator looks at Prolog= in slurm.conf.";
    NodeMissing = 204, "a node did not join in time",
        "The nodes of an instance find one another at the first node of the job. The named nodes did not, until the start time-out.";
    MountFailed = 205, "the file system could not be mounted",
        "The kernel refused the FUSE mount on this node; is the fuse module loaded, and /dev/fuse there?";
    Cancelled = 206, "the job was cancelled while it started",
        "scancel, or the job's end, before the file system was ready.";
    StageInFailed = 207, "stage_in failed",
        "A source could not be copied into the instance. The message names the first file and the reason.";
    Identity = 208, "a peer could not prove who it is",
        "The nodes of an instance authenticate with MUNGE. Is munged running on every node, with the same key and the clocks together?";
    Request = 209, "the job's request was refused on the node",
        "The request that reached the node is not what sbatch accepted: it is checked again there, since it travels in the user's environment.";
    StageInNoSpace = 210, "the input does not fit",
        "The instance's capacity is smaller than what stage_in brings. Ask for more with capacity=.";
    RdmaMissing = 211, "RDMA was asked for and is not to be had",
        "transport=rdma was asked for, and a node has no RDMA device that serves its address, no active port, no right or no locked memory for it, or a burstfs without RDMA. The message says which. Ask for transport=auto, which uses TCP there; docs/rdma.md says what RDMA needs.";
    NvmeHeld = 212, "data of earlier jobs takes the node's room",
        "Output of earlier jobs that could not be drained is kept on the node for a while, and with it there is not enough room for this job's share. The message says how much there is, whose data it is and until when it is kept. Ask for less, or for other nodes; `burstfs resume` of those jobs makes room, and so does, for good, an administrator's `burstfs-node gc`.";
    StageInHeld = 213, "stage_in failed, and the job is held",
        "A stage_in with on_error=hold could not be done, so the job went back into the queue and is held there, with its script not run. The message, which is the job's AdminComment as well (scontrol show job), says why. Put it right, then: scontrol release JOBID.";

    DaemonRestarted = 301, "burstfsd was restarted",
        "The daemon of a node ended while the job ran and was started again. Files that were open on that node answer ENOTCONN; everything that a system call had completed is there.";
    DaemonLost = 302, "burstfsd keeps failing",
        "The daemon of a node ended several times in a row and is not started again until the job's end.";
    NodeLost = 303, "a node of the instance was lost",
        "Nothing was heard of the node for the time-out that burstfs.toml names silence. What needs it answers EIO at once; the rest of the instance goes on, and the receipt of the drain names what is missing. If the node comes back, its part is drained as well, if that had been written to its disk before; else the receipt goes on saying INCOMPLETE, since nobody can know what was lost.";

    DrainFailed = 401, "stage_out failed for some files",
        "The receipt names each of them with the reason. What could not be drained is kept on the nodes.";
    DrainIncomplete = 402, "not everything could be drained",
        "A node was lost, or its daemon could not be brought back, or the drain made no progress for the site's limit. The receipt names what is missing. What is there is kept on the nodes until the time in the message; when the node is back, or the file system answers again, `burstfs resume JOBID` goes on.";
    DrainNoSpace = 403, "stage_out found no room at its destination",
        "The destination's file system is full, or the quota there is used up. What could not be drained is kept on the nodes until the time in the message and tried again from time to time. Make room, then `burstfs resume JOBID` goes on at once, from where it stopped.";
    OutputMissing = 404, "the source of a stage_out is not there",
        "The job ended without making the path that stage_out names.";
    ReceiptFailed = 405, "the receipt could not be written",
        "The directory of the job's output cannot be written. The drain itself is not affected.";
    DeadlineMissed = 406, "what has changed cannot be drained before the time limit",
        "The job makes more than can be drained until its time limit. Nothing is lost: the rest is drained after it, unless the site cuts the epilog short. Make less in the end, drain earlier (when=continuous, or a longer deadline=), or ask for more time.";
    JobEndUnknown = 407, "how the job ended is not known",
        "A stage_out with on=success or on=failure is drained, or not, by how Slurm says that the job ended. slurmctld did not say it, so what that stage_out names is kept on the nodes, and Slurm is asked again from time to time. When Slurm has forgotten the job, or does not come back, say it yourself: `burstfs resume JOBID --ended success`, or `failure`.";

    UnmountFailed = 501, "the mount could not be removed",
        "Processes outside the job hold it. It was detached and its connection aborted.";
    CleanFailed = 502, "the node's data could not be removed",
        "The NVMe answered an error while the instance's directory was removed. `burstfs-node recover` tries again.";
    Held = 503, "data is kept on the node",
        "Something could not be drained; the instance's data is kept on the node until the time in the message (retain= of stage_out), and the drain is tried again from time to time where that can help. `burstfs resume JOBID` tries at once, `burstfs status` and `burstfs-node list` show it; an administrator can remove it with `burstfs-node gc`.";
    HeldRemoved = 504, "kept data was removed",
        "What could not be drained was kept for as long as retain= of stage_out says, and was then removed from the nodes. The receipt names what is missing at the destination.";

    Internal = 601, "a bug in burstfs",
        "Something that cannot happen did. Please report it with the logs.";
    Inconsistent = 602, "metadata and objects do not fit together",
        "`burstfs check` found records of the metadata targets, or objects, that contradict one another, several times in a row. The findings name inodes by number (ls -i). What is not named is all right; copy what you need elsewhere, and report the findings with the logs.";
}

impl Code {
    /// The part of an instance's life that the code belongs to.
    pub const fn area(self) -> Area {
        match self.number() / 100 {
            1 => Area::Request,
            2 => Area::Start,
            3 => Area::Run,
            4 => Area::Drain,
            5 => Area::Teardown,
            _ => Area::Bug,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{}", self.number())
    }
}

/// A text that is no code.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("\"{0}\" is no burstfs error code; codes look like E102")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Code, UnknownCode> {
        let known = Code::ALL.iter().copied().find(|code| code.to_string().eq_ignore_ascii_case(text));
        known.ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

impl TryFrom<String> for Code {
    type Error = UnknownCode;

    fn try_from(text: String) -> Result<Code, UnknownCode> {
        text.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> String {
        code.to_string()
    }
}

/// An error on its way to a person: a code, and a sentence that says what, where, why and what to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// One line without the code.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_texts_are_sentences() {
        for pair in Code::ALL.windows(2) {
            assert!(pair[0].number() < pair[1].number(), "{} {}", pair[0], pair[1]);
        }
        for code in Code::ALL {
            assert!(code.explanation().ends_with(['.', '?']), "{code}");
            assert_eq!(code.to_string().parse(), Ok(*code));
        }
    }
}
