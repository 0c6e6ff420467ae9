//! What `inspect` tells: everything that the monitor knows of itself, at one moment.

use std::fs;

use capnp::message::{HeapAllocator, TypedBuilder};
use conmon_proto::conward_capnp::{client, exec_state, memory, sink, state, stream_state};

use super::fill;
use crate::attach;
use crate::diag;
use crate::exec::Exec;
use crate::log::file::LogFile;
use crate::monitor::Monitor;
use crate::oom::Verdict;
use crate::session::Phase;
use crate::stdio::Input;
use crate::stream::Stream;
use crate::sys;

/// A finished `State`.
pub struct Inspection(TypedBuilder<state::Owned, HeapAllocator>);

impl Inspection {
    pub fn get_root_as_reader(&self) -> capnp::Result<state::Reader<'_>> {
        self.0.get_root_as_reader()
    }
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inspection")
    }
}

/// Takes a look at everything.
#[inline(never)]
pub fn inspect(monitor: &Monitor<'_>) -> Inspection {
    let mut message = TypedBuilder::<state::Owned>::new_default();
    let mut to = message.init_root();
    let (options, session) = (monitor.options, &monitor.session);
    to.set_id(&*options.cid.to_string_lossy());
    to.set_name(&*options.name.as_deref().unwrap_or_default().to_string_lossy());
    to.set_bundle(&*options.bundle.as_deref().map(|dir| dir.to_string_lossy()).unwrap_or_default());
    to.set_runtime(&*options.runtime.to_string_lossy());
    to.set_phase(phase(session.phase));
    to.set_monitor_pid(i32::try_from(std::process::id()).unwrap_or(0));
    if let Some(process) = &session.process {
        to.set_pid(process.pid);
        to.set_started_at(fill::nanos(process.started));
    }
    to.set_terminal(options.terminal);
    to.set_stdin(!matches!(session.input, Input::Closed));
    let (rows, cols) = session.window.unwrap_or((0, 0));
    to.set_rows(rows);
    to.set_columns(cols);
    to.set_oom_kills(match monitor.verdict {
        Verdict::Unknown => -1,
        Verdict::None | Verdict::Limit => 0,
        Verdict::Oom { kills } => i64::try_from(kills).unwrap_or(i64::MAX),
    });
    if let Some(dir) = &options.exit_dir {
        to.set_exit_file(&*dir.join(&options.cid).to_string_lossy());
    }
    if let Some(attach) = &monitor.attach {
        to.set_attach_socket(&*attach.path().to_string_lossy());
    }
    to.set_connections(count(monitor.service.as_ref().map_or(0, super::Service::connections)));
    to.set_descriptors(count(fs::read_dir("/proc/self/fd").map_or(0, |list| list.count().saturating_sub(1))));
    own_memory(to.reborrow().init_memory());
    streams(monitor, &mut to);
    sinks(monitor, &mut to);
    clients(monitor, &mut to);
    let mut list = to.reborrow().init_execs(count(monitor.execs.running.len()));
    for (index, exec) in (0..).zip(&monitor.execs.running) {
        one_exec(list.reborrow().get(index), exec);
    }
    let errors = diag::last();
    let mut list = to.init_errors(count(errors.len()));
    for (index, error) in (0..).zip(&errors) {
        list.set(index, &**error);
    }
    Inspection(message)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

const fn phase(phase: Phase) -> state::Phase {
    match phase {
        Phase::Held => state::Phase::Held,
        Phase::Starting => state::Phase::Starting,
        Phase::Running => state::Phase::Running,
        Phase::Ended => state::Phase::Ended,
        Phase::Failed => state::Phase::Failed,
    }
}

fn streams(monitor: &Monitor<'_>, to: &mut state::Builder<'_>) {
    let totals = monitor.session.totals(monitor.log.lost());
    let k8s = monitor.log.k8s.as_ref();
    let mut list = to.reborrow().init_streams(2);
    for (index, stream) in (0..).zip(Stream::ALL) {
        let mut one: stream_state::Builder<'_> = list.reborrow().get(index);
        let (total, at) = (totals[stream.index()], stream.index());
        one.set_stream(fill::stream(stream));
        one.set_bytes(total.bytes);
        one.set_lost(total.lost);
        one.set_records(k8s.map_or(0, |k8s| k8s.records[at]));
        one.set_gaps(k8s.map_or(0, |k8s| k8s.file.gaps() as u64));
        one.set_open(monitor.session.outputs[at].is_some());
        fill::policy(one.init_policy(), monitor.meters[at].policy);
    }
}

fn sinks(monitor: &Monitor<'_>, to: &mut state::Builder<'_>) {
    let files: Vec<(&str, &LogFile)> = monitor.log.named_files().collect();
    let journald = monitor.log.journald();
    let mut list = to.reborrow().init_sinks(count(files.len() + usize::from(journald.is_some())));
    for (index, (driver, file)) in (0..).zip(&files) {
        let mut one: sink::Builder<'_> = list.reborrow().get(index);
        let (size, rotations) = file.size();
        one.set_driver(*driver);
        one.set_path(&*file.path().to_string_lossy());
        one.set_inode(file.inode());
        one.set_size(size);
        one.set_rotations(rotations);
        one.set_error(file.error().map_or("", nix::errno::Errno::desc));
    }
    if let Some(journald) = journald {
        let mut one = list.get(count(files.len()));
        one.set_driver("journald");
        one.set_size(journald.counters().bytes);
        one.set_error(journald.counters().last_error.map_or("", nix::errno::Errno::desc));
    }
}

fn clients(monitor: &Monitor<'_>, to: &mut state::Builder<'_>) {
    let all: Vec<&attach::Client> = monitor.attach.iter().flat_map(attach::Attach::clients).collect();
    let end = monitor.session.totals([0; 2]).map(|total| total.bytes);
    let mut list = to.reborrow().init_clients(count(all.len()));
    for (index, from) in (0..).zip(all) {
        let mut one: client::Builder<'_> = list.reborrow().get(index);
        one.set_kind(if from.seat().is_some() { client::Kind::Service } else { client::Kind::AttachSocket });
        one.set_pid(from.pid());
        one.set_behind(from.is_behind());
        one.set_waiting_for(from.behind_by(end));
        one.set_types(from.types());
    }
}

fn one_exec(mut to: exec_state::Builder<'_>, exec: &Exec) {
    to.set_id(exec.id);
    if let Some(process) = &exec.session.process {
        to.set_pid(process.pid);
        to.set_started_at(fill::nanos(process.started));
    }
    to.set_terminal(exec.spec.terminal);
    to.set_captured(exec.sink.captured() as u64);
    to.set_command(&*exec.command());
}

/// `Private_Dirty` and `Rss` of `/proc/self/smaps_rollup` (proc(5)).
fn own_memory(mut to: memory::Builder<'_>) {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let sum = |prefix: &str| -> u64 {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>() * 1024
    };
    // Not what is clean: that is the program's own file, of which a lonely monitor is the only reader.
    to.set_private(sum("Private_Dirty:"));
    to.set_resident(sum("Rss:"));
    to.set_heap(sys::heap_in_use() as u64);
}
