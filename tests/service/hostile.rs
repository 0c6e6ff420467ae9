//! Clients that mean ill: each is refused with a reason, and the container does not notice.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use capnp_rpc::rpc_capnp::exception::Type;
use capnp_rpc::rpc_capnp::message;

use crate::peer::{self, Came, INSPECT, Peer, VERSION, WAIT};
use crate::rig::{MIB, connect, end_idle, idle, patience, private_kib, size, soak, socket, start, talk};
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, contains, procs, same, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("hostile/storm", "P11", "thousands of connections; the log goes on", storm),
        Case::new(
            "hostile/throughput",
            "P11",
            "a storm slows the container no more than one elsewhere (SOAK=1)",
            throughput,
        ),
        Case::new("hostile/half-messages", "P11", "messages that are cut anywhere", half_messages),
        Case::new("hostile/giant", "P11", "giant messages that are announced", giant),
        Case::new("hostile/nesting", "P11", "a message that nests too deep", nesting),
        Case::new("hostile/garbage", "P11", "bytes that are no messages", garbage),
        Case::new("hostile/wrong-user", "P12", "another user is told why it is not served", wrong_user),
        Case::new("hostile/full-house", "P11", "the 17th is told why, or a silent one makes room", full_house),
        Case::new("hostile/never-reads", "P11", "calls without end by one who never reads", never_reads),
        Case::new("hostile/never-finishes", "P11", "the same by one who reads but never lets go", |m| {
            never_finishes(m, INSPECT)
        }),
        Case::new("hostile/waits-without-end", "P11", "more and more calls that have no answer yet", |m| {
            never_finishes(m, WAIT)
        }),
        Case::new("hostile/unknown", "P11", "methods and interfaces that do not exist", unknown),
    ]
}

/// A container that writes a numbered line every few milliseconds until its go.
fn busy(monitor: &Monitor) -> Outcome<Live> {
    let live = start(monitor, "i=0; until [ -e $D/stop ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit 6")?;
    live.log_has("line 2")?;
    Ok(live)
}

/// The log has grown on all the time, and nothing is missing in it.
fn end_busy(live: &Live) -> Outcome {
    let before = live.log_bytes().len();
    wait::until_true("the log to go on", || live.log_bytes().len() > before + 100)?;
    // An honest client is served as well, once there is room.
    talk(async {
        crate::rig::until("an honest client to be served", async || {
            Ok(conmon_proto::connect(&socket(live)).await?.version().await.ok())
        })
        .await
        .map(drop)
    })?;
    fs::write(live.dir.join("b/stop"), "")?;
    same("status", live.end()?, 6)?;
    let lines = live.plain_log()?;
    for (index, line) in lines.iter().enumerate() {
        same("a line of the log", line.as_str(), format!("stdout F line {}", index + 1).as_str())?;
    }
    Ok(())
}

fn memory(live: &Live, limit: u64) -> Outcome {
    let kib = private_kib(live.pid()?)?;
    check(kib <= limit, format!("{kib} KiB are private, {limit} are allowed"))
}

fn storm(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    let before = procs::descriptors(live.pid()?)?.len();
    let count = size(3000, 10_000);
    let mut kept = Vec::new();
    for number in 0..count {
        let mut stream = UnixStream::connect(socket(&live))?;
        // Some send a little first, some stay.
        if number % 3 == 0 {
            let _ = stream.write_all(&peer::bootstrap()[..8]);
        }
        if number % 50 == 0 {
            kept.push(stream);
            kept.truncate(100);
        }
    }
    memory(&live, 4096)?;
    drop(kept);
    let pid = live.pid()?;
    wait::until_true("the descriptors to be given back", || {
        procs::descriptors(pid).is_ok_and(|list| list.len() <= before)
    })?;
    end_busy(&live)
}

/// The same storm against this monitor and against one beside it, in turn: what the attacker itself takes of the machine
/// is the same both times.
fn throughput(monitor: &Monitor) -> Outcome {
    if !soak() {
        return Err(Fail::Skip("a measure: SOAK=1".to_owned()));
    }
    let bystander = idle(monitor)?;
    let mut ratios = Vec::new();
    for _ in 0..7 {
        let elsewhere = timed(monitor, Some(&bystander))?;
        let here = timed(monitor, None)?;
        ratios.push(elsewhere.as_secs_f64() / here.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    check(ratios[3] >= 0.95, format!("throughput under a storm by that under one elsewhere, sorted: {ratios:.3?}"))?;
    end_idle(&bystander)
}

/// How long a container takes for its output while somebody storms a monitor: `target`, or its own.
fn timed(monitor: &Monitor, target: Option<&Live>) -> Outcome<Duration> {
    let total = 512 * MIB;
    let live = start(monitor, &format!("go; head -c {total} /dev/zero; : >$D/written; go; exit 6"))?;
    let path = socket(target.unwrap_or(&live));
    let stop = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| hammer(&path, &stop));
        let begun = Instant::now();
        let written = live.dir.join("b/written");
        let done = live.go().and_then(|()| {
            wait::until("all to be written", patience(), || Ok(written.exists().then(|| begun.elapsed())))
        });
        stop.store(true, Ordering::Relaxed);
        done
    })?;
    live.go()?;
    same("the monitor's status", live.end()?, 6)?;
    fs::remove_dir_all(&live.dir)?;
    Ok(took)
}

/// Connects, says half of something or nonsense, and goes, as often as it can.
fn hammer(path: &Path, stop: &AtomicBool) {
    let words = [peer::bootstrap()[..8].to_vec(), vec![0xff; 64]];
    for word in words.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
        // Being refused is what it is there for.
        let _ = UnixStream::connect(path).and_then(|mut stream| stream.write_all(word));
    }
}

fn half_messages(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    let whole = [peer::bootstrap(), peer::call(1, INSPECT)].concat();
    for end in 1..whole.len() {
        let mut peer = Peer::connect(&live)?;
        peer.send(&whole[..end])?;
        peer.stream.shutdown(std::net::Shutdown::Write)?;
        peer.closed().map_err(|fail| Fail::Wrong(format!("cut at {end}: {fail:?}")))?;
    }
    memory(&live, 2048)?;
    end_busy(&live)
}

fn giant(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    let table = |segments: u32, sizes: &[u32]| -> Vec<u8> {
        std::iter::once(&(segments - 1)).chain(sizes).flat_map(|word| word.to_le_bytes()).collect()
    };
    let headers = [
        table(1, &[u32::MAX]),
        table(1, &[(1 << 17) + 1]),
        table(2, &[1 << 16, (1 << 16) + 1, 0]),
        table(600, &[1; 600]),
        [u32::MAX.to_le_bytes(), 5_u32.to_le_bytes()].concat(),
    ];
    for header in headers {
        let mut peer = Peer::connect(&live)?;
        peer.send(&header)?;
        let (reason, _) = peer.abort().map_err(|fail| Fail::Wrong(format!("{:?}: {fail:?}", &header[..8])))?;
        check(!reason.is_empty(), "an abort says why")?;
        peer.closed()?;
    }
    memory(&live, 2048)?;
    end_busy(&live)
}

/// Whatever the monitor does not know it sends back, for which it has to follow every pointer.
fn nesting(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    for depth in [10, 33, 5000] {
        let mut message = capnp::message::Builder::new_default();
        let join = message.init_root::<message::Builder<'_>>().init_join();
        let mut inner = join.get_key_part().init_as::<message::Builder<'_>>();
        for _ in 0..depth {
            inner = inner.init_unimplemented();
        }
        let mut peer = Peer::connect(&live)?;
        peer.send(&capnp::serialize::write_message_to_words(&message))?;
        if depth > 32 {
            let (reason, _) = peer.abort()?;
            contains("reason", &reason, "nested")?;
        } else {
            same("an answer", peer.next()?, Some(Came::Other))?;
            peer.stream.shutdown(std::net::Shutdown::Write)?;
        }
        peer.closed()?;
    }
    end_busy(&live)
}

fn garbage(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    let mut seed = 7_u64;
    for _ in 0..200 {
        let mut bytes = Vec::new();
        for _ in 0..64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend((seed >> 24).to_le_bytes());
        }
        // A sensible frame around it, half of the time.
        if seed & 1 << 40 == 0 {
            bytes[..8].copy_from_slice(&[0, 0, 0, 0, 63, 0, 0, 0]);
        }
        let mut peer = Peer::connect(&live)?;
        peer.send(&bytes)?;
        peer.stream.shutdown(std::net::Shutdown::Write)?;
        peer.closed()?;
    }
    memory(&live, 2048)?;
    end_busy(&live)
}

/// Some other user.
const STRANGER: u32 = 12_345;

fn wrong_user(monitor: &Monitor) -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return Err(Fail::Skip("only root can be somebody else".to_owned()));
    }
    let live = idle(monitor)?;
    // The doors are opened that usually keep others out.
    let path = socket(&live);
    for dir in
        path.ancestors().skip(1).take_while(|dir| dir.starts_with(std::env::temp_dir()) && *dir != std::env::temp_dir())
    {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    // A connection has the user that its process has at that moment.
    nix::unistd::seteuid(STRANGER.into())?;
    let connected = UnixStream::connect(&path);
    nix::unistd::seteuid(0.into())?;
    let mut peer = Peer::over(connected?)?;
    let (reason, kind) = peer.abort()?;
    contains("reason", &reason, &format!("user {STRANGER} is neither root nor the monitor's own"))?;
    same("kind", kind, Type::Failed)?;
    peer.closed()?;
    end_idle(&live)
}

fn full_house(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    let mut silent: Vec<Peer> = (0..16).map(|_| Peer::connect(&live)).collect::<Outcome<_>>()?;
    let mut late = Peer::connect(&live)?;
    let (reason, kind) = late.abort()?;
    contains("reason", &reason, "16 connections")?;
    same("kind", kind, Type::Overloaded)?;
    // Whoever has asked for something stays.
    silent[0].bootstrap()?;
    silent[0].call(VERSION)?;
    same("answer", silent[0].next()?, Some(Came::Return))?;
    std::thread::sleep(Duration::from_millis(1100));
    for number in 1..4 {
        let mut next = Peer::connect(&live)?;
        next.bootstrap()?;
        next.call(VERSION)?;
        same("answer", next.next()?, Some(Came::Return))?;
        silent[number].closed()?;
        silent.push(next);
    }
    silent[0].call(VERSION)?;
    while silent[0].next()? != Some(Came::Return) {}
    drop(silent);
    end_busy(&live)
}

fn never_reads(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    let mut greedy: Vec<Peer> = (0..4).map(|_| Peer::connect(&live)).collect::<Outcome<_>>()?;
    let began = Instant::now();
    let mut open = [true; 4];
    for peer in &mut greedy {
        peer.bootstrap()?;
        peer.stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    }
    while began.elapsed() < Duration::from_secs(2) && open.contains(&true) {
        for (peer, open) in greedy.iter_mut().zip(&mut open) {
            // It is not read any more, or it was ended: both are fine.
            *open = *open && (0..200).all(|_| peer.call(INSPECT).is_ok());
        }
    }
    check(!open.contains(&true), "somebody who does not read is not read")?;
    memory(&live, 48 * 1024)?;
    drop(greedy);
    end_busy(&live)?;
    Ok(())
}

fn never_finishes(monitor: &Monitor, method: u16) -> Outcome {
    let live = busy(monitor)?;
    let mut greedy = Peer::connect(&live)?;
    greedy.bootstrap()?;
    let reader = greedy.stream.try_clone()?;
    let reading = std::thread::spawn(move || {
        let mut reader = reader;
        std::io::copy(&mut reader, &mut std::io::sink()).is_ok()
    });
    // One write for many calls: it is the answers that are to be a burden.
    let (began, mut calls) = (Instant::now(), 0);
    // It may be ended for it.
    while began.elapsed() < Duration::from_secs(size(4, 60)) && send_many(&mut greedy, method) {
        calls += 200;
        if calls % 2000 == 0 {
            memory(&live, 48 * 1024)?;
        }
    }
    check(calls > 1000, "it was served at all")?;
    drop(greedy);
    let _ = reading.join();
    end_busy(&live)
}

fn send_many(peer: &mut Peer, method: u16) -> bool {
    let many: Vec<u8> = (0..200).flat_map(|_| peer.next_call(method)).collect();
    peer.send(&many).is_ok()
}

fn unknown(monitor: &Monitor) -> Outcome {
    let live = busy(monitor)?;
    talk(async { connect(&live).await?.version().await.map(drop).map_err(Into::into) })?;
    let mut peer = Peer::connect(&live)?;
    peer.bootstrap()?;
    for method in [12, 99, u16::MAX] {
        peer.call(method)?;
    }
    peer.call(VERSION)?;
    for _ in 0..3 {
        check(matches!(peer.next()?, Some(Came::Return | Came::Other)), "an unknown method is answered")?;
    }
    drop(peer);
    end_busy(&live)
}
