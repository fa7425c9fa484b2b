//! The supervisor: one process for the life of an instance on a node, and the only owner of the instance's state there.
//!
//! Owns: the mount, the journal, the instance's directories, the daemon and its cgroups. Does not decide: what is to be
//! done about an event is [`crate::policy`]'s.
//!
//! Concurrency: one thread and one poll(2) over the listening socket, its clients, the daemon's control socket and its
//! pidfd. An action may take a while (an unmount, the removal of data): whoever asked waits for just that.
//!
//! Failure: each step is in the journal before it is done, so that a supervisor that takes over knows what may be there.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use burstfs_node::control::{DaemonMessage, NodeMessage};
use burstfs_node::description::InstanceDescription;
use burstfs_node::held::{Held, Hope, epoch_secs};
use burstfs_node::journal::{Journal, Standing, Step};
use burstfs_node::outcome::Outcome;
use burstfs_types::{Code, Failure, InstanceId, NodeIndex};
use rustix::event::{PollFd, PollFlags};

use crate::announce::{self, Announcement};
use crate::broker::{self, BrokerProcess, Seat};
use crate::cgroup::Cgroups;
use crate::daemon::{Daemon, Heard};
use crate::dirs::TrustedDir;
use crate::error::NodeError;
use crate::job_end::JobEndQuestion;
use crate::job_watch::JobWatch;
use crate::log;
use crate::mount::{self, Mount};
use crate::node_socket::{Connection, Received, Reply, Report, Request, Status};
use crate::policy::{Action, Event, Finish, Machine, Patience, Phase};
use crate::process::{self, End};
use crate::request::incarnation;
use crate::spawn::{self, LISTENER_FD};
use crate::store::{InstanceDir, Launch, RunBase, RunDir, Storage, remove_mount_point};

/// Why a supervisor is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// For a new instance.
    Fresh,
    /// The one before is gone, and the job has ended.
    ResumeToStop,
    /// The one before is gone, and the job may still run.
    ResumeToServe,
    /// The node was started again, and the job is over here: what is left of it is to be drained.
    ResumeToHold,
}

impl Mode {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Mode::Fresh => "fresh",
            Mode::ResumeToStop => "resume-to-stop",
            Mode::ResumeToServe => "resume-to-serve",
            Mode::ResumeToHold => "resume-to-hold",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Mode> {
        [Mode::Fresh, Mode::ResumeToStop, Mode::ResumeToServe, Mode::ResumeToHold]
            .into_iter()
            .find(|mode| mode.word() == word)
    }
}

struct Client {
    connection: Connection,
    wants_outcome: bool,
    wants_end: bool,
}

struct Supervisor {
    launch: Launch,
    run_base: RunBase,
    run: RunDir,
    listener: OwnedFd,
    clients: Vec<Client>,
    storage: Option<Storage>,
    instance_dir: Option<InstanceDir>,
    journal: Option<Journal>,
    mount_base: Option<TrustedDir>,
    mount: Option<Mount>,
    cgroups: Cgroups,
    /// Whether everything that the daemon starts is in its cgroups.
    is_tracked: bool,
    daemon: Option<Daemon>,
    /// Registers files for the daemon that serves the mount.
    broker: Option<BrokerProcess>,
    machine: Machine,
    /// While a start goes on, and while the job runs.
    job_watch: Option<JobWatch>,
    /// When the job is over.
    job_end_question: Option<JobEndQuestion>,
    epoch: Instant,
    is_recorded: bool,
    report: Report,
    announcement: Option<Announcement>,
    /// What an action found out, to be handled before anything else.
    pending: Vec<Event>,
}

/// Supervises `instance` until its end. Called in a process of its own, with the listening socket at [`LISTENER_FD`].
pub(crate) fn run(run_dir: &Path, instance: &InstanceId, mode: Mode) -> Result<(), NodeError> {
    // SAFETY: whoever started this process put the listening socket there, and nothing else here uses the number.
    let listener = unsafe { OwnedFd::from_raw_fd(LISTENER_FD) };
    let _ = rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC);
    let run_base = RunBase::open(run_dir)?;
    let missing = || NodeError::Usage(format!("there is nothing to supervise for {instance}"));
    let run = run_base.find(instance)?.ok_or_else(missing)?;
    let launch = run.launch()?.ok_or_else(missing)?;
    let timeouts = &launch.description.timeouts;
    let patience = Patience {
        start: Duration::from_millis(timeouts.start_ms),
        no_progress: Duration::from_millis(timeouts.no_progress_ms),
        retry: Duration::from_millis(launch.drain.retry_ms),
        retain: launch.description.retain().as_duration(),
        epoch_secs: epoch_secs(SystemTime::now()),
        returns_node: launch.drain.returns_node,
    };
    let mut supervisor = Supervisor {
        cgroups: Cgroups::find(&launch.cgroup_name()),
        machine: Machine::new(Phase::Starting, patience, Duration::ZERO),
        job_watch: Some(JobWatch::of_start(instance.job_id(), launch.description.nodes.len(), Duration::ZERO)),
        job_end_question: None,
        epoch: Instant::now(),
        launch,
        run_base,
        run,
        listener,
        clients: Vec::new(),
        storage: None,
        instance_dir: None,
        journal: None,
        mount_base: None,
        mount: None,
        is_tracked: false,
        daemon: None,
        broker: None,
        is_recorded: false,
        report: Report::default(),
        announcement: None,
        pending: Vec::new(),
    };
    log::info!("supervising {instance} ({})", mode.word());
    let first = supervisor.begin(mode, patience);
    supervisor.serve(first);
    Ok(())
}

impl Supervisor {
    fn instance(&self) -> &InstanceId {
        &self.launch.description.instance
    }

    fn begin(&mut self, mode: Mode, patience: Patience) -> Vec<Action> {
        let begun = match mode {
            Mode::Fresh => self.begin_fresh().map(|()| Vec::new()),
            Mode::ResumeToStop | Mode::ResumeToServe | Mode::ResumeToHold => self.resume(mode, patience),
        };
        self.machine.recall_job_end(self.journal.as_ref().and_then(Journal::job_end));
        // The daemon is at work already: this may take its time.
        self.cgroups.enter();
        begun.unwrap_or_else(|failure| {
            vec![
                Action::RecordFailed { failure, announce: mode == Mode::Fresh },
                Action::EndDaemon { patiently: false },
                Action::AbortMount,
                Action::Finish(Finish::Fail),
            ]
        })
    }

    fn begin_fresh(&mut self) -> Result<(), Failure> {
        self.open_places()?;
        self.cgroups.make();
        self.make_directories().map_err(|error| error.into_failure(Code::NvmeMissing))?;
        self.journal(Step::Mount);
        self.make_mount().map_err(|error| error.into_failure(Code::MountFailed))?;
        self.start_daemon(false, true).map_err(|error| error.into_failure(Code::DaemonFailed))
    }

    fn open_places(&mut self) -> Result<(), Failure> {
        let mount_base = TrustedDir::open_or_make(&self.launch.mount_base);
        self.mount_base = Some(mount_base.map_err(|error| error.into_failure(Code::MountFailed))?);
        self.storage = Some(Storage::open(&self.launch.nvme)?);
        Ok(())
    }

    fn make_directories(&mut self) -> Result<(), NodeError> {
        let Some(storage) = &self.storage else { return Ok(()) };
        let description = &self.launch.description;
        let dir = storage.make(&description.instance)?;
        let mut journal = dir.journal()?;
        journal.record(Step::MakeDirectories)?;
        self.journal = Some(journal);
        dir.write_description(description)?;
        dir.make_data(description.uid, description.gid)?;
        self.instance_dir = Some(dir);
        Ok(())
    }

    fn make_mount(&mut self) -> Result<(), NodeError> {
        let description = &self.launch.description;
        let Some(base) = &self.mount_base else { return Ok(()) };
        if mount::is_mounted(&description.mount) {
            let message = format!("{} is still mounted by an earlier run of the job", description.mount.display());
            return Err(Failure::new(Code::MountFailed, message).into());
        }
        self.mount = Some(Mount::new(base, &description.instance, description.uid, description.gid)?);
        Ok(())
    }

    fn start_daemon(&mut self, restarted: bool, serves_mount: bool) -> Result<(), NodeError> {
        self.journal(Step::StartDaemon { restarted });
        let backing = self.start_broker(serves_mount);
        let description = &mut self.launch.description;
        description.restarted = restarted;
        description.incarnation = incarnation();
        description.serves_mount = serves_mount && self.mount.is_some();
        description.held = None;
        description.job_end = self.machine.job_end();
        let fuse = self.mount.as_ref().map(Mount::device).filter(|_| serves_mount);
        let backing = backing.as_ref().map(OwnedFd::as_fd);
        let daemon = Daemon::start(&self.launch, self.cgroups.daemon_files(), fuse, backing)?;
        self.tend(daemon)
    }

    /// A daemon that tries to drain what is held.
    fn start_held(&mut self, held: Held) -> Result<(), NodeError> {
        self.journal(Step::StartDaemon { restarted: true });
        self.launch.description = InstanceDescription {
            restarted: true,
            incarnation: incarnation(),
            serves_mount: false,
            held: Some(held),
            job_end: self.machine.job_end(),
            ..self.launch.description.clone()
        };
        let daemon = Daemon::start(&self.launch, self.cgroups.daemon_files(), None, None)?;
        self.tend(daemon)
    }

    fn tend(&mut self, mut daemon: Daemon) -> Result<(), NodeError> {
        daemon.send(&NodeMessage::Start(Box::new(self.launch.description.clone())))?;
        log::info!("burstfsd started, pid {}", daemon.identity().pid);
        self.is_tracked = self.cgroups.holds(daemon.identity().pid);
        let recorded = self.run.write_daemon(daemon.identity());
        self.daemon = Some(daemon);
        recorded
    }

    /// A broker for the mount, and the daemon's end of its socket. A daemon without one does all I/O itself.
    fn start_broker(&mut self, serves_mount: bool) -> Option<OwnedFd> {
        self.broker = None;
        self.mount.as_ref().filter(|_| serves_mount)?;
        let (seat, socket) = Seat::new().inspect_err(warn_of_broker).ok()?;
        self.seat_broker(seat);
        self.broker.as_ref().map(|_| socket)
    }

    /// Starts a broker for the daemon whose socket `seat` has the other end of.
    fn seat_broker(&mut self, seat: Seat) {
        let (Some(mount), Some(dir)) = (&self.mount, &self.instance_dir) else { return };
        let started = dir.open_data().and_then(|data| {
            let place = broker::Place {
                fuse: mount.device(),
                data: data.as_fd(),
                uid: self.launch.description.uid,
                gid: self.launch.description.gid,
                cgroup_files: self.cgroups.daemon_files(),
            };
            BrokerProcess::start(&place, seat)
        });
        self.broker = started.inspect_err(warn_of_broker).ok();
    }

    /// Has another broker in the place of one that was killed.
    fn look_after_broker(&mut self) {
        let Some(end) = self.broker.as_ref().and_then(BrokerProcess::end) else { return };
        let Some(broker) = self.broker.take() else { return };
        if end == End::Exited(0) {
            // It has seen the end of the daemon, which is about to be noticed here, too.
            return;
        }
        log::warning!("the broker of backing ids ended: {end}");
        if let Some(seat) = broker.vacate(end) {
            self.seat_broker(seat);
        }
    }

    /// Goes on where the supervisor before was, as the journal says.
    fn resume(&mut self, mode: Mode, patience: Patience) -> Result<Vec<Action>, Failure> {
        let undone = |error: NodeError| error.into_failure(Code::DaemonFailed);
        self.cgroups.kill_daemon();
        if let Some(daemon) = self.run.daemon().map_err(undone)? {
            daemon.kill_session();
        }
        mount::abort(&self.launch.description.mount, self.instance());
        self.is_recorded = self.run.outcome().map_err(undone)?.is_some();
        self.open_places()?;
        let storage = self.storage.as_ref();
        let dir = storage.map(|storage| storage.find(self.instance())).transpose().map_err(undone)?.flatten();
        let standing = dir.as_ref().map_or(Ok(Standing::Unused), InstanceDir::standing).map_err(undone)?;
        if let Some(dir) = dir {
            // A journal that cannot be read is held, and nothing more is written to it.
            self.journal = dir.journal().ok();
            self.instance_dir = Some(dir);
        }
        log::info!("taking over: {standing:?}");
        match standing {
            Standing::Unused => {
                let message = "the helper's supervisor ended while the instance was started";
                Err(Failure::new(Code::DaemonFailed, message))
            }
            Standing::Disposable => Ok(vec![Action::Finish(Finish::Remove)]),
            Standing::Held(held) if held.kept_until.is_none() => Ok(vec![Action::Finish(Finish::Leave(held))]),
            Standing::Held(held) => Ok(self.resume_held(held, patience)),
            Standing::InUse if mode == Mode::ResumeToServe => Ok(self.resume_serving(patience)),
            Standing::InUse | Standing::Draining if mode == Mode::ResumeToHold => {
                Ok(self.resume_held(self.cut_off(), patience))
            }
            Standing::InUse | Standing::Draining => Ok(self.resume_draining(patience)),
        }
    }

    /// What there is to hold when the node was switched off before the drain had ended.
    fn cut_off(&self) -> Held {
        let is_durable = self.journal.as_ref().is_some_and(Journal::is_durable);
        cut_off(&self.launch.description, is_durable)
    }

    fn resume_held(&mut self, held: Held, patience: Patience) -> Vec<Action> {
        self.cgroups.make();
        let (machine, actions) = Machine::of_held(held, patience, self.now());
        self.machine = machine;
        actions
    }

    fn resume_serving(&mut self, patience: Patience) -> Vec<Action> {
        self.cgroups.make();
        self.machine = Machine::new(Phase::Ready, patience, self.now());
        vec![Action::Mount, Action::Restart { serves_mount: true }]
    }

    fn resume_draining(&mut self, patience: Patience) -> Vec<Action> {
        self.cgroups.make();
        self.machine = Machine::new(Phase::Draining, patience, self.now());
        vec![
            Action::Journal(Step::Drain),
            Action::Restart { serves_mount: false },
            Action::Send(NodeMessage::ClientGone),
        ]
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The loop: an event, what to do about it, the next. Returns when nothing is left to supervise.
    fn serve(&mut self, first: Vec<Action>) {
        if self.perform(first) {
            return;
        }
        loop {
            let mut events = std::mem::take(&mut self.pending);
            if events.is_empty() {
                events = self.wait();
            }
            for event in events {
                let before = self.machine.phase();
                let actions = self.machine.apply(event, self.now());
                if self.machine.phase() != before {
                    log::info!("{} -> {}", before.name(), self.machine.phase().name());
                }
                if self.perform(actions) {
                    return;
                }
            }
        }
    }

    /// Does what the policy says; `true` after the last action.
    fn perform(&mut self, actions: Vec<Action>) -> bool {
        for action in actions {
            match action {
                Action::Journal(step) => self.journal(step),
                Action::RecordReady { environment, warning } => {
                    self.record(&Outcome::ready(self.instance().clone(), environment, warning));
                    // From here on the job may write. Its record must be as durable as its data, and it is synced after
                    // the job was let in, since nothing that the job can write before that is durable either.
                    self.sync_journal();
                }
                Action::RecordFailed { failure, announce } => self.record_failed(failure, announce),
                Action::Send(message) => self.send(&message),
                Action::AbortMount => self.abort_mount(),
                Action::Unmount => self.unmount(),
                Action::Mount => self.mount_again(),
                Action::Restart { serves_mount } => self.restart(serves_mount),
                Action::RestartHeld(held) => {
                    if let Err(error) = self.start_held(held) {
                        self.pending.push(Event::DaemonEnded(error.to_string()));
                    }
                }
                Action::AskJobEnd => self.ask_job_end(),
                Action::Release(held) => self.release(held),
                Action::SyncJournal => self.sync_journal(),
                Action::EndDaemon { patiently } => self.end_daemon(patiently),
                Action::Warn(failure) => log::warning!("{failure}"),
                Action::Note(words) => log::info!("{words}"),
                Action::Finish(finish) => {
                    self.finish(finish);
                    return true;
                }
            }
        }
        false
    }

    fn journal(&mut self, step: Step) {
        // An instance whose journal cannot be written any more goes on: its data is then rather kept than removed.
        let recorded = self.journal.as_mut().map(|journal| {
            let may_be_left_out = matches!(step, Step::Held(_) | Step::StartDaemon { .. });
            if may_be_left_out && journal.is_long()? { Ok(()) } else { journal.record(step) }
        });
        if let Some(Err(error)) = recorded {
            log::error!("{error}: {}", std::error::Error::source(&error).map_or_else(String::new, ToString::to_string));
        }
    }

    fn sync_journal(&self) {
        if let Some(Err(error)) = self.journal.as_ref().map(Journal::sync) {
            log::error!("{error}");
        }
    }

    fn ask_job_end(&mut self) {
        if self.job_end_question.is_some() {
            return;
        }
        let (program, instance) = (&self.launch.job_state, &self.launch.description.instance);
        self.job_end_question =
            JobEndQuestion::ask(program, instance.job_id(), instance.restart_count(), self.epoch.elapsed());
        if self.job_end_question.is_none() {
            self.pending.push(Event::JobEndHeard(None));
        }
    }

    fn record(&mut self, outcome: &Outcome) {
        if let Err(error) = self.run.write_outcome(outcome) {
            log::error!("{error}");
        }
        self.is_recorded = true;
        for client in self.clients.iter().filter(|client| client.wants_outcome) {
            let _ = client.connection.send(&Reply::Recorded);
        }
    }

    fn record_failed(&mut self, failure: Failure, announce: bool) {
        log::error!("{failure}");
        // What all nodes say alike is said once.
        let is_said_elsewhere = failure.code == Code::StageInHeld && self.launch.description.node_index != 0;
        if announce && !is_said_elsewhere {
            self.announcement = announce::failure(announce::Place::of(&self.launch.description), failure.clone());
        }
        if !self.is_recorded {
            self.record(&Outcome::failed(self.instance().clone(), failure));
        }
    }

    fn send(&mut self, message: &NodeMessage) {
        let sent = self.daemon.as_mut().map(|daemon| daemon.send(message));
        if let Some(Err(error)) = sent {
            log::error!("{error}");
        }
    }

    fn abort_mount(&mut self) {
        match self.mount.take() {
            Some(mount) => mount.abort(),
            None => mount::abort(&self.launch.description.mount, self.instance()),
        }
    }

    fn unmount(&mut self) {
        let warning = match self.mount.take() {
            Some(mount) => mount.unmount(),
            None => mount::unmount(&self.launch.description.mount, self.instance()),
        };
        self.broker = None;
        if let Some(warning) = warning {
            self.warn(warning);
        }
    }

    fn warn(&mut self, failure: Failure) {
        log::warning!("{failure}");
        self.report.warnings.push(failure);
    }

    fn mount_again(&mut self) {
        self.journal(Step::Mount);
        if let Err(error) = self.make_mount() {
            log::error!("{}", error.into_failure(Code::MountFailed));
        }
    }

    fn restart(&mut self, serves_mount: bool) {
        if let Err(error) = self.start_daemon(true, serves_mount) {
            self.pending.push(Event::DaemonEnded(error.to_string()));
        }
    }

    fn end_daemon(&mut self, patiently: bool) {
        if let Some(mut daemon) = self.daemon.take()
            && !(patiently && daemon.stop_patiently())
        {
            self.cgroups.kill_daemon();
            daemon.last_words();
        }
        self.kill_leftovers();
    }

    /// Ends what the daemon started and left behind.
    fn kill_leftovers(&mut self) {
        self.broker = None;
        self.cgroups.kill_daemon();
        if self.is_tracked {
            return;
        }
        // Looks at every process of the node: for want of something better.
        match self.run.daemon() {
            Ok(Some(identity)) => identity.kill_session(),
            Ok(None) => {}
            Err(error) => log::warning!("{error}"),
        }
    }

    fn wait(&mut self) -> Vec<Event> {
        if let Some(state) = self.look_at_job() {
            return vec![Event::JobEnded(state)];
        }
        let now = self.now();
        if let Some(question) = self.job_end_question.take_if(|question| question.is_over(now)) {
            return vec![Event::JobEndHeard(question.answer())];
        }
        let until = |time: Duration| time.saturating_sub(self.now());
        let left = self.machine.deadline().map(until);
        if left == Some(Duration::ZERO) {
            return vec![Event::TimedOut];
        }
        let question = self.job_watch.as_ref().map(|watch| until(watch.due()));
        let about_end = self.job_end_question.as_ref().map(|question| until(question.due()));
        if !self.poll([left, question, about_end].into_iter().flatten().min()) {
            return Vec::new();
        }
        let mut events = self.hear_daemon();
        self.look_after_broker();
        events.extend(self.hear_clients());
        events
    }

    /// The job's state, if it does not start any more although this is a start, or is over although it should run.
    fn look_at_job(&mut self) -> Option<String> {
        let now = self.now();
        match self.machine.phase() {
            Phase::Starting | Phase::StagingIn => {}
            Phase::Ready | Phase::Lost if self.job_watch.as_ref().is_some_and(JobWatch::is_of_run) => {}
            Phase::Ready | Phase::Lost => {
                let description = &self.launch.description;
                self.job_watch = Some(JobWatch::of_run(description.instance.job_id(), description.nodes.len(), now));
            }
            Phase::Cancelling | Phase::Draining | Phase::Held | Phase::Ending => self.job_watch = None,
        }
        self.job_watch.as_mut().and_then(|watch| watch.look(now))
    }

    /// Sleeps until there is something to read, to write or to reap; whatever it is, everyone is then asked.
    fn poll(&self, left: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN)];
        fds.extend(
            self.clients.iter().map(|client| PollFd::from_borrowed_fd(client.connection.as_fd(), PollFlags::IN)),
        );
        if let Some(daemon) = &self.daemon {
            fds.push(PollFd::from_borrowed_fd(daemon.control(), daemon.interest()));
            fds.push(PollFd::from_borrowed_fd(daemon.pidfd(), PollFlags::IN));
        }
        fds.extend(self.broker.iter().map(|broker| PollFd::from_borrowed_fd(broker.pidfd(), PollFlags::IN)));
        fds.extend(
            self.job_watch
                .iter()
                .filter_map(JobWatch::child)
                .map(|child| PollFd::from_borrowed_fd(child, PollFlags::IN)),
        );
        fds.extend(
            self.job_end_question.iter().map(|question| PollFd::from_borrowed_fd(question.pidfd(), PollFlags::IN)),
        );
        let left = left.map(process::timespec);
        matches!(rustix::event::poll(&mut fds, left.as_ref()), Ok(count) if count > 0)
    }

    fn hear_daemon(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(daemon) = &mut self.daemon else { return events };
        daemon.flush();
        // What it said before it ended comes first.
        let gone = loop {
            match daemon.hear() {
                Heard::Message(message) => {
                    if let DaemonMessage::State(state) = message {
                        log::info!("burstfsd: {state:?}");
                    }
                    events.push(Event::Said(message));
                }
                Heard::Gone(why) => break Some(why),
                Heard::Nothing => break None,
            }
        };
        let has_ended = || matches!(process::wait_readable(daemon.pidfd(), Some(Duration::ZERO)), Ok(true));
        if gone.is_some() || has_ended() {
            log::info!("burstfsd: {}", gone.unwrap_or_else(|| "ended".to_owned()));
            events.extend(self.daemon.take().map(|daemon| Event::DaemonEnded(daemon.last_words())));
            self.kill_leftovers();
        }
        events
    }

    fn hear_clients(&mut self) -> Vec<Event> {
        while let Some(connection) = Connection::accept(self.listener.as_fd()) {
            self.clients.push(Client { connection, wants_outcome: false, wants_end: false });
        }
        let mut events = Vec::new();
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            loop {
                match client.connection.receive() {
                    Received::Message(request) => {
                        if self.answer(client, request).is_err() {
                            return false;
                        }
                        events.extend(match request {
                            Request::Stop => Some(Event::Stop),
                            Request::Resume => Some(Event::Resume),
                            Request::Discard => Some(Event::Discard),
                            Request::Outcome | Request::Status => None,
                        });
                    }
                    Received::Nothing => return true,
                    // Somebody who has asked for the end and left still gets it.
                    Received::End => return false,
                }
            }
        });
        self.clients = clients;
        events
    }

    fn answer(&self, client: &mut Client, request: Request) -> Result<(), NodeError> {
        match request {
            Request::Outcome if self.is_recorded => client.connection.send(&Reply::Recorded),
            Request::Outcome => {
                client.wants_outcome = true;
                Ok(())
            }
            Request::Stop => {
                client.wants_end = true;
                client.connection.send(&Reply::Stopping { pid: own_pid() })
            }
            Request::Status => client.connection.send(&Reply::Status(self.status())),
            Request::Resume | Request::Discard => {
                let is_held = self.machine.held().is_some();
                client.wants_end = is_held && request == Request::Discard;
                client.connection.send(&Reply::Heard { is_held, pid: own_pid() })
            }
        }
    }

    /// Lets those go who wait for the end: what is left goes on by itself. The job's mount point goes with them.
    fn release(&mut self, held: Option<Held>) {
        if let Some(held) = &held {
            let (instance, until) = (self.instance(), log::until(held.kept_until));
            let message = format!("data of {instance} is kept {until}: {}", held.failure);
            log::error!("{}", Failure::new(Code::Held, message));
            self.sync_journal();
        }
        if let Some(base) = &self.mount_base
            && let Err(error) = remove_mount_point(base, self.instance())
        {
            self.warn(error.into_failure(Code::UnmountFailed));
        }
        // The job is over: what its start came to is nobody's any more.
        if let Err(error) = self.run.remove_outcome() {
            self.warn(error.into_failure(Code::CleanFailed));
        }
        self.report.is_draining = held.is_none();
        self.report.held = held;
        for client in &mut self.clients {
            if std::mem::take(&mut client.wants_end) {
                let _ = client.connection.send(&Reply::Stopped(self.report.clone()));
            }
        }
        self.report = Report::default();
    }

    fn status(&self) -> Status {
        Status {
            state: self.machine.state().to_owned(),
            held: self.machine.held().cloned(),
            supervisor_pid: own_pid(),
            daemon_pid: self.daemon.as_ref().map(|daemon| daemon.identity().pid),
            restarts: self.machine.restart_count(),
            progress: self.machine.progress(),
        }
    }

    /// Leaves on the node what `finish` says, and nothing else. Whatever step fails, the others go on.
    fn finish(&mut self, finish: Finish) {
        self.end_daemon(false);
        self.abort_mount();
        if let Some(base) = &self.mount_base
            && let Err(error) = remove_mount_point(base, self.instance())
        {
            self.warn(error.into_failure(Code::UnmountFailed));
        }
        match &finish {
            Finish::Fail | Finish::Remove => self.remove_data(),
            Finish::Leave(held) => {
                let message = format!("data of {} is kept: {}", self.instance(), held.failure);
                log::error!("{}", Failure::new(Code::Held, message));
                self.report.held = Some(held.clone());
            }
        }
        self.cgroups.remove();
        if let Some(announcement) = self.announcement.take() {
            announcement.wait(Duration::from_millis(self.launch.description.timeouts.start_ms));
        }
        let _ = self.hear_clients();
        self.remove_run_dir(&finish);
        log::info!("the end");
        for client in self.clients.iter().filter(|client| client.wants_end) {
            let _ = client.connection.send(&Reply::Stopped(self.report.clone()));
        }
    }

    fn remove_data(&mut self) {
        self.journal(Step::Remove);
        let Some(storage) = &self.storage else { return };
        if let Err(error) = storage.remove(self.instance()) {
            self.warn(error.into_failure(Code::CleanFailed));
        }
    }

    /// The outcome of a failed start stays until the job's end: the job's tasks ask for it.
    fn remove_run_dir(&mut self, finish: &Finish) {
        let job_has_ended = self.clients.iter().any(|client| client.wants_end);
        let removed = if *finish == Finish::Fail && !job_has_ended {
            self.run.remove_all_but_outcome()
        } else {
            self.run_base.remove(self.instance())
        };
        if let Err(error) = removed {
            self.warn(error.into_failure(Code::CleanFailed));
        }
    }
}

fn warn_of_broker(error: &NodeError) {
    log::warning!("files are not passed through to the kernel: {error}");
}

/// What is held of an instance that a node had when it was switched off; `is_durable`: no power loss takes any of it.
pub(crate) fn cut_off(description: &InstanceDescription, is_durable: bool) -> Held {
    Held {
        failure: Failure::new(Code::DrainIncomplete, "the node was restarted before its data had been drained"),
        kept_until: Some(epoch_secs(SystemTime::now()).saturating_add(description.retain().as_secs())),
        attempts: 1,
        hope: Hope::ALL,
        suspects: (!is_durable).then_some(NodeIndex::new(description.node_index)).into_iter().collect(),
    }
}

fn own_pid() -> i32 {
    spawn::raw_pid(rustix::process::getpid())
}
