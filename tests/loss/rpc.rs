//! Clients of the service: conversations, followers that check every byte and gap, and readers in processes of their own.

use std::fs;
use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use conmon_proto::{AttachRequest, Attachment, Client, End, EndReason, Event, Events, History, Stream, output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clients::read_on;
use crate::flow::{Expect, Pattern};
use crate::rig::patience;
use crate::support::scene::Live;
pub use crate::support::service::socket;
use crate::support::{Fail, Outcome, attach, check, same, service, wait};

/// Has a conversation with the monitor, on a loop of its own.
pub fn talk<T>(socket: &Path, work: impl AsyncFnOnce(&Client) -> Outcome<T>) -> Outcome<T> {
    service::talk(async {
        let client = conmon_proto::connect(socket).await?;
        work(&client).await
    })
}

/// What is waited for comes in time, or the case fails.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> Outcome<T> {
    let late = |_| Fail::Wrong(format!("waited {} s in vain for {what}", patience().as_secs()));
    tokio::time::timeout(patience(), work).await.map_err(late)
}

/// What has come to one client, compared with what should.
#[derive(Debug)]
pub struct Track {
    /// stdout and stderr; what is not expected at all must not come.
    patterns: [Option<Pattern>; 2],
    /// Where each stream is, from its first event on.
    streams: [Option<Expect>; 2],
    /// Offset of each stream's first byte or gap.
    pub first: [Option<u64>; 2],
    pub bytes: u64,
    pub lost: u64,
    /// What of it an earlier attachment was told.
    pub told_before: u64,
    pub end: Option<End>,
}

impl Track {
    pub fn new(patterns: [Option<Pattern>; 2]) -> Track {
        Track { patterns, streams: [None, None], first: [None; 2], bytes: 0, lost: 0, told_before: 0, end: None }
    }

    /// The next offset of a stream.
    pub fn at(&self, index: usize) -> u64 {
        self.streams[index].as_ref().map_or(0, |expect| expect.at)
    }

    pub fn take(&mut self, event: Event) -> Outcome {
        check(self.end.is_none(), "something comes behind the end")?;
        match event {
            Event::Write { stream, offset, data } => {
                check(!data.is_empty(), "a write without bytes")?;
                self.bytes += data.len() as u64;
                self.stream(stream, offset)?.take(&data)
            }
            Event::Gap { stream, offset, lost } => {
                check(lost > 0, "a gap of nothing")?;
                self.lost += lost;
                self.stream(stream, offset)?.skip(lost);
                Ok(())
            }
            Event::End(end) => {
                self.end = Some(end);
                Ok(())
            }
        }
    }

    /// The stream that goes on at this offset, or begins there.
    fn stream(&mut self, stream: Stream, offset: u64) -> Outcome<&mut Expect> {
        let index = usize::from(stream == Stream::Stderr);
        let pattern = self.patterns[index].ok_or(format!("{stream} is not wanted"))?;
        self.first[index].get_or_insert(offset);
        let expect = self.streams[index].get_or_insert_with(|| Expect::new(pattern, offset));
        same(&format!("offset in {stream}"), offset, expect.at)?;
        Ok(expect)
    }

    /// The end was told, with these totals and this status, and each stream that is wanted was there to its end.
    pub fn complete(&self, totals: [u64; 2], status: i32) -> Outcome {
        let end = self.end.as_ref().ok_or("no end was told")?;
        same("reason of the end", end.reason, EndReason::Ended)?;
        let exit = end.exit.as_ref().ok_or("no exit in the end")?;
        same("status", exit.status, status)?;
        same("totals", [exit.stdout.bytes, exit.stderr.bytes], totals)?;
        let told = [end.stdout, end.stderr];
        for index in (0..2).filter(|index| self.patterns[*index].is_some() && totals[*index] > 0) {
            // Who came when all was said got nothing but the end.
            if self.first[index].is_some() {
                same("offset that was reached", self.at(index), totals[index])?;
            }
            same("offset in the end", told[index], totals[index])?;
        }
        same("bytes lost, in the end", end.lost, self.lost - self.told_before)
    }
}

/// One attached client.
pub struct Follower {
    pub attachment: Attachment,
    pub events: Events,
    pub track: Track,
}

impl Follower {
    /// Attaches to the streams that have a pattern.
    pub async fn attach(client: &Client, patterns: [Option<Pattern>; 2], history: History) -> Outcome<Follower> {
        let request = AttachRequest {
            stdout: patterns[0].is_some(),
            stderr: patterns[1].is_some(),
            history,
            ..AttachRequest::default()
        };
        let (output, events) = output();
        let attachment = soon("an attachment", client.attach(&request, output)).await??;
        Ok(Follower { attachment, events, track: Track::new(patterns) })
    }

    /// Takes events until `enough`, the end, or the end of the connection; false for the latter.
    pub async fn read(&mut self, mut enough: impl FnMut(&Track) -> bool) -> Outcome<bool> {
        while self.track.end.is_none() && !enough(&self.track) {
            match soon("output", self.events.next()).await? {
                Some(event) => self.track.take(event)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes everything up to the end.
    pub async fn read_all(&mut self) -> Outcome {
        check(self.read(|_| false).await?, "the connection ended before the output")
    }
}

// ---------------------------------------------------------------- readers in processes of their own

/// How a reader comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Attach,
    Service,
}

/// A process that is attached and compares what comes; it can be stopped.
#[derive(Debug)]
pub struct Reader {
    child: Child,
    result: PathBuf,
}

const READER: &str = "--reader";

impl Reader {
    /// Starts it; when this returns it is attached.
    pub fn start(live: &Live, door: Door, pattern: Pattern) -> Outcome<Reader> {
        let (number, door) = match door {
            Door::Attach => (live.dir.join("b/attach"), "attach"),
            Door::Service => (socket(live), "service"),
        };
        let count = fs::read_dir(&live.dir)?.count();
        let result = live.dir.join(format!("reader{count}"));
        fs::write(&result, "")?;
        let child = Command::new(std::env::current_exe()?)
            .args([READER, door])
            .args([number.as_path(), &result])
            .arg(pattern.name())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()?;
        let reader = Reader { child, result };
        let ready = reader.result.with_extension("ready");
        wait::until("a reader to be attached", patience(), || Ok(ready.exists().then_some(())))?;
        Ok(reader)
    }

    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX)), signal)?)
    }

    /// Waits for its end: the place that it reached, and what it was told of the end.
    pub fn result(mut self) -> Outcome<(u64, String)> {
        let child = &mut self.child;
        let status = wait::until("the end of a reader", patience(), || Ok(child.try_wait()?))?;
        let text = fs::read_to_string(&self.result)?;
        check(status.success(), format!("a reader: {text}"))?;
        let (at, end) = text.split_once(' ').ok_or(format!("a reader said {text:?}"))?;
        Ok((at.parse().map_err(|_| format!("a reader said {text:?}"))?, end.to_owned()))
    }
}

/// The test program as a reader.
pub fn reader(args: &[String]) -> Option<ExitCode> {
    let [_, word, door, socket, result, pattern] = args else { return None };
    if word != READER {
        return None;
    }
    let (socket, result) = (Path::new(socket), Path::new(result));
    let ready = || fs::write(result.with_extension("ready"), "");
    let pattern = Pattern::parse(pattern)?;
    let seen = if door == "attach" {
        read_packets(socket, pattern, ready)
    } else {
        talk(socket, async |client| read_service(client, pattern, ready).await)
    };
    let (text, code) = match seen {
        Ok((at, end)) => (format!("{at} {end}"), ExitCode::SUCCESS),
        Err(fail) => (format!("{fail:?}"), ExitCode::FAILURE),
    };
    fs::write(result, text).ok()?;
    Some(code)
}

fn read_packets(socket: &Path, pattern: Pattern, ready: impl Fn() -> std::io::Result<()>) -> Outcome<(u64, String)> {
    let client = attach::Client::connect(socket)?;
    ready()?;
    Ok((read_on(&client, pattern, 0, None)?, "end".to_owned()))
}

async fn read_service(
    client: &Client,
    pattern: Pattern,
    ready: impl Fn() -> std::io::Result<()>,
) -> Outcome<(u64, String)> {
    let mut follower = Follower::attach(client, [Some(pattern), None], History::None).await?;
    ready()?;
    if !follower.read(|_| false).await? {
        return Ok((follower.track.at(0), "lost".to_owned()));
    }
    let track = &follower.track;
    let end = track.end.as_ref().ok_or("no end")?;
    same("offset in the end", end.stdout, track.at(0))?;
    same("bytes lost", (track.lost, end.lost), (0, 0))?;
    let exit = end.exit.as_ref().map_or(String::new(), |exit| format!(" {}", exit.status));
    Ok((track.at(0), format!("{}{exit}", end.reason)))
}
