//! What happens when a container's process ends: taking note, telling, cleaning up. The order is that of their
//! importance.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Container, Phase};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::events::Kind;
use crate::image::Store;
use crate::monitor::{self, Ended};
use crate::{cgroup, runtime, state};

/// Follows a container whose process is there until it ends.
pub fn watch(daemon: &Arc<Daemon>, container: Arc<Container>) {
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        let ended = loop {
            match daemon.monitors.wait(container.bundle()).await {
                Some(ended) => break Some(ended),
                // It has too many clients, or is not that far yet.
                None if monitor::alive(container.bundle(), container.id()) => tokio::time::sleep(RETRY).await,
                None => break after_the_monitor(&daemon, &container).await,
            }
        };
        daemon.monitors.forget(container.bundle());
        if container.state().phase != Phase::Lost || ended.is_some() {
            finish(&daemon, &container, ended).await;
        }
    });
}

/// Before a monitor is asked once more.
const RETRY: Duration = Duration::from_millis(100);

/// The monitor is gone: it has left a record, or it was killed.
async fn after_the_monitor(daemon: &Daemon, container: &Container) -> Option<Ended> {
    if let Some(ended) = monitor::record(container.bundle()) {
        return Some(ended);
    }
    let handler = daemon.handlers.named(&container.record.handler).ok()?;
    let alive = matches!(handler.status(container.id()).await, Ok(Some(status)) if status != "stopped");
    if alive {
        tracing::error!(container = container.id(), "Its monitor is gone and its process is not");
        let _ = container.change(|state| state.phase = Phase::Lost);
    }
    // It may have come meanwhile.
    monitor::record(container.bundle())
}

/// Takes note of an end that somebody knows of, tells everybody, and cleans up.
pub async fn finish(daemon: &Arc<Daemon>, container: &Arc<Container>, ended: Option<Ended>) {
    container.learn(|state| {
        if state.phase == Phase::Exited {
            return;
        }
        state.phase = Phase::Exited;
        state.pid = 0;
        let code = ended.as_ref().and_then(|ended| ended.code);
        state.exit_code = if state.never_started { Some(NEVER_STARTED) } else { code };
        state.oom_killed = ended.as_ref().is_some_and(|ended| ended.oom_killed);
        // The kubelet takes an end before the start for nonsense.
        state.finished_at = ended.map_or_else(state::now, |ended| ended.finished_at).max(state.started_at);
    });
    container.ended.send_replace(true);
    let state = container.state();
    // It may have ended before who started it could say so.
    if state.started_at != 0 && !state.never_started {
        container.tell_start(|| daemon.events.tell(Kind::Started, container.id(), &container.record.pod));
    }
    daemon.events.tell(Kind::Stopped, container.id(), &container.record.pod);
    let _turn = container.turn.lock().await;
    if let Err(error) = clean(daemon, container).await {
        tracing::warn!(container = container.id(), "{error}");
    }
}

/// What others report for a container whose start has failed.
const NEVER_STARTED: i32 = 128;

/// Removes what only a running container needs: its cgroup, the runtime's state, the mount of its file system. May be
/// repeated. The caller has the turn.
pub async fn clean(daemon: &Daemon, container: &Container) -> Result<()> {
    if container.state().clean {
        return Ok(());
    }
    if let Ok(handler) = daemon.handlers.named(&container.record.handler) {
        handler.delete(container.id()).await?;
    }
    let (id, dirs) = (container.id().to_owned(), container.dirs().clone());
    let work = move |images: &Store| {
        // The runtime removes it, too, unless it was killed before it knew of the container.
        if let Some(own) = own_cgroup(&dirs.run, &id) {
            cgroup::remove(&own)?;
        }
        images.unmount(&id)
    };
    daemon.images_blocking(work).await?;
    container.learn(|state| state.clean = true);
    Ok(())
}

/// The container's cgroup as its config.json names it; systemd removes those that it has made.
fn own_cgroup(bundle: &Path, id: &str) -> Option<String> {
    let config: serde_json::Value = state::read(&bundle.join("config.json")).ok()?;
    let path = config["linux"]["cgroupsPath"].as_str()?;
    path.strip_suffix(id).filter(|parent| parent.ends_with('/'))?;
    Some(path.to_owned())
}

/// Kills a container of which only this is known: its id. For what a crash has left.
pub async fn destroy(daemon: &Daemon, container: &Container) -> Result<()> {
    let handler = daemon.handlers.named(&container.record.handler)?;
    for _ in 0..ROUNDS {
        let strays = strays(container.id(), &[&daemon.monitor, &handler.path]);
        handler.delete(container.id()).await?;
        if strays == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    clean(daemon, container).await
}

const ROUNDS: usize = 250;

/// Kills the processes of these programs that have the id among their arguments; answers how many there were.
fn strays(id: &str, programs: &[&Path]) -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_this = |pid: &i32| {
        let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) else { return false };
        let Ok(words) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        programs.iter().any(|program| same_file(&exe, program))
            && words.split(|byte| *byte == 0).any(|word| word == id.as_bytes())
    };
    let strays: Vec<i32> = pids.filter(of_this).collect();
    for pid in &strays {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    }
    strays.len()
}

fn same_file(exe: &Path, program: &Path) -> bool {
    // Another version may have taken its place.
    let exe = Path::new(exe.to_str().map_or("", |exe| exe.trim_end_matches(" (deleted)")));
    exe == program
        || runtime::in_path(program).and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == exe)
}
