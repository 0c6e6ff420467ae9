//! The closing sequence, whose order is part of the contract: drain, log, record, report, clients, exit command.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::Events;

use crate::attach::{self, Client};
use crate::exec::Exec;
use crate::exit::{self, End, Published, Record};
use crate::monitor::Monitor;
use crate::oom;
use crate::options::{Mode, Options};
use crate::rpc::Service;
use crate::session::Phase;
use crate::stdio::Turn;
use crate::stream::Stream;
use crate::sys::{self, Fork, Spawn};

/// Ends a monitor whose session is over; the exit status.
///
/// `inherited` are the descriptors that the caller had left open: they are closed before the exit files appear, so
/// that whoever sees those may bind a port again.
#[inline(never)]
pub fn finish(mut monitor: Box<Monitor<'_>>, inherited: &[RawFd]) -> u8 {
    if monitor.session.phase == Phase::Failed {
        return give_up(monitor);
    }
    let end = monitor.session.end.unwrap_or(End::Unknown);
    // Whoever connected in time gets what is still to come.
    while monitor.accept() == Turn::Again {}
    drain(&mut monitor);
    monitor.log.finish();
    monitor.reports.close_attach();
    inherited.iter().copied().for_each(sys::close_raw);
    let (published, complete) = record(&monitor, end);
    final_report(&mut monitor, end);
    let behind = leave_clients(&mut monitor);
    let durable = exit::sync_all(published) && complete;
    close_service(&mut monitor, durable);
    serve_the_rest(&mut monitor, behind);
    // A long log takes its time, and nobody waits for it.
    monitor.log.sync();
    close_link(&monitor);
    run_exit_command(&monitor, end.exit_status())
}

/// The container could not be started: say why, leave no exit files.
fn give_up(mut monitor: Box<Monitor<'_>>) -> u8 {
    if !monitor.failure.is_empty() || monitor.options.passthrough() {
        monitor.reports.failed(&monitor.failure);
    }
    monitor.exit_files.abandon();
    close_service(&mut monitor, false);
    // Removes its directory, which ending without destructors would leave behind.
    monitor.session.console = None;
    close_link(&monitor);
    run_exit_command(&monitor, 1)
}

/// Reads what the container left in its pipes or terminal. What a surviving process adds meanwhile is not waited for.
fn drain(monitor: &mut Monitor<'_>) {
    // One turn, however much there is: who waits for the record does not wait for journald for long.
    let piece = monitor.log.begin_turn();
    for stream in Stream::ALL {
        let Some(output) = &mut monitor.session.outputs[stream.index()] else { continue };
        let there = if output.is_tty() { TTY_REST } else { output.waiting() };
        // What was read and not passed on yet comes before that.
        let until = output.offset + (output.ahead().len() + there) as u64;
        let (log, attach) = (&mut monitor.log, &mut monitor.attach);
        let (registry, out) = (monitor.poll.registry(), monitor.out_buffer.bytes());
        let buffer = monitor.read_buffer.bytes();
        let room = piece.min(buffer.len()).max(output.ahead().len() + 1);
        loop {
            let mut offset = output.offset;
            let turn = output.pump(&mut buffer[..room], |stream, chunk| {
                let recorded = log.write(out, stream, chunk);
                if let Some(attach) = attach.as_mut() {
                    attach.offer(registry, stream, offset, chunk, recorded);
                }
                offset += chunk.len() as u64;
                true
            });
            if turn != Turn::Again || output.offset >= until {
                break;
            }
        }
    }
}

/// What is drained of a terminal at most; its buffers in the kernel are smaller.
const TTY_REST: usize = 1 << 20;

/// Takes the attach socket's name away, then lets everybody go who has everything.
fn leave_clients(monitor: &mut Monitor<'_>) -> Vec<Client> {
    let Some(attach) = &mut monitor.attach else { return Vec::new() };
    attach.unlink();
    attach.take_behind()
}

/// Writes down how it ended: the OOM marks, then the exit files.
fn record(monitor: &Monitor<'_>, end: End) -> (Vec<Published>, bool) {
    let options = monitor.options;
    let process = monitor.session.process.as_ref();
    let record = Record {
        id: &options.cid,
        mode: mode_name(&options.mode),
        pid: process.map_or(-1, |process| process.pid),
        end,
        oom: monitor.verdict,
        started: process.map_or(monitor.session.finished, |process| process.started),
        finished: monitor.session.finished,
        totals: monitor.session.totals(monitor.log.lost()),
    };
    let persist = options.persist_dir.as_deref().filter(|dir| !dir.as_os_str().is_empty());
    let bundle = options.bundle.as_deref();
    if record.oom_killed() == Some(true) {
        let dirs: Vec<&Path> = [persist, bundle].into_iter().flatten().collect();
        oom::mark(&dirs);
    }
    monitor.exit_files.publish(&record)
}

const fn mode_name(mode: &Mode) -> &'static str {
    match mode {
        Mode::Create => "create",
        Mode::Restore { .. } => "restore",
        Mode::Exec { .. } => "exec",
    }
}

/// The text of a timeout is part of the contract.
fn final_report(monitor: &mut Monitor<'_>, end: End) {
    let message: &[u8] = if end == End::TimedOut { b"command timed out" } else { b"" };
    monitor.reports.ended(end.status(), message);
}

/// Tells clients of the service how it ended; what they do not take at once is left for later.
fn close_service(monitor: &mut Monitor<'_>, durable: bool) {
    let Some(service) = &monitor.service else { return };
    service.unlink();
    // Whoever connected in time is told as well.
    monitor.accept_service();
    if !monitor.service.as_ref().is_some_and(Service::is_used) {
        return;
    }
    monitor.close_outputs();
    monitor.answer_waiters(durable);
    let mut events = Events::with_capacity(16);
    let deadline = Instant::now() + FAREWELL;
    monitor.serve();
    while Instant::now() < deadline && monitor.is_owed() {
        monitor.end_seats();
        monitor.step(&mut events, Some(SILENCE));
        // The container's end is the end of its execs, which takes a moment; who asked for them hears of it.
        if events.is_empty() && !monitor.is_executing() {
            break;
        }
    }
    monitor.give_up_execs();
    monitor.serve();
}

/// A client that takes nothing for so long is left to a process of its own.
const SILENCE: Duration = Duration::from_millis(5);

/// What clients of the service get of the monitor's time at the end.
const FAREWELL: Duration = Duration::from_millis(200);

/// Leaves clients that are behind to a process of their own, which has nothing but them and the log; those of the service
/// to another one.
fn serve_the_rest(monitor: &mut Monitor<'_>, behind: Vec<Client>) {
    if monitor.is_owed() {
        apart(monitor, serve_seats);
    }
    if !behind.is_empty() {
        apart(monitor, |monitor| {
            let log = monitor.log.k8s.take().map(|k8s| k8s.file);
            let needed: Vec<RawFd> =
                attach::sockets(&behind).chain(log.iter().flat_map(|log| log.descriptors())).collect();
            sys::close_all_but(&needed);
            attach::serve_to_the_end(behind, log, monitor.read_buffer.bytes(), monitor.options.attach_stall_timeout);
        });
    }
}

/// Does something in a process of its own, whose end nobody waits for.
fn apart(monitor: &mut Monitor<'_>, work: impl FnOnce(&mut Monitor<'_>)) {
    match sys::fork() {
        Ok(Fork::Parent(_)) => {}
        Ok(Fork::Child) => {
            sys::detach_signals();
            work(monitor);
            sys::end(0);
        }
        Err(error) => crate::warn!("Failed to leave slow clients to a process of their own: {error}"),
    }
}

/// Serves clients of the service to their last byte. The event queue goes on to work: it is ours alone when the monitor
/// has ended.
fn serve_seats(monitor: &mut Monitor<'_>) {
    let mut needed: Vec<RawFd> = vec![monitor.poll.as_raw_fd()];
    needed.extend(monitor.service.iter().flat_map(|service| service.sockets()));
    needed.extend(monitor.log.k8s.iter().flat_map(|k8s| k8s.file.descriptors()));
    // What is closed below must have no owner any more.
    monitor.execs.running.iter_mut().for_each(Exec::strip);
    needed.extend(monitor.execs.descriptors());
    sys::close_all_but(&needed);
    let mut events = Events::with_capacity(16);
    while monitor.is_owed() {
        monitor.end_seats();
        monitor.step(&mut events, monitor.options.attach_stall_timeout);
        if events.is_empty() && monitor.options.attach_stall_timeout.is_some() {
            return;
        }
    }
}

fn close_link(monitor: &Monitor<'_>) {
    if let Some(attach) = &monitor.attach {
        attach.unlink_link();
    }
}

/// Runs the exit command with nothing but stdio open, and waits for it alone.
fn run_exit_command(monitor: &Monitor<'_>, status: u8) -> u8 {
    // The sync pipe above all: a caller may wait for its end.
    sys::close_from_3();
    if let Err(error) = exit_command(monitor.options, monitor) {
        crate::error!("Failed to run exit command: {error}");
    }
    sys::end(i32::from(status))
}

fn exit_command(options: &Options, monitor: &Monitor<'_>) -> io::Result<()> {
    let Some(command) = &options.exit_command else { return Ok(()) };
    std::thread::sleep(options.exit_delay);
    let words = std::iter::once(command.as_os_str()).chain(options.exit_command_args.iter().map(OsString::as_os_str));
    let argv = words.map(sys::c_string).collect::<io::Result<Vec<CString>>>()?;
    let env: Vec<CString> = std::env::vars_os().filter_map(environment_entry).collect();
    let pid = sys::spawn(&Spawn {
        argv: &argv,
        env: Some(&env),
        stdio: [None; 3],
        open_up: [false; 3],
        keep: None,
        oom_score_adj: monitor.launch.oom_score_adj.as_deref(),
        dies_with_us: false,
        own_listen_pid: false,
        close_rest: true,
        mask: &monitor.launch.mask,
    })?;
    sys::wait_for(pid);
    Ok(())
}

/// The pipes that these variables name are closed by now.
fn environment_entry((name, value): (OsString, OsString)) -> Option<CString> {
    if name.as_bytes().starts_with(b"_OCI_") {
        return None;
    }
    let mut entry = name.into_vec();
    entry.push(b'=');
    entry.extend_from_slice(value.as_bytes());
    CString::new(entry).ok()
}
