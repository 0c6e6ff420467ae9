//! Much data in both directions, compared byte by byte.

use std::rc::Rc;

use conmon_proto::{AttachRequest, EndReason, Event, Events, ExecSpec, Stream, output};

use crate::rig::{MIB, connect, end_idle, idle, sh, size, start_with, talk};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("bulk/exec", "P10", "stdin -> cat -> stdout of an exec, random bytes, half-close", exec),
        Case::new("bulk/attach", "P2", "the same through attach", attach),
        Case::new("bulk/two-at-once", "P2", "an exec and an attachment on one connection", both),
    ]
}

/// Random enough that no byte of one place is taken for another's (splitmix64).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, to: &mut [u8]) {
        for chunk in to.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Whole words, so that pieces of any size continue each other.
const PIECE: usize = 256 * 1024;

async fn expect(events: &mut Events, seed: u64, total: u64) -> Outcome<conmon_proto::End> {
    let (mut noise, mut ahead, mut at) = (Noise(seed), Vec::new(), 0_u64);
    loop {
        match events.next().await {
            Some(Event::Write { stream: Stream::Stdout, offset, data }) => {
                same("offset", offset, at)?;
                at += data.len() as u64;
                while ahead.len() < data.len() {
                    let begin = ahead.len();
                    ahead.resize(begin + PIECE, 0);
                    noise.fill(&mut ahead[begin..]);
                }
                check(ahead[..data.len()] == data[..], format!("other bytes than expected from {offset} on"))?;
                ahead.drain(..data.len());
            }
            Some(Event::End(end)) => {
                same("bytes that came", (at, end.stdout, end.lost), (total, total, 0))?;
                return Ok(end);
            }
            other => return Err(format!("expected output, saw {other:?}").into()),
        }
    }
}

fn total() -> u64 {
    size(64, 1024) * MIB
}

macro_rules! type_all {
    ($to:expr, $seed:expr) => {{
        let (mut noise, mut piece, mut left) = (Noise($seed), vec![0; PIECE], total());
        while left > 0 {
            noise.fill(&mut piece);
            $to.write(&piece).await?;
            left -= PIECE as u64;
        }
        $to.close_stdin().await?;
        Ok::<(), conmon_proto::Error>(())
    }};
}

fn exec(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let (output, mut events) = output();
        let exec = Rc::new(client.exec(&ExecSpec { stdin: true, ..sh("exec cat") }, Some(output)).await?);
        let typing = {
            let exec = Rc::clone(&exec);
            tokio::task::spawn_local(async move { type_all!(exec, 1) })
        };
        let end = expect(&mut events, 1, total()).await?;
        typing.await.map_err(|error| error.to_string())??;
        same("end", (end.reason, end.exit.map(|exit| exit.status)), (EndReason::Ended, Some(0)))?;
        same("total in the result", exec.wait().await?.exit.stdout.bytes, total())
    })?;
    end_idle(&live)
}

fn attach(monitor: &Monitor) -> Outcome {
    let live = start_with(monitor, "cat; exit 6", |scene| scene.flag("-i"))?;
    talk(async {
        let client = connect(&live).await?;
        let (output, mut events) = output();
        let request = AttachRequest { stdin: true, ..AttachRequest::default() };
        let attachment = Rc::new(client.attach(&request, output).await?);
        let typing = {
            let attachment = Rc::clone(&attachment);
            tokio::task::spawn_local(async move { type_all!(attachment, 2) })
        };
        let end = expect(&mut events, 2, total()).await?;
        typing.await.map_err(|error| error.to_string())??;
        same("end", (end.reason, end.exit.map(|exit| exit.status)), (EndReason::Ended, Some(6)))
    })?;
    same("status", live.end()?, 6)?;
    let logged = crate::support::crilog::bytes_of(&live.log()?, "stdout").len() as u64;
    same("bytes in the log", logged, total())
}

fn both(monitor: &Monitor) -> Outcome {
    let live = start_with(monitor, "cat; go; exit 6", |scene| scene.flag("-i"))?;
    talk(async {
        let client = connect(&live).await?;
        let (first, mut of_exec) = output();
        let (second, mut of_container) = output();
        let exec = Rc::new(client.exec(&ExecSpec { stdin: true, ..sh("exec cat") }, Some(first)).await?);
        let request = AttachRequest { stdin: true, ..AttachRequest::default() };
        let attachment = Rc::new(client.attach(&request, second).await?);
        let (to_exec, to_container) = (Rc::clone(&exec), Rc::clone(&attachment));
        let typing = [
            tokio::task::spawn_local(async move { type_all!(to_exec, 3) }),
            tokio::task::spawn_local(async move { type_all!(to_container, 4) }),
        ];
        let reading = tokio::task::spawn_local(async move { expect(&mut of_exec, 3, total()).await });
        let container = tokio::task::spawn_local(async move { expect(&mut of_container, 4, total()).await });
        reading.await.map_err(|error| error.to_string())??;
        live.go()?;
        container.await.map_err(|error| error.to_string())??;
        for one in typing {
            one.await.map_err(|error| error.to_string())??;
        }
        Ok(())
    })?;
    same("status", live.end()?, 6)
}
