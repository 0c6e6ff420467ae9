//! The service: whatever a client sends, the connection works on or ends. Nothing spins, nothing grows without bound, and
//! nothing is left of it when it is gone.
#![no_main]

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::SystemTime;

use conmon_proto::conward_capnp::end;
use conward::command::{Code, Command, Refusal, Reply};
use conward::exec::{Outcome, Process};
use conward::exit::{End, Summary, Total};
use conward::rpc::{Answer, Closing, Phase, Remote, Service, Target};
use conward::stream::Stream;
use conward::sys;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;
use mio::Poll;

/// More polls than a conversation of a few kilobytes can need.
const ROUNDS: usize = 5000;

/// What the heap may have gained when a conversation is over: buffers of the allocator's own, and room in lists.
const LEFT_MAX: usize = 64 * 1024;

/// The same while it lasts: results, and what is on its way.
const HELD_MAX: usize = 8 << 20;

fuzz_target!(|data: &[u8]| {
    thread_local! {
        static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
    }
    BENCH.with_borrow_mut(|bench| {
        let before = sys::heap_in_use();
        bench.converse(data);
        let after = sys::heap_in_use();
        assert!(after < before + LEFT_MAX, "{} bytes are left behind", after - before);
    });
});

struct Bench {
    service: Service,
    poll: Poll,
    dir: tempfile::TempDir,
    /// Who waits for an answer that comes later, and with what.
    later: Vec<(Answer, Reply)>,
    remotes: Vec<Remote>,
    started: u32,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let service = Service::bind(&dir.path().join("s")).expect("a socket");
        let poll = Poll::new().expect("a queue");
        Bench { service, poll, dir, later: Vec::new(), remotes: Vec::new(), started: 0 }
    }

    fn converse(&mut self, data: &[u8]) {
        let mut dice = Dice(data);
        let (framed, pace) = (dice.below(2) == 1, 1 + dice.below(64) * 64);
        let before = sys::heap_in_use();
        let mut peer = UnixStream::connect(self.dir.path().join("s")).expect("it listens");
        peer.set_nonblocking(true).expect("a flag");
        self.service.accept(self.poll.registry());
        assert_eq!(self.service.connections(), 1);
        let bytes = if framed { frames(&mut dice) } else { dice.0.to_vec() };
        let patient = bytes.len() % 2 == 0;
        for chunk in bytes.chunks(pace) {
            // Nobody listens any more, or nobody reads: then this is all.
            if !matches!(peer.write(chunk), Ok(count) if count == chunk.len()) {
                break;
            }
            self.work();
            if patient {
                drain(&mut peer);
            }
            let held = sys::heap_in_use().saturating_sub(before);
            assert!(held < HELD_MAX, "{held} bytes are held for {} bytes", bytes.len());
        }
        drain(&mut peer);
        self.work();
        drop(peer);
        self.work();
        self.later.clear();
        self.remotes.clear();
        self.work();
        assert_eq!(self.service.connections(), 0, "the connection is still there");
        assert!(!self.service.is_used(), "something still waits for it");
    }

    /// Turns of the monitor until there is nothing to do.
    fn work(&mut self) {
        for _ in 0..ROUNDS {
            self.service.refill();
            // Numbers count up, and only the last connection is there.
            self.service.wake_all();
            self.service.run();
            for (answer, reply) in self.later.drain(..) {
                let _ = answer.send(Ok(reply));
            }
            let (asked, happened) = (self.service.asked(), self.service.happened());
            let idle = asked.is_empty() && happened.is_empty() && !self.service.is_awake() && self.later.is_empty();
            for ask in asked {
                self.obey(ask.command, ask.answer);
            }
            self.service.guard(0);
            if idle {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn obey(&mut self, command: Command, answer: Option<Answer>) {
        let reply = match command {
            Command::Wait => Ok(Reply::Ended(summary(), true)),
            Command::ExecWait(id) => Ok(Reply::Result(Box::new(outcome(id)))),
            Command::ExecResult(id) if id % 2 == 0 => Ok(Reply::Result(Box::new(outcome(id)))),
            Command::Attach(request) => Ok(Reply::Attached(self.send_to(request.remote, Target::Client))),
            Command::Exec(spec, remote) => {
                match &spec.process {
                    Process::Json(text) => assert!(!text.is_empty()),
                    Process::Words { args, .. } => assert!(!args.is_empty()),
                    Process::Named(_) => panic!("nobody can ask for this"),
                }
                let id = remote.map_or(1, |remote| self.send_to(remote, Target::Exec));
                Ok(Reply::Started(id))
            }
            Command::ReopenLog => Ok(Reply::Reopened(Vec::new())),
            Command::Input { .. } | Command::CloseInput { .. } | Command::Signal { .. } | Command::Resize { .. } => {
                Ok(Reply::Done)
            }
            Command::SetPolicy { .. } | Command::Upgrade { .. } | Command::Detach(_) | Command::Abandon(_) => {
                Ok(Reply::Done)
            }
            Command::Inspect | Command::ExecResult(_) => Err(Refusal::new(Code::NotFound, "there is none")),
        };
        match (answer, reply) {
            (Some(answer), Ok(reply)) if self.started % 2 == 1 => self.later.push((answer, reply)),
            (Some(answer), reply) => drop(answer.send(reply)),
            (None, _) => {}
        }
        self.started = self.started.wrapping_add(1);
    }

    /// As much output as it has room for, and the end.
    fn send_to(&mut self, remote: Remote, target: fn(u32) -> Target) -> u32 {
        remote.aim(target(self.started));
        let mut offset = 0;
        while remote.has_room() && offset < 1 << 20 {
            remote.write(Stream::Stdout, offset, &[b'x'; 4096]);
            offset += 4096;
        }
        remote.gap(Stream::Stderr, 0, 7);
        let offsets = [offset, 7];
        remote.end(&Closing { reason: end::Reason::Ended, exit: Some(summary()), offsets, lost: 7 });
        assert_ne!(remote.phase(), Phase::Done, "it was not asked yet");
        self.remotes.push(remote);
        self.started
    }
}

/// Messages whose frames are right, whatever is in them.
fn frames(dice: &mut Dice<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !dice.0.is_empty() {
        let words = 1 + dice.below(48);
        let mut body = dice.take(words * 8).to_vec();
        body.resize(body.len().next_multiple_of(8), 0);
        bytes.extend([0; 4]);
        bytes.extend(u32::try_from(body.len() / 8).expect("few").to_le_bytes());
        bytes.extend(body);
    }
    bytes
}

fn drain(peer: &mut UnixStream) {
    let mut buffer = [0; 65536];
    loop {
        match peer.read(&mut buffer) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

fn summary() -> Summary {
    let (time, total) = (SystemTime::UNIX_EPOCH, Total { bytes: 9, lost: 1 });
    let end = Some(End::Exited(3));
    Summary { end, oom_killed: None, pid: 5, started: time, finished: time, totals: [total; 2] }
}

fn outcome(id: u32) -> Outcome {
    let captured = [b"output".to_vec(), Vec::new()];
    Outcome { id, exit: summary(), error: b"why".to_vec(), captured, truncated: true, held: false }
}
