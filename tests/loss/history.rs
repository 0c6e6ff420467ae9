//! What the container said before, for clients of the service: exact beginnings, the right byte when it becomes live,
//! gaps where the log has nothing any more.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use conmon_proto::{Action, AttachRequest, Client, Event, History, LogPolicy, Stream, connect, output};

use crate::flow::Pattern;
use crate::rig::{self, LINES, MIB, Steady, ended, patience, size, totals};
use crate::rpc::{Follower, Track, socket, soon, talk};
use crate::support::journal::{own_mounts, tmpfs};
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, same, same_bytes, wait};

pub fn cases() -> Vec<Case> {
    let crowd =
        |id: &str, what: &str, world: World| Case::new(id, "P3", what, move |monitor| under_load(monitor, world));
    vec![
        Case::new("history/asks", "P3", "bytes, lines, all, offsets; either stream and both", |m| asks(m, false)),
        Case::new("history/asks-rotated", "P3", "the same over many small files", |m| asks(m, true)),
        Case::new("history/terminal", "P3", "what a terminal said, and what follows", terminal),
        crowd("history/load", "many ask under full load", World::Plain),
        crowd("history/load-rotates", "the same while the log rotates by itself", World::Rotates),
        crowd("history/load-renamed", "the same while the log is renamed and reopened", World::Renamed),
        crowd("history/load-removed", "the same, and what was renamed is removed", World::Removed),
        crowd("history/load-size-max", "the same while the log begins anew again and again", World::SizeMax),
        crowd("history/load-disk-full", "the same when the disk is full", World::DiskFull),
        crowd("history/load-drop", "the same when the log goes without some of it", World::Drops),
    ]
}

const ERRORS: Pattern = Pattern::Lines(37);
const BOTH: [Option<Pattern>; 2] = [Some(LINES), Some(ERRORS)];

// ---------------------------------------------------------------- at rest

/// What one client asks for, and where each stream must begin.
struct Row {
    history: History,
    wanted: [bool; 2],
    first: [Option<u64>; 2],
    /// Or how much there must be over both streams.
    bytes: Option<u64>,
}

const OUT: u64 = 1 << 20;
const ERR: u64 = 200_000;

fn rows() -> Vec<Row> {
    let row = |history, wanted: [bool; 2], first: [u64; 2]| {
        let first = [0, 1].map(|index: usize| wanted[index].then_some(first[index]));
        Row { history, wanted, first, bytes: None }
    };
    let (out, err, both) = ([true, false], [false, true], [true, true]);
    let sum = |count| Row { bytes: Some(count), ..row(History::Bytes(count), both, [0; 2]) };
    vec![
        row(History::None, both, [OUT, ERR]),
        row(History::All, both, [0; 2]),
        row(History::All, err, [0; 2]),
        row(History::Bytes(0), both, [OUT, ERR]),
        row(History::Bytes(1), out, [OUT - 1, 0]),
        row(History::Bytes(77_777), out, [OUT - 77_777, 0]),
        row(History::Bytes(99_999), err, [0, ERR - 99_999]),
        row(History::Bytes(u64::MAX), both, [0; 2]),
        sum(OUT + ERR),
        sum(OUT + ERR - 1),
        sum(333_333),
        row(History::Lines(0), both, [OUT, ERR]),
        // The last line has no end yet.
        row(History::Lines(1), out, [OUT - OUT % 100, 0]),
        row(History::Lines(3), out, [OUT - OUT % 100 - 200, 0]),
        row(History::Lines(5000), out, [OUT - OUT % 100 - 499_900, 0]),
        row(History::Lines(2), err, [0, ERR - ERR % 37 - 37]),
        row(History::Lines(u64::MAX), both, [0; 2]),
        row(History::From { stdout: 0, stderr: 0 }, both, [0; 2]),
        row(History::From { stdout: 123_456, stderr: 99_999 }, both, [123_456, 99_999]),
        row(History::From { stdout: OUT, stderr: 0 }, both, [OUT, 0]),
        row(History::From { stdout: u64::MAX, stderr: u64::MAX }, both, [OUT, ERR]),
        row(History::From { stdout: 5, stderr: 7 }, out, [5, 0]),
    ]
}

/// Asked when all is quiet, so that everything is known; then the container goes on.
fn asks(monitor: &Monitor, rotated: bool) -> Outcome {
    const MORE: u64 = 300_007;
    let (out, err) = (OUT + MORE, ERR + MORE);
    let script = format!(
        "$W lines:37 0 {ERR} err; $W lines:100 0 {OUT}; : >$D/quiet; go; \
         $W lines:37 {ERR} {err} err & $W lines:100 {OUT} {out}; wait; exit 5"
    );
    let mut scene = rig::scene(monitor, &script)?;
    if rotated {
        scene.set("--log-size-max", "200000").flag("--log-rotate").set("--log-max-files", "30");
    }
    let live = scene.start()?;
    rig::reached(&live, "quiet")?;
    let tracks = talk(&socket(&live), async |client| {
        logged(client, [OUT, ERR]).await?;
        let mut followers = Vec::new();
        for row in rows() {
            let patterns = [0, 1].map(|index: usize| BOTH[index].filter(|_| row.wanted[index]));
            followers.push(Follower::attach(client, patterns, row.history).await?);
        }
        live.go()?;
        for follower in &mut followers {
            follower.read_all().await?;
        }
        Ok(followers.into_iter().map(|follower| follower.track).collect::<Vec<_>>())
    })?;
    same("status", ended(&live)?, 5)?;
    for (row, track) in rows().iter().zip(&tracks) {
        let told = |fail| Fail::Wrong(format!("{:?} of {:?}: {fail:?}", row.history, row.wanted));
        let begun = match row.bytes {
            Some(bytes) => same("bytes", track.bytes, bytes + 2 * MORE),
            None => same("first offsets", track.first, row.first),
        };
        begun.and_then(|()| track.complete([out, err], 5)).and_then(|()| same("lost", track.lost, 0)).map_err(told)?;
    }
    Ok(())
}

/// Waits until so much has been read from the container and is in the log.
async fn logged(client: &Client, wanted: [u64; 2]) -> Outcome {
    loop {
        let state = client.inspect().await?;
        if state.streams.iter().map(|stream| stream.bytes).eq(wanted) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn terminal(monitor: &Monitor) -> Outcome {
    let mut scene = rig::scene(monitor, "stty -echo; echo one; echo two; read a; echo got $a; exit 6")?;
    let live = scene.flag("-t").flag("-i").start()?;
    live.log_has("two")?;
    talk(&socket(&live), async |client| {
        let last = AttachRequest { stdin: true, history: History::Lines(1), ..AttachRequest::default() };
        let all = AttachRequest { history: History::All, ..AttachRequest::default() };
        let ((to, mut events), (to_all, mut all_events)) = (output(), output());
        let attachment = client.attach(&last, to).await?;
        let _quiet = client.attach(&all, to_all).await?;
        attachment.write(b"three\n").await?;
        said(&mut events, 5, b"two\r\ngot three\r\n").await?;
        said(&mut all_events, 0, b"one\r\ntwo\r\ngot three\r\n").await
    })?;
    same("status", ended(&live)?, 6)
}

/// Everything on stdout up to the end, from this offset on.
async fn said(events: &mut conmon_proto::Events, first: u64, wanted: &[u8]) -> Outcome {
    let mut seen = Vec::new();
    loop {
        match soon("output", events.next()).await?.ok_or("the connection ended")? {
            Event::Write { stream: Stream::Stdout, offset, data } => {
                same("offset", offset, first + seen.len() as u64)?;
                seen.extend(data);
            }
            Event::End(end) => {
                same("offset in the end", end.stdout, first + seen.len() as u64)?;
                return same_bytes("output", &seen, wanted);
            }
            other => return Err(format!("{other:?} of a terminal").into()),
        }
    }
}

// ---------------------------------------------------------------- under full load

/// What happens to the log meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum World {
    Plain,
    Rotates,
    Renamed,
    Removed,
    SizeMax,
    DiskFull,
    Drops,
}

impl World {
    /// Some of the output cannot be had any more.
    fn has_gaps(self) -> bool {
        matches!(self, World::Removed | World::SizeMax | World::DiskFull | World::Drops)
    }
}

const CLIENTS: u64 = 10;

fn under_load(monitor: &Monitor, world: World) -> Outcome {
    let most = size(64, 256) * MIB;
    let script = format!(
        "ln -s stop $D/halt; $W lines:37 0 until:$D/halt err max:{most} & $W lines:100 0 until:$D/stop max:{most}; \
         wait; while [ ! -e $D/stop ]; do sleep 0.02; done; exit 5"
    );
    let mut scene = rig::scene(monitor, &format!("go; {script}"))?;
    let mut log = "log";
    match world {
        World::Rotates => {
            let cap = (most / 4).to_string();
            scene.set("--log-size-max", cap).flag("--log-rotate").set("--log-max-files", "100");
        }
        World::SizeMax => drop(scene.set("--log-size-max", "2000000").dir.clone()),
        World::Removed => drop(scene.set("--history-held-max", "3000000").dir.clone()),
        World::DiskFull => {
            own_mounts()?;
            let disk = scene.dir.join("disk");
            fs::create_dir(&disk)?;
            tmpfs(&disk.to_string_lossy(), "size=21m")?;
            log = "disk/log";
        }
        World::Plain | World::Renamed | World::Drops => {}
    }
    let steady = Steady::start(scene, log)?;
    if world == World::Drops {
        let policy = LogPolicy::Limit { bytes_per_second: 4 << 20, burst: 0, action: Action::Drop };
        let set = async |client: &Client| Ok(client.set_log_policy(Stream::Stdout, policy).await?);
        talk(&socket(&steady.live), set)?;
    }
    let here = AtomicU64::new(0);
    let tracks = std::thread::scope(|scope| {
        let live = &steady.live;
        let here = &here;
        let clients: Vec<_> = (0..CLIENTS).map(|seed| scope.spawn(move || visit(live, seed, here))).collect();
        live.go()?;
        let stirred = stir(&steady, world);
        // One more comes late and wants everything.
        let last = scope.spawn(move || talk(&socket(live), async |client| all(client, History::All, here).await));
        // A client that failed is not waited for: it says why.
        let all_here = || Ok((here.load(Ordering::Relaxed) > CLIENTS || last.is_finished()).then_some(()));
        let came = wait::until("all clients to be attached", patience(), all_here);
        let total = steady.stop()?;
        came?;
        stirred?;
        let done = |thread: std::thread::ScopedJoinHandle<'_, Outcome<Track>>| {
            thread.join().map_err(|_| Fail::from("a client panicked"))?
        };
        let last = done(last)?;
        check((last.lost > 0) == world.has_gaps(), format!("{} bytes are lost for one who comes late", last.lost))?;
        same("where the history begins", last.first, [Some(0), Some(0)])?;
        let tracks = clients.into_iter().map(done).chain([Ok(last)]).collect::<Outcome<Vec<_>>>()?;
        same("bytes of stdout", totals(live, 0)?.0, total)?;
        Ok::<_, Fail>(tracks)
    })?;
    let ends = [totals(&steady.live, 0)?.0, totals(&steady.live, 1)?.0];
    for (number, track) in tracks.iter().enumerate() {
        track.complete(ends, 5).map_err(|fail| Fail::Wrong(format!("client {number}: {fail:?}")))?;
        check(track.lost == 0 || world.has_gaps(), format!("client {number} lost {} bytes", track.lost))?;
    }
    Ok(())
}

/// Comes at some moment, asks for something, and reads to the end; some leave in between and come again. Counts when it
/// is attached for the last time.
fn visit(live: &Live, seed: u64, here: &AtomicU64) -> Outcome<Track> {
    let mut word = [0; 8];
    Pattern::Binary.fill(seed * 8, &mut word);
    let number = u64::from_le_bytes(word);
    let history = match seed % 5 {
        0 => History::All,
        1 => History::Bytes(number % (8 * MIB)),
        2 => History::Lines(number % 50_000),
        3 => History::From { stdout: number % MIB, stderr: number % 300_000 },
        _ => History::None,
    };
    std::thread::sleep(Duration::from_millis(number % 200));
    talk(&socket(live), async |client| {
        if seed.is_multiple_of(2) { all(client, history, here).await } else { twice(live, client, history, here).await }
    })
}

async fn all(client: &Client, history: History, here: &AtomicU64) -> Outcome<Track> {
    let mut follower = Follower::attach(client, BOTH, history).await?;
    here.fetch_add(1, Ordering::Relaxed);
    follower.read_all().await?;
    Ok(follower.track)
}

/// Reads some and goes on over another connection where it was.
async fn twice(live: &Live, client: &Client, history: History, here: &AtomicU64) -> Outcome<Track> {
    let mut follower = Follower::attach(client, BOTH, history).await?;
    let enough = |track: &Track| track.bytes > 3 * MIB && track.first.iter().all(Option::is_some);
    // One that came late for live output gets no more than the end.
    let some = tokio::time::timeout(Duration::from_secs(2), follower.read(enough)).await;
    if some.is_err() {
        here.fetch_add(1, Ordering::Relaxed);
        follower.read_all().await?;
        return Ok(follower.track);
    }
    let mut track = follower.track;
    track.told_before = track.lost;
    drop((follower.attachment, follower.events));
    let client = connect(&socket(live)).await?;
    let history = History::From { stdout: track.at(0), stderr: track.at(1) };
    let mut follower = Follower::attach(&client, BOTH, history).await?;
    here.fetch_add(1, Ordering::Relaxed);
    follower.track = track;
    follower.read_all().await?;
    Ok(follower.track)
}

/// What goes on while they come and go.
fn stir(steady: &Steady, world: World) -> Outcome {
    if !matches!(world, World::Renamed | World::Removed) {
        std::thread::sleep(Duration::from_millis(300));
        return Ok(());
    }
    for number in 0..12 {
        std::thread::sleep(Duration::from_millis(25));
        let piece = steady.log.with_extension(number.to_string());
        reopen(steady, &piece)?;
        if world == World::Removed {
            fs::remove_file(&piece)?;
        }
    }
    Ok(())
}

/// Rename and `reopenLog`: the answer says which file it is now, and from which bytes on.
fn reopen(steady: &Steady, piece: &PathBuf) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    fs::rename(&steady.log, piece)?;
    let files =
        talk(&socket(&steady.live), async |client| soon("reopenLog", client.reopen_log()).await?.map_err(Fail::from))?;
    let [file] = &files[..] else { return Err(format!("{files:?}").into()) };
    same("inode", file.inode, fs::metadata(&steady.log)?.ino())?;
    same("path", PathBuf::from(&file.path), steady.log.clone())?;
    wait::until("the new log", patience(), || Ok(steady.log.exists().then_some(())))
}
