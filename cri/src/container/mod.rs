//! Containers: a file per verb of the CRI, and what a container is.

mod attach;
mod cdi;
mod create;
mod devices;
mod end;
mod exec;
mod facts;
mod host;
mod layer;
mod list;
mod log;
mod relabel;
mod remove;
pub mod restore;
pub mod spec;
mod start;
pub mod stats;
mod status;
mod stop;
mod update;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_cri::v1::{ContainerConfig, LinuxContainerResources};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cgroup::Rate;
use crate::error::{Error, Result};
use crate::state::{self, Kept};

pub use attach::attach;
pub use create::create;
pub use exec::{Wish, exec, exec_sync};
pub use layer::Layer;
pub use list::{Filter, list, matching};
pub use log::reopen_log;
pub use remove::remove;
pub use start::start;
pub use status::{reason, status};
pub use stop::{end_process, stop};
pub use update::update;

/// What does not change after the creation. The request is kept as it came, so that labels and annotations go back byte
/// for byte.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    pub id: String,
    pub pod: String,
    pub config: ContainerConfig,
    pub image_id: String,
    /// The digest form, as the kubelet wants it.
    pub image_ref: String,
    pub handler: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    pub log_path: Option<PathBuf>,
    /// What asks the container to end.
    pub stop_signal: i32,
    pub uid: i64,
    pub gid: i64,
    pub groups: Vec<i64>,
}

/// What changes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct State {
    pub phase: Phase,
    pub pid: i32,
    /// When the start was asked of the runtime, in nanoseconds since 1970; 0: never.
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: Option<i32>,
    pub oom_killed: bool,
    /// The runtime could not start it.
    #[serde(default)]
    pub never_started: bool,
    /// Why, for people.
    pub message: String,
    /// As changed by an update.
    pub resources: Option<LinuxContainerResources>,
    /// Mounts, the runtime's state and what else was left are gone.
    pub clean: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Being made; after a crash it is unmade.
    #[default]
    Creating,
    Created,
    Running,
    Exited,
    /// Its process is there and its monitor is not, so that nobody will know how it ends.
    Lost,
}

#[derive(Debug)]
pub struct Container {
    pub record: Record,
    state: Kept<State>,
    /// True when the container's process has ended.
    pub ended: watch::Sender<bool>,
    /// Whether everybody has been told that it was started.
    start_told: Mutex<bool>,
    /// One change at a time; never held while somebody waits for an end.
    pub turn: tokio::sync::Mutex<()>,
    /// What it uses of the CPU.
    rate: Rate,
    /// The size of its writable layer.
    layer: layer::Memo,
    dirs: Dirs,
}

/// Where a container's files are.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// What survives a reboot.
    pub root: PathBuf,
    /// The bundle.
    pub run: PathBuf,
}

impl Dirs {
    pub fn new(config: &crate::config::Config, id: &str) -> Dirs {
        Dirs { root: config.root.join("containers").join(id), run: config.run.join("containers").join(id) }
    }

    pub fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }
}

const RECORD: &str = "container.json";
const STATE: &str = "state.json";
/// In the bundle, which is gone when the container's process cannot be there: when its start was asked of the runtime.
const STARTED: &str = "started.json";

impl Container {
    /// Takes note of a container that is to be made, before anything is made; for good with [`Container::keep`].
    pub fn begin(record: Record, dirs: Dirs) -> Result<Container> {
        state::own_dir(&dirs.root, None)?;
        state::place(&dirs.root.join(RECORD), &record)?;
        let state = Kept::new(dirs.root.join(STATE), State::default());
        Ok(Container::new(record, state, dirs))
    }

    /// Makes what [`Container::begin`] wrote outlive a loss of power. Processes are made after that.
    pub fn keep(&self) -> Result<()> {
        state::keep_name(&self.dirs.root.join(RECORD))
    }

    /// Takes note of what the set-up found out, and of the state, which so far is that nothing is finished.
    pub fn found(&self, record: &Record) -> Result<()> {
        state::write(&self.dirs.root.join(RECORD), record)?;
        self.change(|_| ())
    }

    /// Its record is there. Without, nothing was made yet, or everything else is removed.
    pub fn begun(dirs: &Dirs) -> bool {
        dirs.root.join(RECORD).exists()
    }

    /// Reads a container's files.
    pub fn load(dirs: Dirs) -> Result<Container> {
        let record = state::read(&dirs.root.join(RECORD))?;
        // Without a state it is being made, or being removed: either way it is to be unmade.
        let state = Kept::<State>::load(dirs.root.join(STATE))?;
        if state.get().started_at == 0 {
            let started_at = state::read(&dirs.run.join(STARTED)).unwrap_or_default();
            state.suppose(|state| state.started_at = started_at);
        }
        Ok(Container::new(record, state, dirs))
    }

    fn new(record: Record, state: Kept<State>, dirs: Dirs) -> Container {
        let phase = state.get().phase;
        let ended = watch::Sender::new(matches!(phase, Phase::Exited));
        let start_told = Mutex::new(!matches!(phase, Phase::Creating | Phase::Created));
        let turn = tokio::sync::Mutex::default();
        let (rate, layer) = (Rate::default(), layer::Memo::default());
        Container { record, state, ended, start_told, turn, rate, layer, dirs }
    }

    /// The same container with what its set-up found out.
    fn with_record(&self, record: Record) -> Container {
        let state = Kept::new(self.dirs.root.join(STATE), self.state());
        Container::new(record, state, self.dirs.clone())
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The bundle.
    pub fn bundle(&self) -> &Path {
        &self.dirs.run
    }

    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    pub fn state(&self) -> State {
        self.state.get()
    }

    /// See [`Kept::change`].
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        self.state.change(change)
    }

    /// See [`Kept::learn`].
    pub fn learn(&self, change: impl FnOnce(&mut State)) {
        self.state.learn(change);
    }

    /// Takes note of a start that is to be asked of the runtime: should this program die now, the time is known, and
    /// that it may have been done.
    pub fn starts(&self) -> Result<()> {
        let now = state::now();
        state::write(&self.dirs.run.join(STARTED), &now)?;
        self.state.suppose(|state| state.started_at = now);
        Ok(())
    }

    /// Takes note that it was started, which [`Container::starts`] lets find out whoever comes after a kill; to be
    /// written with [`Container::learn`].
    pub fn started(&self) {
        self.state.suppose(|state| {
            if state.phase == Phase::Created {
                state.phase = Phase::Running;
            }
        });
    }

    /// Tells of the start, once. Who tells of the end comes here before, so that nobody hears of that first.
    pub fn tell_start(&self, tell: impl FnOnce()) {
        let mut told = self.start_told.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *told, true) {
            tell();
        }
    }

    /// What has a pid and answers.
    pub fn running(&self) -> Result<State> {
        let state = self.state();
        match state.phase {
            Phase::Running => Ok(state),
            phase => Err(Error::Precondition(format!("Container {} is not running, it is {phase:?}", self.id()))),
        }
    }

    /// Waits for the end of the container's process.
    pub async fn wait_ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as the container.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// By what no other container of the same pod goes.
    pub fn name(&self) -> String {
        name(&self.record.pod, &self.record.config)
    }
}

/// By what no other container of the same pod goes.
pub fn name(pod: &str, config: &ContainerConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{pod}", metadata.name, metadata.attempt)
}
