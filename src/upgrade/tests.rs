use std::fs;
use std::io::Write;
use std::path::Path;

use capnp::message::{HeapAllocator, TypedBuilder};
use capnp::serialize;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::unistd::pipe2;

use super::state_capnp::state as schema;
use super::*;
use crate::log::Log;
use crate::monitor::saved::Saved;
use crate::monitor::{Launch, Parts};
use crate::options::{self, Parsed};
use crate::parent::Reports;
use crate::session::Session;
use crate::stdio::{Input, Output};
use crate::stream::Stream;

fn options(dir: &Path) -> Options {
    let log = format!("k8s-file:{}", dir.join("log").display());
    let dir = dir.display().to_string();
    let words = ["-c", "id", "-u", "id", "-r", "/bin/sh", "-b", &dir, "-l", &log].map(Into::into);
    match options::parse(words.into_iter(), &|_| None) {
        Ok(Parsed::Run(options, _)) => *options,
        other => panic!("{other:?}"),
    }
}

/// A monitor of a process that is somebody else's, with one output and a log.
fn monitor(options: &Options) -> Box<Monitor<'_>> {
    let (reader, _) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let outputs = [Some(Output::new(Stream::Stdout, reader, false, true)), None];
    let mut session = Session::new(Input::Closed, outputs);
    session.adopt(i32::MAX);
    let mut log = Log::open(options).unwrap();
    log.write(&mut [0; 4096], Stream::Stdout, b"a line\n");
    let reports = Reports::open(options, None, None).unwrap();
    let signals = SignalFd::new(&SigSet::empty()).unwrap();
    let parts = Parts { log, notify: None, reports, start: None, signals };
    let score = Some(CString::new("17").unwrap());
    let launch = Launch {
        theirs: [None, None, None],
        mask: sys::mask_of(0x11),
        oom_score_adj: score,
        listen_pid: None,
        console_base: "/tmp".into(),
    };
    Monitor::new(options, session, parts, launch).unwrap()
}

type Message = TypedBuilder<schema::Owned, HeapAllocator>;

fn message(monitor: &Monitor<'_>) -> Message {
    let mut message = TypedBuilder::new_default();
    monitor.save(c"name", message.init_root(), &mut Given::default());
    message
}

fn parse(bytes: &[u8], options: &Options) -> Result<Saved, StateError> {
    let fill = |to: &mut [u8]| {
        to.copy_from_slice(bytes);
        Ok(())
    };
    state::parse(bytes.len(), fill, options, &mut Taken::stand_ins().unwrap())
}

fn bytes(message: Message) -> Vec<u8> {
    serialize::write_message_to_words(&message.into_inner())
}

#[test]
fn a_running_monitor_is_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let before = monitor(&options);
    let memory = state::seal(&message(&before).into_inner()).unwrap();
    let end = |monitor: &Monitor<'_>| monitor.log.k8s.as_ref().map(|k8s| k8s.file.end());
    let end_before = end(&before);
    // Its descriptors have a new owner.
    std::mem::forget(before);
    let saved = state::read(&memory, &options, &mut Taken::ours()).unwrap();
    assert_eq!(&*saved.name, c"name");
    let signals = SignalFd::new(&SigSet::empty()).unwrap();
    let after = Monitor::resume(&options, saved, signals).unwrap();
    assert_eq!(after.session.phase, Phase::Running);
    assert_eq!(after.session.process.as_ref().map(|process| process.pid), Some(i32::MAX));
    assert_eq!(end(&after), end_before);
    assert_eq!(sys::mask_bits(&after.launch.mask), 0x11);
    assert_eq!(after.launch.oom_score_adj.as_deref(), Some(c"17"));
}

#[test]
fn only_known_versions_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let monitor = monitor(&options);
    for version in [0, state::VERSION + 1, u32::MAX] {
        let mut message = message(&monitor);
        message.get_root().unwrap().set_version(version);
        let answer = parse(&bytes(message), &options);
        assert!(matches!(answer, Err(StateError::Version(said)) if said == version), "{answer:?}");
    }
}

#[test]
fn a_state_that_is_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let bytes = bytes(message(&monitor(&options)));
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len], &options).is_err(), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn a_descriptor_has_one_owner_and_is_not_stdio() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let monitor = monitor(&options);
    for number in [-1, 1, 2] {
        let mut message = message(&monitor);
        message.get_root().unwrap().get_session().unwrap().set_terminal(number);
        let answer = parse(&bytes(message), &options);
        assert!(matches!(answer, Err(StateError::Descriptor(said)) if said == number), "{answer:?}");
    }
    let mut message = message(&monitor);
    message.get_root().unwrap().get_session().unwrap().set_terminal(99);
    message.get_root().unwrap().get_reports().unwrap().set_sync(99);
    let answer = parse(&bytes(message), &options);
    assert!(matches!(answer, Err(StateError::Twice(99))), "{answer:?}");
}

#[test]
fn only_sealed_memory_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let monitor = monitor(&options);
    let read = |file: &File| state::read(file, &options, &mut Taken::stand_ins().unwrap());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes(message(&monitor))).unwrap();
    assert!(matches!(read(&file), Err(StateError::Unsealed)));
    let sealed = state::seal(&message(&monitor).into_inner()).unwrap();
    read(&sealed).unwrap();
    assert!((&sealed).write_all(b"x").is_err());
}

#[test]
fn nobody_is_replaced_before_the_container_runs() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let mut monitor = monitor(&options);
    for phase in [Phase::Held, Phase::Starting, Phase::Ended, Phase::Failed] {
        monitor.session.phase = phase;
        let Err(error) = prepare(&monitor, None) else { panic!("it does not run") };
        assert!(matches!(error, UpgradeError::NotRunning(said) if said == phase), "{error}");
    }
}

#[test]
fn a_refusal_says_stage_and_reason_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let monitor = monitor(&options);
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    let script = dir.path().join("script");
    fs::write(&script, "").unwrap();
    for (path, stage, reason) in [
        (Path::new("/does/not/exist"), "failed to open /does/not/exist", "No such file"),
        (dir.path(), "failed to open", "no regular file"),
        (&script, "check by", "Permission denied"),
        // It ends well and says nothing.
        (Path::new("/bin/true"), "check by /bin/true", "ended with status 0"),
        (Path::new("/bin/false"), "check by /bin/false", "ended with status 1"),
    ] {
        let Err(error) = prepare(&monitor, Some(path)) else { panic!("it is no candidate") };
        let text = error.to_string();
        assert!(text.contains(stage) && text.contains(reason), "{text}");
    }
    drop(monitor);
    assert!(fs::read_dir("/proc/self/fd").unwrap().count() < before + 8);
}

#[test]
fn the_words_stay_and_the_last_upgrade_goes() {
    let words = |line: &[&str]| line.iter().map(OsString::from).collect::<Vec<_>>();
    for (before, after) in [
        (&["c", "-c", "id", "--", "x"][..], &["c", "--resume", "7", "-c", "id", "--", "x"][..]),
        (&["c", "--resume", "12", "-c", "--resume"], &["c", "--resume", "7", "-c", "--resume"]),
        (&["c"], &["c", "--resume", "7"]),
    ] {
        assert_eq!(spliced(words(before), ["--resume", "7"]), words(after));
    }
}
